"""Which runs get the second recogniser: those of the embedded model's drawings that did not begin without it."""

from pathlib import Path

import pytest

from sefi.benchmark.records import EvaluatorInfo, ModelInfo, RunInfo, Sample, SuiteInfo
from sefi.benchmark.run import RunFolder
from sefi.benchmark.suite import open_suite
from sefi.cli.bench_setup import BenchOptions, find_evaluator_files
from sefi.evaluation.second_recogniser import SHIPPED_RECOGNISER

NOBODY = EvaluatorInfo(file="face_recognition.onnx", sha256="00")
PROMPTS = [{"text": "a photo of {}", "kind": "plain"}]


def choose_options(out, model="tiny-portraits", photos=None):
    return BenchOptions(open_suite("pilot"), out, model, photos, None, None, None, None, False, "cpu", "float32")


def begin(folder, evaluators):
    suite = SuiteInfo.model_validate({"name": "s", "prompts": PROMPTS, "variants": [{"label": "ours"}], "seeds": [1]})
    RunFolder(folder).begin(RunInfo(suite=suite, subjects=(), model=ModelInfo(), judges=evaluators))
    return choose_options(folder)


def test_a_new_run_of_drawings_has_it(tmp_path):
    assert find_evaluator_files(choose_options(tmp_path / "run")).second_recogniser == SHIPPED_RECOGNISER


@pytest.mark.parametrize("options", [{"photos": Path("photos")}, {"model": "else", "photos": Path("photos")}])
def test_photographs_have_none(tmp_path, options):
    assert find_evaluator_files(choose_options(tmp_path / "run", **options)).second_recogniser is None


def test_a_run_goes_on_with_what_it_began_with(tmp_path):
    with_it = begin(tmp_path / "new", {"recogniser": NOBODY, "second_recogniser": NOBODY})
    assert find_evaluator_files(with_it).second_recogniser == SHIPPED_RECOGNISER
    without = begin(tmp_path / "old", {"recogniser": NOBODY})
    assert find_evaluator_files(without).second_recogniser is None


def test_a_record_of_an_earlier_version_is_read():
    line = b'{"subject": "p1", "variant": "ours", "kind": "plain", "prompt": 0, "text": "a", "seed": 1, "sha256": "0",'
    old = Sample.parse(line + b' "id": 0.5, "id_other": 0.25, "image": "a.png"}')
    assert (old.id, old.id_other_photo, old.id_second, old.id_second_other) == (0.5, 0.25, None, None)
