"""Samples to tables: a row per way, a column per figure, each a mean over subjects with its interval."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sefi.bench.figures import FIGURES, Figure
from sefi.bench.formulas import Conditions, conditions
from sefi.bench.plan import completeness
from sefi.bench.records import RunInfo, Sample
from sefi.bench.statistics import Interval, clustered_interval, paired_difference
from sefi.core.errors import ConfigError

SUBJECTS_TO_LEAD = 2
JUDGES = ("detector", "recogniser", "reader", "clip")
NEEDS = {  # what is told of those whose name does not say it
    "clip": "CLIP",
    "far_threshold": "false-accept threshold",
    "id_other": "other picture of the subjects",
    "id_leaked": "picture that two subjects share",
    "focus": "record of attention",
    "on_objects": "record of attention",
}


@dataclass(frozen=True)
class Compared:
    """A way as a table tells it: label, a sentence on it, and which anchor it is, if any."""

    label: str
    about: str
    control: str | None


@dataclass(frozen=True)
class Table:
    """Ways by figures.

    Attributes:
        kind: The prompt kind that it is of; empty for all prompts.
        ways: Rows: those under test in the order of the suite, then the anchors.
        figures: Columns: every figure that at least one way has.
        missing: Every other figure's name and why it was not computed.
        values: Way's label and figure's name to mean and interval; `n` is 0 where it was not computed.
        finished: Whether the run has every image that was asked for.
    """

    kind: str
    ways: tuple[Compared, ...]
    figures: tuple[Figure, ...]
    missing: Mapping[str, str]
    values: Mapping[tuple[str, str], Interval]
    finished: bool = True

    def best(self, figure: Figure) -> frozenset[str]:
        """Return the labels of the ways that lead a column.

        Nobody leads an unfinished run, whose ways have different subjects and prompts. A way with a single subject
        does not compete: nothing is known of its spread. Reference rows do not compete either, and nobody leads if
        all are equal.
        """
        rivals = [(way.label, self.values[way.label, figure.name]) for way in self.ways if way.control is None]
        known = {label: value.mean for label, value in rivals if self.finished and value.n >= SUBJECTS_TO_LEAD}
        if figure.direction == "none" or len(set(known.values())) < 2:
            return frozenset()
        leading = (max if figure.direction == "up" else min)(known.values())
        return frozenset(label for label, value in known.items() if value == leading)


def table(samples: Sequence[Sample], run: RunInfo, kind: str = "") -> Table:
    """All figures of a run, or of its prompts of one kind.

    Every figure is taken within a subject first, so that each subject counts once whatever the number of its
    pictures; the interval comes from resampling subjects.

    Args:
        samples: One for each picture, as in `cells.jsonl`; null is not computed and never counted as 0.
        run: What was asked, as in `run.json`.
        kind: Only prompts of this kind; thresholds and ranges stay those of the whole run.

    Raises:
        ConfigError: There is no picture, or one of a way that the run does not have.
    """
    fixed, chosen = conditions(samples, run), [sample for sample in samples if kind in ("", sample.kind)]
    there = {sample.variant for sample in chosen}
    ways = tuple(way for way in compared(samples, run) if way.label in there)
    if not ways:
        raise ConfigError(f"The run has no pictures{of_kind(kind)}.", "Run the benchmark first.")
    values = {
        (way.label, figure.name): clustered_interval(by_subject(chosen, fixed, way.label, figure))
        for way in ways
        for figure in FIGURES
    }
    found = tuple(figure for figure in FIGURES if any(values[way.label, figure.name].computed for way in ways))
    missing = {figure.name: reason(figure, samples, run) for figure in FIGURES if figure not in found}
    return Table(kind, ways, found, missing, values, completeness(run, samples).finished)


def of_kind(kind: str) -> str:
    """A kind of prompts as the end of a sentence."""
    return f" of kind {kind!r}" if kind else ""


def compared(samples: Sequence[Sample], run: RunInfo) -> list[Compared]:
    """The run's ways, anchors last.

    Raises:
        ConfigError: A sample tells of another way.
    """
    ways = [Compared(way.label, way.about, way.control) for way in run.suite.variants]
    strange = sorted({sample.variant for sample in samples} - {way.label for way in ways})
    if strange:
        raise ConfigError(f"The run has pictures of {strange[0]!r}, a way it does not name.", "Use its own run.json.")
    return sorted(ways, key=lambda way: way.control is not None)


def by_subject(samples: Sequence[Sample], fixed: Conditions, way: str, figure: Figure) -> dict[str, float]:
    """One figure of one way for each subject, nan where it was not computed."""
    return {subject: figure.of(own, fixed) for subject, own in subjects_of(samples, way).items()}


def subjects_of(samples: Sequence[Sample], way: str) -> dict[str, list[Sample]]:
    """The samples of one way by subject, in the order of prompts and seeds."""
    groups: dict[str, list[Sample]] = {}
    # Several processes may have written the record: sums must not depend on who was first.
    for sample in sorted(samples, key=lambda sample: (sample.prompt, sample.seed)):
        if sample.variant == way:
            groups.setdefault(sample.subject, []).append(sample)
    return groups


def reason(figure: Figure, samples: Sequence[Sample], run: RunInfo) -> str:
    """Why a figure was not computed."""
    lacking = [need for need in figure.needs if not has(need, samples, run)]
    told = [NEEDS.get(need, need.replace("_", " ")) for need in lacking]
    return f"the run has no {' and no '.join(told)}" if told else "no picture tells of it"


def has(need: str, samples: Sequence[Sample], run: RunInfo) -> bool:
    """Whether the run has a judge, a threshold, or a field that is not None in every sample."""
    if need in JUDGES:
        return any(name.endswith(need) and file for name, file in (run.evaluators or {}).items())
    if need in ("tau", "far_threshold"):
        return getattr(run, need) is not None
    return any(getattr(sample, need) is not None for sample in samples)


def kinds(samples: Sequence[Sample], run: RunInfo) -> list[str]:
    """Kinds of prompts that have pictures, in the order of the suite."""
    there = {sample.kind for sample in samples}
    return [kind for kind in dict.fromkeys(prompt.kind for prompt in run.suite.prompts) if kind in there]


def by_kind(samples: Sequence[Sample], run: RunInfo) -> dict[str, Table]:
    """A table for each kind of prompt."""
    return {kind: table(samples, run, kind) for kind in kinds(samples, run)}


def differences(samples: Sequence[Sample], run: RunInfo, way: str, other: str) -> dict[str, Interval]:
    """One way minus another for every figure that both have, paired by subject.

    Args:
        samples: As for `table`.
        run: As for `table`.
        way: Label of the one.
        other: Label of the other.

    Returns:
        Name of the figure to the mean difference in the figure's unit; above 0 means that `way` has more.

    Raises:
        ConfigError: The run has no way of that label.
    """
    labels = [each.label for each in compared(samples, run)]
    for label in (way, other):
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)
            raise ConfigError(f"The run has no way {label!r}.", f"Did you mean {near[0]!r}?")
    fixed = conditions(samples, run)
    pairs = {f.name: [by_subject(samples, fixed, label, f) for label in (way, other)] for f in FIGURES}
    found = {name: paired_difference(mine, theirs) for name, (mine, theirs) in pairs.items()}
    return {name: interval for name, interval in found.items() if interval.computed}


def differences_to_all(samples: Sequence[Sample], run: RunInfo) -> tuple[str, dict[str, dict[str, Interval]]]:
    """The first way's label, and its differences to every other way that has pictures, anchors last."""
    there = {sample.variant for sample in samples}
    labels = [way.label for way in compared(samples, run) if way.label in there]
    return labels[0], {label: differences(samples, run, labels[0], label) for label in labels[1:]}
