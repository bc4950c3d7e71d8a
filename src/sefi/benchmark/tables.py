"""Tables of a run: means with intervals, differences between variants, curves over the threshold."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sefi.benchmark.plan import compute_shares, count_cases, fits_shares, measure_completeness
from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.statistics import Interval, estimate_difference, estimate_interval
from sefi.benchmark.table_metrics import METRICS, Conditions, Metric, collect_numbers, find_conditions, select_with
from sefi.core.errors import ConfigError
from sefi.evaluation.metrics import measure_id_prompt_curve

SUBJECTS_TO_LEAD = 2
EVALUATORS = ("detector", "recogniser", "second_recogniser", "reader", "clip", "dino")
NEEDS = {  # what a reader is shown for those whose name does not say it
    "clip": "CLIP",
    "dino": "DINOv2",
    "far_threshold": "false-accept threshold",
    "id_other_photo": "other image of the subjects",
    "id_second_other": "other image of the subjects",
    "background_others": "photo of another subject",
    "clip_image_others": "photo of another subject",
    "id_leaked": "image that two subjects share",
    "focus": "record of attention",
    "on_objects": "record of attention",
    "focus_plain": "record of attention",
    "on_objects_plain": "record of attention",
    "learn_seconds": "record of learning",
    "class_seconds": "record of class images",
    "draw_seconds": "record of generation",
    "trained": "record of learning",
    "added": "record of learning",
    "peak_mb": "record of memory",
}


@dataclass(frozen=True)
class VariantRow:
    """A variant as a row of a table: label, a sentence on it, and which reference row it is, if any."""

    label: str
    about: str
    control: str | None

    @property
    def is_generated(self) -> bool:
        """Whether the model generates its images; the other reference rows are photographs."""
        return self.control in (None, "class word")


@dataclass(frozen=True)
class Table:
    """Variants by figures.

    Attributes:
        kind: The prompt kind that it is of; empty for all prompts.
        variants: The rows: those under test in the order of the suite, then the reference rows.
        metrics: Those that at least one variant has.
        missing: Every other figure's name and why it was not computed.
        values: Variant's label and figure's name to mean and interval; `n` is 0 where it was not computed.
        finished: Whether the run has every image that was asked for.
        equal: Whether all variants under test have the same subjects and prompts; folders of images may not.
        unlike: Labels of the variants that have other prompts than the first of the subjects that both have.
        uneven: Names of the figures that variants under test have of different subjects, as the likeness over faces of
            those of whom some image has a face.
    """

    kind: str
    variants: tuple[VariantRow, ...]
    metrics: tuple[Metric, ...]
    missing: Mapping[str, str]
    values: Mapping[tuple[str, str], Interval]
    finished: bool = True
    equal: bool = True
    unlike: frozenset[str] = frozenset()
    uneven: frozenset[str] = frozenset()

    @property
    def comparable(self) -> bool:
        """Whether the means of its variants are of the same subjects and prompts."""
        return self.finished and self.equal

    def find_best(self, metric: Metric) -> frozenset[str]:
        """Return the labels of the variants that lead a metric.

        None leads where variants have different subjects and prompts, as in an unfinished run, or the figure is of
        different subjects. A variant with a single subject does not compete: nothing is known of its spread. Reference
        rows do not compete either, and none leads if all are equal.
        """
        if not self.comparable or metric.name in self.uneven:
            return frozenset()
        rivals = [
            (variant.label, self.values[variant.label, metric.name])
            for variant in self.variants
            if variant.control is None
        ]
        means = {label: value.mean for label, value in rivals if value.n >= SUBJECTS_TO_LEAD}
        if metric.direction == "none" or len(set(means.values())) < 2:
            return frozenset()
        leading = (max if metric.direction == "up" else min)(means.values())
        return frozenset(label for label, value in means.items() if value == leading)

    def has_fewer_subjects(self, label: str, metric: Metric) -> bool:
        """Return whether a variant has this figure of fewer subjects than another of its figures."""
        counts = [value.n for (variant, _), value in self.values.items() if variant == label]
        return 0 < self.values[label, metric.name].n < max(counts)


def make_table(samples: Sequence[Sample], run: RunInfo, kind: str = "") -> Table:
    """Return all figures of a run, or of its prompts of one kind.

    Every figure is taken within a subject first, so that each subject counts once whatever the number of its
    images; the interval comes from resampling subjects.

    Args:
        samples: One for each image, as in `cells.jsonl`; null is not computed and never counted as 0.
        run: What was asked, as in `run.json`.
        kind: Only prompts of this kind; thresholds and ranges stay those of the whole run.

    Raises:
        ConfigError: There is no image, or one of a variant that the run does not have.
    """
    fixed, chosen = find_conditions(samples, run), [sample for sample in samples if kind in ("", sample.kind)]
    labels_with_images = {sample.variant for sample in chosen}
    variants = tuple(variant for variant in list_variants(samples, run) if variant.label in labels_with_images)
    if not variants:
        raise ConfigError(f"The run has no images{format_kind(kind)}.", "Run the benchmark first.")
    by_subject = {
        (variant.label, metric.name): compute_by_subject(chosen, fixed, variant.label, metric)
        for variant in variants
        for metric in METRICS
    }
    values = {key: estimate_interval(figures) for key, figures in by_subject.items()}
    compared = [variant.label for variant in variants if variant.control is None]
    uneven = find_uneven({key: figures for key, figures in by_subject.items() if key[0] in compared})
    metrics = tuple(
        metric for metric in METRICS if any(values[variant.label, metric.name].computed for variant in variants)
    )
    missing = {metric.name: explain_missing(metric, samples, run) for metric in METRICS if metric not in metrics}
    finished = measure_completeness(run, samples).finished
    return Table(kind, variants, metrics, missing, values, finished, *compare_cases(variants, run, kind), uneven)


def find_uneven(by_subject: Mapping[tuple[str, str], Mapping[str, float]]) -> frozenset[str]:
    """Return the names of the figures that variants have of different subjects; who has none of it does not count.

    Args:
        by_subject: Variant's label and figure's name to the figure of each subject, nan where it was not computed.
    """
    known: dict[str, set[frozenset[str]]] = {}
    for (_, name), figures in by_subject.items():
        subjects = frozenset(subject for subject, value in figures.items() if not math.isnan(value))
        if subjects:
            known.setdefault(name, set()).add(subjects)
    return frozenset(name for name, sets in known.items() if len(sets) > 1)


def compare_cases(variants: Sequence[VariantRow], run: RunInfo, kind: str) -> tuple[bool, frozenset[str]]:
    """Return whether the variants under test have the same subjects and prompts, and which differ from the first."""
    counts = count_cases(run, kind)
    shares = [compute_shares(counts.get(variant.label, {})) for variant in variants if variant.control is None]
    first = counts.get(variants[0].label, {})
    unlike = {label for label, cases in counts.items() if not fits_shares(first, cases)}
    return all(one == shares[0] for one in shares), frozenset(unlike)


def format_kind(kind: str) -> str:
    """Return a kind of prompts as the end of a sentence."""
    return f" of kind {kind!r}" if kind else ""


def list_variants(samples: Sequence[Sample], run: RunInfo) -> list[VariantRow]:
    """Return the run's variants, reference rows last.

    Raises:
        ConfigError: A sample is of another variant.
    """
    variants = [VariantRow(variant.label, variant.about, variant.control) for variant in run.suite.variants]
    strange = sorted({sample.variant for sample in samples} - {variant.label for variant in variants})
    if strange:
        raise ConfigError(f"The run has images of {strange[0]!r}, a variant it does not name.", "Use its own run.json.")
    return sorted(variants, key=lambda variant: variant.control is not None)


def compute_by_subject(samples: Sequence[Sample], fixed: Conditions, variant: str, metric: Metric) -> dict[str, float]:
    """Return one figure of one variant for each subject, nan where it was not computed."""
    return {
        subject: metric.formula(subject_samples, fixed)
        for subject, subject_samples in group_by_subject(samples, variant).items()
    }


def group_by_subject(samples: Sequence[Sample], variant: str) -> dict[str, list[Sample]]:
    """Return the samples of one variant by subject, in the order of prompts and seeds."""
    groups: dict[str, list[Sample]] = {}
    # Several processes may have written the record: sums must not depend on who was first.
    for sample in sorted(samples, key=lambda sample: (sample.prompt, sample.seed)):
        if sample.variant == variant:
            groups.setdefault(sample.subject, []).append(sample)
    return groups


def explain_missing(metric: Metric, samples: Sequence[Sample], run: RunInfo) -> str:
    """Return why a figure was not computed."""
    lacking = [need for need in metric.needs if not has_need(need, samples, run)]
    names = [NEEDS.get(need, need.replace("_", " ")) for need in lacking]
    return f"the run has no {' and no '.join(names)}" if names else "no image has it"


def has_need(need: str, samples: Sequence[Sample], run: RunInfo) -> bool:
    """Return whether the run has an evaluator, a threshold, or a field that some sample has."""
    if need in EVALUATORS:
        names = ("scene_reader", "head_reader") if need == "reader" else (need,)
        return any(run.evaluators.get(name) for name in names)
    if need in ("tau", "far_threshold"):
        return getattr(run, need) is not None
    return any(getattr(sample, need) is not None for sample in samples)


def list_kinds(samples: Sequence[Sample], run: RunInfo) -> list[str]:
    """Return the kinds of prompts that have images, in the order of the suite."""
    kinds = {sample.kind for sample in samples}
    return [kind for kind in dict.fromkeys(prompt.kind for prompt in run.suite.prompts) if kind in kinds]


def make_tables_by_kind(samples: Sequence[Sample], run: RunInfo) -> dict[str, Table]:
    """Return a table for each kind of prompt."""
    return {kind: make_table(samples, run, kind) for kind in list_kinds(samples, run)}


def compute_differences(samples: Sequence[Sample], run: RunInfo, variant: str, other: str) -> dict[str, Interval]:
    """Return one variant minus another for every figure that both have, paired by subject.

    Args:
        samples: As for `make_table`.
        run: As for `make_table`.
        variant: Label of the one.
        other: Label of the other.

    Returns:
        Name of the figure to the mean difference in the figure's unit; above 0 means that `variant` has more.

    Raises:
        ConfigError: The run has no variant of that label.
    """
    labels = [each.label for each in list_variants(samples, run)]
    for label in (variant, other):
        if label not in labels:
            near = difflib.get_close_matches(label, labels, n=1, cutoff=0.0)
            raise ConfigError(f"The run has no variant {label!r}.", f"Did you mean {near[0]!r}?")
    fixed = find_conditions(samples, run)
    pairs = {f.name: [compute_by_subject(samples, fixed, label, f) for label in (variant, other)] for f in METRICS}
    differences = {name: estimate_difference(values, other_values) for name, (values, other_values) in pairs.items()}
    return {name: interval for name, interval in differences.items() if interval.computed}


def compute_all_differences(samples: Sequence[Sample], run: RunInfo) -> tuple[str, dict[str, dict[str, Interval]]]:
    """Return the first variant's label and its differences to every other that has images, reference rows last."""
    labels_with_images = {sample.variant for sample in samples}
    labels = [variant.label for variant in list_variants(samples, run) if variant.label in labels_with_images]
    return labels[0], {label: compute_differences(samples, run, labels[0], label) for label in labels[1:]}


POINTS = 121
DRAWS = 1000  # a band is seen, not quoted
MARGIN = 0.08  # of the range of scores, beyond both ends


@dataclass(frozen=True)
class Curve:
    """ID(Prompt) of one variant: an interval over subjects for every threshold `taus [threshold]`."""

    taus: NDArray[np.float64]
    points: tuple[Interval, ...]


def compute_tau_curves(samples: Sequence[Sample], run: RunInfo) -> dict[str, Curve]:
    """Return a curve for each variant with likeness and prompt score, reference rows last; none if scores are equal.

    The thresholds are the same for all variants: a little beyond the scores of those under test and the run's tau.
    """
    fixed = find_conditions(samples, run)
    if not fixed.lowest < fixed.highest:
        return {}
    scored_samples = select_with(samples, "id", "prompt_score")
    labels_with_images = {sample.variant for sample in scored_samples}
    labels = [variant.label for variant in list_variants(samples, run) if variant.label in labels_with_images]
    return {label: compute_curve(group_by_subject(scored_samples, label), space_thresholds(fixed)) for label in labels}


def space_thresholds(fixed: Conditions) -> NDArray[np.float64]:
    """Return evenly spaced `[threshold]` around the run's prompt scores and its tau."""
    ends = [fixed.lowest, fixed.highest, *([] if fixed.tau is None else [fixed.tau])]
    low, high = min(ends), max(ends)
    beyond = MARGIN * (high - low)
    return np.linspace(low - beyond, high + beyond, POINTS)


def compute_curve(subjects: dict[str, list[Sample]], taus: NDArray[np.float64]) -> Curve:
    """Return the curve of one variant from the samples of every subject."""
    rows = {
        subject: measure_id_prompt_curve(
            collect_numbers(subject_samples, "id"), collect_numbers(subject_samples, "prompt_score"), taus
        )
        for subject, subject_samples in subjects.items()
    }
    points = [
        estimate_interval({subject: float(row[i]) for subject, row in rows.items()}, DRAWS) for i in range(len(taus))
    ]
    return Curve(taus, tuple(points))
