"""Likeness: hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sefi.core.errors import BackboneError
from sefi.metrics.encoders import Reader, Reading, SFaceEncoder
from sefi.metrics.similarity import mean_similarity, similarity


@given(st.integers(0, 1000), st.floats(0.1, 50))
def test_likeness_is_symmetric_and_does_not_mind_length(seed, scale):
    a, b = np.random.default_rng(seed).standard_normal((2, 7))
    assert similarity(a, b) == pytest.approx(similarity(b, scale * a))
    assert -1 - 1e-9 <= similarity(a, b) <= 1 + 1e-9
    assert similarity(a, scale * a) == pytest.approx(1)


def test_a_picture_without_a_face_counts_zero():
    a = np.array([1.0, 0.0])
    assert mean_similarity(a, [a, None, np.array([0.6, 0.8]), None]) == pytest.approx(0.4)


def test_a_missing_judge_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"nothing\.onnx"):
        SFaceEncoder(tmp_path / "nothing.onnx")
    with pytest.raises(BackboneError, match=r"nothing\.onnx"):
        Reader(tmp_path / "nothing.onnx", tmp_path / "nothing.onnx")


def test_a_reading_says_what_is_shown():
    read = Reading({"hat": 0.8, "old": 0.3}, {"scene": {"": 0.2, "beach": 0.7, "snow": 0.1}})
    assert read.shows("attribute", "hat")
    assert not read.shows("attribute", "old")
    assert read.shows("scene", "beach")
    assert not read.shows("scene", "snow")
