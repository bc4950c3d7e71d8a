"""Blind raters are excluded, honest ones are not; simulated, with prime numbers of raters, comparisons and images."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from sefi.user_study.preference import (
    analyse_study,
    compute_binomial_tail,
    compute_tail,
    find_fast_answers,
    find_preferred_position,
    find_reason_to_exclude,
)
from sefi.user_study.study import Answer, AnswerFile

RATERS, COMPARISONS, CHECKS = 101, 53, 12
LETTERS = "ABCDE"


def sheet(chance, variants, choose, seconds, rater="r", checks=CHECKS):
    """A rater's answers; `choose` gives the place of an answer from the order and the right letter, if there is one."""
    answers, right = [], {}
    for n in range(COMPARISONS + checks):
        order = [LETTERS[i] for i in chance.permutation(variants)]
        if n < checks:
            right[f"c{n}"] = LETTERS[int(chance.integers(variants))]
        chosen = order[choose(order, right.get(f"c{n}"))]
        milliseconds = int(1000 * seconds * chance.lognormal(0, 0.4))
        answers.append(
            Answer(question="prompt", comparison=f"c{n}", order=order, chosen=chosen, milliseconds=milliseconds)
        )
    key = {"variants": {letter: f"variant {letter}" for letter in LETTERS[:variants]}, "checks": right}
    content = {"schema": 1, "study": "s", "rater": rater, "answers": [a.model_dump() for a in answers], "key": key}
    return AnswerFile.model_validate(content)


def blind(chance, variants):
    return lambda _order, _right: int(chance.integers(variants))


def one_place(chance, variants):
    favourite = int(chance.integers(variants))
    return lambda _order, _right: favourite if chance.random() < 0.8 else int(chance.integers(variants))


def in_turn(chance, variants):
    """Every place in turn: as often as the others, and blind."""
    count = iter(range(10**6))
    return lambda _order, _right: next(count) % variants


def honest(chance, variants):
    """Prefers A six times in ten, slips once in twenty checks."""

    def choose(order, right):
        if right is not None and chance.random() < 0.95:
            return order.index(right)
        return order.index("A") if chance.random() < 0.6 else int(chance.integers(variants))

    return choose


def contrary(chance, variants):
    """Honest, with a taste of their own: never A."""
    plain = honest(chance, variants)

    def choose(order, right):
        place = plain(order, right)
        return place if right is not None or order[place] != "A" else order.index("B")

    return choose


def share_excluded(behaviour, variants, seconds):
    chance = np.random.default_rng([variants, 16])
    sheets = [sheet(chance, variants, behaviour(chance, variants), seconds) for _ in range(RATERS)]
    return np.mean([bool(find_reason_to_exclude(one)) for one in sheets])


@pytest.mark.parametrize(("variants", "seconds"), product((2, 3, 5), (0.3, 2.3)))
@pytest.mark.parametrize("behaviour", [blind, one_place, in_turn])
def test_raters_who_do_not_look_are_excluded_also_if_they_take_their_time(behaviour, variants, seconds):
    assert share_excluded(behaviour, variants, seconds) >= 0.95


@pytest.mark.parametrize("variants", [2, 3, 5])
@pytest.mark.parametrize("behaviour", [honest, contrary])
def test_honest_raters_are_counted_whatever_they_prefer(behaviour, variants):
    assert share_excluded(behaviour, variants, 2.3) <= 0.05


def test_the_reasons_are_reported():
    chance = np.random.default_rng(3)
    raters = {
        "good": sheet(chance, 3, honest(chance, 3), 2.3, "good"),
        "slow and blind": sheet(chance, 3, in_turn(chance, 3), 2.3, "slow and blind"),
        "fast": sheet(chance, 3, honest(chance, 3), 0.2, "fast"),
        "leftmost": sheet(chance, 3, lambda _order, _right: 0, 2.3, "leftmost", checks=0),
    }
    key = raters["good"].key  # one study has one key
    found = analyse_study(
        [one.model_copy(update={"key": key}) if name == "good" else one for name, one in raters.items()], 100
    )
    assert found.raters == ("good",)
    assert "attention checks, as a blind rater would with a probability of" in found.excluded["slow and blind"]
    assert "answers in less than 200 ms for each image" in found.excluded["fast"]
    assert found.excluded["leftmost"] == f"chose place 1 of 3 in {COMPARISONS} of {COMPARISONS} answers"


def test_few_checks_cannot_tell_chance_and_half_of_them_is_enough():
    chance = np.random.default_rng(5)
    for passed, excluded in ((0, True), (1, False), (2, False)):
        left = iter([True] * passed + [False] * (2 - passed))

        def choose(order, right, left=left):
            if right is None:
                return int(chance.integers(3))
            return order.index(right) if next(left) else (order.index(right) + 1) % 3

        assert bool(find_reason_to_exclude(sheet(chance, 3, choose, 2.3, checks=2))) == excluded


def answers(milliseconds, variants=3):
    return [
        Answer(
            question="quality",
            comparison=str(n),
            order=list(LETTERS[:variants]),
            chosen=LETTERS[n % variants],
            milliseconds=m,
        )
        for n, m in enumerate(milliseconds)
    ]


def test_time_is_for_each_image_and_a_few_quick_answers_are_no_reason():
    assert find_fast_answers(answers([599] * 6 + [2000] * 5))
    assert not find_fast_answers(answers([599] * 5 + [2000] * 5))
    assert not find_fast_answers(answers([601] * 11))
    assert find_fast_answers(answers([601] * 11, variants=5))
    assert not find_fast_answers([])
    assert find_preferred_position([]) == ""


@given(st.integers(0, 13), st.integers(1, 13), st.sampled_from([1 / 2, 1 / 3, 1 / 5]))
def test_the_tails_are_those_of_the_binomial(times, of, chance):
    expected = binom.sf(times - 1, of, chance)
    assert compute_binomial_tail(times, of, chance) == pytest.approx(expected, abs=1e-12)
    assert compute_tail(times, [chance] * of) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.data(), st.integers(1, 10_000), st.sampled_from([1 / 2, 1 / 3, 1 / 5, 1 / 26]))
def test_the_tails_of_thousands_of_answers_are_those_of_the_binomial(data, of, chance):
    spread = round(6 * np.sqrt(of * chance * (1 - chance)) + 3)
    middle = round(of * chance)
    near = st.integers(max(0, middle - spread), min(of, middle + spread))
    times = data.draw(near | st.integers(0, of))
    expected = binom.sf(times - 1, of, chance)
    # Far out scipy's own is only right to 3e-8: of 222 of 256 at 1 / 26 ours is that of exact fractions to 2e-14.
    closeness = 1e-8 if expected > 1e-200 else 1e-6
    assert compute_binomial_tail(times, of, chance) == pytest.approx(expected, rel=closeness, abs=1e-300)
    assert compute_tail(times, [chance] * of) == pytest.approx(expected, rel=1e-8, abs=1e-15)


@pytest.mark.parametrize("of", [1029, 1030, 1031, 2053, 10_000])
def test_a_tail_is_known_where_the_number_of_choices_is_above_the_largest_float(of):
    for times in (0, 1, of // 2, of // 2 + 1, of):
        assert compute_binomial_tail(times, of, 1 / 2) == pytest.approx(binom.sf(times - 1, of, 1 / 2), rel=1e-8)
    assert 0 <= compute_binomial_tail(0, of, 1 / 3) <= 1


@pytest.mark.slow
def test_raters_of_ten_thousand_answers_are_separated():
    many = answers([2300] * 10_000)
    assert find_preferred_position(many) == ""
    first = [one.model_copy(update={"chosen": "A"}) for one in many]
    assert find_preferred_position(first) == "chose place 1 of 3 in 10000 of 10000 answers"
    right = {str(n): LETTERS[n % 3] if n % 3 else "B" for n in range(10_000)}  # two of three are passed
    content = {"schema": 1, "study": "s", "rater": "r", "answers": [one.model_dump() for one in many]}
    attentive = AnswerFile.model_validate(content | {"key": {"variants": dict.fromkeys("ABC", "x"), "checks": right}})
    assert find_reason_to_exclude(attentive) == ""
    wrong = {str(n): LETTERS[(n // 3) % 3] for n in range(10_000)}  # one of three
    blind_one = AnswerFile.model_validate(content | {"key": {"variants": dict.fromkeys("ABC", "x"), "checks": wrong}})
    passed = sum(one.chosen == wrong[one.comparison] for one in many)
    expected = f"passed {passed} of 10000 attention checks, as a blind rater would with a probability of "
    assert find_reason_to_exclude(blind_one) == expected + f"{binom.sf(passed - 1, 10_000, 1 / 3):.2f}"


def test_checks_of_different_sizes_have_their_own_chance():
    assert compute_tail(2, [1 / 2, 1 / 3]) == pytest.approx(1 / 6)
    assert compute_tail(1, [1 / 2, 1 / 3]) == pytest.approx(1 - 1 / 2 * 2 / 3)
    assert compute_tail(0, []) == 1
