"""Margins: hand-computed values, torchmetrics' cosine, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torchmetrics.functional import cosine_similarity

from sefi.evaluation.metrics import measure_margin_success, measure_margins

seeds = st.integers(0, 1000)


def three(seed):
    return np.random.default_rng(seed).standard_normal((3, 2, 5))


def test_margins_by_hand():
    images = np.array([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.0, 1.0]])
    wanted = np.array([[0.0, 7.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    contrast = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    found = measure_margins(images, wanted, contrast)
    assert found == pytest.approx([0.8 - 0.6, 0 - 1, 0])
    assert measure_margin_success(found) == pytest.approx(1 / 3)  # the middle is no success


@given(seeds)
def test_a_margin_is_the_difference_of_torchmetrics_cosines(seed):
    images, wanted, contrast = three(seed)
    near, far = (
        cosine_similarity(torch.from_numpy(images), torch.from_numpy(text), reduction="none").numpy()
        for text in (wanted, contrast)
    )
    assert measure_margins(images, wanted, contrast) == pytest.approx(near - far, abs=1e-6)


@given(seeds, st.floats(0.1, 50))
def test_a_margin_turns_with_its_texts_and_does_not_mind_lengths(seed, scale):
    images, wanted, contrast = three(seed)
    found = measure_margins(images, wanted, contrast)
    assert measure_margins(images, contrast, wanted) == pytest.approx(-found)
    assert measure_margins(scale * images, wanted, scale * contrast) == pytest.approx(found)
    assert (np.abs(found) <= 2).all()
    assert measure_margins(images, wanted, wanted) == pytest.approx([0, 0])


@given(seeds)
def test_one_text_serves_all_images(seed):
    images, wanted, contrast = three(seed)
    each = measure_margins(images, np.tile(wanted[0], (2, 1)), np.tile(contrast[1], (2, 1)))
    assert measure_margins(images, wanted[0], contrast[1]) == pytest.approx(each)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        measure_margins(np.ones((2, 5)), np.ones((3, 5)), np.ones(5))
    with pytest.raises(ValueError, match="nan"):
        measure_margin_success(np.array([0.1, np.nan]))
    assert np.isnan(measure_margin_success(np.zeros(0)))
