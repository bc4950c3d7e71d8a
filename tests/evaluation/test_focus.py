"""Focus of attention: hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.evaluation.metrics import measure_mass_on_objects, measure_share_inside

seeds = st.integers(0, 1000)
boxes = st.tuples(*[st.floats(-0.2, 1.2)] * 4)


def maps(seed, words=3, side=5):
    return np.random.default_rng(seed).random((words, side, side))


def test_cells_that_the_box_cuts_count_by_their_part():
    map_ = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    # All of the first row's first cell, half of its second; a quarter as high in the second row.
    assert measure_share_inside(map_, (0.0, 0.0, 0.75, 0.625)) == pytest.approx([(1 + 2 / 2 + 3 / 4 + 4 / 8) / 10])
    assert measure_share_inside(map_, (0.5, 0.0, 1.0, 0.5)) == pytest.approx([0.2])  # columns first: upper right
    assert measure_share_inside(map_[0], (0.5, 0.0, 1.0, 0.5)) == pytest.approx(0.2)  # a map alone
    assert measure_share_inside(np.zeros((1, 2, 2)), (0, 0, 1, 1)) == pytest.approx([0])


@given(seeds, st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 50))
def test_two_halves_hold_everything_and_brightness_does_not_matter(seed, low, high, scale):
    found = maps(seed)
    left, top = (0.0, 0.0, low, 1.0), (0.0, 0.0, 1.0, high)
    assert measure_share_inside(found, left) + measure_share_inside(found, (low, 0.0, 1.0, 1.0)) == pytest.approx(
        np.ones(3)
    )
    assert measure_share_inside(found, top) + measure_share_inside(found, (0.0, high, 1.0, 1.0)) == pytest.approx(
        np.ones(3)
    )
    assert measure_share_inside(scale * found, left) == pytest.approx(measure_share_inside(found, left))
    assert measure_share_inside(np.ones((1, 5, 5)), left) == pytest.approx([low])


def test_mass_on_objects_by_hand():
    placeholder = np.array([[5.0, 3.0], [2.0, 0.0]])
    cup = np.array([[0.2, 0.8], [0.4, 0.1]])  # half of 0.8 is reached twice
    beach = np.array([[0.0, 0.1], [0.1, 0.3]])
    assert measure_mass_on_objects(placeholder, cup[None]) == pytest.approx(0.5)
    assert measure_mass_on_objects(placeholder, cup[None], level=0.6) == pytest.approx(0.3)
    assert measure_mass_on_objects(placeholder, beach[None]) == 0
    assert measure_mass_on_objects(placeholder, np.stack([cup, beach, cup])) == pytest.approx(
        0.5
    )  # nothing counts twice
    assert measure_mass_on_objects(placeholder, np.stack([cup, placeholder])) == pytest.approx(1)


def test_a_word_that_nothing_looks_at_marks_no_object():
    placeholder = np.ones((3, 3))
    assert measure_mass_on_objects(placeholder, np.zeros((2, 3, 3))) == 0
    assert measure_mass_on_objects(placeholder, np.zeros((0, 3, 3))) == 0
    assert measure_mass_on_objects(np.zeros((3, 3)), np.ones((1, 3, 3))) == 0


@given(seeds, st.floats(0.05, 0.95), st.floats(0.1, 50))
def test_mass_on_objects_is_a_plain_loop_and_does_not_mind_brightness(seed, level, scale):
    placeholder, *others = maps(seed, words=4)
    objects = np.stack(others)
    on_objects = 0.0
    for row in range(5):
        for column in range(5):
            marked = any(word[row, column] >= level * word.max() for word in objects)
            on_objects += placeholder[row, column] if marked else 0.0
    found = measure_mass_on_objects(placeholder, objects, level)
    assert found == pytest.approx(on_objects / placeholder.sum())
    assert measure_mass_on_objects(scale * placeholder, objects, level) == pytest.approx(found)


@given(seeds, st.floats(0.05, 0.9), st.floats(0, 0.1))
def test_a_higher_level_or_fewer_objects_hold_no_more(seed, level, rise):
    placeholder, *others = maps(seed, words=4)
    found = measure_mass_on_objects(placeholder, np.stack(others), level)
    assert measure_mass_on_objects(placeholder, np.stack(others), level + rise) <= found + 1e-12
    assert measure_mass_on_objects(placeholder, np.stack(others[:2]), level) <= found + 1e-12
    assert 0 <= found <= 1 + 1e-12


def test_maps_of_two_sizes_and_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="one size"):
        measure_mass_on_objects(np.ones((3, 3)), np.ones((2, 5, 5)))
    for level in (0.0, 1.1):
        with pytest.raises(ValueError, match="level"):
            measure_mass_on_objects(np.ones((3, 3)), np.ones((2, 3, 3)), level)
