"""Means over subjects with intervals from resampling the subjects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
DRAWS = 10_000  # of the bootstrap
# No resample lies beyond the values: where all have one sign, an interval leaves out 0; of five values without a
# direction that is so in 2 of 2^5 cases, more than 5 %.
FEWEST_TO_TELL = 6
AT_ONCE = 1_000_000  # numbers drawn in one piece, so that many clusters do not fill the memory


@dataclass(frozen=True)
class Interval:
    """A mean over clusters and how far it may be off.

    Attributes:
        mean: Mean over clusters, nan if there is none.
        low: Lower end of the 95 % interval, nan for fewer than two clusters.
        high: Upper end, likewise.
        n: Clusters that had a value.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def computed(self) -> bool:
        """Whether any cluster had a value."""
        return self.n > 0

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; False where there is no interval."""
        return self.low > 0 or self.high < 0

    @property
    def tells_direction(self) -> bool:
        """Whether 0 lies outside the interval of so many clusters that this is seldom chance."""
        return self.excludes_zero and self.n >= FEWEST_TO_TELL


NO_INTERVAL = Interval(math.nan, math.nan, math.nan, 0)


def estimate_interval(values_by_cluster: Mapping[str, float], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean over clusters with its 95 % bootstrap interval, clusters drawn with replacement.

    A cluster is a subject: images of one subject are alike, so resampling images would give intervals that are
    too narrow. The percentiles are those of `find_tail`. Source: Efron and Tibshirani 1993, chapter 13; Field and Welsh
    2007 for clusters.

    >>> interval = estimate_interval({"ada": 1.0, "bob": 2.0, "eve": float("nan")})
    >>> (interval.mean, interval.low, interval.high, interval.n)
    (1.5, 1.0, 2.0, 2)

    Args:
        values_by_cluster: One value per cluster; a nan is left out, and `n` says so.
        draws: Resamples.
        seed: Seed of the resampling. The result does not depend on the order of the clusters.

    Returns:
        The mean in the unit of the values. With one cluster nothing is known of the spread: the ends are nan.

    Raises:
        ValueError: A value is infinite, or `draws` is below 1.
    """
    if draws < 1 or any(math.isinf(value) for value in values_by_cluster.values()):
        raise ValueError(f"{draws} resamples of {dict(values_by_cluster)}: need at least one, of finite values")
    finite_values = {cluster: value for cluster, value in values_by_cluster.items() if not math.isnan(value)}
    if not finite_values:
        return NO_INTERVAL
    values = np.array([finite_values[cluster] for cluster in sorted(finite_values)], np.float64)
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, math.nan, 1)
    tail = find_tail(len(values))
    low, high = np.quantile(resample_means(values, draws, np.random.default_rng(seed)), (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high), len(values))


def find_tail(count: int) -> float:
    """Return the share of resamples below, and above, the 95 % interval of so many clusters, two or more.

    Plain percentiles, 2.5 % on each side, are too narrow for few clusters: resamples vary by `(n - 1) / n` of the
    variance, and a mean of few is further off than a normal distribution says. Source: Hesterberg 2015, "What teachers
    should know about the bootstrap", the expanded percentile interval: `Phi(-sqrt(n / (n - 1)) t)`, with the quantile
    t of Student's distribution of n - 1 degrees of freedom.

    >>> [round(find_tail(count), 4) for count in (4, 6, 12, 24, 1000)]
    [0.0001, 0.0024, 0.0108, 0.0173, 0.0248]
    """
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * find_student_limit(count - 1))


@cache
def find_student_limit(freedom: int) -> float:
    """Return within which distance of 0 a variable of Student's distribution lies in 95 % of cases, by bisection.

    >>> [round(find_student_limit(freedom), 4) for freedom in (1, 2, 11, 1000)]
    [12.7062, 4.3027, 2.201, 1.9623]
    """
    low, high = 0.0, 13.0  # of one degree of freedom, the widest, it is 12.7
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if compute_student_share(middle, freedom) < CONFIDENCE else (low, middle)
    return low


def compute_student_share(limit: float, freedom: int) -> float:
    """Compute the probability that a variable of Student's distribution is between `-limit` and `limit`.

    Source: Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4. scipy has it, which is no dependency of ours.
    """
    angle = math.atan(limit / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = total = cosine if odd and freedom > 1 else float(not odd)
    for number in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def resample_means(
    values: np.ndarray[tuple[int], np.dtype[np.float64]], draws: int, chance: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return means `[draw]` of values `[cluster]` drawn with replacement."""
    means: list[float] = []
    while len(means) < draws:
        some = min(draws - len(means), max(1, AT_ONCE // len(values)))
        means += values[chance.integers(len(values), size=(some, len(values)))].mean(1).tolist()
    return np.array(means, np.float64)


def estimate_difference(
    values: Mapping[str, float], other_values: Mapping[str, float], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the mean difference of two variants over the clusters that both have, with its interval.

    The difference is taken within each cluster first, so that what makes a subject hard for both variants cancels.

    >>> interval = estimate_difference({"ada": 3.0, "bob": 5.0}, {"bob": 4.0, "ada": 1.0, "eve": 9.0})
    >>> (interval.mean, interval.low, interval.high, interval.n)
    (1.5, 1.0, 2.0, 2)

    Args:
        values: One value per cluster; nan where there is none.
        other_values: The same of the other variant.
        draws: Resamples.
        seed: Seed of the resampling.
    """
    shared = values.keys() & other_values.keys()
    return estimate_interval({cluster: values[cluster] - other_values[cluster] for cluster in shared}, draws, seed)
