"""Which images share a batch, what is dropped, and that a failing one fails no other."""

import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from http import HTTPStatus

import numpy as np
import pytest
from hypothesis import given, settings as examples, strategies as st
from tests.serve.conftest import NAMES, QUICK

import sefi
from sefi.core.config import GenerateSettings
from sefi.core.errors import GenerationError

batching = pytest.importorskip("sefi.serve.batching")
limits = pytest.importorskip("sefi.serve.limits")
SETTINGS = QUICK.generate.model_copy(update={"batch_size": 1})


class Named:
    """What stands for an identity where only its name and its being the same matters."""

    def __init__(self, name):
        self.name, self.identity = name, self


def make_tasks(count, settings=SETTINGS, identities=()):
    return [batching.ImageTask("a photo", seed, settings, tuple(identities)) for seed in range(count)]


def make_ticket(settings, chunks, *identities):
    return batching.Ticket(batching.ImageTask("", 0, settings, tuple(identities), chunks))


ADA, BOB, NEW_ADA = Named("ada"), Named("bob"), Named("ada")
KINDS = [
    (settings, chunks, people)
    for settings, chunks in (
        (GenerateSettings(steps=2), 1),
        (GenerateSettings(steps=2), 3),
        (GenerateSettings(steps=3), 1),
    )
    for people in ((), (ADA,), (BOB,), (NEW_ADA,), (ADA, BOB))
]


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=13), st.integers(1, 5))
@examples(max_examples=200)
def test_a_batch_begins_with_the_oldest_and_has_one_identity_for_each_name(kinds, most):
    waiting = [make_ticket(settings, chunks, *people) for settings, chunks, people in kinds]
    batch = batching.select_batch(waiting, most)
    assert batch[0] is waiting[0]
    assert 1 <= len(batch) <= most
    assert [one for one in waiting if one in batch] == batch  # in order
    assert len({(one.task.settings, one.task.chunks) for one in batch}) == 1
    named = [(one.name, one) for ticket in batch for one in ticket.task.identities]
    assert len({name for name, _ in named}) == len({id(one) for _, one in named})
    if len(batch) < most:  # nothing that would have fitted was passed over
        for ticket in waiting:
            fits = (ticket.task.settings, ticket.task.chunks) == (batch[0].task.settings, batch[0].task.chunks)
            clash = any(
                one.name == name and one is not other for one in ticket.task.identities for name, other in named
            )
            assert ticket in batch or not fits or clash


def test_a_full_queue_says_when_to_ask_again():
    queue = batching.ImageQueue(limits.RequestLimits(queue=5))
    queue.note_speed(1, 21.0)
    queue.add(make_tasks(3))
    with pytest.raises(limits.ServeError) as refused:
        queue.add(make_tasks(3))
    assert refused.value.status == HTTPStatus.TOO_MANY_REQUESTS
    assert refused.value.retry_after == 15  # three images at 1 + 0.2 * 20 seconds
    assert len(queue) == 3  # of a request all wait, or none
    queue.add(make_tasks(2))


def test_images_that_nobody_wants_make_room_and_are_not_begun():
    queue = batching.ImageQueue(limits.RequestLimits(queue=3, batch=7, wait=0))
    first, second, third = queue.add(make_tasks(3))
    second.abandon()
    with pytest.raises(CancelledError):
        second.result.result(0)
    (fourth,) = queue.add(make_tasks(1))
    assert queue.take() == [first, third, fourth]


def test_an_image_waits_for_others_but_not_for_long(monkeypatch):
    now = [batching.time.monotonic()]
    monkeypatch.setattr(batching.time, "monotonic", lambda: now[0])
    queue = batching.ImageQueue(limits.RequestLimits(batch=3, wait=0.3))
    found = []
    taker = threading.Thread(target=lambda: found.append(queue.take()))
    taker.start()
    first = queue.add(make_tasks(1))
    taker.join(0.5)
    assert found == []  # by the queue's clock no time has passed
    second = queue.add(make_tasks(1))
    now[0] += 1000
    taker.join(30)
    assert found == [first + second]
    full = batching.ImageQueue(limits.RequestLimits(batch=3, wait=1000))
    tickets = full.add(make_tasks(4))
    assert full.take() == tickets[:3]  # a full one at once


def test_a_closed_queue_refuses_and_is_emptied():
    queue = batching.ImageQueue(limits.RequestLimits(batch=2, wait=1000))
    tickets = queue.add(make_tasks(3))
    queue.close()
    with pytest.raises(limits.ServeError) as refused:
        queue.add(make_tasks(1))
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert [queue.take(), queue.take(), queue.take()] == [tickets[:2], tickets[2:], None]


def make_worker(backbone, **more):
    reported = []
    queue = batching.ImageQueue(limits.RequestLimits(queue=100, **more))
    return queue, batching.BatchWorker(queue, backbone, lambda *numbers: reported.append(numbers)), reported


@pytest.fixture
def served(make_service):
    service = make_service()
    return {name: service.folder.get(name) for name in NAMES}


def test_a_batch_of_people_is_the_images_of_each_alone(backbone, people, served):
    queue, worker, reported = make_worker(backbone, batch=7, wait=0)
    tasks = [
        batching.ImageTask(f"a photo of <{name}> at the beach", seed, SETTINGS, (served[name],))
        for seed, name in enumerate(NAMES, 3)
    ]
    pair = (served["p0"], served["p3"])
    tasks += [batching.ImageTask("a photo of <p0> and <p3>", 5, SETTINGS, pair)]
    tasks += [batching.ImageTask("a dog in snow", 5, SETTINGS, ())]
    tickets = queue.add(tasks)
    queue.close()
    worker.run()
    assert [counts for *counts, _ in reported] == [[7, 7]]
    for ticket in tickets:
        task, image = ticket.task, ticket.result.result(0)
        mine = [people[one.identity.name] for one in task.identities]
        (alone,) = sefi.generate(task.prompt, mine, backbone=backbone, config=QUICK, seed=task.seed)
        difference = np.asarray(image.pixels, np.int16) - np.asarray(alone.pixels, np.int16)
        assert np.abs(difference).max() <= 1
        assert image.record == alone.record
        assert image.seed == task.seed


def test_an_image_that_fails_fails_no_other(backbone, served, monkeypatch):
    queue, worker, reported = make_worker(backbone, batch=5, wait=0)
    draw = worker.draw

    def fail(batch):
        if any(ticket.task.seed == 2 for ticket in batch):
            raise GenerationError("It is not made of finite numbers.", "Learn it again.")
        if any(ticket.task.seed == 3 for ticket in batch):
            raise ZeroDivisionError
        return draw(batch)

    monkeypatch.setattr(worker, "draw", fail)
    tickets = queue.add(make_tasks(5, identities=()))
    queue.close()
    worker.run()
    errors = [ticket.result.exception(0) for ticket in tickets]
    assert [type(error).__name__ for error in errors] == ["NoneType"] * 2 + [
        "GenerationError",
        "ZeroDivisionError",
        "NoneType",
    ]
    assert queue.take() is None
    ((size, count, seconds),) = reported
    assert (size, count) == (5, 3)  # two of them nobody was given
    assert queue.seconds_per_image == pytest.approx(1 + 0.2 * (seconds / 3 - 1))


def test_what_runs_for_nobody_ends_at_its_next_step(backbone, served, monkeypatch):
    queue, worker, reported = make_worker(backbone, batch=3, wait=0)
    steps = []
    advance = batching.StepWatch.advance

    def abandon(self, **numbers):
        steps.append(len(self.tickets))
        for ticket in self.tickets[: 3 if len(steps) == 3 else 2]:
            ticket.abandon()
        advance(self, **numbers)

    monkeypatch.setattr(batching.StepWatch, "advance", abandon)
    settings = SETTINGS.model_copy(update={"steps": 11})
    tickets = queue.add(make_tasks(3, settings))
    queue.close()
    worker.run()
    assert len(steps) == 3  # one image was still wanted until then
    assert not any(ticket.result.done() for ticket in tickets)
    assert [counts for *counts, _ in reported] == [[3, 0]]
    assert queue.seconds_per_image == 1.0  # nothing was measured


def test_an_image_that_was_given_up_is_not_counted(backbone, served, monkeypatch):
    queue, worker, reported = make_worker(backbone, batch=3, wait=0)
    advance = batching.StepWatch.advance

    def abandon(self, **numbers):
        self.tickets[1].abandon()
        advance(self, **numbers)

    monkeypatch.setattr(batching.StepWatch, "advance", abandon)
    tickets = queue.add(make_tasks(3))
    queue.close()
    worker.run()
    assert [counts for *counts, _ in reported] == [[3, 2]]
    # The one that was given up took its time too.
    assert queue.seconds_per_image == pytest.approx(1 + 0.2 * (reported[0][-1] / 3 - 1))
    assert [ticket.task.seed for ticket in tickets if not ticket.abandoned] == [0, 2]


def test_the_time_of_images_is_a_running_mean():
    queue = batching.ImageQueue(limits.RequestLimits())
    for _ in range(100):
        queue.note_speed(4, 10.0)
    assert queue.seconds_per_image == pytest.approx(2.5, abs=1e-6)


def test_two_workers_share_a_queue(backbone, served):
    queue, worker, _ = make_worker(backbone, batch=1, wait=0)
    other = batching.BatchWorker(queue, replace(backbone), lambda *_: None)
    tickets = queue.add(make_tasks(6))
    queue.close()
    for one in (worker, other):
        one.thread.start()
    seen = [ticket.result.result(60) for ticket in tickets]
    assert [image.seed for image in seen] == list(range(6))
    for one in (worker, other):
        one.thread.join(30)
        assert not one.thread.is_alive()
