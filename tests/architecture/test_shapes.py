"""Tensors have the shapes that docstrings say: within one test, a name of an axis has one size."""

import pytest
import torch
from jaxtyping import Bool, Float, Int, jaxtyped
from torch import Tensor

from sefi.backbone.bundle import TextEncoding
from sefi.core.config import override
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder, average_word_maps, copy_with_key_value_attention
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner
from sefi.diffusion.text import parse_prompt
from sefi.identity.file import Identity, IdentityHeader
from sefi.identity.tokens import IdentityTokens
from sefi.methods import PRESETS
from sefi.methods.base import get_class_row
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import (
    ViewLatents,
    compute_losses,
    draw_batch,
    encode_key_value_texts,
    encode_training_texts,
)

CONFIG = override(PRESETS["paper"], ["learn.batch=3", "views.latent_pool=0"])  # the preset with an attention loss
PROMPTS = ["a photo of <ada> at the beach", "a drawing of <ada> and a dog"]


def make_views(backbone):
    side = backbone.resolution
    return PhotoViews(torch.rand((3, side, side), generator=create_generator(4, "photo")) * 2 - 1, CONFIG.views)


@jaxtyped(typechecker=None)
def check(*pairs):
    """Compare values and shapes; axes of one call that have one name have one size."""
    for value, shape in pairs:
        assert isinstance(value, shape), f"{tuple(value.shape)} {value.dtype} is not {shape}"


def test_these_checks_can_fail():
    check((torch.zeros(3, 5), Float[Tensor, "batch word"]), (torch.zeros(3, 10), Float[Tensor, "batch 2*word"]))
    with pytest.raises(AssertionError, match=r"\(3, 7\)"):
        check((torch.zeros(3, 5), Float[Tensor, "batch word"]), (torch.zeros(3, 7), Float[Tensor, "batch word"]))


def test_of_prompts_and_text_states(backbone):
    parsed = parse_prompt(backbone, PROMPTS[0], {"ada": "person"}, {"ada": 2})
    ids = torch.stack([parsed.ids, parsed.ids, parsed.ids])
    mask = torch.zeros_like(ids[:, 0], dtype=torch.bool)
    rows = torch.zeros(*mask.shape, backbone.token_width)
    check(
        (parsed.ids, Int[Tensor, "encoder word"]),
        (ids, Int[Tensor, "batch encoder word"]),
        (mask, Bool[Tensor, "batch word"]),
        (backbone.encode_text(ids).states, Float[Tensor, "batch word width"]),
        (backbone.encode_text(ids, rows, mask).states, Float[Tensor, "batch word width"]),
        (backbone.get_token_row([3] * len(ids[0])), Float[Tensor, "width"]),
    )


def test_of_pooled_text_and_sizes(sdxl):
    parsed = parse_prompt(sdxl, PROMPTS[0], {"ada": "person"})
    found = sdxl.encode_text(torch.stack([parsed.ids] * 3))
    check(
        (found.states, Float[Tensor, "batch word width"]),
        (found.pooled, Float[Tensor, "batch pooled"]),
        (found.extra["time_ids"], Float[Tensor, "batch 6"]),
        (found.select(torch.tensor([0, 2, 1, 1])).pooled, Float[Tensor, "4 pooled"]),
    )


def test_of_one_training_step(backbone):
    texts, latents = (
        encode_training_texts(backbone, CONFIG.learn),
        ViewLatents(backbone, make_views(backbone), CONFIG.views, 1),
    )
    tokens = IdentityTokens(get_class_row(backbone, CONFIG), CONFIG.learn, 1)()
    sample = draw_batch(backbone, latents, CONFIG.learn, 1, 0)
    context = encode_key_value_texts(backbone, texts, sample.template_index, tokens[:3])
    losses = compute_losses(backbone, texts, tokens, sample, CONFIG.learn)
    check(
        (texts.ids, Int[Tensor, "template encoder word"]),
        (texts.vector_index, Int[Tensor, "template word"]),
        (texts.compared_words, Bool[Tensor, "template word"]),
        (texts.reference.states, Float[Tensor, "template word width"]),
        (tokens, Float[Tensor, "stage 2 width"]),
        (sample.latents, Float[Tensor, "batch channel height height"]),
        (sample.noise, Float[Tensor, "batch channel height height"]),
        (sample.timesteps, Int[Tensor, "batch"]),
        (sample.template_index, Int[Tensor, "batch"]),
        (context.states, Float[Tensor, "batch word 3*width"]),
        (losses.total, Float[Tensor, ""]),
        (losses.attention, Float[Tensor, ""]),
    )


def test_of_images_latents_and_predictions(backbone):
    pixels = torch.rand((2, 3, 2 * backbone.latent_factor, 5 * backbone.latent_factor)) * 2 - 1
    latents = backbone.encode_image(pixels)
    context = TextEncoding(torch.zeros(2, 7, backbone.token_width))
    check(
        (pixels, Float[Tensor, "batch 3 height width"]),
        (latents, Float[Tensor, "batch channel h w"]),
        (backbone.decode(latents), Float[Tensor, "batch 3 height width"]),
        (make_views(backbone).draw_view(create_generator(1, "view")), Float[Tensor, "3 side side"]),
    )
    square = torch.zeros(2, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    predicted = backbone.predict(square, torch.tensor([3, 7]), context)
    check((square, Float[Tensor, "batch channel h w"]), (predicted, Float[Tensor, "batch channel h w"]))


def test_of_conditioners_and_attention_maps(backbone):
    tokens = IdentityTokens(get_class_row(backbone, CONFIG), CONFIG.learn, 1)().detach()
    header = IdentityHeader(
        name="ada",
        method="sefi",
        stages=len(tokens),
        base_model=backbone.fingerprint,
        width=backbone.token_width,
        class_word="person",
    )
    conditioner = IdentityConditioner(backbone, [Identity({"tokens": tokens}, header)])
    words = WordsConditioner(backbone, {"ada": "person"})
    context, recorder = conditioner.encode_prompts(PROMPTS, 500), AttentionRecorder(keep_maps=True)
    unet = copy_with_key_value_attention(backbone.unet, recorder)
    noisy = torch.zeros(2, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    backbone.predict(noisy, torch.tensor([500, 500]), context, unet)
    check(
        (tokens, Float[Tensor, "stage 2 width"]),
        (conditioner.stage_tokens["ada"], Float[Tensor, "stage 2 vector width"]),
        (context.states, Float[Tensor, "batch word 2*width"]),
        (words.encode_prompts(PROMPTS, 500).states, Float[Tensor, "batch word 2*width"]),
        (conditioner.encode_negative(2, "a dog").states, Float[Tensor, "batch word 2*width"]),
        (average_word_maps(recorder, 11), Float[Tensor, "batch word side side"]),
    )
    assert recorder.maps
    for maps in recorder.maps.values():
        check((maps, Float[Tensor, "2 head word height height"]))
