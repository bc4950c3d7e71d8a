"""Background leakage: hand-computed values, and what blanking the face changes and what it leaves."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.evaluation.metrics import blank_face, measure_background_leakage

edges = st.tuples(st.floats(-0.3, 0.6), st.floats(0.05, 0.5)).map(lambda e: (e[0], e[0] + e[1]))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_leakage_by_hand():
    backgrounds = np.array([[3.0, 4.0, 0.0], [0.0, -2.0, 0.0], [1.0, 2.0, 2.0]])
    assert measure_background_leakage(backgrounds, np.array([0.0, 5.0, 0.0])) == pytest.approx((0.8 - 1 + 2 / 3) / 3)
    assert np.isnan(measure_background_leakage(np.zeros((0, 3)), np.ones(3)))
    with pytest.raises(ValueError, match="mismatch"):
        measure_background_leakage(backgrounds, np.ones(2))


@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_leakage_is_a_plain_mean_of_cosines_and_does_not_mind_lengths(seed, scale):
    made, photo = np.random.default_rng(seed).standard_normal((3, 5)), np.random.default_rng(seed + 1).random(5)
    loop = np.mean(
        [sum(a * b for a, b in zip(m, photo, strict=True)) / np.sqrt((m @ m) * (photo @ photo)) for m in made]
    )
    assert measure_background_leakage(scale * made, photo) == pytest.approx(loop)
    assert measure_background_leakage(made, scale * photo) == pytest.approx(loop)
    assert measure_background_leakage(np.tile(photo, (3, 1)), photo) == pytest.approx(1)


def test_the_enlarged_face_is_filled_with_the_mean_of_the_rest():
    rgb = np.zeros((8, 12, 3), np.uint8)
    rgb[:, 6:] = [30, 60, 90]
    rgb[2:6, 3:6] = 255
    before = rgb.copy()
    # 4 rows by 3 columns, twice as large: all rows, columns 1.5 to 7.5, so 1 to 7. Of the rest 1 column is black.
    blank = blank_face(rgb, (3 / 12, 2 / 8, 6 / 12, 6 / 8), factor=2)
    wanted = before.copy()
    wanted[:, 1:8] = [24, 48, 72]
    assert np.array_equal(blank, wanted)
    assert blank.dtype == np.uint8
    assert np.array_equal(rgb, before)


def test_the_mean_is_rounded_to_the_nearest_shade():
    rgb = np.zeros((1, 4, 3), np.uint8)
    rgb[0, :, 0] = [0, 1, 1, 200]
    assert blank_face(rgb, (0.75, 0.0, 1.0, 1.0), factor=1)[0, 3].tolist() == [1, 0, 0]


@given(st.integers(0, 1000), edges, edges)
def test_blanking_removes_the_face_and_leaves_the_rest(seed, columns, rows):
    rgb, box = noise(13, 17, seed), (columns[0], rows[0], columns[1], rows[1])
    blank = blank_face(rgb, box)
    if blank is None:
        return
    x, y = np.meshgrid((np.arange(17) + 0.5) / 17, (np.arange(13) + 0.5) / 13)
    middle, half = np.mean([columns, rows], axis=1), 0.75 * np.ptp([columns, rows], axis=1)
    inside = (np.abs(x - middle[0]) < half[0]) & (np.abs(y - middle[1]) < half[1])
    beyond = (np.abs(x - middle[0]) > half[0] + 1.01 / 17) | (np.abs(y - middle[1]) > half[1] + 1.01 / 13)
    other = np.where(inside[..., None], noise(13, 17, seed + 1), rgb)
    assert np.array_equal(blank_face(other, box), blank)
    assert np.array_equal(blank[beyond], rgb[beyond])
    assert not inside.any() or (blank[inside] == blank[inside][0]).all()


def test_a_face_that_fills_the_image_leaves_no_background():
    assert blank_face(noise(7, 5), (0.1, 0.1, 0.9, 0.9)) is None
    assert blank_face(noise(7, 5), (0.1, 0.1, 0.9, 0.9), factor=0.8) is not None


def test_a_face_beyond_the_edge_changes_nothing():
    rgb = noise(7, 5)
    for box in ((1.2, 0.2, 1.4, 0.6), (-0.9, 0.2, -0.5, 0.6)):
        assert np.array_equal(blank_face(rgb, box), rgb)
