"""A run on a tiny model without evaluators: every sample once, none twice, and what variants share is made once."""

import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
import torch

from sefi.benchmark import identities
from sefi.benchmark.evaluators import Evaluation, EvaluatorFiles, Evaluators
from sefi.benchmark.identities import Learner, Stopwatch, change_identity, locate_costs, read_costs
from sefi.benchmark.records import parse_sample
from sefi.benchmark.run import OpenRun, RunFolder, describe_run
from sefi.benchmark.samples import (
    compare_embeddings,
    compare_with_each,
    contains_file,
    evaluate_strangers,
    make_reference_image,
    make_samples,
    resize_to_square,
    score_against_photos,
)
from sefi.benchmark.suite import BenchmarkSubject, Suite, SuitePrompt, Variant, parse_slots
from sefi.benchmark.worker_process import UnitTry, make_received_units
from sefi.benchmark.workers import run_shared
from sefi.core.errors import BackboneError, ConfigError, FaceError, Interrupted, OutputError, SefiError
from sefi.core.progress import SilentProgress
from sefi.identity.file import Identity
from sefi.provenance.compare import MEASURED

VARIANTS = (
    Variant(label="ours"),
    Variant(label="values only", learned_by="ours", class_slots=("K",)),
    Variant(label="word", control="class word"),
    Variant(label="pasted", control="photo"),
    Variant(label="ceiling", control="same"),
)
SUITE = Suite(
    name="tiny",
    about="Dogs, so that no face is needed.",
    prompts=(
        SuitePrompt(text="a photo of {} at the beach", kind="scene"),
        SuitePrompt(text="a photo of {}", kind="plain"),
    ),
    variants=VARIANTS,
    settings=("learn.steps=2", "learn.batch=1", "generate.steps=2", "generate.batch_size=3"),
    seeds=(5, 7),
    kind="dog",
)


def image(seed, side=37):
    return np.random.default_rng(seed).integers(0, 255, (side, side + 2, 3)).astype(np.uint8)


SUBJECTS = (
    BenchmarkSubject("rex", image(1), image(2)),
    BenchmarkSubject("bello", image(3)),
    BenchmarkSubject("lassie", image(4)),
)


REX = range(1, 4)  # units of work: the first is the plain word's, of all subjects; then those of each subject


@pytest.fixture
def run(backbone, tmp_path):
    silent = SilentProgress()
    made = OpenRun(SUITE, SUBJECTS, backbone, Evaluators(EvaluatorFiles()), RunFolder(tmp_path / "run"), silent, silent)
    made.folder.begin(describe_run(made, EvaluatorFiles().describe(), None, None))
    return made


@pytest.mark.parametrize(
    ("class_word", "person"),
    [("person", True), ("Person", True), ("woman", True), ("old man", True), ("dog", False), ("girl scout", False)],
)
def test_faces_count_for_every_word_that_means_people(tmp_path, class_word, person):
    silent, unit = SilentProgress(), np.eye(3, dtype=np.float32)
    suite = SUITE.model_copy(update={"class_word": class_word, "variants": VARIANTS[3:4]})
    run = OpenRun(suite, SUBJECTS, None, Evaluators(EvaluatorFiles()), RunFolder(tmp_path), silent, silent)
    found = Evaluation(faces=[], embeddings=[unit[0]], clip=unit[1], background=unit[2])
    run.evaluations.update({subject.key: (found, found) for subject in SUBJECTS})
    scores = score_against_photos(run, SUBJECTS[:1], VARIANTS[3], found)
    faces = {name: scores[name] for name in ("faces", "id", "id_other_photo", "background", "background_others")}
    values = (0, 1.0, 1.0, 1.0, 1.0) if person else (None,) * 5
    assert faces == dict(zip(faces, values, strict=True))
    assert scores["clip_image"] == 1.0  # of animals too


@pytest.mark.slow
def test_every_sample_is_made_once(run):
    assert make_samples(run) == len(run.folder.read_samples())
    wanted = set(run.plan_keys())
    # bello and lassie have no other image: nothing to show as their ceiling.
    assert {key[0] for key in wanted if key[1] == "ceiling"} == {"rex"}
    made = [c.key for c in run.folder.read_samples()]
    assert len(made) == len(set(made))
    assert set(made) == wanted
    assert all((run.folder.path / c.image).is_file() for c in run.folder.read_samples())


def test_an_interrupted_run_redoes_nothing(run):
    make_samples(run, REX)
    before = run.folder.samples_file.read_text()
    files = {p: p.stat().st_mtime_ns for p in run.folder.identities.iterdir()}
    lines = before.splitlines()
    run.folder.samples_file.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:20])
    assert make_samples(run, REX) == 3
    again = {c.key: c.sha256 for c in run.folder.read_samples()}
    assert again == {c.key: c.sha256 for c in map(parse_sample, before.encode().splitlines())}
    assert {p: p.stat().st_mtime_ns for p in run.folder.identities.iterdir()} == files


@pytest.mark.slow
def test_class_word_images_are_shared_and_scored_for_every_subject(run):
    make_samples(run)
    word = [c for c in run.folder.read_samples() if c.variant == "word"]
    assert len(word) == len(SUBJECTS) * 4
    assert len({c.image for c in word}) == 4
    assert len({c.sha256 for c in word}) <= 4


@pytest.mark.slow
def test_a_changed_variant_uses_the_identity_of_its_source(run):
    make_samples(run, REX)
    names = sorted(p.name for p in run.folder.identities.iterdir())
    assert names == ["rex--ours.costs.json", "rex--ours.safetensors"]
    identity = Identity.load(run.folder.identities / "rex--ours.safetensors")
    values = change_identity(identity, VARIANTS[1], run.backbone)
    assert values.tokens[:, 1].equal(identity.tokens[:, 1])
    assert not values.tokens[:, 0].equal(identity.tokens[:, 0])
    assert change_identity(identity, VARIANTS[0], run.backbone) is identity
    two_words = replace(identity, header=identity.header.model_copy(update={"class_word": "snow dog"}))
    nothing = Variant(label="nothing", learned_by="ours", strength=0.0)
    assert change_identity(identity, nothing, run.backbone).tokens.shape == identity.tokens.shape
    assert change_identity(two_words, nothing, run.backbone).stage_tokens.shape[2] == 2
    sample = next(c for c in run.folder.read_samples() if c.variant == "values only")
    assert sample.trained == 5 * 2 * run.backbone.token_width
    references = [c for c in run.folder.read_samples() if c.variant == "pasted"]
    assert {(c.trained, c.learn_seconds, c.draw_seconds) for c in references} == {(None, None, None)}
    assert sample.added == 0
    assert sample.learn_seconds > sample.class_seconds == 0


@pytest.mark.slow
def test_a_variant_is_learned_with_its_own_seed(run):
    again = Variant(label="again", learning_seed=3)
    suite = SUITE.model_copy(update={"variants": (SUITE.variants[0], again)})
    learner = Learner(replace(run, suite=suite))
    first, other = (learner.load_or_learn(variant, SUBJECTS[0]) for variant in suite.variants)
    assert (first.header.seed, other.header.seed) == (0, 3)
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.slow
def test_images_of_the_class_are_drawn_once_and_count_for_every_subject(run):
    few = ("learn.templates=a photo of {}", "tune.prior_images=2", "views.latent_pool=1")
    variant = Variant(label="lora", preset="dreambooth-lora", settings=few)
    learner = Learner(replace(run, suite=SUITE.model_copy(update={"variants": (variant,)})))
    files = [run.folder.locate_identity(subject.key, variant) for subject in SUBJECTS[:2]]
    costs = [read_costs(file, learner.load_or_learn(variant, s)) for s, file in zip(SUBJECTS, files, strict=False)]
    assert run.class_images.seconds_spared > 0
    assert costs[0]["class_seconds"] == pytest.approx(costs[1]["class_seconds"])  # measured once, encoding included
    assert all(one["learn_seconds"] > one["class_seconds"] > 0 for one in costs)


def test_no_identity_is_written_through_a_link_out_of_its_folder(run, tmp_path):
    variant = run.suite.variants[0]
    outside, path = tmp_path / "outside", run.folder.locate_identity(SUBJECTS[0].key, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(OutputError, match="is a link out of its folder"):
        Learner(run).load_or_learn(variant, SUBJECTS[0])
    assert not outside.exists()


@pytest.mark.slow
def test_learning_costs_are_a_file_next_to_the_identity(run):
    make_samples(run, REX)
    file = run.folder.identities / "rex--ours.safetensors"
    identity = Identity.load(file)
    assert not MEASURED & set(identity.header.metrics)
    assert set(read_costs(file, identity)) == MEASURED
    locate_costs(file).unlink()
    earlier = replace(identity, header=identity.header.model_copy(update={"metrics": {"learn_seconds": 3.0}}))
    assert read_costs(file, earlier) == {"learn_seconds": 3.0}  # earlier versions wrote it there
    for text in ("[]", '{"learn_seconds": -1}', '{"learn_seconds": "3"}', '{"learn_seconds": true}', "{"):
        locate_costs(file).write_text(text)
        with pytest.raises(ConfigError, match="no record of costs"):
            read_costs(file, identity)


@pytest.mark.slow
def test_the_checkpoint_of_an_identity_that_is_there_is_removed(run):
    make_samples(run, REX)
    left = run.folder.identities / "rex--ours.checkpoint"
    left.touch()  # as of a kill between the identity and the removal
    run.folder.samples_file.unlink()
    make_samples(run, REX)
    assert not left.exists()


@pytest.mark.slow
def test_a_missing_evaluator_gives_no_score(run):
    make_samples(run, [1])
    for sample in run.folder.read_samples():
        for name in ("faces", "id", "id_other_photo", "prompt_score", "shown", "embedding", "background", "focus"):
            assert getattr(sample, name) is None


def test_another_suite_does_not_go_into_the_same_folder(run):
    other = replace(run, suite=SUITE.model_copy(update={"seeds": (5,)}))
    with pytest.raises(ConfigError, match=r"differs in suite\.seeds\."):
        run.folder.begin(describe_run(other, EvaluatorFiles().describe(), None, None))


def test_a_run_whose_descriptions_were_worded_differently_goes_on(run):
    variants = tuple(one.model_copy(update={"about": "Said better."}) for one in SUITE.variants)
    for other in (SUITE.model_copy(update={"about": "Dogs."}), SUITE.model_copy(update={"variants": variants})):
        described = describe_run(replace(run, suite=other), EvaluatorFiles().describe(), None, None)
        run.folder.begin(described)
        assert run.folder.read_info().suite.about == SUITE.about


def test_what_no_record_holds_is_refused_before_anything_is_made(run):
    other = replace(run, suite=SUITE.model_copy(update={"about": "a\0b"}))
    with pytest.raises(ConfigError, match="cannot be put on record: about: a text has a control character"):
        describe_run(other, EvaluatorFiles().describe(), None, None)


def test_subjects_in_twos(run):
    both = replace(run, suite=SUITE.model_copy(update={"together": 2}))
    assert [[s.key for s in group] for group in both.list_groups()] == [["rex", "bello"]]
    assert [s.key for s in both.list_others(both.list_groups()[0], 2)] == ["lassie"]
    assert [s.key for s in run.list_others((SUBJECTS[2],), 1)] == ["rex"]


@pytest.mark.parametrize("name", ["background", "clip"])
def test_image_and_background_are_compared_with_the_photos_of_others(run, name):
    def compare(opened, subject):
        return compare_with_each(
            getattr(image, name), [getattr(one, name) for one in evaluate_strangers(opened, [subject])]
        )

    directions = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)]
    for subject, direction in zip(SUBJECTS, directions, strict=True):
        run.evaluations[subject.key] = make_evaluation(name, direction), None
    image = make_evaluation(name, (0.0, 0.6, 0.8))
    compared = [compare(run, subject) for subject in SUBJECTS]
    assert compared == pytest.approx([(0.6 + 0.64) / 2, (0.0 + 0.64) / 2, (0.0 + 0.6) / 2])
    # An image that is the same for all has nothing of its own in the mean.
    photos = [run.evaluate_photos(subject)[0] for subject in SUBJECTS]
    own = [compare_embeddings(getattr(image, name), getattr(photo, name)) for photo in photos]
    assert np.mean(own) == pytest.approx(np.mean(compared))
    assert compare(replace(run, subjects=SUBJECTS[:1]), SUBJECTS[0]) is None


def make_evaluation(name, direction):
    nothing = Evaluation(None, None, None, None)
    return replace(nothing, **{name: np.array(direction, np.float32)})


def test_reference_rows_show_photos():
    rex, bello, _ = SUBJECTS
    assert np.array_equal(make_reference_image("photo", [rex], [bello], 13), resize_to_square(rex.photo, 13))
    assert np.array_equal(make_reference_image("other", [rex], [bello], 13), resize_to_square(bello.photo, 13))
    assert make_reference_image("same", [bello], [rex], 13) is None
    assert make_reference_image("other", [rex], [], 13) is None
    assert make_reference_image("photo", [rex, bello], [], 16).shape == (16, 16, 3)


def test_slots_by_name():
    assert sorted(parse_slots(("1",), 3)) == [(1, "K"), (1, "V")]
    assert sorted(parse_slots(("K", "2V"), 3)) == [(0, "K"), (1, "K"), (2, "K"), (2, "V")]
    for wrong in ("Q", "K2", "", "3VK", "-1"):
        with pytest.raises(ConfigError, match="no slot"):
            parse_slots((wrong,), 3)
    with pytest.raises(ConfigError, match="no slot"):
        parse_slots(("7",), 3)


def test_a_stopwatch_separates_kinds_of_work(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    watch = Stopwatch(SilentProgress())
    for label in ("generating", "learning", "generating"):
        watch.start(2, label)
        watch.advance(loss=1.0)
        watch.finish()
    assert watch.seconds == {"generating": 4.0, "learning": 4.0}


def test_a_file_lies_in_the_runs_folder_by_whatever_name(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside.png"
    (run / "pictures").mkdir(parents=True)
    for file in (run / "pictures/0.png", outside):
        file.write_bytes(b"")
    (run / "link.png").symlink_to("pictures/0.png")
    (run / "away.png").symlink_to(outside)
    (run / "circle.png").symlink_to("circle.png")
    for name in ("pictures/0.png", "pictures/../pictures/0.png", "link.png", str(run / "pictures/0.png")):
        assert contains_file(run, name)
    away = ("away.png", "../outside.png", str(outside), "/dev/zero", "circle.png", "circle.png/0.png")
    for name in (*away, None, "", "\0", "pictures", "none.png", "x" * 256, "x/" * 5000, "\N{SNOWMAN}" * 100):
        assert not contains_file(run, name)


def test_prompts_have_weights_and_samples_the_words(run):
    prompts = (
        SuitePrompt(text="a (photo:1.5) of ({}:1.2)", kind="plain"),
        SuitePrompt(text="a photo of {}", kind="plain"),
    )
    weighted = replace(run, suite=run.suite.model_copy(update={"prompts": prompts, "seeds": (5,)}))
    make_samples(weighted, REX)
    made = [c for c in weighted.folder.read_samples() if c.variant == "ours"]
    assert [c.text for c in made] == ["a photo of dog"] * 2
    assert made[0].sha256 != made[1].sha256


MANY = tuple(BenchmarkSubject(f"dog{n}", image(n)) for n in range(6))


@pytest.fixture
def fruitless(run, monkeypatch):
    """A run of six subjects, and what is called for each of them, with an error that learning each raises."""

    def make(error):
        tried = []

        def refuse(*_, name, **options):
            tried.append(name)
            raise error

        monkeypatch.setattr(identities, "learn", refuse)
        suite = SUITE.model_copy(update={"variants": (VARIANTS[0], VARIANTS[1], VARIANTS[3])})
        other = replace(run, suite=suite, subjects=MANY, folder=RunFolder(run.folder.path.with_name("many")))
        other.folder.begin(describe_run(other, EvaluatorFiles().describe(), None, None))
        return other, tried

    return make


@pytest.mark.parametrize("error", [BackboneError("It is broken.", "Mend it."), RuntimeError("CUDA out of memory")])
def test_what_every_subject_fails_of_is_not_tried_for_all(fruitless, error):
    run, tried = fruitless(error)
    with pytest.raises(SefiError, match=r"Nothing could be made in 3 tries; dog0, ours: .*(broken|enough memory)"):
        run_shared(lambda: run, run, 1)
    assert tried == ["dog0", "dog1", "dog2"]


def test_photos_that_are_refused_say_nothing_of_the_others(fruitless):
    run, tried = fruitless(FaceError("No face was found.", "Take another photo."))
    outcome = run_shared(lambda: run, run, 1)
    assert tried == [subject.key for subject in MANY]
    assert [(one.subject, one.variant) for one in outcome.failures] == [(name, "ours") for name in tried]
    assert {sample.variant for sample in run.folder.read_samples()} == {"pasted"}
    assert outcome.made == 6 * 4 // 2  # a photo has one seed


@pytest.mark.parametrize(
    "error",
    [LookupError("no such name"), OutputError("The disk is full.", "Free it."), Interrupted("Stopped.", "Go on.")],
)
def test_errors_that_say_nothing_of_one_subject_end_a_run(fruitless, error):
    run, tried = fruitless(error)
    with pytest.raises(type(error), match=str(error)):
        run_shared(lambda: run, run, 1)
    assert tried == ["dog0"]


METHOD = """
from sefi.methods.textual_inversion import TextualInversion


class Mine(TextualInversion):
    def learn(self, name, *arguments):
        return None if name == "rex" else super().learn(name, *arguments)
"""


def test_a_fault_of_another_packages_method_is_listed_and_the_others_are_made(run, install_method):
    install_method("sefi_mine", METHOD)
    suite = SUITE.model_copy(update={"variants": (Variant(label="mine", preset="mine"),), "seeds": (5,)})
    other = replace(run, suite=suite, folder=RunFolder(run.folder.path.with_name("other")))
    other.folder.begin(describe_run(other, EvaluatorFiles().describe(), None, None))
    outcome = run_shared(lambda: other, other, 1)
    assert {sample.key[0] for sample in other.folder.read_samples()} == {"bello", "lassie"}
    [failure] = outcome.failures
    assert (failure.subject, failure.variant) == ("rex", "mine")
    said = "The method 'mine' of the package 'sefi_mine' returned None from `learn` in place of Identity."
    assert failure.problem == said


# ------------------------------------------------------------------ workers that are killed


@pytest.fixture
def forked(monkeypatch):
    """Fork the workers, with the run open already: a fresh process takes seconds to load torch.

    The threads of OpenCV's pool are not in a forked process, which would wait for them: it has none meanwhile.
    """
    monkeypatch.setattr("sefi.benchmark.worker_process.get_context", lambda _: get_context("fork"))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def read_keys(run):
    """Return the key of every line of the record, also of one that is there twice."""
    return [sample.key for sample in run.folder.read_samples_after(0)[0]]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the parent's other threads are idle
def test_a_unit_whose_worker_is_killed_is_made_by_another(run, tmp_path, monkeypatch):
    alone = replace(run, folder=RunFolder(tmp_path / "alone"))
    alone.folder.begin(describe_run(alone, EvaluatorFiles().describe(), None, None))
    make_samples(alone)
    add, remarks = RunFolder.add, []

    def add_and_die(folder, sample):
        add(folder, sample)
        if sample.key[:2] == ("rex", "ours") and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(RunFolder, "add", add_and_die)
    outcome = run_shared(lambda: run, run, 2, None, remarks.append)
    assert (tmp_path / "killed").exists()
    assert outcome.failures == ()
    assert outcome.made == len(run.plan_keys())
    assert sorted(read_keys(run)) == sorted(run.plan_keys())
    hashes = [{one.key: one.sha256 for one in some.folder.read_samples()} for some in (run, alone)]
    assert hashes[0] == hashes[1]
    [remark] = remarks
    assert "a worker was killed (exit code -9), perhaps for want of memory; another makes rex, ours" in remark
    assert "--jobs 1" in remark


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_unit_that_kills_each_worker_is_listed_and_the_others_are_made(run, tmp_path, monkeypatch):
    learn, remarks = identities.learn, []

    def learn_or_die(*photos, name, **options):
        if name == "rex":
            (tmp_path / f"{os.getpid()}.killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(*photos, name=name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(identities, "learn", learn_or_die)
        outcome = run_shared(lambda: run, run, 2, None, remarks.append)
    assert len(list(tmp_path.glob("*.killed"))) == 2
    [failure] = outcome.failures
    assert (failure.subject, failure.variant) == ("rex", "ours")
    assert failure.problem == "Its worker was killed (exit code -9), perhaps for want of memory, 2 times."
    assert "--jobs 1" in failure.remedy
    assert len(remarks) == 1
    given_up = [key for key in run.plan_keys() if key[:2] in (("rex", "ours"), ("rex", "values only"))]
    assert sorted([*read_keys(run), *given_up]) == sorted(run.plan_keys())
    outcome = run_shared(lambda: run, run, 2, None, remarks.append)
    assert (outcome.made, outcome.failures) == (len(given_up), ())
    assert sorted(read_keys(run)) == sorted(run.plan_keys())


def test_a_worker_makes_nothing_again_that_a_killed_one_made(run):
    """Though it was at work before that was on record."""
    units = [UnitTry(3), UnitTry(2, kills=1)]

    class Pipe:
        def send(self, message):
            pass

        def recv(self):
            if not units:
                raise EOFError
            if len(units) == 1:
                make_samples(run, [2])
            return units.pop(0)

    with pytest.raises(EOFError):
        make_received_units(lambda: run, Pipe(), torch.get_num_threads())
    keys = read_keys(run)
    assert {key[:2] for key in keys} == {("rex", "pasted"), ("rex", "ceiling")}
    assert len(keys) == len(set(keys))
