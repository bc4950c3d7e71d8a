"""Weights at the size of Stable Diffusion 1.4, as the paper's Table 1 counts them; no memory is needed."""

import pytest
import torch

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import create_empty_stable_diffusion
from sefi.backbone.weights import list_cross_attention_weights
from sefi.core.config import override
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import WeightCounts
from sefi.methods.celeb_basis import Mapper


@pytest.fixture(scope="module")
def model() -> Backbone:
    return create_empty_stable_diffusion()


def weights(model: Backbone, preset: str, *settings: str) -> WeightCounts:
    config = override(PRESETS[preset], settings)
    return METHODS[config.method].count_weights(model, config)


def test_the_model_has_no_values(model: Backbone) -> None:
    assert {p.device.type for part in (model.unet, model.text_encoder, model.vae) for p in part.parameters()} == {
        "meta"
    }


def test_sefi(model: Backbone) -> None:
    assert weights(model, "paper") == WeightCounts(7_680, 31_477_248)
    assert weights(model, "default") == WeightCounts(7_680, 0)
    assert weights(model, "default", "learn.split_key_value=false", "learn.stages=1") == WeightCounts(768, 0)


def test_textual_inversion(model: Backbone) -> None:
    assert weights(model, "textual-inversion-official") == WeightCounts(1_536, 0)


def test_dreambooth(model: Backbone) -> None:
    assert weights(model, "dreambooth-official") == WeightCounts(982_581_444, 0)
    assert weights(model, "dreambooth-official", "tune.parts=unet") == WeightCounts(859_520_964, 0)


def test_dreambooth_lora(model: Backbone) -> None:
    # diffusers' script at rank 4: 32 attentions, four layers each, 3.2 MB in float32.
    assert weights(model, "dreambooth-lora-official") == WeightCounts(797_184, 0)


def test_custom_diffusion(model: Backbone) -> None:
    there = dict(model.unet.named_parameters())
    assert sum(there[n].numel() for n in list_cross_attention_weights(model.unet, ("to_k", "to_v"))) == 19_169_280
    assert weights(model, "custom-diffusion-official") == WeightCounts(57_115_392, 0)
    # The published code's count of "crossattn", beside the token table.
    assert (
        weights(model, "custom-diffusion-official", "tune.parts=cross_attention").trained - 49_409 * 768 == 43_962_560
    )


def test_prospect(model: Backbone) -> None:
    assert weights(model, "prospect-official") == WeightCounts(7_680, 31_477_248)
    assert weights(model, "prospect-official", "learn.split_key_value=true") == WeightCounts(15_360, 55_077_888)


def test_celeb_basis(model: Backbone) -> None:
    assert weights(model, "celeb-basis-official").trained == 1_024
    with torch.device("meta"):
        assert sum(p.numel() for p in Mapper(512, 512).parameters()) == 525_312


def test_fastcomposer(model: Backbone) -> None:
    # Nothing of a subject; its fusion, and cross-attention, where the published one tunes the whole UNet.
    assert weights(model, "fastcomposer-official") == WeightCounts(0, 2_958_336 + 43_962_560)
