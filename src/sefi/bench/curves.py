"""ID(Prompt) of every way over the threshold, as means over subjects with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sefi.bench.formulas import Conditions, conditions, having, numbers
from sefi.bench.records import RunInfo, Sample
from sefi.bench.statistics import Interval, clustered_interval
from sefi.bench.tables import compared, subjects_of
from sefi.metrics.gated import gated_curve

POINTS = 121
DRAWS = 1000  # a band is looked at, not quoted
MARGIN = 0.08  # of the range of scores, beyond both ends


@dataclass(frozen=True)
class Curve:
    """ID(Prompt) of one way: an interval over subjects for every threshold `taus [threshold]`."""

    taus: NDArray[np.float64]
    points: tuple[Interval, ...]


def tau_curves(samples: Sequence[Sample], run: RunInfo) -> dict[str, Curve]:
    """A curve for each way that has likeness and prompt score, anchors last; none if no score differs from another.

    The thresholds are the same for all ways: a little beyond the prompt scores of those under test and the run's tau.
    """
    fixed = conditions(samples, run)
    if not fixed.lowest < fixed.highest:
        return {}
    known = having(samples, "id", "prompt_score")
    there = {sample.variant for sample in known}
    labels = [way.label for way in compared(samples, run) if way.label in there]
    return {label: curve(subjects_of(known, label), thresholds(fixed)) for label in labels}


def thresholds(fixed: Conditions) -> NDArray[np.float64]:
    """Evenly spaced `[threshold]` around the run's prompt scores and its tau."""
    ends = [fixed.lowest, fixed.highest, *([] if fixed.tau is None else [fixed.tau])]
    low, high = min(ends), max(ends)
    beyond = MARGIN * (high - low)
    return np.linspace(low - beyond, high + beyond, POINTS)


def curve(subjects: dict[str, list[Sample]], taus: NDArray[np.float64]) -> Curve:
    """The curve of one way from the samples of every subject."""
    rows = {s: gated_curve(numbers(own, "id"), numbers(own, "prompt_score"), taus) for s, own in subjects.items()}
    points = [clustered_interval({s: float(row[i]) for s, row in rows.items()}, DRAWS) for i in range(len(taus))]
    return Curve(taus, tuple(points))
