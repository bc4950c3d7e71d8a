"""The denoiser's lesson: which places of a picture count how much."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sefi.world.data import picture_at
from sefi.world.diffusion_training import DiffusionRecipe, face_weights
from sefi.world.drawing import UNITS, face_truth

RECIPE, SIDE = DiffusionRecipe(), 24


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_have_mean_one_and_no_place_is_left_out(index: int) -> None:
    weights = face_weights([picture_at(7, index), picture_at(7, index + 1)], SIDE, RECIPE)
    assert weights.shape == (2, 1, SIDE, SIDE)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert weights.min() > 0.1


@pytest.mark.parametrize("index", range(7))
def test_a_mouth_counts_more_than_its_head_and_a_head_more_than_the_scene(index: int) -> None:
    picture = picture_at(7, index)
    subject = picture.subjects[0]
    weights = face_weights([picture], SIDE, RECIPE)[0, 0]

    def at(x: float, y: float) -> float:
        row, column = (int(np.clip(v * SIDE / UNITS, 0, SIDE - 1)) for v in (y, x))
        return float(weights[row, column])

    mouth = np.array(face_truth(subject)["landmarks"][3:]).mean(0)
    assert at(*mouth) > 1.5 * at(subject.x, subject.y - 0.9 * subject.scale) > 1.5 * at(1, 1)


def test_without_extra_weight_every_cell_counts_alike() -> None:
    plain = replace(RECIPE, head_weight=0.0, feature_weight=0.0)
    torch.testing.assert_close(face_weights([picture_at(7, 3)], SIDE, plain), torch.ones(1, 1, SIDE, SIDE))
