"""What methods learn with besides the model is on record by its bytes: other bytes under the same name are refused."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import zeros

from sefi.benchmark import run as run_files
from sefi.benchmark.evaluators import EvaluatorFiles, Evaluators
from sefi.benchmark.records import LearningFiles
from sefi.benchmark.run import OpenRun, RunFolder, describe_run, find_learning_networks
from sefi.benchmark.suite import BenchmarkSubject, Suite, SuitePrompt, Variant
from sefi.core.config import FILE_SETTINGS, list_file_settings, list_setting_fields
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.evaluation.encoders import DETECTOR, RECOGNISER
from sefi.methods import BUILT_IN, get_method


def hash_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def make_suite(*variants):
    return Suite(name="s", about="", prompts=(SuitePrompt(text="{}", kind="plain"),), variants=variants)


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("ada lovelace\nbob dylan\n")
    return file


@pytest.fixture
def evaluators(tmp_path):
    folder = tmp_path / "evaluators"
    (folder / "clip").mkdir(parents=True)
    (folder / DETECTOR).write_text("detector")
    (folder / RECOGNISER).write_text("recogniser")
    save_file({"weight": zeros(2)}, folder / "clip" / "model.safetensors")
    return folder


@pytest.fixture
def run(backbone, tmp_path, names, evaluators):
    """A run of Celeb Basis, of which no image is made."""
    photo, silent = np.zeros((8, 8, 3), np.uint8), SilentProgress()
    faces = Variant(label="faces", preset="celeb-basis", settings=(f"basis.names={names}",))
    suite = make_suite(faces, Variant(label="word", control="class word"), Variant(label="ours", preset="scratch"))
    nobody = Evaluators(EvaluatorFiles())
    subjects = (BenchmarkSubject("ada", photo),)
    return OpenRun(suite, subjects, backbone, nobody, RunFolder(tmp_path / "run"), silent, silent, evaluators)


def describe(run):
    return describe_run(run, EvaluatorFiles().describe(), None, None)


def test_the_files_that_methods_learn_with_are_on_record_by_their_bytes(run, names, evaluators):
    clip = (evaluators / "clip" / "model.safetensors").read_bytes()
    assert describe(run).learning_files == LearningFiles(
        settings={"faces": {"basis.names": hash_text(names.read_text())}},
        evaluators={
            DETECTOR: hash_text("detector"),
            RECOGNISER: hash_text("recogniser"),
            "clip": hashlib.sha256(clip).hexdigest(),
        },
    )
    run.folder.begin(describe(run))
    run.folder.begin(describe(run))
    assert run.folder.read_info() == describe(run)


def test_a_run_does_not_go_on_with_another_list_under_the_same_name(run, names):
    run.folder.begin(describe(run))
    names.write_text("eve adams\nbob dylan\n")
    with pytest.raises(ConfigError, match=r"holds another run, which differs in basis\.names of faces\."):
        run.folder.begin(describe(run))


def test_a_run_does_not_go_on_with_other_evaluators_to_learn_with(run, evaluators):
    run.folder.begin(describe(run))
    other = evaluators.with_name("others")
    evaluators.rename(other)
    run.folder.begin(describe(replace(run, evaluator_folder=other)))  # where they lie is not what they are
    (other / RECOGNISER).write_text("another recogniser")
    save_file({"weight": zeros(3)}, other / "clip" / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"differs in evaluator clip, evaluator {RECOGNISER}\."):
        run.folder.begin(describe(replace(run, evaluator_folder=other)))


def test_a_variant_that_draws_what_another_learned_has_its_files_too(run, names):
    first = run.suite.variants[0]
    again = first.model_copy(update={"label": "again", "learned_by": first.label})
    suite = run.suite.model_copy(update={"variants": (*run.suite.variants, again)})
    found = describe(replace(run, suite=suite)).learning_files.settings
    assert found["again"] == found[first.label]
    assert found["again"]


def test_a_run_that_learns_nothing_has_none(run, names):
    references = make_suite(Variant(label="word", control="class word"))
    assert describe(replace(run, suite=references)).learning_files == LearningFiles()
    folders = make_suite(Variant(label="theirs", images="folder"))
    assert describe(replace(run, suite=folders, model=None)).learning_files == LearningFiles()


def test_without_a_folder_those_of_faces_count_where_a_method_reads_faces(run, evaluators, monkeypatch):
    found = (evaluators / DETECTOR, evaluators / RECOGNISER)
    monkeypatch.setattr(run_files, "find_face_networks", lambda folder: found)
    assert find_learning_networks(None, reads_faces=True) == dict(zip((DETECTOR, RECOGNISER), found, strict=True))
    assert find_learning_networks(None, reads_faces=False) == {}
    assert describe(replace(run, evaluator_folder=None)).learning_files.evaluators == {
        DETECTOR: hash_text("detector"),
        RECOGNISER: hash_text("recogniser"),
    }
    monkeypatch.setattr(run_files, "find_face_networks", lambda folder: None)
    assert find_learning_networks(None, reads_faces=True) == {}


def test_every_setting_that_names_a_file_is_known():
    kinds = [get_method(name).config_type for name in BUILT_IN]
    assert {name for kind in kinds for name in list_file_settings(kind)} == set(FILE_SETTINGS)
    fields = {name: field for kind in kinds for name, field in list_setting_fields(kind).items()}
    # A text that may be none: every other text is words of a prompt.
    assert {name for name, field in fields.items() if field.annotation == str | None} == set(FILE_SETTINGS)
