"""Likeness: hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.core.errors import BackboneError
from sefi.evaluation.encoders import ImageReader, Reading, SFaceEncoder
from sefi.evaluation.metrics import measure_mean_over_detected, measure_mean_similarity, measure_similarity


@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_likeness_is_symmetric_and_does_not_mind_length(seed, scale):
    a, b = np.random.default_rng(seed).standard_normal((2, 7))
    assert measure_similarity(a, b) == pytest.approx(measure_similarity(b, scale * a))
    assert -1 - 1e-9 <= measure_similarity(a, b) <= 1 + 1e-9
    assert measure_similarity(a, scale * a) == pytest.approx(1)


def test_an_image_without_a_face_counts_zero():
    a = np.array([1.0, 0.0])
    assert measure_mean_similarity(a, [a, None, np.array([0.6, 0.8]), None]) == pytest.approx(0.4)


def test_the_mean_over_detected_faces_leaves_the_other_images_out():
    values = np.array([0.5, 0.0, -0.1, np.nan])
    assert measure_mean_over_detected(values, np.array([True, False, True, False])) == pytest.approx(0.2)
    assert measure_mean_over_detected(values, np.array([2, 0, 1, 0])) == pytest.approx(0.2)  # counts of faces
    assert np.isnan(measure_mean_over_detected(values, np.zeros(4, bool)))
    with pytest.raises(ValueError, match="face or not"):
        measure_mean_over_detected(values, np.ones(3, bool))


@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=7))
def test_both_means_differ_by_the_share_of_images_with_a_face(pictures):
    values, found = (np.array(column) for column in zip(*pictures, strict=True))
    a = np.array([1.0, 0.0])
    faces = [np.array([v, np.sqrt(1 - v * v)]) if f else None for v, f in pictures]
    if found.any():
        assert measure_mean_over_detected(values, found) * found.mean() == pytest.approx(
            measure_mean_similarity(a, faces), abs=1e-9
        )


def test_a_missing_evaluator_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"nothing\.onnx"):
        SFaceEncoder(tmp_path / "nothing.onnx")
    with pytest.raises(BackboneError, match=r"nothing\.onnx"):
        ImageReader(tmp_path / "nothing.onnx", tmp_path / "nothing.onnx")


def test_a_reading_says_what_is_shown():
    read = Reading({"hat": 0.8, "old": 0.3}, {"scene": {"": 0.2, "beach": 0.7, "snow": 0.1}})
    assert read.shows("attribute", "hat")
    assert not read.shows("attribute", "old")
    assert read.shows("scene", "beach")
    assert not read.shows("scene", "snow")
