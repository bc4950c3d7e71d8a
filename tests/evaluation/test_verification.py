"""Verification: hand-computed thresholds, a plain search over all thresholds, and torchmetrics' ROC."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torchmetrics.functional.classification import binary_roc

from sefi.evaluation.metrics import find_threshold_at_far, measure_verification_rate

FIVE = np.array([0.1, 0.5, 0.2, 0.4, 0.3])
# Similarities with many ties among them.
similarities = st.lists(st.integers(-4, 16).map(lambda n: n / 16), min_size=2, max_size=40).map(np.array)


def just_above(value):
    return float(np.nextafter(value, np.inf))


def test_the_threshold_lies_just_above_the_first_who_is_refused():
    assert find_threshold_at_far(FIVE, 0.2) == just_above(0.4)
    assert find_threshold_at_far(FIVE, 0.39) == just_above(0.4)
    assert find_threshold_at_far(FIVE, 0.4) == just_above(0.3)
    assert find_threshold_at_far(np.array([0.5, 0.5, 0.5, 0.1]), 0.5) == just_above(
        0.5
    )  # two of three equals cannot pass


def test_rounding_does_not_change_an_exact_share():
    assert 0.29 * 100 < 29
    assert measure_verification_rate(np.arange(100.0), find_threshold_at_far(np.arange(100.0), 0.29)) == 0.29


@given(similarities, st.floats(0.01, 0.99))
def test_no_smaller_threshold_keeps_the_rate(impostors, far):
    if 1 / len(impostors) > far:
        with pytest.raises(ValueError, match="cannot tell"):
            find_threshold_at_far(impostors, far)
        return
    tau = find_threshold_at_far(impostors, far)
    assert measure_verification_rate(impostors, tau) <= far
    assert measure_verification_rate(impostors, float(np.nextafter(tau, -np.inf))) > far
    assert tau == min(just_above(i) for i in impostors if np.mean(impostors >= just_above(i)) <= far)


@given(similarities, similarities, st.floats(0.05, 0.95))
def test_the_rate_is_a_point_of_torchmetrics_roc(same, other, far):
    if 1 / len(other) > far:
        return
    # Mapped to [0, 1], where torchmetrics takes scores as they are.
    preds = (torch.from_numpy(np.concatenate([same, other])) + 1) / 2
    wanted = torch.tensor([1] * len(same) + [0] * len(other))
    false_accepts, true_accepts, _ = binary_roc(preds, wanted)
    allowed = float(true_accepts[false_accepts <= far + 1e-6].max())
    assert measure_verification_rate(same, find_threshold_at_far(other, far)) == pytest.approx(allowed, abs=1e-6)


@given(similarities, st.floats(-1, 1), st.floats(0, 1))
def test_a_higher_threshold_accepts_no_more(found, threshold, rise):
    assert measure_verification_rate(found, threshold + rise) <= measure_verification_rate(found, threshold)
    assert measure_verification_rate(found, -1) == 1


@given(similarities, st.floats(-1, 1), st.data())
def test_an_image_without_a_face_is_refused_by_every_threshold(found, threshold, data):
    has_face = np.array(data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found))))
    passed = sum(bool(face and cosine >= threshold) for cosine, face in zip(found, has_face, strict=True))
    assert measure_verification_rate(found, threshold, has_face) == pytest.approx(passed / len(found))
    assert measure_verification_rate(np.zeros(3), threshold, np.zeros(3, bool)) == 0
    with pytest.raises(ValueError, match="has a face or not"):
        measure_verification_rate(found, threshold, has_face[1:])


def test_single_precision_does_not_let_an_impostor_pass():
    impostors = np.array([0.1, 0.2, 0.3, 0.7], np.float32)
    assert measure_verification_rate(impostors, find_threshold_at_far(impostors, 0.25)) == 0.25


def test_undefined_rates_are_refused():
    with pytest.raises(ValueError, match=r"999 impostors cannot tell a false accept rate of 0\.001"):
        find_threshold_at_far(np.arange(999.0), 1e-3)
    assert find_threshold_at_far(np.arange(1000.0), 1e-3) == just_above(998.0)
    with pytest.raises(ValueError, match="cannot tell"):
        find_threshold_at_far(np.zeros(0), 0.5)
    for far in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            find_threshold_at_far(FIVE, far)
    with pytest.raises(ValueError, match="nan"):
        find_threshold_at_far(np.array([0.1, np.nan, 0.3]), 0.5)
    with pytest.raises(ValueError, match="nan"):
        measure_verification_rate(np.array([0.1, np.nan]), 0.5)
    with pytest.raises(ValueError, match="nan"):
        measure_verification_rate(FIVE, float("nan"))
    assert np.isnan(measure_verification_rate(np.zeros(0), 0.5))
