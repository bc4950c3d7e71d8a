"""Intervals come from resampling subjects, agree with scipy, and leave out what was not computed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from sefi.benchmark import statistics
from sefi.benchmark.statistics import Interval, estimate_difference, estimate_interval, find_student_limit

NAN = math.nan
finite = st.floats(-5, 5, allow_nan=False, width=32)


def sample(count, seed=3):
    values = np.random.default_rng(seed).gamma(2.0, 1.0, count)  # skewed, so that the ends differ
    return {f"s{index}": float(value) for index, value in enumerate(values)}


def looped_interval(values, draws, seed):
    """The definition, one resample at a time."""
    chance, means = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = [values[chance.integers(len(values))] for _ in values]
        means.append(sum(chosen) / len(chosen))
    means.sort()
    student = stats.t.ppf(0.975, len(values) - 1) * math.sqrt(len(values) / (len(values) - 1))
    return [means[round(share * (draws - 1))] for share in (stats.norm.cdf(-student), stats.norm.cdf(student))]


@pytest.mark.parametrize("count", [5, 13, 31])
def test_intervals_agree_with_scipys_percentile_bootstrap_at_expanded_percentiles(count):
    values = sample(count)
    found = estimate_interval(values, draws=20_000)
    student = stats.t.ppf(0.975, count - 1) * math.sqrt(count / (count - 1))
    tail = stats.norm.cdf(-student)
    theirs = stats.bootstrap(
        (list(values.values()),),
        np.mean,
        n_resamples=20_000,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(99),
    ).confidence_interval
    spread = np.std(list(values.values())) / math.sqrt(count)
    # Four standard errors of the difference of two quantiles so far out, of a normal distribution.
    error = 4 * math.sqrt(2 * tail * (1 - tail) / 20_000) * spread / stats.norm.pdf(student)
    assert found.low == pytest.approx(theirs.low, abs=error)
    assert found.high == pytest.approx(theirs.high, abs=error)
    assert found.high - found.low > 5 * error


def test_intervals_agree_with_a_plain_loop():
    values = sample(11)
    found = estimate_interval(values, draws=4000, seed=5)
    low, high = looped_interval(list(values.values()), 4000, 17)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.08), pytest.approx(high, abs=0.08))
    assert found.mean == pytest.approx(sum(values.values()) / 11)


def test_two_clusters_by_hand():
    # A resample is both, or one of them twice: the ends are the values themselves.
    assert estimate_interval({"a": 1.0, "b": 3.0}) == Interval(2.0, 1.0, 3.0, 2)


def test_the_order_of_subjects_does_not_matter():
    values = sample(7)
    assert estimate_interval(values) == estimate_interval(dict(reversed(values.items())))


@pytest.mark.parametrize("at_once", [1, 5 * 13])
def test_drawing_in_pieces_changes_nothing_of_the_kind(monkeypatch, at_once):
    values = sample(13)
    whole = estimate_interval(values, 500)
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    assert estimate_interval(values, 500) == whole


def test_another_seed_gives_other_ends_and_the_same_mean():
    values = sample(13)
    first, second = estimate_interval(values, 500, seed=0), estimate_interval(values, 500, seed=1)
    assert first.mean == second.mean
    assert (first.low, first.high) != (second.low, second.high)


def test_what_was_not_computed_is_left_out_and_counted():
    found = estimate_interval({"a": 1.0, "b": NAN, "c": 3.0})
    assert found == estimate_interval({"a": 1.0, "c": 3.0})
    assert found.n == 2


def test_one_subject_has_a_mean_and_no_interval():
    found = estimate_interval({"a": 0.5, "b": NAN})
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.excludes_zero


@pytest.mark.parametrize("values", [{}, {"a": NAN}])
def test_nothing_gives_nothing(values):
    found = estimate_interval(values)
    assert found.n == 0
    assert not found.computed
    assert math.isnan(found.mean)


@pytest.mark.parametrize(("values", "draws"), [({"a": math.inf, "b": 1.0}, 10), ({"a": 1.0, "b": 2.0}, 0)])
def test_what_cannot_be_resampled_is_refused(values, draws):
    with pytest.raises(ValueError, match="finite"):
        estimate_interval(values, draws)


def test_differences_are_taken_within_subjects():
    # The subjects differ a hundred times more than the variants: only pairing can see the variants.
    base = {f"s{n}": 100.0 * n for n in range(7)}
    found = estimate_difference({s: v + 1 for s, v in base.items()}, base)
    assert (found.mean, found.low, found.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert found.excludes_zero
    assert estimate_interval(base).high - estimate_interval(base).low > 100


def test_differences_need_both_sides():
    found = estimate_difference({"a": 1.0, "b": 5.0, "c": NAN, "d": 2.0}, {"a": 0.0, "b": 2.0, "c": 1.0, "e": 9.0})
    assert (found.mean, found.n) == (2.0, 2)


def test_a_difference_is_the_interval_of_differences_with_its_draws_and_its_seed():
    values = sample(7)
    found = estimate_difference(values, dict.fromkeys(values, 0.0), 50, 3)
    assert found == estimate_interval(values, 50, 3)
    assert found != estimate_interval(values, 50)
    assert found != estimate_interval(values, seed=3)


def test_an_interval_around_zero_is_no_difference():
    assert not Interval(0.1, -0.1, 0.3, 5).excludes_zero
    assert not Interval(0.1, 0.0, 0.3, 5).excludes_zero
    assert not Interval(-0.1, -0.3, 0.0, 5).excludes_zero
    assert Interval(0.1, 0.05, 0.3, 5).excludes_zero
    assert Interval(-0.1, -0.3, -0.05, 5).excludes_zero


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 11, 12, 23, 29, 101, 1009])
def test_students_limit_is_scipys(freedom):
    assert find_student_limit(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subjects", "share"), [(3, 0.25), (4, 0.125), (5, 0.08), (6, 0.06), (8, 0.05), (12, 0.05), (24, 0.05)]
)
def test_without_a_difference_intervals_leave_out_zero_as_often_as_pages_say(subjects, share):
    chance, runs = np.random.default_rng(1), 2000
    found = [
        estimate_interval({f"s{n:02}": float(value) for n, value in enumerate(row)}, 4000)
        for row in chance.standard_normal((runs, subjects))
    ]
    assert sum(one.excludes_zero for one in found) / runs == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("count", "told"), [(2, False), (5, False), (6, True)])
def test_a_direction_is_told_of_six_subjects_or_more(count, told):
    assert Interval(0.1, 0.05, 0.3, count).tells_direction == told
    assert not Interval(0.1, -0.05, 0.3, count).tells_direction


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=3), finite, min_size=2, max_size=9), finite)
def test_the_interval_holds_the_mean_and_moves_with_the_values(values, shift):
    found = estimate_interval(values, 400)
    assert min(values.values()) <= found.low <= found.high <= max(values.values()) or found.low == pytest.approx(
        found.high
    )
    moved = estimate_interval({name: value + shift for name, value in values.items()}, 400)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=3), st.tuples(finite, finite), min_size=2, max_size=9))
def test_turning_a_difference_round_turns_its_interval_round(pairs):
    mine, theirs = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    there, back = estimate_difference(mine, theirs, 400), estimate_difference(theirs, mine, 400)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for trial in range(300):
        values = np.random.default_rng(trial).normal(0.5, 1.0, 29)
        found = estimate_interval({str(n): float(v) for n, v in enumerate(values)}, 1000)
        hits += found.low <= 0.5 <= found.high
    assert 0.89 <= hits / 300 <= 0.98
