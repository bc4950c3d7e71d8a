"""Time left from what learning and drawing cost, not from images per second."""

from itertools import product

import pytest

from sefi.benchmark.plan import TimeLeft
from sefi.benchmark.records import Sample
from sefi.benchmark.suite import Suite, SuitePrompt, Variant

SUITE = Suite(
    name="s",
    about="",
    prompts=(SuitePrompt(text="a photo of {}", kind="plain"),),
    variants=(
        Variant(label="ours"),
        Variant(label="values", learned_by="ours", class_slots=("K",)),
        Variant(label="word", control="class word"),
        Variant(label="photo", control="photo"),
    ),
    seeds=(3, 5),
)
SUBJECTS = ("ada", "bob", "eve")
LEARN, DRAW = 100.0, {"ours": 2.0, "values": 3.0, "word": 5.0, "photo": None}


def keys(subject):
    return [
        (subject, variant.label, 0, seed)
        for variant in SUITE.variants
        for seed in (SUITE.seeds if variant.label != "photo" else (3,))
    ]


PLANNED = [key for subject in SUBJECTS for key in keys(subject)]


def sample(key, **changes):
    subject, variant, prompt, seed = key
    learned = variant in ("ours", "values")
    costs = {"draw_seconds": DRAW[variant], "learn_seconds": LEARN if learned else None}
    place = {"subject": subject, "variant": variant, "prompt": prompt, "seed": seed}
    files = {"kind": "plain", "text": "a photo of person", "image": "pictures/0.png", "sha256": "00"}
    return Sample(**place, **files, **costs | changes)


@pytest.mark.parametrize("pace", [1.0, 0.5, 1.7])
def test_what_a_subject_costs_is_what_the_next_will(clock, pace):
    left = TimeLeft(SUITE, PLANNED, [])
    assert left.missing == 21
    for key in keys("ada"):
        left.record(sample(key))
    # Learned once for both variants that use it; the plain word's images are drawn once for everybody.
    one = LEARN + 2 * 2.0 + 2 * 3.0
    clock.now += pace * (one + 2 * 5.0)
    assert left.missing == 14
    assert left.estimate_seconds() == pytest.approx(pace * 2 * one)


def test_no_estimate_without_evidence_for_every_kind_of_work(clock):
    left = TimeLeft(SUITE, PLANNED, [])
    for key in keys("ada"):
        assert left.estimate_seconds() is None  # the first image after 100 s of learning would say hours
        clock.now += 60
        left.record(sample(key))
    assert left.estimate_seconds() is not None


def test_no_estimate_from_a_few_seconds(clock):
    before = [sample(key) for key in keys("ada")]
    left = TimeLeft(SUITE, PLANNED, before)
    left.record(sample(("bob", "photo", 0, 3)))
    clock.now += 19
    assert left.estimate_seconds() is None


def test_a_resumed_run_uses_the_costs_on_record(clock):
    left = TimeLeft(SUITE, PLANNED, [sample(key) for key in keys("ada")])
    clock.now += 104
    for key in keys("bob")[:2]:
        left.record(sample(key))
    # Of bob two images of "values" are missing; of eve everything.
    assert left.estimate_seconds() == pytest.approx(2 * 3.0 + LEARN + 4.0 + 6.0)


def test_learning_that_was_not_timed_is_no_evidence(clock):
    left = TimeLeft(SUITE, PLANNED, [])
    for key in keys("ada"):
        left.record(sample(key, learn_seconds=None))
    clock.now += 500
    assert left.estimate_seconds() is None


def test_nothing_is_left_of_a_finished_run(clock):
    left = TimeLeft(SUITE, PLANNED, [])
    for subject, place in product(SUBJECTS, range(7)):
        clock.now += 20
        left.record(sample(keys(subject)[place]))
    assert (left.missing, left.estimate_seconds()) == (0, 0)


def test_what_failed_is_not_waited_for(clock):
    left = TimeLeft(SUITE, PLANNED, [])
    for key in keys("ada"):
        left.record(sample(key))
    clock.now += 124
    before = left.estimate_seconds()
    left.give_up([("bob", "ours"), ("bob", "values")])
    assert left.missing == 21 - 7 - 4
    assert left.estimate_seconds() == pytest.approx(before - 110 * 124 / 120)
