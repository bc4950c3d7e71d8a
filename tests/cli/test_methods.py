"""`sefi methods`, and learning with another method than ours."""

import json

import pytest
import torch

from sefi.core.config import RECIPE_FROM_ENCODER, list_setting_names, select_settings
from sefi.identity.file import Identity
from sefi.methods import METHODS, PRESETS

QUICK = ("--no-crop", "--steps", 2, "--device", "cpu")


@pytest.mark.slow
def test_every_method_is_listed_with_what_it_learns(sefi):
    found = sefi("methods", "--json")
    assert found.exit_code == 0, found.output
    listed = json.loads(found.stdout)["methods"]
    assert listed.keys() == METHODS.keys()
    assert listed["dreambooth"]["trained"] == 982_581_444
    assert listed["sefi"]["presets"] == ["default", "scratch", "fast", "paper"]
    assert all(one["paper"] and one["licence"] and one["presets"] for one in listed.values())
    words = sefi("methods").stdout
    assert all(name in words for name in METHODS)


def test_every_setting_is_listed_with_its_value(sefi):
    found = sefi("settings", "--preset", "celeb-basis", "--json")
    assert found.exit_code == 0, found.output
    listed = json.loads(found.stdout)
    assert list(listed["settings"]) == list_setting_names(METHODS["celeb-basis"].config_type)
    assert "tune.rank" not in listed["settings"]
    assert listed["method"] == "celeb-basis"
    assert listed["settings"]["learn.learning_rate"]["value"] == PRESETS["celeb-basis"].learn.learning_rate
    words = sefi("settings", "--preset", "celeb-basis").stdout.splitlines()
    assert [line.split()[0] for line in words] == list(listed["settings"])
    assert sum(len(line.split()) > 2 for line in words) > 0.8 * len(words)
    assert not any("by_start" in one for one in listed["settings"].values())
    assert sefi("settings", "--preset", "magic").exit_code == 2


def test_settings_that_depend_on_the_start_are_listed_with_both_values(sefi):
    listed = json.loads(sefi("settings", "--json").stdout)["settings"]
    assert listed["learn.steps"]["by_start"] == {"encoder": 15, "class": 200}
    assert listed["learn.attention_weight"]["by_start"] == {"encoder": 0.0, "class": 0.003}
    assert {name for name, one in listed.items() if "by_start" in one} == RECIPE_FROM_ENCODER | {"learn.steps"}
    assert listed["learn.outside_weight"]["value"] == 1.0, "also settings that are saved only where they are given"
    lines = sefi("settings").stdout.splitlines()
    table, note = lines[: len(listed)], lines[len(listed) :]
    assert [line.split()[0] for line in table] == list_setting_names()
    assert table[0].split("  optimiser")[0].split() == ["learn.steps", "15", "or", "200", "*"]
    assert sum(" * " in line for line in table) == len(RECIPE_FROM_ENCODER) + 1
    assert "name encoder" in " ".join(note)
    assert "*" not in sefi("settings", "--preset", "scratch").stdout


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["textual-inversion", "custom-diffusion"])
def test_another_method_learns_and_generates(sefi, portrait, model_folder, tmp_path, method):
    out = tmp_path / "bob.safetensors"
    where = ("--model", model_folder)
    few = ("tune.prior_images=1", "generate.steps=2", "learn.templates=a photo of {}")
    few = [word for one in select_settings(METHODS[method].config_type, few) for word in ("--set", one)]
    found = sefi("learn", portrait, "--name", "bob", "--method", method, *where, *QUICK, *few, "--out", out)
    assert found.exit_code == 0, found.output
    assert Identity.load(out).method == method
    shown = json.loads(sefi("inspect", out, "--json").stdout)
    assert torch.tensor(shown["token_norms"]).shape == Identity.load(out).tokens.shape[:-1]
    drawn = sefi("generate", "a photo of <bob>", "-i", out, *where, "--steps", 2, "--out", tmp_path / "pictures")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "pictures" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--method", "magic"), "no method 'magic'"),
        (("--method", "prospect", "--preset", "paper"), "belongs to the method 'sefi'"),
        (
            ("--method", "dreambooth", "--set", "tune.parts=key_value"),
            "tune.parts = 'key_value': Input should be 'unet' or 'unet+text'",
        ),
        (("--set", "tune.rank=8"), "tune.rank is a setting of dreambooth-lora; sefi has none of this name"),
        (("--set", "method=dreambooth"), "the option --method"),
        (("--method", "cross-init", "--set", "basis.components=8"), "is a setting of celeb-basis; cross-init has none"),
        (("--method", "celeb-basis"), "face_recognition.onnx"),
        (("--method", "cross-init"), "list of the names"),
        (("--method", "textual-inversion", "--set", "learn.stages=5"), "knows only learn.stages=1"),
        (("--method", "custom-diffusion", "--dtype", "bfloat16"), "bfloat16 is too coarse"),
        (("--method", "fastcomposer", "--steps", 1), "clip"),
        (("--method", "fastcomposer"), "FastComposer does not read learn.steps, which is 2"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_learned(sefi, portrait, model_folder, tmp_path, given, said):
    out = tmp_path / "bob.safetensors"
    found = sefi("learn", portrait, "--name", "bob", "--model", model_folder, *QUICK, *given, "--out", out)
    assert found.exit_code == 2
    assert said in found.stderr
    assert "try:" in found.stderr
    assert not out.exists()
