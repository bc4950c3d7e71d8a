"""Clip-skip: texts read from an earlier layer are those of diffusers, and 1 changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tests.conftest import make_text_encoder
from tests.diffusion.test_prompt_weights import make_identity
from transformers import CLIPTextModelWithProjection

import sefi
from sefi.api import list_prompt_remarks
from sefi.backbone.bundle import Backbone, copy_part
from sefi.core.config import Config, override, parse_config
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner
from sefi.testing import list_differences, record_state

PROMPT = "a photo of a dog at the beach"
LAYERS = 5


@pytest.fixture
def deep(backbone) -> Backbone:
    torch.manual_seed(7)
    return replace(backbone, text_encoder=make_text_encoder(backbone.tokenizer, num_hidden_layers=LAYERS))


@pytest.fixture
def deep_sdxl(sdxl) -> Backbone:
    torch.manual_seed(8)
    sizes = {"hidden_size": 40, "num_hidden_layers": LAYERS + 2, "num_attention_heads": 2, "projection_dim": 20}
    second = make_text_encoder(sdxl.tokenizer_2, CLIPTextModelWithProjection, **sizes)
    first = make_text_encoder(sdxl.tokenizer, num_hidden_layers=LAYERS)
    return replace(sdxl, text_encoder=first, text_encoder_2=second)


def encode(model, clip_skip):
    """Return states and pooled text of the prompt as a conditioner reads them."""
    encoding = WordsConditioner(model.skip_layers(clip_skip), {}).encode_prompts([PROMPT], 0)
    return encoding.states.chunk(2, dim=-1)[0], encoding.pooled


@pytest.mark.parametrize("clip_skip", range(1, LAYERS + 1))
def test_texts_are_those_of_diffusers(deep, clip_skip):
    encoder = copy_part(deep.text_encoder)
    if not hasattr(encoder, "text_model"):
        vars(encoder)["text_model"] = encoder  # transformers 5 has no inner model; diffusers still asks for it
    pipe = StableDiffusionPipeline(
        vae=deep.vae, text_encoder=encoder, tokenizer=deep.tokenizer, unet=deep.unet,
        scheduler=DDIMScheduler.from_config(deep.scheduler.config, steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    skipped = None if clip_skip == 1 else clip_skip - 1
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False, clip_skip=skipped)
    assert torch.equal(encode(deep, clip_skip)[0], expected)


@pytest.mark.parametrize("clip_skip", range(1, LAYERS))
def test_texts_of_sdxl_are_those_of_diffusers(deep_sdxl, clip_skip):
    pipe = StableDiffusionXLPipeline(
        vae=deep_sdxl.vae, text_encoder=deep_sdxl.text_encoder, text_encoder_2=deep_sdxl.text_encoder_2,
        tokenizer=deep_sdxl.tokenizer, tokenizer_2=deep_sdxl.tokenizer_2, unet=deep_sdxl.unet,
        scheduler=deep_sdxl.scheduler, add_watermarker=False,
    )  # fmt: skip
    skipped = None if clip_skip == 1 else clip_skip - 1
    with torch.no_grad():
        expected, _, pooled, _ = pipe.encode_prompt(
            PROMPT, device="cpu", do_classifier_free_guidance=False, clip_skip=skipped
        )
    states, found = encode(deep_sdxl, clip_skip)
    assert torch.equal(states, expected)
    assert torch.equal(found, pooled)


@pytest.mark.parametrize(("kind", "deepest"), [("deep", LAYERS), ("deep_sdxl", LAYERS - 1)])
def test_more_layers_than_there_are_are_refused(request, kind, deepest):
    model = request.getfixturevalue(kind)
    for clip_skip in (0, deepest + 1):
        with pytest.raises(ConfigError, match=f"clip_skip {clip_skip}") as refused:
            model.skip_layers(clip_skip)
        assert refused.value.remedy == f"Set generate.clip_skip to 1 to {deepest}."
    config = parse_config({"generate": {"clip_skip": deepest + 1, "steps": 2}}, Config)
    with pytest.raises(ConfigError, match="too few layers"):
        sefi.generate(PROMPT, backbone=model, config=config)


@pytest.mark.slow
def test_images_and_maps_follow_the_setting_and_the_model_stays_as_it_was(deep):
    before = record_state(deep)
    ada = [make_identity(deep)]
    prompt = "a photo of (<ada>:1.2) at the beach"
    config = parse_config({"generate": {"steps": 4, "guidance_scale": 3.0}}, Config)
    first, one, two = (
        np.asarray(sefi.generate(prompt, ada, backbone=deep, config=override(config, changes))[0].pixels, int)
        for changes in ([], ["generate.clip_skip=1"], ["generate.clip_skip=2"])
    )
    assert (first == one).all()
    assert np.abs(first - two).max() > 1
    reading = deep.skip_layers(2)
    found = record_attention(reading, IdentityConditioner(reading, ada), prompt, 0, config.generate, SilentProgress())
    # Attention that is recorded is computed by other kernels: the last bit may round to the next grey level.
    np.testing.assert_allclose(np.asarray(found.image, int), two, rtol=0, atol=1)
    assert list_differences(before, record_state(deep)) == []
    assert deep.skip_layers(1) is deep.skip_layers(None) is deep
    assert reading.skip_layers(1).clip_skip == 1


def test_long_texts_and_replaced_rows_are_read_from_the_same_layer(deep):
    reading = deep.skip_layers(3)
    conditioner = IdentityConditioner(reading, [make_identity(deep)])
    first, second = "a photo of a person and a dog at the beach in the snow and", "<ada> smiling"
    long, *parts = (conditioner.encode_prompts([text], 0).states for text in (f"{first} {second}", first, second))
    torch.testing.assert_close(long, torch.cat(parts, dim=1))
    usual = IdentityConditioner(deep, [make_identity(deep)]).encode_prompts([second], 0).states
    assert not torch.allclose(parts[1], usual, atol=1e-3)


def test_the_user_hears_at_which_layer_subjects_are_learned(deep):
    settings = parse_config({"generate": {"clip_skip": 2}}, Config).generate
    assert list_prompt_remarks(deep, [PROMPT], settings) == []
    remarks = list_prompt_remarks(deep, [PROMPT], settings, [make_identity(deep)])
    assert remarks == ["subjects are learned at clip_skip 1; at 2 they may be less like their photo"]
