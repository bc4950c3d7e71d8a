"""The denoiser's training: which places of an image count how much, and the shape of the shipped denoiser."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings, strategies as st

from sefi.backbone.open import EMBEDDED, MODELS
from tiny_portraits.drawing.image import UNITS, describe_face, locate_heads
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, Shares, get_content, sample_content
from tiny_portraits.training.denoiser import build_denoiser
from tiny_portraits.training.latents import DiffusionRecipe, compute_face_weights

RECIPE, SIDE = DiffusionRecipe(), 24


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_weights_have_mean_one_and_no_place_is_left_out(index: int) -> None:
    weights = compute_face_weights([get_content(7, index), get_content(7, index + 1)], SIDE, RECIPE)
    assert weights.shape == (2, 1, SIDE, SIDE)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert weights.min() > 0.1


@pytest.mark.parametrize("index", range(7))
def test_a_mouth_counts_more_than_its_head_and_a_head_more_than_the_scene(index: int) -> None:
    picture = sample_content(np.random.default_rng([7, index]), shares=PEOPLE_ONLY)
    subject = picture.subjects[0]
    weights = compute_face_weights([picture], SIDE, RECIPE)[0, 0]

    def at(x: float, y: float) -> float:
        row, column = (int(np.clip(v * SIDE / UNITS, 0, SIDE - 1)) for v in (y, x))
        return float(weights[row, column])

    mouth = np.array(describe_face(subject)["landmarks"][3:]).mean(0)
    assert at(*mouth) > 1.5 * at(subject.x, subject.y - 0.9 * subject.scale) > 1.5 * at(1, 1)


def test_without_extra_weight_every_cell_counts_alike() -> None:
    plain = replace(RECIPE, head_weight=0.0, feature_weight=0.0)
    torch.testing.assert_close(compute_face_weights([get_content(7, 3)], SIDE, plain), torch.ones(1, 1, SIDE, SIDE))


@pytest.mark.parametrize("index", range(5))
def test_an_animals_face_counts_as_a_persons_does(index: int) -> None:
    picture = sample_content(np.random.default_rng(index), shares=Shares(pet=1.0))
    weights = compute_face_weights([picture], SIDE, RECIPE)[0, 0]
    ((_, _, _, points),) = locate_heads(picture)
    row, column = (int(v * SIDE / UNITS) for v in points[0][::-1])
    assert weights[row, column] > 2 * weights.min()


def test_the_embedded_models_denoiser_is_of_the_trained_shape():
    embedded = UNet2DConditionModel.from_pretrained(MODELS / EMBEDDED / "unet", use_safetensors=True)
    wanted = {name: value.shape for name, value in build_denoiser().state_dict().items()}
    assert {name: value.shape for name, value in embedded.state_dict().items()} == wanted
