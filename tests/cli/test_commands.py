"""Every command, end to end, on a tiny model of the real classes."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sefi.cli import options
from sefi.cli.attend import average_shares
from sefi.cli.doctor import list_devices
from sefi.cli.image_files import shorten_names
from sefi.cli.loading import load_generation_config
from sefi.core.config import override
from sefi.identity.file import Identity
from sefi.methods import PRESETS

QUICK = ("--steps", 2, "--device", "cpu")


def test_learn_writes_one_small_file_and_nothing_else(ada):
    identity = Identity.load(ada)
    assert identity.name == "ada"
    assert identity.header.settings["learn"]["steps"] == 2
    assert ada.stat().st_size < 100_000
    assert list(ada.parent.iterdir()) == [ada]


def test_learn_reports_as_json(sefi, portrait, model_folder, tmp_path):
    out = tmp_path / "bob.safetensors"
    found = sefi(
        "learn",
        portrait,
        "--name",
        "bob",
        "--model",
        model_folder,
        "--no-crop",
        *QUICK,
        "--set",
        "learn.attention_weight=0.25",
        "--seed",
        7,
        "--out",
        out,
        "--json",
    )
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["identity"] == str(out)
    assert answer["seed"] == 7
    assert answer["bytes"] == out.stat().st_size
    assert Identity.load(out).header.settings["learn"]["attention_weight"] == 0.25


def test_the_same_seed_learns_the_same_bits(sefi, ada, portrait, model_folder, tmp_path):
    again = tmp_path / "again.safetensors"
    found = sefi(
        "learn",
        portrait,
        "--name",
        "ada",
        "--model",
        model_folder,
        "--no-crop",
        *QUICK,
        "--out",
        again,
    )
    assert found.exit_code == 0, found.output
    assert (Identity.load(again).tokens == Identity.load(ada).tokens).all()


def test_generate_names_files_by_prompt_and_seed(sefi, ada, model_folder, tmp_path):
    found = sefi(
        "generate",
        "a photo of <ada> in snow",
        "a drawing of <ada>",
        "-i",
        ada,
        "--model",
        model_folder,
        *QUICK,
        "--count",
        2,
        "--seed",
        5,
        "--out",
        tmp_path,
        "--json",
    )
    assert found.exit_code == 0, found.output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "a-drawing-of-ada-5.png",
        "a-drawing-of-ada-6.png",
        "a-photo-of-ada-in-snow-5.png",
        "a-photo-of-ada-in-snow-6.png",
        "grid.png",
        "records.json",
    ]
    answer = json.loads(found.stdout)
    assert answer.pop("schema") == "generate/1"
    assert [shorten_names(answer)] == json.loads((tmp_path / "records.json").read_text())["runs"]
    assert answer["settings"]["steps"] == 2
    for entry in answer["images"]:
        with Image.open(entry["file"]) as image:
            assert image.size == (24, 24)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler"])
def test_generate_with_every_scheduler(sefi, ada, model_folder, tmp_path, scheduler):
    found = sefi(
        "generate",
        "<ada> in snow",
        "-i",
        ada,
        "--model",
        model_folder,
        *QUICK,
        "--scheduler",
        scheduler,
        "--guidance-scale",
        3,
        "--out",
        tmp_path,
    )
    assert found.exit_code == 0, found.output
    assert "ada-in-snow-0.png" in found.stdout


def test_generate_needs_no_identity_for_a_plain_prompt(sefi, model_folder, tmp_path):
    found = sefi("generate", "a photo of person", "--model", model_folder, *QUICK, "--out", tmp_path)
    assert found.exit_code == 0, found.output


@pytest.mark.slow
def test_prompts_as_other_programs_write_them(sefi, ada, model_folder, tmp_path):
    long = "a (photo:1.2) of (<ada>:0.8) at the beach" + " and the dog" * 3
    words = ["-i", ada, "--model", model_folder, *QUICK, "--json"]
    found = sefi("generate", long, "--clip-skip", 2, "--out", tmp_path / "pictures", *words)
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["images"][0]["prompt"] == long
    assert answer["settings"]["clip_skip"] == 2
    assert answer["unknown_words"] == []
    assert "in 2 parts" in found.stderr
    assert "clip_skip 1" in found.stderr
    maps = sefi("attend", long, "--out", tmp_path / "maps.png", "--set", "generate.clip_skip=2", *words)
    assert maps.exit_code == 0, maps.output
    shown = json.loads(maps.stdout)["words"]
    assert shown[:5] == ["(start)", "a", "photo", "of", "<ada>"]
    assert shown.count("(start)") == 2


def test_attend_draws_a_map_for_every_word(sefi, ada, model_folder, tmp_path):
    out = tmp_path / "maps.png"
    found = sefi(
        "attend",
        "a photo of <ada> holding a cup",
        "-i",
        ada,
        "--model",
        model_folder,
        *QUICK,
        "--out",
        out,
        "--json",
    )
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["words"][4] == "<ada>"
    assert answer["reference_words"][4] == "person"
    assert len(answer["words"]) == len(answer["mean_attention"]) == 9
    with Image.open(out) as figure:
        assert figure.width > 500


def test_inspect_needs_no_model(sefi, ada):
    answer = json.loads(sefi("inspect", ada, "--json").stdout)
    assert answer["name"] == "ada"
    assert answer["tensors"] == {"tokens": [5, 2, 24]}
    assert "class_word" in sefi("inspect", ada).stdout


@pytest.mark.slow
def test_doctor_lists_what_is_missing(sefi):
    found = sefi("doctor", "--json")
    answer = json.loads(found.stdout)
    assert found.exit_code == (1 if answer["problems"] else 0)
    assert answer["libraries"]["torch"]
    text = sefi("doctor").stdout
    assert "python" in text
    assert (
        "knows drawn faces (1 found in the package's portrait); the package's YuNet, for photographs, runs too" in text
    )


def test_the_settings_that_help_shows_are_taken():
    assert override(PRESETS["default"], [options.LEARNING_EXAMPLE]).learn.batch == 8
    assert load_generation_config("default", [options.GENERATION_EXAMPLE]).generate.clip_skip == 2


def test_devices_are_named_as_commands_take_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "card {}".format)
    assert list_devices()[:2] == ["cuda:0 (card 0)", "cuda:1 (card 1)"]
    assert list_devices()[-1].startswith("cpu (")


def test_version_and_help(sefi):
    assert sefi("--version").stdout.startswith("sefi ")
    assert "learn" in sefi("--help").stdout


def test_a_name_of_several_words_has_their_mean_share():
    row = SimpleNamespace(shares={1: 0.5, 2: 0.25, 4: 1.0})
    found = average_shares(row, ["(start)", "<ada>", "<ada>", "and", "<bob>", "(end)"])
    assert found == {"<ada>": 0.375, "<bob>": 1.0}
