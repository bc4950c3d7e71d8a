"""Training part by part: what is refused before anything is drawn or learned."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel
from typer.testing import CliRunner

from sefi.backbone.open import EMBEDDED, MODELS
from sefi.cli.app import app
from sefi.core.errors import ConfigError
from sefi.core.protocols import SilentProgress
from sefi.world.train import CONTINUED, DECODER, PARTS, Run, adopt, train
from sefi.world.vae_training import VaeRecipe


def run(folder, start=None):
    return Run(folder, resume=False, seed=0, progress=SilentProgress(), start=start)


@pytest.mark.parametrize("part", CONTINUED)
def test_a_missing_model_to_start_from_is_refused(part, tmp_path):
    with pytest.raises(ConfigError, match="no model to start from"):
        train(part, run(tmp_path, tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [p for p in PARTS if p not in CONTINUED])
def test_a_part_that_begins_with_nothing_takes_no_start(part, tmp_path):
    with pytest.raises(ConfigError, match="always begins with nothing"):
        train(part, run(tmp_path, MODELS / EMBEDDED))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(ConfigError, match="no model to start from"):
        train("text", run(tmp_path, tmp_path))


def test_the_command_refuses_a_missing_start(tmp_path):
    words = ["world", "train", "text", "--start", "nowhere", "--out", str(tmp_path / "run"), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "nowhere" in json.loads(found.stdout)["error"]


@pytest.mark.parametrize("start", [EMBEDDED, str(MODELS / EMBEDDED)])
def test_the_command_takes_a_name_or_a_folder(start, tmp_path):
    # The model is found; what is missing then is the tokenizer that the new training needs.
    words = ["world", "train", "text", "--start", start, "--out", str(tmp_path), "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "tokenizer" in json.loads(found.stdout)["error"]


def test_an_unknown_part_lists_the_parts(tmp_path):
    with pytest.raises(ConfigError, match="no part 'beauty'") as refused:
        train("beauty", run(tmp_path))
    assert all(part in refused.value.remedy for part in PARTS)


@pytest.mark.parametrize(("part", "first"), [("text", "tokenizer"), ("denoiser", "tokenizer"), ("decoder", "vae")])
def test_an_earlier_part_that_is_missing_is_named(part, first, tmp_path):
    with pytest.raises(ConfigError, match=f"{first} is missing"):
        train(part, run(tmp_path))


def test_the_decoders_second_lesson_leaves_the_encoder_alone():
    assert DECODER.decoder_only
    assert not VaeRecipe().decoder_only


@pytest.mark.slow
def test_a_denoiser_adopts_what_it_lacks_from_the_finished_model(tmp_path):
    start = MODELS / EMBEDDED
    adopt(tmp_path, start)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.safetensors", "tokenizer", "vae"]
    kept = load_file(tmp_path / "text.safetensors")
    for name, value in CLIPTextModel.from_pretrained(start / "text_encoder").float().state_dict().items():
        assert torch.equal(kept[f"text.{name}"], value), name
    # What is there already is kept.
    (tmp_path / "vae" / "mine").touch()
    before = (tmp_path / "text.safetensors").stat().st_mtime_ns
    adopt(tmp_path, start)
    assert (tmp_path / "vae" / "mine").exists()
    assert (tmp_path / "text.safetensors").stat().st_mtime_ns == before
