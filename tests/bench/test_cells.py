"""A run on a tiny model without judges: every sample once, none twice, and what ways share is made once."""

import time
from dataclasses import replace

import numpy as np
import pytest

from sefi.bench.cells import lies_in, run_cells
from sefi.bench.drawing import anchor, square
from sefi.bench.identities import Stopwatch, changed
from sefi.bench.judging import JudgeFiles, Judging
from sefi.bench.opened import Bench, describe_run
from sefi.bench.records import parse_sample
from sefi.bench.run_folder import RunFolder
from sefi.bench.slots import slots_named
from sefi.bench.subject import Subject
from sefi.bench.suite import Asked, Suite, Way
from sefi.core.errors import ConfigError
from sefi.core.nouns import Identity
from sefi.core.protocols import SilentProgress

WAYS = (
    Way(label="ours"),
    Way(label="values only", learned_by="ours", class_slots=("K",)),
    Way(label="word", control="class word"),
    Way(label="pasted", control="photo"),
    Way(label="ceiling", control="same"),
)
SUITE = Suite(
    name="tiny",
    about="Dogs, so that no face is needed.",
    prompts=(Asked(text="a photo of {} at the beach", kind="scene"), Asked(text="a photo of {}", kind="plain")),
    ways=WAYS,
    settings=("learn.steps=2", "learn.batch=1", "generate.steps=2", "generate.batch_size=3"),
    seeds=(5, 7),
    kind="dog",
)


def picture(seed, side=37):
    return np.random.default_rng(seed).integers(0, 255, (side, side + 2, 3)).astype(np.uint8)


SUBJECTS = (Subject("rex", picture(1), picture(2)), Subject("bello", picture(3)), Subject("lassie", picture(4)))


@pytest.fixture
def bench(backbone, tmp_path):
    silent = SilentProgress()
    made = Bench(SUITE, SUBJECTS, backbone, Judging(JudgeFiles()), RunFolder(tmp_path / "run"), silent, silent)
    made.run.begin(describe_run(made, JudgeFiles().told(), None, None))
    return made


def test_every_sample_is_made_once(bench):
    assert run_cells(bench) == len(bench.run.read_samples())
    wanted = set(bench.plan())
    # bello and lassie have no other picture: nothing to show as their ceiling.
    assert {key[0] for key in wanted if key[1] == "ceiling"} == {"rex"}
    made = [c.key for c in bench.run.read_samples()]
    assert len(made) == len(set(made))
    assert set(made) == wanted
    assert all((bench.run.path / c.image).is_file() for c in bench.run.read_samples())


def test_an_interrupted_run_redoes_nothing(bench):
    run_cells(bench, [0])
    before = bench.run.samples_file.read_text()
    files = {p: p.stat().st_mtime_ns for p in bench.run.identities.iterdir()}
    lines = before.splitlines()
    bench.run.samples_file.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:20])
    assert run_cells(bench, [0]) == 3
    again = {c.key: c.sha256 for c in bench.run.read_samples()}
    assert again == {c.key: c.sha256 for c in map(parse_sample, before.encode().splitlines())}
    assert {p: p.stat().st_mtime_ns for p in bench.run.identities.iterdir()} == files


def test_the_plain_words_pictures_are_shared_and_scored_for_everybody(bench):
    run_cells(bench)
    word = [c for c in bench.run.read_samples() if c.variant == "word"]
    assert len(word) == len(SUBJECTS) * 4
    assert len({c.image for c in word}) == 4
    assert len({c.sha256 for c in word}) <= 4


def test_a_changed_way_uses_the_identity_of_its_source(bench):
    run_cells(bench, [0])
    assert [p.name for p in bench.run.identities.iterdir()] == ["rex--ours.safetensors"]
    identity = Identity.load(bench.run.identities / "rex--ours.safetensors")
    values = changed(identity, WAYS[1], bench.backbone)
    assert values.tokens[:, 1].equal(identity.tokens[:, 1])
    assert not values.tokens[:, 0].equal(identity.tokens[:, 0])
    assert changed(identity, WAYS[0], bench.backbone) is identity
    sample = next(c for c in bench.run.read_samples() if c.variant == "values only")
    assert sample.trained == 5 * 2 * bench.backbone.width
    anchors = [c for c in bench.run.read_samples() if c.variant == "pasted"]
    assert {(c.trained, c.learn_seconds, c.draw_seconds) for c in anchors} == {(None, None, None)}
    assert sample.added == 0
    assert sample.learn_seconds > sample.class_seconds == 0


def test_no_judge_is_no_score(bench):
    run_cells(bench, [1])
    for sample in bench.run.read_samples():
        for name in ("faces", "id", "id_other", "prompt_score", "shown", "embedding", "background", "focus"):
            assert getattr(sample, name) is None


def test_another_suite_does_not_go_into_the_same_folder(bench):
    other = replace(bench, suite=SUITE.model_copy(update={"seeds": (5,)}))
    with pytest.raises(ConfigError, match="suite differ"):
        bench.run.begin(describe_run(other, JudgeFiles().told(), None, None))


def test_what_no_record_holds_is_refused_before_anything_is_made(bench):
    other = replace(bench, suite=SUITE.model_copy(update={"about": "a\0b"}))
    with pytest.raises(ConfigError, match="cannot be put on record: about: a text has a control character"):
        describe_run(other, JudgeFiles().told(), None, None)


def test_subjects_in_twos(bench):
    both = replace(bench, suite=SUITE.model_copy(update={"together": 2}))
    assert [[s.key for s in group] for group in both.groups()] == [["rex", "bello"]]
    assert [s.key for s in both.others(both.groups()[0])] == ["lassie"]
    assert [s.key for s in bench.others((SUBJECTS[2],))] == ["rex"]


def test_anchors_show_photographs():
    rex, bello, _ = SUBJECTS
    assert np.array_equal(anchor("photo", [rex], [bello], 13), square(rex.photo, 13))
    assert np.array_equal(anchor("other", [rex], [bello], 13), square(bello.photo, 13))
    assert anchor("same", [bello], [rex], 13) is None
    assert anchor("other", [rex], [], 13) is None
    assert anchor("photo", [rex, bello], [], 16).shape == (16, 16, 3)


def test_slots_by_name():
    assert sorted(slots_named(("1",), 3)) == [(1, "K"), (1, "V")]
    assert sorted(slots_named(("K", "2V"), 3)) == [(0, "K"), (1, "K"), (2, "K"), (2, "V")]
    for wrong in ("Q", "K2", "", "3VK", "-1"):
        with pytest.raises(ConfigError, match="no slot"):
            slots_named((wrong,), 3)
    with pytest.raises(ConfigError, match="no slot"):
        slots_named(("7",), 3)


def test_a_stopwatch_tells_kinds_of_work_apart(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch = Stopwatch(SilentProgress())
    for label in ("drawing", "learning", "drawing"):
        watch.start(2, label)
        watch.advance(loss=1.0)
        watch.finish()
    assert watch.seconds == {"drawing": 4.0, "learning": 4.0}


def test_a_file_lies_in_the_runs_folder_by_whatever_name(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside.png"
    (run / "pictures").mkdir(parents=True)
    for file in (run / "pictures/0.png", outside):
        file.write_bytes(b"")
    (run / "link.png").symlink_to("pictures/0.png")
    (run / "away.png").symlink_to(outside)
    (run / "circle.png").symlink_to("circle.png")
    for name in ("pictures/0.png", "pictures/../pictures/0.png", "link.png", str(run / "pictures/0.png")):
        assert lies_in(run, name)
    away = ("away.png", "../outside.png", str(outside), "/dev/zero", "circle.png", "circle.png/0.png")
    for name in (*away, None, "", "\0", "pictures", "none.png", "x" * 256, "x/" * 5000, "\N{SNOWMAN}" * 100):
        assert not lies_in(run, name)
