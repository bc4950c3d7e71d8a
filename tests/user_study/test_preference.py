"""Preferences: hand-computed values, known strengths found again, published examples, independent implementations."""

import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize

from sefi.core.errors import ConfigError
from sefi.user_study.preference import (
    analyse_question,
    analyse_study,
    compute_nominal_alpha,
    count_wins,
    estimate_strengths,
)
from sefi.user_study.study import Answer, AnswerFile, read_answer_files

VARIANTS = {"A": "ours", "B": "rival", "C": "third"}


def answer(comparison, chosen, order="ABC", question="quality", milliseconds=2000):
    return Answer(question=question, comparison=comparison, order=list(order), chosen=chosen, milliseconds=milliseconds)


def sheet(rater, answers, checks=(), study="s"):
    tree = {"schema": 1, "study": study, "rater": rater, "answers": [a.model_dump() for a in answers]}
    return AnswerFile.model_validate({**tree, "key": {"variants": VARIANTS, "checks": dict(checks)}})


# ---------------------------------------------------------------- strengths


def test_two_variants_have_the_log_odds_of_their_wins():
    found = estimate_strengths(np.array([[0.0, 17.0], [3.0, 0.0]]), prior=0.5)
    assert found == pytest.approx([math.log(17.5 / 3.5) / 2, -math.log(17.5 / 3.5) / 2])


def test_a_chosen_image_beats_each_of_the_others_that_were_shown():
    answers = [answer("1", "A"), answer("2", "A"), answer("3", "C"), answer("4", "B", order="CB")]
    assert count_wins(answers, list("ABC")).tolist() == [[0, 2, 2], [0, 0, 1], [1, 1, 0]]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.02, 0.5, 3.0]))
def test_strengths_are_those_of_maximum_penalised_likelihood(seed, variants, prior):
    won = np.random.default_rng(seed).integers(0, 12, (variants, variants)).astype(float)
    counted = (won + prior) * (1 - np.eye(variants))

    def loss(free):
        s = np.append(free, -free.sum())
        return float((counted * np.logaddexp(0, s[None, :] - s[:, None])).sum())

    best = minimize(loss, np.zeros(variants - 1), method="BFGS", options={"gtol": 1e-7}).x
    assert estimate_strengths(won, prior) == pytest.approx(np.append(best, -best.sum()), abs=1e-4)


def test_known_strengths_are_found_again_from_best_of_four():
    true = np.array([0.9, 0.3, -0.2, -1.0])
    p = np.exp(true) / np.exp(true).sum()  # Luce: chosen with probability p out of all four
    chosen = np.random.default_rng(11).choice(4, size=8000, p=p)
    won = np.zeros((4, 4))
    for winner in chosen:
        won[winner] += 1
    won *= 1 - np.eye(4)
    assert estimate_strengths(won) == pytest.approx(true, abs=0.07)


def test_many_tables_at_once_give_what_each_gives_alone():
    tables = np.random.default_rng(2).integers(0, 30, (5, 3, 3)).astype(float)
    assert estimate_strengths(tables) == pytest.approx(np.stack([estimate_strengths(one) for one in tables]))


def test_a_variant_that_never_wins_stays_finite_and_its_strength_grows_with_the_prior():
    won = np.array([[0, 9, 9], [4, 0, 4], [0, 0, 0]], float)
    weak, strong = estimate_strengths(won, 0.1), estimate_strengths(won, 2.0)
    assert np.isfinite(weak).all()
    assert weak[2] < strong[2] < strong[1] < strong[0] < weak[0]


@given(st.integers(0, 1000), st.permutations(range(4)))
@settings(max_examples=20)
def test_strengths_have_mean_zero_and_follow_the_variants_names(seed, order):
    won = np.random.default_rng(seed).integers(0, 9, (4, 4)).astype(float)
    found = estimate_strengths(won)
    assert found.mean() == pytest.approx(0, abs=1e-9)
    assert estimate_strengths(won[np.ix_(order, order)]) == pytest.approx(found[list(order)])


def test_without_a_prior_there_may_be_no_strength():
    with pytest.raises(ValueError, match="never wins"):
        estimate_strengths(np.zeros((2, 2)), prior=0)


# ---------------------------------------------------------------- agreement


def by_unit(*rows):
    return ["".join(row[n] for row in rows if row[n] != ".") for n in range(len(rows[0]))]


def test_alpha_of_krippendorffs_two_observers():
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section B.
    assert compute_nominal_alpha(by_unit("aabbdcccedda", "babbbccceddd")) == pytest.approx(0.692, abs=5e-4)


def test_alpha_of_krippendorffs_four_observers_with_missing_values():
    # The same, section C; its twelfth unit has one value and tells nothing.
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    assert compute_nominal_alpha(by_unit(*rows)) == pytest.approx(0.743, abs=5e-4)


def plain_alpha(units):
    """Observed over expected disagreement by their definition, pair by pair."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    among = [sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units]
    expected = sum(a != b for a, b in permutations(values, 2))
    return None if not expected else 1 - sum(among) / len(values) / (expected / len(values) / (len(values) - 1))


@given(st.lists(st.text("ABC", max_size=5), max_size=7))
def test_alpha_is_that_of_the_definition(units):
    expected = plain_alpha(units)
    assert compute_nominal_alpha(units) == (None if expected is None else pytest.approx(expected))


def test_alpha_has_no_value_for_one_rater_or_for_one_single_choice():
    assert compute_nominal_alpha(["A", "B", "C"]) is None
    assert compute_nominal_alpha(["AA", "AAA"]) is None
    assert compute_nominal_alpha([]) is None


# ---------------------------------------------------------------- shares


def test_shares_are_counts_over_answers_and_sum_to_one():
    chosen = "AABACAB"
    found = analyse_question([("r", answer(str(n), c)) for n, c in enumerate(chosen)], VARIANTS)
    assert {variant: x.mean for variant, x in found.shares.items()} == pytest.approx(
        {"ours": 4 / 7, "rival": 2 / 7, "third": 1 / 7}
    )
    assert (found.answers, found.seconds, found.alpha, found.resampled) == (7, 2.0, None, "comparisons")
    assert all(x.n == 7 and 0 <= x.low < x.mean < x.high <= 1 for x in found.shares.values())


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("rst"), st.sampled_from("ABC")), min_size=1, max_size=20), st.integers(0, 99))
def test_shares_always_sum_to_one_and_intervals_hold_the_estimate(pairs, seed):
    found = analyse_question([(rater, answer(str(n), c)) for n, (rater, c) in enumerate(pairs)], VARIANTS, 200, seed)
    assert sum(x.mean for x in found.shares.values()) == pytest.approx(1)
    assert sum(x.mean for x in found.strengths.values()) == pytest.approx(0, abs=1e-9)
    for x in found.shares.values():
        assert math.isnan(x.low) if x.n == 1 else x.low - 1e-9 <= x.mean <= x.high + 1e-9


def test_raters_are_resampled_where_there_are_two():
    # Each rater always chooses the same: over raters the share may be 0 or 1, over comparisons hardly.
    pairs = [(rater, answer(str(n), c)) for rater, c in (("r", "A"), ("s", "B")) for n in range(40)]
    found = analyse_question(pairs, VARIANTS)
    assert found.resampled == "raters"
    assert (found.shares["ours"].low, found.shares["ours"].high, found.shares["ours"].n) == (0, 1, 2)
    assert found.strengths["ours"].low < -1 < 1 < found.strengths["ours"].high
    alone = analyse_question([("r", one) for _, one in pairs[::2]], VARIANTS)
    assert alone.shares["ours"].low > 0.2


def test_a_rater_of_many_answers_counts_as_one_rater():
    few = [(f"r{rater}", answer(str(n), "A", order="AB")) for rater in range(5) for n in range(4)]
    many = [("many", answer(f"x{n}", "B", order="AB")) for n in range(400)]
    two = {"A": "ours", "B": "rival"}
    found = analyse_question([*few, *many], two, 200)
    assert found.shares["ours"].mean == pytest.approx(5 / 6)
    each = 6 / (5 / 4 + 1 / 400)  # answers, in effect
    assert found.strengths["ours"].mean == pytest.approx(math.log((5 * each + 0.5) / (each + 0.5)) / 2)
    same = [(f"r{rater}", answer(str(n), "AB"[rater % 2], order="AB")) for rater in range(3) for n in range(49)]
    assert analyse_question(same, two, 200).strengths["ours"].mean == pytest.approx(
        math.log(98.5 / 49.5) / 2, rel=1e-12
    )


@pytest.mark.slow
def test_intervals_of_strengths_hold_the_truth_about_as_often_as_they_say():
    true = np.array([0.6, 0.0, -0.6])
    chance, p = np.random.default_rng(5), np.exp(true) / np.exp(true).sum()
    held = 0
    for _ in range(60):
        chosen = chance.choice(list("ABC"), size=80, p=p)
        found = analyse_question([("r", answer(str(n), str(c))) for n, c in enumerate(chosen)], VARIANTS, 300)
        held += found.strengths["ours"].low <= true[0] <= found.strengths["ours"].high
    assert 52 <= held <= 60  # 57 expected


# ---------------------------------------------------------------- raters and files


def test_careless_raters_are_left_out_and_counted():
    right = {"1": "A", "2": "B", "3": "C"}
    asked = [answer("x", "A"), answer("y", "A")]
    attentive = sheet("good", [*asked, answer("1", "A"), answer("2", "B"), answer("3", "C")], right)
    careless = sheet("bad", [answer("x", "B"), answer("1", "A"), answer("2", "A"), answer("3", "A")], right)
    found = analyse_study([careless, attentive])
    assert (found.raters, list(found.excluded)) == (("good",), ["bad"])
    assert found.excluded["bad"].startswith("passed 1 of 3 attention checks, as a blind rater would")
    assert found.questions["quality"].answers == 2
    assert found.questions["quality"].shares["ours"].mean == 1


def test_a_rater_who_answered_no_check_is_left_out():
    right = {"1": "A", "2": "B"}
    silent = sheet("silent", [answer("x", "B"), answer("y", "B")], right)
    attentive = sheet("good", [answer("x", "A"), answer("1", "A"), answer("2", "B")], right)
    found = analyse_study([silent, attentive])
    assert (found.raters, found.excluded) == (("good",), {"silent": "answered none of 2 attention checks"})
    assert analyse_study([sheet("silent", [answer("x", "B")])]).raters == ("silent",)  # a study without checks


def test_half_of_the_checks_is_enough():
    half = sheet("r", [answer("x", "A"), answer("1", "A"), answer("2", "A")], {"1": "A", "2": "B"})
    assert analyse_study([half]).raters == ("r",)


def test_questions_are_analysed_separately():
    given = [answer("1", "A", question="prompt"), answer("2", "B", question="identity"), answer("3", "B")]
    found = analyse_study([sheet("r", given)])
    first = {
        name: max(one.shares, key=lambda variant, one=one: one.shares[variant].mean)
        for name, one in found.questions.items()
    }
    assert first == {"prompt": "ours", "identity": "rival", "quality": "rival"}


def test_raters_who_agree_have_an_alpha_of_one():
    answers = [answer(str(n), c) for n, c in enumerate("ABCA")]
    assert analyse_study([sheet("r", answers), sheet("s", answers)]).questions["quality"].alpha == 1


def test_nobody_left_is_an_error():
    bad = sheet("r", [answer("x", "A"), answer("1", "B")], {"1": "A"})
    with pytest.raises(ConfigError, match="Every rater is excluded; 'r' passed 0 of 1"):
        analyse_study([bad])
    with pytest.raises(ConfigError, match="no answers"):
        analyse_study([sheet("r", [])])


def write(path, tree):
    path.write_text(json.dumps(tree))
    return path


def tree(**changes):
    answers = [{"question": "quality", "comparison": "q", "order": ["B", "A"], "chosen": "A", "milliseconds": 900}]
    key = {"variants": {"A": "ours", "B": "rival"}, "checks": {}}
    return {"schema": 1, "study": "s", "rater": "r", "answers": answers, "key": key} | changes


def test_files_are_read_as_they_were_written(tmp_path):
    (found,) = read_answer_files([write(tmp_path / "a.json", tree())])
    assert (found.study, found.rater, found.answers[0].order, found.answers[0].chosen) == ("s", "r", ["B", "A"], "A")


def first(**changes):
    return [tree()["answers"][0] | changes]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tree(schema=2), "schema"),
        (tree(answers=first(chosen="C")), "'C' was not shown"),
        (tree(answers=first() * 2), "answered twice"),
        (tree(answers=first(order=["A", "X"])), "no variant's"),
        (tree(answers=first(order=["A", "B", "B"])), "q shows a letter twice"),
        (tree(key={"variants": {"A": "ours", "B": "rival", "C": "third"}, "checks": {}}), "q does not show every"),
        (tree(key={"variants": {"A": "ours", "B": "rival"}, "checks": {}, "comparisons": []}), "answers 'q'"),
        (tree(answers=first(milliseconds=-1)), "milliseconds"),
        (tree(answers=first(question="taste")), "question"),
        (tree(more=1), "more"),
        ([1], "holds no answers"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read_answer_files([write(tmp_path / "a.json", content)])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    one = write(tmp_path / "one.json", tree())
    for changes, message in (
        ({"study": "t", "rater": "s"}, "different studies"),
        ({"key": {"variants": {"A": "rival", "B": "ours"}, "checks": {}}, "rater": "s"}, "different studies"),
        ({}, "same rater"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_answer_files([one, write(tmp_path / "two.json", tree(**changes))])


def test_answers_to_what_is_not_asked_are_refused_also_of_a_file_that_does_not_say_what_is(tmp_path):
    earlier = tree()["key"]
    named = write(tmp_path / "named.json", tree(key=earlier | {"comparisons": ["p", "q"]}))
    older = write(tmp_path / "older.json", tree(rater="s"))
    assert [one.rater for one in read_answer_files([older, named])] == ["s", "r"]
    strange = write(tmp_path / "strange.json", tree(rater="t", answers=first(comparison="x7")))
    assert [one.rater for one in read_answer_files([older, strange])] == ["s", "t"]  # nobody knows
    for files in ([named, strange], [strange, older, named]):
        with pytest.raises(ConfigError, match=r"strange.json answers 'x7', which the study does not ask"):
            read_answer_files(files)
    other = write(tmp_path / "other.json", tree(rater="t", key=earlier | {"comparisons": ["q"]}))
    with pytest.raises(ConfigError, match="different studies"):
        read_answer_files([named, other])


def test_files_that_are_no_json_or_not_there_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x89PNG")
    for name in ("a.json", "b.json"):
        with pytest.raises(ConfigError, match=name):
            read_answer_files([tmp_path / name])
