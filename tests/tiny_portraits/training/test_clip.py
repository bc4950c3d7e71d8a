"""The judge CLIP: its loss, its training, and that stock transformers and the encoder open what is saved."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny_portraits.training.progresses import Losses
from transformers import AutoImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel

from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import ClipEncoder
from tiny_portraits.evaluation.evaluator_scores import choose_other_captions, score_clip_evaluator
from tiny_portraits.evaluation.model_scores import compute_agreement_ratio
from tiny_portraits.text.captions import FIRST, LAST, remove_names
from tiny_portraits.text.tokenizing import build_tokenizer, list_caption_words
from tiny_portraits.training.clip import (
    CLIP,
    FIRST_DRAWING,
    PROJECTION,
    SHOWN,
    ClipRecipe,
    build_clip,
    compute_clip_loss,
    draw_clip_data,
    make_clip_batch,
    normalise_pixels,
    save_clip,
    train_clip,
)
from tiny_portraits.training.drawings import EVALUATOR_SEED

TINY = ClipRecipe(drawings=7, steps=6, batch=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, progress = tmp_path_factory.mktemp("evaluators"), Losses()
    tokenizer = build_tokenizer(folder / CLIP, list_caption_words())
    clip = train_clip(tokenizer, TINY, 0, progress)
    save_clip(clip, folder / CLIP)
    return folder, progress.seen


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_loss_by_hand():
    seen = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert float(compute_clip_loss(seen, 5 * seen, 2.0)) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    assert float(compute_clip_loss(seen, seen.flip(0), 2.0)) == pytest.approx(math.log(1 + math.exp(2)), abs=1e-6)


@pytest.mark.slow
def test_a_few_steps_reduce_the_loss(trained):
    losses = trained[1]
    assert len(losses) == TINY.steps
    assert losses[-1] < losses[0]


def test_training_is_reproducible(tokenizer):
    recipe = ClipRecipe(drawings=3, steps=2, batch=2)
    first, second = (train_clip(tokenizer, recipe, 0, Losses()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_names_stand_as_person():
    assert remove_names(f"a photo of {FIRST} {LAST} and a smiling {FIRST}") == "a photo of person and a smiling person"


def test_captions_say_what_is_shown():
    data = draw_clip_data(EVALUATOR_SEED, FIRST_DRAWING, 5)
    for content, row in zip(data.contents, data.shows.tolist(), strict=True):
        told = {one for one, there in zip(SHOWN, row, strict=True) if there}
        assert content.style in told
        assert {content.scene} - {""} <= told
        assert ("two people" in told) == (len(content.subjects) == 2)
    assert data.images.shape == (5, 96, 96, 3)


def test_a_batch_leaves_the_drawings_as_they_are(tokenizer):
    data = draw_clip_data(EVALUATOR_SEED, FIRST_DRAWING, 5)
    before = data.images.copy()
    pixels, ids = make_clip_batch(data, tokenizer, np.array([3, 1, 4]), np.random.default_rng(0))
    assert pixels.shape == (3, 3, 96, 96)
    assert ids.shape[0] == 3
    assert np.array_equal(data.images, before)


def test_training_sees_pixels_as_the_saved_preprocessing_gives_them(trained):
    rgb = noise(96, 96)
    saved = AutoImageProcessor.from_pretrained(trained[0] / CLIP)([rgb], return_tensors="pt")["pixel_values"]
    assert torch.allclose(normalise_pixels(rgb[None].astype(np.float32)), saved, atol=1e-5)


def test_stock_transformers_opens_the_folder_and_the_encoder_agrees(trained):
    folder = trained[0] / CLIP
    model, encoder = CLIPModel.from_pretrained(folder), ClipEncoder(folder)
    assert model.dtype == torch.float32
    pictures = [noise(96, 96, seed) for seed in range(3)]
    with torch.no_grad():
        wanted = model.get_image_features(normalise_pixels(np.float32(pictures))).pooler_output
    wanted = torch.nn.functional.normalize(wanted).numpy()
    assert encoder.encode_images(pictures) == pytest.approx(wanted, abs=1e-4)


def test_the_encoder_gives_unit_vectors_of_any_images_and_prompts(trained):
    encoder = ClipEncoder(trained[0] / CLIP)
    images = encoder.encode_images([noise(64, 64), noise(130, 211)])
    texts = encoder.encode_texts(["a photo of a person", "a person " * 60, ""])
    assert images.shape == (2, PROJECTION)
    assert texts.shape == (3, PROJECTION)
    assert np.linalg.norm(np.concatenate([images, texts]), axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert encoder.encode_images([]).shape == (0, PROJECTION)


def test_no_path_of_this_machine_is_saved(trained):
    for file in (trained[0] / CLIP).glob("*.json"):
        assert str(trained[0]) not in file.read_text(encoding="utf-8")
    assert json.loads((trained[0] / CLIP / "config.json").read_text())["dtype"] == "float32"


def test_what_is_no_clip_is_refused(tmp_path, trained):
    config = CLIPTextConfig(
        vocab_size=5, hidden_size=6, intermediate_size=7, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "text")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    for name in ("nothing", "text", "damaged"):
        with pytest.raises(BackboneError, match=name):
            ClipEncoder(tmp_path / name)


def test_a_text_tower_saved_as_clip_lacks_weights(tmp_path, trained):
    source = trained[0] / CLIP
    model = CLIPModel.from_pretrained(source)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("vision_model")}
    ClipEncoder(source)  # whole
    broken = tmp_path / "broken"
    model.save_pretrained(broken, state_dict=weights)
    for file in source.glob("*"):
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BackboneError, match="weights"):
        ClipEncoder(broken)


def test_the_clip_evaluator_is_scored_on_new_drawings(trained):
    found, own, other = score_clip_evaluator(trained[0], count=9)
    assert 0 <= found.value <= 1
    assert found.target is None
    assert found.n == 9
    assert -1 <= other.value <= 1 >= own.value


def test_captions_to_choose_from_say_something_else():
    captions = ["a", "b", "a", "c"]
    assert sorted(choose_other_captions(captions, 0)) == [1, 3]
    assert len(choose_other_captions([str(i) for i in range(50)], 7)) == 31


def test_agreement_is_a_share_of_the_drawings():
    vectors = {"made": [0.6, 0.8], "drawn": [1.0, 0.0], "said": [1.0, 0.0]}

    def embed(things):
        return np.array([vectors[thing] for thing in things])

    encoder = SimpleNamespace(encode_images=embed, encode_texts=embed)
    figure = compute_agreement_ratio(encoder, ["made", "drawn", "made"], ["said"] * 3, ["drawn"] * 2, ["said"] * 2)
    assert figure.value == pytest.approx((0.6 + 1 + 0.6) / 3)
    assert (figure.target, figure.n) == (0.90, 3)


def test_the_text_tower_reads_to_the_tokenizers_end(tokenizer):
    config = build_clip(tokenizer).config.text_config
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert config.eos_token_id != 2  # which transformers takes for an old, wrong configuration
