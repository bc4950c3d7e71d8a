"""Copying: hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.evaluation.metrics import measure_copying

pairs = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=7).map(lambda p: np.array(p).T)


def test_the_excess_over_the_other_image_by_hand():
    assert measure_copying(np.array([0.9, 0.5, 0.4]), np.array([0.3, 0.6, 0.3])) == pytest.approx(0.2)
    assert measure_copying(np.array([1.0]), np.array([0.62])) == pytest.approx(0.38)  # the photo, pasted


@given(pairs)
def test_swapping_the_images_negates_the_score_and_equal_images_give_zero(both):
    photo, other = both
    assert measure_copying(photo, other) == pytest.approx(-measure_copying(other, photo))
    assert measure_copying(photo, photo) == 0
    assert measure_copying(photo, other) == pytest.approx(photo.mean() - other.mean(), abs=1e-12)
    assert -2 <= measure_copying(photo, other) <= 2


def test_images_pair_up_and_nan_stays_nan():
    with pytest.raises(ValueError, match="both likenesses"):
        measure_copying(np.ones(3), np.ones(2))
    assert np.isnan(measure_copying(np.zeros(0), np.zeros(0)))
    assert np.isnan(measure_copying(np.array([0.5, np.nan]), np.ones(2)))
