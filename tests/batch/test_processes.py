"""Processes that learn a batch: each may be killed, fail or find no model; workers are forked here, which is quick."""

import os
import signal
import sys
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from tests.batch.conftest import make_photos

import sefi.batch.run
import sefi.benchmark.worker_process
from sefi.batch.plan import ItemState, make_plan, read_item_record
from sefi.batch.ray_engine import MOST_DEATHS, ActorPlace, RayGroup, open_ray
from sefi.batch.run import WorkQueue, list_problems, sort_items
from sefi.batch.workers import learn_in_processes, make_worker_group
from sefi.benchmark.worker_process import end_workers_after
from sefi.core.errors import BackboneError, SefiError
from sefi.core.progress import SilentProgress

PEOPLE = 20
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the parent's other threads are idle


@pytest.fixture(autouse=True)
def forked(monkeypatch, backbone):
    """Fork the workers, with the model open already: a fresh process takes seconds to load torch."""
    monkeypatch.setattr(sefi.benchmark.worker_process, "get_context", lambda _: get_context("fork"))
    monkeypatch.setattr(sefi.batch.run, "load_model", lambda *_: backbone)


def list_items(settings):
    return make_plan(settings, None, SilentProgress()).items


def read_finished(settings, items):
    """Return when the identity of each item that is finished was written."""
    files = {item.name: settings.folder / f"{item.name}.safetensors" for item in sort_items(items, settings).finished}
    return {name: file.stat().st_mtime_ns for name, file in files.items()}


class KillingProgress(SilentProgress):
    """Kills a worker that is in the middle of an item, once some items are finished."""

    def __init__(self, settings, items, count):
        self.settings, self.items, self.count, self.before = settings, items, count, None

    def advance(self, **numbers):
        self.count -= 1
        if self.count > 0 or self.before is not None:
            return
        for worker in self.group.running.values():
            record = None if worker.item is None else read_item_record(self.settings.folder, worker.item.name)
            if record is not None and record.state is ItemState.STARTED:
                os.kill(worker.process.pid, signal.SIGSTOP)  # it finishes nothing while we look
                self.before = read_finished(self.settings, self.items)
                os.kill(worker.process.pid, signal.SIGKILL)
                return

    def nested(self):
        return SilentProgress()


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_twenty_people_loses_and_repeats_nothing(settings):
    settings = replace(settings, preview=None)
    make_photos(settings.photos, [f"p{number}" for number in range(PEOPLE)])
    for name in ("ada", "bob"):
        (settings.photos / f"{name}.png").unlink()
    items = list_items(settings)
    progress = KillingProgress(settings, items, 5)
    with end_workers_after(make_worker_group(WorkQueue(items, settings, progress), ["cpu", "cpu"], 1)) as group:
        progress.group = group
        group.run()
    assert 5 <= len(progress.before) < PEOPLE
    after = read_finished(settings, items)
    assert len(after) == PEOPLE
    assert progress.before.items() <= after.items()
    assert not sort_items(items, settings).pending


@pytest.mark.slow
def test_processes_learn_the_same_bytes_as_one_process(settings, work_off):
    work_off(settings)
    other = replace(settings, folder=settings.folder.with_name("other"))
    for part in ("", "previews", "records"):
        (other.folder / part).mkdir()
    learn_in_processes(WorkQueue(list_items(other), other, SilentProgress()), ["cpu", "cpu"], 1)
    for file in ("ada.safetensors", "bob.safetensors", "previews/ada.png", "previews/bob.png"):
        assert (other.folder / file).read_bytes() == (settings.folder / file).read_bytes()


@pytest.mark.slow
def test_whoever_kills_each_worker_is_put_aside_and_the_others_are_learned(settings, monkeypatch):
    settings = replace(settings, preview=None, tries=2)
    make_photos(settings.photos, ("ada", "bob", "bad", "worse"))
    learn, workers = sefi.batch.run.learn, set()

    def learn_or_die(crops, **options):
        if options["name"] == "bad":
            os.kill(os.getpid(), signal.SIGKILL)
        if options["name"] == "worse":
            raise RuntimeError("CUDA error: device-side assert triggered")
        return learn(crops, **options)

    monkeypatch.setattr(sefi.batch.run, "learn", learn_or_die)
    items = list_items(settings)
    with end_workers_after(make_worker_group(WorkQueue(items, settings, SilentProgress()), ["cpu", "cpu"], 1)) as group:
        start = group.start_worker
        group.start_worker = lambda place: (workers.add(place), start(place))
        group.run()
    assert sorted(read_finished(settings, items)) == ["ada", "bob"]
    problems = {one.name: one for one in list_problems(items, settings)}
    assert {name: (one.tries, one.put_aside) for name, one in problems.items()} == dict.fromkeys(
        ("bad", "worse"), (2, True)
    )
    assert "killed" in problems["bad"].problem
    assert "device-side" in problems["worse"].problem
    assert workers == {0, 1}


def test_workers_that_are_killed_before_they_begin_end_the_batch(settings, monkeypatch):
    monkeypatch.setattr(sefi.batch.run, "load_model", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SefiError, match="memory"):
        learn_in_processes(WorkQueue(list_items(settings), settings, SilentProgress()), ["cpu"], 1)


def test_a_model_that_cannot_be_opened_ends_the_batch_with_its_error(settings, monkeypatch):
    def refuse(*_):
        raise BackboneError("There is no model.", "Name another.")

    monkeypatch.setattr(sefi.batch.run, "load_model", refuse)
    with pytest.raises(BackboneError, match="There is no model"):
        learn_in_processes(WorkQueue(list_items(settings), settings, SilentProgress()), ["cpu", "cpu"], 1)
    assert read_item_record(settings.folder, "ada") is None


def test_an_interrupted_batch_saves_what_its_workers_do(settings):
    settings = replace(settings, preview=None)
    items = list_items(settings)

    class Interrupting(SilentProgress):
        def advance(self, **numbers):
            raise KeyboardInterrupt

        def nested(self):
            return SilentProgress()

    with pytest.raises(KeyboardInterrupt):
        learn_in_processes(WorkQueue(items, settings, Interrupting()), ["cpu", "cpu"], 1)
    states = {read_item_record(settings.folder, item.name).state for item in items}
    assert ItemState.STARTED not in states


def test_actors_that_never_begin_are_given_up_where_another_works(settings):
    """What becomes of the group once Ray has said that an actor is gone; it needs no Ray."""
    actor = SimpleNamespace(describe=SimpleNamespace(remote=object))
    remote = lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: actor))  # noqa: E731
    queue, remarks = WorkQueue(list_items(settings), settings, SilentProgress()), []
    group = RayGroup(queue, SimpleNamespace(remote=remote), 2, 0, remarks.append)
    group.at_work["answer"] = ActorPlace(actor, queue.take())
    for _ in range(MOST_DEATHS):
        group.at_work = {answer: place for answer, place in group.at_work.items() if place.item is not None}
        group.replace_actor(ActorPlace(actor))
    assert remarks == ["actors are killed before they begin, perhaps for want of memory; 1 of 2 go on"]
    group.at_work.clear()
    group.deaths = MOST_DEATHS - 1
    with pytest.raises(SefiError, match="All actors are killed before they begin"):
        group.replace_actor(ActorPlace(actor))


def test_what_ray_says_leaves_the_answer_on_stdout_alone(capsys, monkeypatch):
    """With --json stdout is one object; Ray prints there that a worker died."""
    said = SimpleNamespace(
        init=lambda **_: sys.stdout.write("(raylet) started"),
        shutdown=lambda: sys.stdout.write("(raylet) a worker died"),
    )
    monkeypatch.setitem(sys.modules, "ray", said)
    with open_ray(None, 2):
        sys.stdout.write("(raylet) a task failed")
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("(raylet)") == 3
