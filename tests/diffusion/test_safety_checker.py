"""A model's own safety checker looks at what is generated; leaving it out is asked for and on record."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import save_model_folder
from transformers import CLIPConfig, CLIPImageProcessor
from typer.testing import CliRunner

from sefi.api import generate
from sefi.backbone.folder import SafetyChecker, prepare_for_clip
from sefi.backbone.open import open_backbone
from sefi.cli.app import app
from sefi.core.errors import REMARKS, BackboneError
from sefi.provenance.metadata import PARAMETERS_KEY

PROMPT = "a photo of a dog"


def save_checker(folder, *, flags):
    """Write a tiny random checker that flags everything, or nothing: by the likeness from which on it flags."""
    tower = {"hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = {**tower, "image_size": 30, "patch_size": 10, "projection_dim": 17}
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=tower, projection_dim=17))
    torch.nn.init.normal_(network.concept_embeds)
    torch.nn.init.normal_(network.special_care_embeds)
    network.special_care_embeds_weights.data.fill_(2.0)
    network.concept_embeds_weights.data.fill_(-2.0 if flags else 2.0)
    network.save_pretrained(folder / "safety_checker")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(backbone, tmp_path):
    """The tiny model in the Stable Diffusion format, without a checker."""
    return save_model_folder(backbone, tmp_path / "model")


def run(folder, out, *words):
    fixed = ("--model", folder, "--device", "cpu", "--steps", 1, "--json")
    found = CliRunner().invoke(app, [str(one) for one in ("generate", PROMPT, *fixed, "--out", out, *words)])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), found.stderr


def read_words(answer):
    with Image.open(answer["images"][0]["file"]) as image:
        return np.asarray(image.convert("RGB")), image.info[PARAMETERS_KEY]


def test_too_little_memory_for_it_is_said_and_may_be_tried_again(folder, monkeypatch):
    checker = SafetyChecker(save_checker(folder, flags=False) / "safety_checker")
    images, move = [Image.new("RGB", (30, 30))], torch.nn.Module.to
    assert checker.find_flagged(images) == [False]

    def fail(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB.")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(BackboneError, match=r"not enough memory .* \(CUDA out of memory\)") as error:
        checker.find_flagged(images)
    assert error.value.lacks_memory
    monkeypatch.setattr(torch.nn.Module, "to", move)
    assert checker.find_flagged(images) == [False]

    monkeypatch.setattr(StableDiffusionSafetyChecker, "from_pretrained", fail)
    with pytest.raises(BackboneError, match="not enough memory") as error:
        SafetyChecker(checker.folder).load()
    assert error.value.lacks_memory


@pytest.mark.slow
def test_a_flagged_image_is_black_reported_and_on_record(folder, tmp_path):
    answer, remarks = run(save_checker(folder, flags=True), tmp_path / "out", "--width", 192, "--height", 192)
    pixels, words = read_words(answer)
    assert pixels.max() < 16  # black, with the mark in it
    assert "Safety checker: flagged" in words
    assert (answer["safety_checker"], answer["images"][0]["flagged"]) == (True, True)
    assert answer["images"][0]["invisible_mark"] is True
    assert remarks.count("flagged the image") == 1
    kept = json.loads((tmp_path / "out" / "records.json").read_text())["runs"][0]
    assert (kept["safety_checker"], kept["images"][0]["flagged"]) == (True, True)


@pytest.mark.slow
def test_what_is_not_flagged_is_as_without_a_checker(folder, tmp_path):
    plain, _ = run(folder, tmp_path / "plain")
    checked, remarks = run(save_checker(folder, flags=False), tmp_path / "checked")
    assert (plain["safety_checker"], checked["safety_checker"]) == (None, True)
    assert (read_words(plain)[0] == read_words(checked)[0]).all()
    assert read_words(plain)[1].replace("plain", "") == read_words(checked)[1].replace("checked", "")
    assert "safety" not in remarks


def test_leaving_it_out_is_on_record(folder, tmp_path):
    answer, _ = run(save_checker(folder, flags=True), tmp_path / "out", "--no-safety-checker")
    pixels, words = read_words(answer)
    assert pixels.any()
    assert "Safety checker: off" in words
    assert answer["safety_checker"] is False


def test_the_same_in_python(folder, caplog):
    caplog.set_level("WARNING", logger=REMARKS)  # the command line raises it
    model = open_backbone(str(save_checker(folder, flags=True)))
    flagged = generate(PROMPT, backbone=model, steps=1)[0]
    assert (flagged.flagged, np.asarray(flagged.pixels).any()) == (True, False)
    assert "safety checker flagged" in caplog.text
    plain = generate(PROMPT, backbone=model, steps=1, safety_checker=False)[0]
    assert (plain.flagged, bool(np.asarray(plain.pixels).any())) == (False, True)
    assert plain.record.settings["Safety checker"] == "off"


@pytest.mark.slow
def test_attention_maps_are_shown_over_black(folder, tmp_path):
    save_checker(folder, flags=True)
    for words, checked in (((), True), (("--no-safety-checker",), False)):
        out = tmp_path / f"maps-{checked}.png"
        fixed = ("attend", PROMPT, "--model", folder, "--device", "cpu", "--steps", 1, "--json", "--out", out)
        found = CliRunner().invoke(app, [str(one) for one in (*fixed, *words)])
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["safety_checker"] is checked
        assert ("flagged the image" in found.stderr) is checked


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("damage", ["pickled", "missing", "not finite", "too wide", "cut"])
def test_a_checker_that_cannot_be_read_refuses_generation_before_it_begins(folder, damage):
    place = save_checker(folder, flags=True) / "safety_checker"
    file = place / "model.safetensors"
    if damage == "pickled":
        file.rename(place / "pytorch_model.bin")
    if damage == "missing":
        tensors = load_file(file)
        tensors.pop("concept_embeds")
        save_file(tensors, file, {"format": "pt"})
    if damage == "not finite":
        tensors = load_file(file)
        tensors["concept_embeds_weights"][3] = float("nan")  # it would flag nothing
        save_file(tensors, file, {"format": "pt"})
    if damage == "too wide":
        config = json.loads((place / "config.json").read_text())
        config["vision_config"]["hidden_size"] = 3_000_000
        (place / "config.json").write_text(json.dumps(config))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    model = open_backbone(str(folder))
    with pytest.raises(BackboneError, match="safety_checker"):
        generate(PROMPT, backbone=model, steps=1)
    assert generate(PROMPT, backbone=model, steps=1, safety_checker=False)


@pytest.mark.slow
def test_another_class_is_not_looked_up(folder):
    index = json.loads((save_checker(folder, flags=True) / "model_index.json").read_text())
    index["safety_checker"] = ["evil", "Evil"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert open_backbone(str(folder)).safety_checker is None
    (folder / "model_index.json").write_text(json.dumps({**index, "safety_checker": [None, None]}))
    assert open_backbone(str(folder)).safety_checker is None


@pytest.mark.parametrize("size", [(96, 64), (61, 97), (30, 30), (224, 224)])
def test_images_are_prepared_as_clip_prepares_them(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8))
    processor = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]
    assert np.abs(prepare_for_clip(image, 30).numpy() - expected).max() < 0.05


def test_it_flags_as_diffusers_does(folder):
    checker = SafetyChecker(save_checker(folder, flags=False) / "safety_checker")
    random = np.random.default_rng(5)
    images = [Image.fromarray(random.integers(0, top, (61, 67, 3)).astype(np.uint8)) for top in (20, 90, 255)]
    pixels = torch.stack([prepare_for_clip(one, 30) for one in images])
    network = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker")
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(network.visual_projection(network.vision_model(pixels)[1]))
        likest = (vectors @ torch.nn.functional.normalize(network.concept_embeds).T).max(dim=1).values
    middle = float(likest.sort().values[:2].mean())  # so that two of three are above it
    checker.load().concept_embeds_weights.data.fill_(middle)
    assert checker.find_flagged(images) == [bool(one > middle) for one in likest]
    assert sum(checker.find_flagged(images)) == 2


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("gone", ["safety_checker", "safety_checker/config.json"])
def test_a_checker_that_is_named_and_not_there_is_not_passed_over(folder, tmp_path, gone):
    path = save_checker(folder, flags=True) / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fixed = ("--model", folder, "--device", "cpu", "--steps", 1, "--out", tmp_path / "out")
    found = CliRunner().invoke(app, [str(one) for one in ("generate", PROMPT, *fixed)])
    assert (found.exit_code, "--no-safety-checker" in found.stderr) == (2, True)
    assert not list((tmp_path / "out").glob("*.png"))
    answer, _ = run(folder, tmp_path / "out", "--no-safety-checker")
    assert answer["safety_checker"] is False
