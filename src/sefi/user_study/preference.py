"""What raters prefer: shares, strengths, and how far they agree, from best-of-n choices; and whom not to count."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import exp, fsum, lgamma, log, log1p
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sefi.benchmark.statistics import Interval, estimate_interval, find_tail
from sefi.core.errors import ConfigError
from sefi.user_study.study import Answer, AnswerFile

PRIOR = 0.5  # half a win: in a table of two this makes the log odds least biased (Haldane, Anscombe 1956)
ITERATIONS = 100_000
TOLERANCE = 1e-10  # of a log strength
DRAWS = 2000
RaterAnswer = tuple[str, Answer]  # the rater and the answer


@dataclass(frozen=True)
class Preference:
    """The answers to one question.

    Attributes:
        answers: How many there are, attention checks not counted.
        shares: Label to the share of answers that chose it, in [0, 1]; they sum to 1. Each rater counts alike, however
            many answers they gave; in strengths too.
        strengths: Label to log strength; 0 is the mean of the variants, and a difference of 1 is odds of 2.72 to 1.
        alpha: Krippendorff's alpha, None where fewer than two raters answered the same comparison.
        seconds: Median time of an answer.
        resampled: What the intervals come from: raters, or the comparisons of a single rater.
    """

    answers: int
    shares: Mapping[str, Interval]
    strengths: Mapping[str, Interval]
    alpha: float | None
    seconds: float
    resampled: Literal["raters", "comparisons"]


@dataclass(frozen=True)
class StudyResult:
    """A whole study's outcome.

    Attributes:
        study: Its name.
        raters: Whose answers are counted.
        excluded: Who is left out, and why.
        questions: The outcome of every question that was answered.
    """

    study: str
    raters: tuple[str, ...]
    excluded: Mapping[str, str]
    questions: Mapping[str, Preference]


def analyse_study(sheets: Sequence[AnswerFile], draws: int = DRAWS, seed: int = 0) -> StudyResult:
    """Return the outcome of a study, of raters who paid attention.

    Args:
        sheets: At least one, all of one study, one for each rater.
        draws: Resamples behind the intervals.
        seed: Seed of the resampling.

    Raises:
        ConfigError: Every rater is excluded, or nobody answered anything but checks.
    """
    reasons = {sheet.rater: find_reason_to_exclude(sheet) for sheet in sheets}
    counted = [sheet for sheet in sheets if not reasons[sheet.rater]]
    if not counted:
        first = sheets[0].rater
        raise ConfigError(f"Every rater is excluded; {first!r} {reasons[first]}.", "Ask other raters.")
    key = sheets[0].key
    answers = [(sheet.rater, one) for sheet in counted for one in sheet.answers if one.comparison not in key.checks]
    if not answers:
        raise ConfigError("There are no answers to count.", "Let raters finish the study's page.")
    by_question: dict[str, list[RaterAnswer]] = {}
    for rater, one in answers:
        by_question.setdefault(one.question, []).append((rater, one))
    return StudyResult(
        study=sheets[0].study,
        raters=tuple(sheet.rater for sheet in counted),
        excluded={rater: reason for rater, reason in reasons.items() if reason},
        questions={name: analyse_question(some, key.variants, draws, seed) for name, some in by_question.items()},
    )


def analyse_question(
    answers: Sequence[RaterAnswer], variants: Mapping[str, str], draws: int = DRAWS, seed: int = 0
) -> Preference:
    """Return shares, strengths and agreement of one question's answers.

    Intervals (95 %, `find_tail`) come from resampling raters, who judge alike again and again; of a single rater,
    comparisons. With few raters they are too narrow: two raters have only three different resamples.

    Args:
        answers: Who answered what; at least one.
        variants: Letter to label.
        draws: Resamples.
        seed: Seed of the resampling.
    """
    alone = len({rater for rater, _ in answers}) == 1
    clusters: dict[str, list[Answer]] = {}
    units: dict[str, list[str]] = {}
    for rater, one in answers:
        clusters.setdefault(one.comparison if alone else rater, []).append(one)
        units.setdefault(one.comparison, []).append(one.chosen)
    return Preference(
        answers=len(answers),
        shares={label: estimate_share(clusters, code, draws, seed) for code, label in variants.items()},
        strengths=dict(
            zip(variants.values(), estimate_strength_intervals(clusters, list(variants), draws, seed), strict=True)
        ),
        alpha=compute_nominal_alpha(list(units.values())),
        seconds=float(np.median([one.milliseconds for _, one in answers])) / 1000,
        resampled="comparisons" if alone else "raters",
    )


def estimate_share(clusters: Mapping[str, Sequence[Answer]], code: str, draws: int, seed: int) -> Interval:
    """Return the share of answers that chose this letter: within each cluster first, then over clusters."""
    by_cluster = {name: float(np.mean([one.chosen == code for one in some])) for name, some in clusters.items()}
    return estimate_interval(by_cluster, draws, seed)


def estimate_strength_intervals(
    clusters: Mapping[str, Sequence[Answer]], codes: Sequence[str], draws: int, seed: int
) -> list[Interval]:
    """Return the log strength of every letter with its interval from drawing clusters with replacement.

    Clusters count alike, as in shares: they are the sample, and what is drawn again. Counted by answers, a single
    rater of many could turn the strengths against the shares.
    """
    names = sorted(clusters)
    weights = weight_clusters([len(clusters[name]) for name in names])
    by_cluster = np.stack([w * count_wins(clusters[name], codes) for w, name in zip(weights, names, strict=True)])
    estimates = estimate_strengths(by_cluster.sum(0))
    n = len(by_cluster)
    if n == 1:
        return [Interval(float(estimate), np.nan, np.nan, 1) for estimate in estimates]
    times = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws)  # how often each is drawn
    resampled = estimate_strengths(np.tensordot(times.astype(np.float64), by_cluster, 1))
    tail = find_tail(n)
    low, high = np.quantile(resampled, (tail, 1 - tail), axis=0)
    return [Interval(float(e), float(a), float(b), n) for e, a, b in zip(estimates, low, high, strict=True)]


def weight_clusters(sizes: Sequence[int]) -> list[float]:
    """Return the weight of an answer in each cluster, of so many answers, so that all clusters weigh the same.

    Clusters of one size have the weight 1. In all the answers weigh what their effective number is, `(sum w)^2 /
    sum w^2`, or the prior would be of nothing next to a cluster of thousands.
    Source: Kish 1965, "Survey Sampling", section 11.7.

    >>> weight_clusters([20, 20]), weight_clusters([2, 6])  # 2 * 1.5 + 6 * 0.5 are 6 answers
    ([1.0, 1.0], [1.5, 0.5])
    """
    of_each = len(sizes) / sum(Fraction(1, size) for size in sizes)
    return [float(of_each / size) for size in sizes]


def count_wins(answers: Sequence[Answer], codes: Sequence[str]) -> NDArray[np.float64]:
    """Return how often each letter was chosen where each other one was shown too, `[winner, loser]`."""
    wins = np.zeros((len(codes), len(codes)))
    for one in answers:
        for other in one.order:
            if other != one.chosen:
                wins[codes.index(one.chosen), codes.index(other)] += 1
    return wins


def estimate_strengths(won: NDArray[np.float64], prior: float = PRIOR) -> NDArray[np.float64]:
    """Return the log strengths of Bradley and Terry's model, `P(i beats j) = p_i / (p_i + p_j)`.

    Found by minorise-maximise: `p_i <- W_i / sum_j n_ij / (p_i + p_j)`. A choice of one out of n counts as n - 1 wins;
    that is consistent where choices follow Luce's rule, but the wins are not independent, so intervals must come from
    resampling, not from the likelihood.
    Source: Hunter 2004, "MM algorithms for generalized Bradley-Terry models", equation 3.
    Differs: every variant gets `prior` wins over every other one beforehand, so that one that never or always wins
    has a finite strength; this draws all strengths a little towards each other.

    >>> [round(float(s), 3) for s in estimate_strengths(np.array([[0, 17], [3, 0]]), prior=1e-9)]  # half of log(17 / 3)
    [0.867, -0.867]

    Args:
        won: Wins `[..., winner, loser]`; the diagonal is not used.
        prior: Wins given to everybody over everybody, positive.

    Returns:
        Log strengths `[..., variant]` with mean 0 over the variants; higher is preferred.

    Raises:
        ValueError: The prior is not positive.
    """
    if prior <= 0:
        raise ValueError(f"a prior of {prior} leaves a variant that never wins without a strength")
    counted = (won + prior) * (1 - np.eye(won.shape[-1]))
    met, total = counted + counted.swapaxes(-1, -2), counted.sum(-1)
    strengths = np.zeros(total.shape)
    for _ in range(ITERATIONS):
        p = np.exp(strengths)
        better = np.log(total / (met / (p[..., :, None] + p[..., None, :])).sum(-1))
        better -= better.mean(-1, keepdims=True)
        if np.abs(better - strengths).max() < TOLERANCE:
            return better
        strengths = better
    raise ArithmeticError(f"no strengths after {ITERATIONS} steps")


def compute_nominal_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Return Krippendorff's alpha for nominal data: 1 is full agreement, 0 is chance, below 0 is less than chance.

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C.

    >>> compute_nominal_alpha(["AA", "BB", "AB", "B"])  # 1 - 2 / (2 * 3 * 3 / 5)
    0.4444444444444444

    Args:
        units: For every comparison what its raters chose; those of a single rater say nothing and are left out.

    Returns:
        None where no comparison has two raters, or where all chose the same letter every time.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    total = Counter[str]()
    for count in counts:
        total.update(count)
    n = total.total()
    expected = (n**2 - sum(v**2 for v in total.values())) / (n - 1) if n else 0.0
    observed = sum((c.total() ** 2 - sum(v**2 for v in c.values())) / (c.total() - 1) for c in counts)
    return 1 - observed / expected if expected else None


# A rater counts whose checks a blind one would pass as well with at most this probability.
CHANCE = 0.05
# The orders are random, so places are chosen equally often whatever one prefers; rarely may an honest rater fail.
POSITION_CHANCE = 0.001
# Less than one fixation for every image (Rayner 2009, "Eye movements and attention": 250 ms and more in scenes).
MILLISECONDS_PER_IMAGE = 200


def find_reason_to_exclude(sheet: AnswerFile) -> str:
    """Return why a rater's answers are not counted; empty where they are."""
    return find_checks_at_chance(sheet) or find_fast_answers(sheet.answers) or find_preferred_position(sheet.answers)


def find_checks_at_chance(sheet: AnswerFile) -> str:
    """Return the reason of a rater whose attention checks a blind one may have passed as well.

    Where there are so few checks that even passing all of them could be chance, more than half must have failed. Who
    has answered none of a study's checks is not counted: nothing says that the images were looked at.
    """
    right = sheet.key.checks
    checks = [one for one in sheet.answers if one.comparison in right]
    if right and not checks:
        return f"answered none of {len(right)} attention checks"
    passed = sum(one.chosen == right[one.comparison] for one in checks)
    chances = [1 / len(one.order) for one in checks]
    result = f"passed {passed} of {len(checks)} attention checks"
    if compute_tail(len(checks), chances) > CHANCE:
        return result if passed < len(checks) / 2 else ""
    blind = compute_tail(passed, chances)
    return f"{result}, as a blind rater would with a probability of {blind:.2f}" if blind > CHANCE else ""


def find_fast_answers(answers: Sequence[Answer]) -> str:
    """Return the reason of a rater most of whose answers came before all images can have been looked at."""
    fast = sum(one.milliseconds < MILLISECONDS_PER_IMAGE * len(one.order) for one in answers)
    if fast <= len(answers) / 2:
        return ""
    return f"gave {fast} of {len(answers)} answers in less than {MILLISECONDS_PER_IMAGE} ms for each image"


def find_preferred_position(answers: Iterable[Answer]) -> str:
    """Return the reason of a rater who chose one place on the screen more often than random orders explain."""
    by_count: dict[int, Counter[int]] = {}
    for one in answers:
        by_count.setdefault(len(one.order), Counter())[one.order.index(one.chosen)] += 1
    for count, positions in by_count.items():
        position, times = positions.most_common(1)[0]
        chance = count * compute_binomial_tail(
            times, positions.total(), 1 / count
        )  # times count: any place could have been the one
        if chance < POSITION_CHANCE:
            return f"chose place {position + 1} of {count} in {times} of {positions.total()} answers"
    return ""


def compute_binomial_tail(times: int, of: int, chance: float) -> float:
    """Return the probability of at least so many successes in independent trials of the same chance.

    Summed from logarithms: the number of combinations of 515 of 1,030 is above the largest float.

    >>> round(compute_binomial_tail(2, 3, 0.5), 12)
    0.5

    Args:
        times: At least so many.
        of: Trials.
        chance: Of each, above 0 and below 1.
    """
    success, failure = log(chance), log1p(-chance)
    return min(
        1.0, fsum(exp(compute_log_combinations(of, n) + n * success + (of - n) * failure) for n in range(times, of + 1))
    )


def compute_log_combinations(of: int, n: int) -> float:
    """Return the natural logarithm of the number of combinations of `n` of so many.

    >>> round(exp(compute_log_combinations(5, 2)), 12)
    10.0
    """
    return lgamma(of + 1) - lgamma(n + 1) - lgamma(of - n + 1)


def compute_tail(times: int, chances: Sequence[float]) -> float:
    """Return the probability of at least so many successes in independent trials, each with its own chance.

    >>> compute_tail(1, [0.5, 0.25])
    0.625
    """
    exactly = np.ones(1)  # `[successes]`
    for chance in chances:
        exactly = np.append(exactly * (1 - chance), 0.0) + np.append(0.0, exactly * chance)
    return float(exactly[times:].sum())
