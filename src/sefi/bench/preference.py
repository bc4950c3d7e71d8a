"""What raters prefer: shares, strengths, and how far they agree, from best-of-n choices."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sefi.bench.answers import Answer, Sheet
from sefi.bench.raters import reason_to_exclude
from sefi.bench.statistics import LEVEL, Interval, clustered_interval
from sefi.core.errors import ConfigError

PRIOR = 0.5  # half a win: in a table of two this makes the log odds least biased (Haldane, Anscombe 1956)
ITERATIONS = 100_000
TOLERANCE = 1e-10  # of a log strength
DRAWS = 2000
Given = tuple[str, Answer]  # the rater and the answer


@dataclass(frozen=True)
class Preference:
    """The answers to one question.

    Attributes:
        answers: How many there are, attention checks not counted.
        shares: Label to the share of answers that chose it, in [0, 1]; they sum to 1.
        strengths: Label to log strength; 0 is the mean of the ways, and a difference of 1 is odds of 2.72 to 1.
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
class Verdict:
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


def verdict(sheets: Sequence[Sheet], draws: int = DRAWS, seed: int = 0) -> Verdict:
    """The outcome of a study, of raters who paid attention.

    Args:
        sheets: At least one, all of one study, one for each rater.
        draws: Resamples behind the intervals.
        seed: Seed of the resampling.

    Raises:
        ConfigError: Every rater is excluded, or nobody answered anything but checks.
    """
    reasons = {sheet.rater: reason_to_exclude(sheet) for sheet in sheets}
    kept = [sheet for sheet in sheets if not reasons[sheet.rater]]
    if not kept:
        first = sheets[0].rater
        raise ConfigError(f"Every rater is excluded; {first!r} {reasons[first]}.", "Ask other raters.")
    key = sheets[0].key
    given = [(sheet.rater, one) for sheet in kept for one in sheet.answers if one.comparison not in key.checks]
    if not given:
        raise ConfigError("There are no answers to count.", "Let raters finish the study's page.")
    by_question: dict[str, list[Given]] = {}
    for rater, one in given:
        by_question.setdefault(one.question, []).append((rater, one))
    return Verdict(
        study=sheets[0].study,
        raters=tuple(sheet.rater for sheet in kept),
        excluded={rater: reason for rater, reason in reasons.items() if reason},
        questions={name: preference(some, key.ways, draws, seed) for name, some in by_question.items()},
    )


def preference(given: Sequence[Given], ways: Mapping[str, str], draws: int = DRAWS, seed: int = 0) -> Preference:
    """Shares, strengths and agreement of one question's answers.

    Intervals (95 %, percentile) come from resampling raters, who judge alike again and again; of a single rater,
    comparisons. With few raters they are too narrow: two raters have only three different resamples.

    Args:
        given: Who answered what; at least one.
        ways: Letter to label.
        draws: Resamples.
        seed: Seed of the resampling.
    """
    alone = len({rater for rater, _ in given}) == 1
    clusters: dict[str, list[Answer]] = {}
    units: dict[str, list[str]] = {}
    for rater, one in given:
        clusters.setdefault(one.comparison if alone else rater, []).append(one)
        units.setdefault(one.comparison, []).append(one.chosen)
    return Preference(
        answers=len(given),
        shares={label: share(clusters, code, draws, seed) for code, label in ways.items()},
        strengths=dict(zip(ways.values(), strength_intervals(clusters, list(ways), draws, seed), strict=True)),
        alpha=nominal_alpha(list(units.values())),
        seconds=float(np.median([one.milliseconds for _, one in given])) / 1000,
        resampled="comparisons" if alone else "raters",
    )


def share(clusters: Mapping[str, Sequence[Answer]], code: str, draws: int, seed: int) -> Interval:
    """Share of answers that chose this letter: within each cluster first, then over clusters."""
    by_cluster = {name: float(np.mean([one.chosen == code for one in some])) for name, some in clusters.items()}
    return clustered_interval(by_cluster, draws, seed)


def strength_intervals(
    clusters: Mapping[str, Sequence[Answer]], codes: Sequence[str], draws: int, seed: int
) -> list[Interval]:
    """Log strength of every letter with its interval from drawing clusters with replacement."""
    by_cluster = np.stack([wins(clusters[name], codes) for name in sorted(clusters)])
    estimates = strengths(by_cluster.sum(0))
    n = len(by_cluster)
    if n == 1:
        return [Interval(float(estimate), np.nan, np.nan, 1) for estimate in estimates]
    times = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws)  # how often each is drawn
    resampled = strengths(np.tensordot(times.astype(np.float64), by_cluster, 1))
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return [Interval(float(e), float(a), float(b), n) for e, a, b in zip(estimates, low, high, strict=True)]


def wins(answers: Sequence[Answer], codes: Sequence[str]) -> NDArray[np.float64]:
    """How often each letter was chosen where each other one was shown too, `[winner, loser]`."""
    counted = np.zeros((len(codes), len(codes)))
    for one in answers:
        for other in one.order:
            if other != one.chosen:
                counted[codes.index(one.chosen), codes.index(other)] += 1
    return counted


def strengths(won: NDArray[np.float64], prior: float = PRIOR) -> NDArray[np.float64]:
    """Log strengths of Bradley and Terry's model, `P(i beats j) = p_i / (p_i + p_j)`.

    Found by minorise-maximise: `p_i <- W_i / sum_j n_ij / (p_i + p_j)`. A choice of one out of n counts as n - 1 wins;
    that is consistent where choices follow Luce's rule, but the wins are not independent, so intervals must come from
    resampling, not from the likelihood.
    Source: Hunter 2004, "MM algorithms for generalized Bradley-Terry models", equation 3.
    Differs: every way gets `prior` wins over every other one beforehand, so that a way that never or always wins has a
    finite strength; this draws all strengths a little towards each other.

    >>> [round(float(s), 3) for s in strengths(np.array([[0, 17], [3, 0]]), prior=1e-9)]  # half of log(17 / 3)
    [0.867, -0.867]

    Args:
        won: Wins `[..., winner, loser]`; the diagonal is not looked at.
        prior: Wins given to everybody over everybody, positive.

    Returns:
        Log strengths `[..., way]` with mean 0 over the ways; higher is preferred.

    Raises:
        ValueError: The prior is not positive.
    """
    if prior <= 0:
        raise ValueError(f"a prior of {prior} leaves a way that never wins without a strength")
    counted = (won + prior) * (1 - np.eye(won.shape[-1]))
    met, total = counted + counted.swapaxes(-1, -2), counted.sum(-1)
    found = np.zeros(total.shape)
    for _ in range(ITERATIONS):
        p = np.exp(found)
        better = np.log(total / (met / (p[..., :, None] + p[..., None, :])).sum(-1))
        better -= better.mean(-1, keepdims=True)
        if np.abs(better - found).max() < TOLERANCE:
            return better
        found = better
    raise ArithmeticError(f"no strengths after {ITERATIONS} steps")


def nominal_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 is full agreement, 0 is chance, below 0 is less than chance.

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C.

    >>> nominal_alpha(["AA", "BB", "AB", "B"])  # 1 - 2 / (2 * 3 * 3 / 5)
    0.4444444444444444

    Args:
        units: For every comparison what its raters chose; those of a single rater tell nothing and are left out.

    Returns:
        None where no comparison has two raters, or where all chose the same way every time.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    total = Counter[str]()
    for count in counts:
        total.update(count)
    n = total.total()
    expected = (n**2 - sum(v**2 for v in total.values())) / (n - 1) if n else 0.0
    observed = sum((c.total() ** 2 - sum(v**2 for v in c.values())) / (c.total() - 1) for c in counts)
    return 1 - observed / expected if expected else None
