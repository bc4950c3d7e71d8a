"""`sefi methods`, and learning with another method than ours."""

import json

import pytest

from sefi.core.config import names
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.methods import METHODS

QUICK = ("--no-crop", "--steps", 2, "--device", "cpu")


def test_every_method_is_listed_with_what_it_learns(sefi):
    found = sefi("methods", "--json")
    assert found.exit_code == 0, found.output
    listed = json.loads(found.stdout)["methods"]
    assert listed.keys() == METHODS.keys()
    assert listed["dreambooth"]["trained"] == 982_581_444
    assert listed["sefi"]["presets"] == ["default", "fast", "paper"]
    assert all(one["paper"] and one["licence"] and one["presets"] for one in listed.values())
    words = sefi("methods").stdout
    assert all(name in words for name in METHODS)


def test_every_setting_is_listed_with_its_value(sefi):
    found = sefi("settings", "--preset", "celeb-basis", "--json")
    assert found.exit_code == 0, found.output
    listed = json.loads(found.stdout)
    assert ["method", *listed["settings"]] == names()
    assert listed["method"] == "celeb-basis"
    assert listed["settings"]["learn.learning_rate"]["value"] == PRESETS["celeb-basis"].learn.learning_rate
    words = sefi("settings").stdout.splitlines()
    assert [line.split()[0] for line in words] == list(listed["settings"])
    assert sum(len(line.split()) > 2 for line in words) > 0.8 * len(words)
    assert sefi("settings", "--preset", "magic").exit_code == 2


@pytest.mark.parametrize("method", ["textual-inversion", "custom-diffusion"])
def test_another_method_learns_and_draws(sefi, portrait, model_folder, tmp_path, method):
    out = tmp_path / "bob.safetensors"
    where = ("--model", model_folder)
    few = ("--set", "tune.prior_images=1", "--set", "generate.steps=2", "--set", "learn.templates=a photo of {}")
    found = sefi("learn", portrait, "--name", "bob", "--method", method, *where, *QUICK, *few, "--out", out)
    assert found.exit_code == 0, found.output
    assert Identity.load(out).method == method
    drawn = sefi("generate", "a photo of <bob>", "-i", out, *where, "--steps", 2, "--out", tmp_path / "pictures")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "pictures" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--method", "magic"), "no method 'magic'"),
        (("--method", "prospect", "--preset", "paper"), "belongs to the method 'sefi'"),
        (("--method", "dreambooth", "--set", "tune.parts=key_value"), "trains no 'key_value'"),
        (("--method", "celeb-basis"), "face_recognition.onnx"),
        (("--method", "cross-init"), "list of the names"),
        (("--method", "textual-inversion", "--set", "learn.stages=5"), "knows only learn.stages=1"),
        (("--method", "custom-diffusion", "--dtype", "bfloat16"), "bfloat16 is too coarse"),
        (("--method", "fastcomposer"), "clip"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_learned(sefi, portrait, model_folder, tmp_path, given, said):
    out = tmp_path / "bob.safetensors"
    found = sefi("learn", portrait, "--name", "bob", "--model", model_folder, *QUICK, *given, "--out", out)
    assert found.exit_code == 2
    assert said in found.stderr
    assert "try:" in found.stderr
    assert not out.exists()
