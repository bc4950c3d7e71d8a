"""Which raters looked at what they chose: against chance in the attention checks, by time, and by place on the screen.

Every criterion asks what a rater who presses blindly would do. Whoever prefers other images than most is not excluded.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import exp, fsum, lgamma, log, log1p

import numpy as np

from sefi.bench.answers import Answer, Sheet

# A rater counts whose checks a blind one would pass as well with at most this probability.
CHANCE = 0.05
# The orders are random, so places are chosen equally often whatever one prefers; rarely may an honest rater fail.
PLACE_CHANCE = 0.001
# Less than one fixation for every image (Rayner 2009, "Eye movements and attention": 250 ms and more in scenes).
MILLISECONDS_PER_IMAGE = 200


def reason_to_exclude(sheet: Sheet) -> str:
    """Return why a rater's answers are not counted; empty where they are."""
    return checks_at_chance(sheet) or too_fast(sheet.answers) or same_place(sheet.answers)


def checks_at_chance(sheet: Sheet) -> str:
    """Return the reason of a rater whose attention checks a blind one may have passed as well.

    Where there are so few checks that even passing all of them could be chance, more than half must have failed.
    """
    right = sheet.key.checks
    checks = [one for one in sheet.answers if one.comparison in right]
    passed = sum(one.chosen == right[one.comparison] for one in checks)
    chances = [1 / len(one.order) for one in checks]
    told = f"passed {passed} of {len(checks)} attention checks"
    if probability_of_at_least(len(checks), chances) > CHANCE:
        return told if passed < len(checks) / 2 else ""
    blind = probability_of_at_least(passed, chances)
    return f"{told}, as a blind rater would with a probability of {blind:.2f}" if blind > CHANCE else ""


def too_fast(answers: Sequence[Answer]) -> str:
    """Return the reason of a rater most of whose answers came before all images can have been looked at."""
    fast = sum(one.milliseconds < MILLISECONDS_PER_IMAGE * len(one.order) for one in answers)
    if fast <= len(answers) / 2:
        return ""
    return f"gave {fast} of {len(answers)} answers in less than {MILLISECONDS_PER_IMAGE} ms for each image"


def same_place(answers: Iterable[Answer]) -> str:
    """Return the reason of a rater who chose one place on the screen more often than random orders explain."""
    by_count: dict[int, Counter[int]] = {}
    for one in answers:
        by_count.setdefault(len(one.order), Counter())[one.order.index(one.chosen)] += 1
    for count, places in by_count.items():
        place, times = places.most_common(1)[0]
        chance = count * at_least(times, places.total(), 1 / count)  # times count: any place could have been the one
        if chance < PLACE_CHANCE:
            return f"chose place {place + 1} of {count} in {times} of {places.total()} answers"
    return ""


def at_least(times: int, of: int, chance: float) -> float:
    """Return the probability of at least so many successes in independent trials of the same chance.

    Summed from logarithms: the number of ways to choose 515 of 1,030 is above the largest float.

    >>> round(at_least(2, 3, 0.5), 12)
    0.5

    Args:
        times: At least so many.
        of: Trials.
        chance: Of each, above 0 and below 1.
    """
    success, failure = log(chance), log1p(-chance)
    return min(1.0, fsum(exp(log_ways(of, n) + n * success + (of - n) * failure) for n in range(times, of + 1)))


def log_ways(of: int, n: int) -> float:
    """Return the natural logarithm of the number of ways to choose `n` of so many.

    >>> round(exp(log_ways(5, 2)), 12)
    10.0
    """
    return lgamma(of + 1) - lgamma(n + 1) - lgamma(of - n + 1)


def probability_of_at_least(times: int, chances: Sequence[float]) -> float:
    """Return the probability of at least so many successes in independent trials, each with its own chance.

    >>> probability_of_at_least(1, [0.5, 0.25])
    0.625
    """
    exactly = np.ones(1)  # `[successes]`
    for chance in chances:
        exactly = np.append(exactly * (1 - chance), 0.0) + np.append(0.0, exactly * chance)
    return float(exactly[times:].sum())
