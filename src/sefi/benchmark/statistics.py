"""Means over subjects with intervals from resampling the subjects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
DRAWS = 10_000  # of the bootstrap
# Where all values have one sign, an interval leaves out 0; of five values without a direction that is so in 2 of 2^5
# cases, more than 5 %. What the intervals of more do is measured in tests/benchmark/test_statistics.py.
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
    """Return the mean over clusters with its 95 % percentile bootstrap interval, clusters drawn with replacement.

    A cluster is a subject: images of one subject are alike, so resampling images would give intervals that are
    too narrow. Source: Efron and Tibshirani 1993, chapter 13; Field and Welsh 2007 for clusters.

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
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resample_means(values, draws, np.random.default_rng(seed)), (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high), len(values))


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
