"""ID(Prompt): hand-computed values, properties of its curve and area, and torchmetrics' ROC for the threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torchmetrics.functional.classification import binary_roc

from sefi.evaluation.metrics import (
    find_separating_tau,
    measure_id_prompt,
    measure_id_prompt_area,
    measure_id_prompt_curve,
)

IDS, PROMPTS = np.array([0.6, -0.2, 0.5]), np.array([0.1, 0.3, 0.25])
# Numbers with many ties among them.
scores = st.lists(st.integers(0, 12).map(lambda n: n / 16), min_size=1, max_size=11).map(np.array)
pictures = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20)), min_size=1, max_size=9).map(
    lambda pairs: (np.array([i for i, _ in pairs]), np.array([p / 20 for _, p in pairs]))
)


def test_an_image_below_the_threshold_counts_zero_and_one_on_it_counts():
    assert measure_id_prompt(IDS, PROMPTS, 0.0) == pytest.approx(0.9 / 3)
    assert measure_id_prompt(IDS, PROMPTS, 0.1) == pytest.approx(0.9 / 3)
    assert measure_id_prompt(IDS, PROMPTS, 0.11) == pytest.approx(0.3 / 3)
    assert measure_id_prompt(IDS, PROMPTS, 0.26) == pytest.approx(-0.2 / 3)
    assert measure_id_prompt(IDS, PROMPTS, 0.31) == 0


def test_the_curve_holds_the_scores_at_thresholds_in_any_order():
    curve = measure_id_prompt_curve(IDS, PROMPTS, np.array([0.31, 0.0, 0.26, 0.11, 0.1]))
    assert curve == pytest.approx([0, 0.3, -0.2 / 3, 0.1, 0.3])


@given(pictures, st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=7))
def test_the_curve_is_a_plain_loop_and_falls_while_no_likeness_is_negative(made, taus):
    ids, prompts = made
    ordered = np.sort(taus)
    curve = measure_id_prompt_curve(ids, prompts, ordered)
    loop = [sum(i for i, p in zip(ids, prompts, strict=True) if p >= tau) / len(ids) for tau in ordered]
    assert curve == pytest.approx(loop)
    assert (np.diff(curve) <= 1e-12).all()


def test_a_threshold_is_not_rounded_to_the_scores_precision():
    prompts = np.array([0.23], np.float32)
    score = float(prompts[0])
    assert measure_id_prompt(np.ones(1), prompts, score) == 1
    assert measure_id_prompt(np.ones(1), prompts, float(np.nextafter(score, 1))) == 0


def test_the_area_by_hand():
    # Between 0.15 and 0.35 the pictures count over 0, 3/4 and 1/2 of the way.
    assert measure_id_prompt_area(IDS, PROMPTS, 0.15, 0.35) == pytest.approx((-0.2 * 0.75 + 0.5 * 0.5) / 3)
    assert measure_id_prompt_area(IDS, PROMPTS, -1, 0) == pytest.approx(0.3)
    assert measure_id_prompt_area(IDS, PROMPTS, 0.4, 0.9) == 0


@given(pictures, st.floats(0, 0.6), st.floats(0.05, 0.5))
def test_the_area_is_the_sum_of_the_steps_and_lies_between_the_curves_ends(made, low, width):
    ids, prompts = made
    high = low + width
    bends = np.unique([low, *prompts[(prompts > low) & (prompts < high)], high])
    # The curve is level between two bends and includes the upper one.
    steps = measure_id_prompt_curve(ids, prompts, bends[1:])
    area = measure_id_prompt_area(ids, prompts, low, high)
    assert area == pytest.approx(float(steps @ np.diff(bends)) / width, abs=1e-9)
    assert steps.min() - 1e-9 <= area <= measure_id_prompt_curve(ids, prompts, bends).max() + 1e-9


@given(pictures, st.integers(0, 19))
def test_a_narrow_area_is_the_score_at_its_threshold(made, place):
    ids, prompts = made
    low, high = (place + 0.4) / 20, (place + 0.6) / 20  # no prompt score lies between
    assert measure_id_prompt_area(ids, prompts, low, high) == pytest.approx(
        measure_id_prompt(ids, prompts, (low + high) / 2)
    )


@given(pictures, st.floats(-0.5, 0.5), st.floats(0.1, 10))
def test_the_area_moves_and_stretches_with_the_prompt_scores(made, shift, scale):
    ids, prompts = made
    moved = measure_id_prompt_area(ids, scale * prompts + shift, scale * 0.13 + shift, scale * 0.77 + shift)
    assert moved == pytest.approx(measure_id_prompt_area(ids, prompts, 0.13, 0.77), abs=1e-9)


def test_the_separating_threshold_by_hand():
    # 3 of 3 right and 1 of 3 wrong at 0.15 is as good as 2 of 3 right and no wrong one at 0.27: the lower is taken.
    assert find_separating_tau(np.array([0.3, 0.5, 0.2]), np.array([0.1, 0.24, 0.05])) == pytest.approx(0.15)
    assert find_separating_tau(np.array([0.5]), np.array([0.1, 0.3])) == pytest.approx(0.4)
    assert find_separating_tau(np.array([0.2, 0.2, 0.4]), np.array([0.2, 0.1])) == pytest.approx(0.15)


@given(scores, scores)
def test_the_separating_threshold_reaches_the_best_of_torchmetrics_roc(right, wrong):
    preds = torch.from_numpy(np.concatenate([right, wrong]))
    wanted = torch.tensor([1] * len(right) + [0] * len(wrong))
    accepted_wrong, accepted_right, _ = binary_roc(preds, wanted)
    best = float((accepted_right - accepted_wrong).max())
    if best <= 1e-6:
        with pytest.raises(ValueError, match="no threshold"):
            find_separating_tau(right, wrong)
        return
    tau = find_separating_tau(right, wrong)
    assert (right >= tau).mean() - (wrong >= tau).mean() == pytest.approx(best, abs=1e-6)
    ordered = np.unique([*right, *wrong])
    above = np.searchsorted(ordered, tau)
    assert tau == (ordered[above - 1] + ordered[above]) / 2
    # Of equally good ones the lowest.
    for lower in (ordered[1:above] + ordered[: above - 1]) / 2:
        assert (right >= lower).mean() - (wrong >= lower).mean() < best - 1e-6


@given(scores, scores, st.randoms())
def test_the_order_of_the_scores_does_not_matter(right, wrong, random):
    if right.max() <= wrong.min():
        return
    mixed = [np.array(random.sample(list(s), len(s))) for s in (right, wrong)]
    try:
        tau = find_separating_tau(right, wrong)
    except ValueError:
        return
    assert find_separating_tau(*mixed) == tau


def test_neighbouring_numbers_are_separated():
    low = 0.3
    for _ in range(5):  # the midpoint is rounded down at some of them and up at others
        high = float(np.nextafter(low, 1))
        assert low < find_separating_tau(np.array([high]), np.array([low])) <= high
        low = high


def test_missing_scores_are_refused_and_no_images_give_nan():
    nothing = np.zeros(0)
    with pytest.raises(ValueError, match="nan"):
        measure_id_prompt(IDS, np.array([0.1, np.nan, 0.2]), 0.23)
    with pytest.raises(ValueError, match="nan"):
        measure_id_prompt_area(np.array([0.1, np.nan, 0.2]), PROMPTS, 0, 1)
    with pytest.raises(ValueError, match="threshold is nan"):
        measure_id_prompt(IDS, PROMPTS, float("nan"))
    with pytest.raises(ValueError, match=r"\(3,\) against \(2,\)"):
        measure_id_prompt_curve(IDS, PROMPTS[:2], PROMPTS)
    with pytest.raises(ValueError, match="low to high"):
        measure_id_prompt_area(IDS, PROMPTS, 0.3, 0.3)
    with pytest.raises(ValueError, match="right and of wrong"):
        find_separating_tau(nothing, PROMPTS)
    with pytest.raises(ValueError, match="none of them nan"):
        find_separating_tau(PROMPTS, np.array([np.nan, 0.1]))
    assert np.isnan(measure_id_prompt(nothing, nothing, 0.23))
    assert np.isnan(measure_id_prompt_area(nothing, nothing, 0, 1))
