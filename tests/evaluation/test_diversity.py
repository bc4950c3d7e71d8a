"""Diversity: hand-computed values, SciPy's and torchmetrics' distances, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.spatial.distance import pdist
from torchmetrics.functional.pairwise import pairwise_cosine_similarity

from sefi.evaluation.metrics import measure_diversity

sizes = st.tuples(st.integers(0, 1000), st.integers(2, 7), st.floats(0.1, 50))


def vectors(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 5))


def test_pairs_by_hand():
    assert measure_diversity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2)
    # Pairs: right angle, cosine 0.6, cosine 0.8.
    assert measure_diversity(np.array([[1.0, 0.0], [0.0, 3.0], [3.0, 4.0]])) == pytest.approx((1 + 0.4 + 0.2) / 3)


@given(sizes)
def test_diversity_is_scipys_and_torchmetrics_mean_distance(size):
    seed, count, scale = size
    made = vectors(seed, count)
    assert measure_diversity(scale * made) == pytest.approx(pdist(made, "cosine").mean())
    cosines = pairwise_cosine_similarity(torch.from_numpy(made), zero_diagonal=True)
    assert measure_diversity(made) == pytest.approx(1 - float(cosines.sum()) / (count * (count - 1)))


@given(sizes)
def test_the_order_does_not_matter_and_copies_have_none(size):
    seed, count, scale = size
    made = vectors(seed, count)
    assert measure_diversity(made[::-1]) == pytest.approx(measure_diversity(made))
    assert 0 <= measure_diversity(made) <= 2
    assert measure_diversity(np.tile(scale * made[:1], (count, 1)).astype(np.float32)) == pytest.approx(0, abs=1e-12)


def test_one_image_has_no_diversity():
    assert np.isnan(measure_diversity(np.ones((1, 5))))
    assert np.isnan(measure_diversity(np.ones((0, 5))))
