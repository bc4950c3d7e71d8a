"""Render a run's records, images and tables as one self-contained HTML page."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from sefi.benchmark.plan import explain_unequal_cases, list_planned_keys, measure_completeness
from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.statistics import FEWEST_TO_TELL, NO_INTERVAL, Interval
from sefi.benchmark.suite import ANOTHER_PHOTO, ANOTHER_SUBJECT
from sefi.benchmark.table_files import ARROWS, format_ends, format_range, format_value
from sefi.benchmark.table_metrics import METRICS, Metric, Part
from sefi.benchmark.tables import (
    Table,
    compute_all_differences,
    compute_tau_curves,
    list_variants,
    make_table,
    make_tables_by_kind,
)
from sefi.core.text import dump_json
from sefi.report import bench_images
from sefi.report.pages import read_template
from sefi.report.plot_style import choose_styles, encode_svg_uri
from sefi.report.plots import plot_kind_bars, plot_tau_curves, plot_trade_off

REFERENCES = {
    "class word": "the plain class word, what the model does unasked; its images are the same for every subject",
    "photo": "the learned photo pasted as the image: all of the person, none of the prompt",
    ANOTHER_PHOTO: "another image of the same subject: the ceiling of ID",
    ANOTHER_SUBJECT: "another subject's photo: the floor of ID",
}


@dataclass(frozen=True)
class FailureRow:
    """How the images of one variant failed; None is not computed.

    Attributes:
        variant: Its label.
        images: How many there are.
        missing: How many were asked for and are not there; None for a reference row, which not every run can have.
        no_face: How many have no face.
        more_faces: How many have more faces than subjects.
        below_tau: How many score below tau.
    """

    variant: str
    images: int
    missing: int | None
    no_face: int | None
    more_faces: int | None
    below_tau: int | None


def count_failures(samples: Sequence[Sample], run: RunInfo) -> list[FailureRow]:
    """Return what failed, a row for each variant, reference rows last; variants without any image are included."""
    planned = Counter(key[1] for key in list_planned_keys(run.suite, run.subjects, run.photos, run.folders))
    return [
        count_variant_failures(
            [c for c in samples if c.variant == variant.label],
            variant.label,
            run,
            planned[variant.label] if variant.control is None else None,
        )
        for variant in list_variants(samples, run)
    ]


def count_variant_failures(samples: Sequence[Sample], label: str, run: RunInfo, planned: int | None) -> FailureRow:
    """Return the failures of one variant from its images."""
    faces = [sample.faces for sample in samples if sample.faces is not None]
    scores = [sample.prompt_score for sample in samples if sample.prompt_score is not None]
    tau, together = run.tau, run.suite.together
    return FailureRow(
        label,
        len(samples),
        None if planned is None else planned - len(samples),
        sum(number == 0 for number in faces) if faces else None,
        sum(number > together for number in faces) if faces else None,
        sum(score < tau for score in scores) if scores and tau is not None else None,
    )


def list_not_computed(table: Table) -> dict[str, str]:
    """Return the label of each metric that no variant has, and why."""
    return {metric.label: table.missing[metric.name] for metric in METRICS if metric.name in table.missing}


def list_conventions(run: RunInfo) -> list[str]:
    """Return how the figures are to be read, one sentence each."""
    tau, far = run.tau, run.far_threshold
    tau_text = "The run has no tau: ID(Prompt) was not computed."
    if tau is not None:
        tau_text = f"tau is {tau:.4f}. A tau holds for one CLIP only; the paper's 0.23 was set for the paper's own."
    far_text = "The run has no false-accept threshold: no image was verified."
    if far is not None:
        far_text = (
            f"A face passes as the person of the photo from a cosine of {far:.4f}, set on pairs of different people."
        )
    return [
        "Every cosine is raw, from -1 to 1: neither times 100 nor times 2.5.",
        "ID is taken to the photo that was learned. An image without a face counts 0 in ID and ID(Prompt) and is left "
        "out of ID over faces. Of several faces the surest counts; two subjects get the faces that suit them best.",
        tau_text,
        far_text,
        "The prompt score is that of the sentence with the class word in place of the person.",
        "A figure is taken within each subject first, then over subjects. In brackets: 95 % interval, bootstrap "
        "over subjects with expanded percentiles, 10 000 resamples. Differences are paired by subject.",
        "No interval is written where it has no width, or for a single subject.",
        "Bold: the best mean of a column, of variants with two subjects or more; nothing is bold in an unfinished run. "
        "It says which mean leads, not that the lead is sure: see the differences. Grey rows are reference rows, which "
        "do not compete.",
        "Where a variant has a figure of fewer subjects than others of its figures, n says of how many; where variants "
        "have it of different subjects, none is bold.",
        f"A difference is called better or worse where its interval leaves out 0, of {FEWEST_TO_TELL} subjects or "
        "more: of fewer, all differ in one direction by chance in more than 5 % of cases.",
        "Not computed means just that; it never counts as 0.",
        *list_folder_notes(run),
    ]


def list_folder_notes(run: RunInfo) -> list[str]:
    """Return what a reader should know of images that other programs made, one sentence each."""
    notes = ["Images of other programs are scored as they are, as PNG: nothing is known of how they were made."]
    for label, folder in run.folders.items():
        if folder.unreadable:
            some = ", ".join(folder.unreadable[:5])
            notes.append(f"{label}: {len(folder.unreadable)} files cannot be read and are left out, such as {some}.")
    return [*notes, *explain_unequal_cases(run)] if run.folders else []


def describe_references(run: RunInfo) -> dict[str, str]:
    """Return the label of each reference row and what it is."""
    return {
        variant.label: REFERENCES.get(variant.control, variant.about)
        for variant in run.suite.variants
        if variant.control
    }


def list_differing_settings(run: RunInfo) -> tuple[list[str], dict[str, list[str]]]:
    """Return the variants that have settings, and every setting in which they differ with its value for each.

    A dash stands for a setting that the method of a variant does not have.
    """
    trees = {label: flatten_settings(tree) for label, tree in run.settings.items()}
    names = sorted({name for tree in trees.values() for name in tree})
    rows = {name: [format_setting(tree[name]) if name in tree else "-" for tree in trees.values()] for name in names}
    return list(trees), {name: row for name, row in rows.items() if len(set(row)) > 1}


def list_shared_settings(run: RunInfo) -> dict[str, str]:
    """Return every setting in which all variants agree."""
    trees = [flatten_settings(tree) for tree in run.settings.values()]
    _, apart = list_differing_settings(run)
    return {name: format_setting(value) for name, value in (trees[0] if trees else {}).items() if name not in apart}


def flatten_settings(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return a tree of settings as `section.name` to value."""
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        settings |= (
            flatten_settings(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
        )
    return settings


def format_setting(value: object) -> str:
    """Return a setting as text, as JSON writes it."""
    return value if isinstance(value, str) else dump_json(value)


def hash_images(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 over the hashes of all images in any order: equal runs have equal ones."""
    lines = sorted(f"{s.subject}/{s.variant}/{s.prompt}/{s.seed}/{s.sha256}" for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def list_limits(samples: Sequence[Sample]) -> list[str]:
    """Return what the figures do not show, one sentence each."""
    subjects = len({sample.subject for sample in samples})
    few = (
        f"Few subjects ({subjects}): no interval goes beyond what single subjects have, so it is too narrow. Without "
        "any difference it leaves out 0 in 25 % of comparisons of 3 subjects, 13 % of 4 and 8 % of 5, not in 5 %."
        if subjects < FEWEST_TO_TELL
        else ""
    )
    sentences = [
        few,
        "The intervals cover the choice of subjects only: prompts and seeds are those of the suite.",
        "Differences are not corrected for their number: of twenty comparisons of equal variants, one will look clear.",
        "Evaluators err, and not evenly: a recogniser knows some faces better than others, and CLIP also rewards a "
        "style. Look at the images too.",
        "Cosines of other evaluators, models or crops cannot be compared with these; differences within one run can.",
        "Seconds and memory belong to the machine of this run.",
    ]
    return [sentence for sentence in sentences if sentence]


@dataclass(frozen=True)
class Entry:
    """One number: its text, its interval, and what marks it."""

    text: str
    ends: str
    mark: Literal["", "best", "better", "worse", "none"]


@dataclass(frozen=True)
class TableLine:
    """One row: a variant, a sentence on it, whether it is a reference row, and an entry for each metric."""

    label: str
    about: str
    reference: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class TableView:
    """A table as a page shows it: title, metrics, rows."""

    title: str
    metrics: tuple[Metric, ...]
    lines: tuple[TableLine, ...]


def make_view(table: Table, title: str, part: Part, *, references: bool = True) -> TableView:
    """Return the metrics of one part of a table.

    Args:
        table: The table.
        title: What stands above it.
        part: Which metrics; those that no variant has are left out.
        references: Whether reference rows are shown.
    """
    metrics = tuple(metric for metric in table.metrics if metric.part == part)
    lines = [
        TableLine(
            variant.label, variant.about, variant.control is not None, make_entries(table, variant.label, metrics)
        )
        for variant in table.variants
        if references or variant.control is None
    ]
    return TableView(title, metrics, tuple(lines))


def make_entries(table: Table, label: str, metrics: Sequence[Metric]) -> tuple[Entry, ...]:
    """Return the numbers of one variant, the leading ones marked."""
    return tuple(make_entry(table, label, metric) for metric in metrics)


def make_entry(table: Table, label: str, metric: Metric) -> Entry:
    """Return a mean with its interval; "none" marks what was not computed."""
    value = table.values[label, metric.name]
    if not value.computed:
        return Entry("not computed", "", "none")
    mark = "best" if label in table.find_best(metric) else ""
    return Entry(format_value(value.mean, metric.unit), format_ends(table, label, metric), mark)


def make_difference_view(
    table: Table, title: str, others: Mapping[str, Mapping[str, Interval]], parts: Sequence[Part]
) -> TableView:
    """Return the first variant less every other, for the metrics of some parts.

    Args:
        table: The table of all prompts: its metrics and variants.
        title: What stands above it.
        others: From `compute_all_differences`.
        parts: Which metrics.
    """
    metrics = tuple(f for f in table.metrics if f.part in parts and any(f.name in row for row in others.values()))
    controls = {variant.label: variant.control is not None for variant in table.variants}
    lines = [
        TableLine(
            f"less {label}",
            "",
            controls[label],
            tuple(
                make_difference_entry(
                    row.get(f.name, NO_INTERVAL), f, marked=table.finished and label not in table.unlike
                )
                for f in metrics
            ),
        )
        for label, row in others.items()
    ]
    return TableView(title, metrics, tuple(lines))


def make_difference_entry(value: Interval, metric: Metric, *, marked: bool = True) -> Entry:
    """Return a difference with its sign; marked where it tells a direction and one direction is better.

    Args:
        value: The difference.
        metric: What differs.
        marked: Whether it may be marked; not where other prompts may be compared, as in an unfinished run.
    """
    if not value.computed:
        return Entry("not computed", "", "none")
    text, ends = format_value(value.mean, metric.unit, sign=True), format_range(value, metric.unit, sign=True)
    if not marked or not value.tells_direction or metric.direction == "none":
        return Entry(text, ends, "")
    return Entry(text, ends, "better" if (value.mean > 0) == (metric.direction == "up") else "worse")


SHEET_SEED = 0
BARS = ("id_prompt", "id", "shown")  # what is drawn for each kind of prompt
OTHER_DIFFERENCES: tuple[Part, ...] = ("person", "prompt", "image", "cost")
PARTS: dict[Part, str] = {
    "main": "All prompts",
    "person": "The person",
    "prompt": "The prompt",
    "image": "The image",
}


@dataclass(frozen=True)
class Plot:
    """A plot as a `data:` address, and one sentence on it."""

    uri: str
    about: str


def render_bench_page(run: RunInfo, samples: Sequence[Sample], folder: Path) -> str:
    """Render a benchmark run.

    Args:
        run: What was asked, as in `run.json`.
        samples: One for each image, as in `cells.jsonl`.
        folder: The run's folder: images, `photos/SUBJECT.png`, and `attention/*.png` if there are any. An image
            that is gone leaves a hole.

    Returns:
        HTML that needs no other file, runs no script and asks no server for anything; light or dark as the reader's
        system is. Equal runs give equal pages.

    Raises:
        ConfigError: There is no image, or one of a variant that the run does not have.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(read_template))
    return environment.get_template("bench.html.j2").render(collect_content(run, samples, folder))


def collect_content(run: RunInfo, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Return everything that the page shows, by the names of the template."""
    table, kinds = make_table(samples, run), make_tables_by_kind(samples, run)
    first, others = compute_all_differences(samples, run)
    best, worst = bench_images.choose_best_and_worst(samples, run, folder, first)
    return {
        "run": run,
        "arrows": ARROWS,
        "counts": count_parts(run, samples),
        "banner": measure_completeness(run, samples).banner,
        "unequal": explain_unequal_cases(run),
        "first": first,
        "views": [each for part, title in PARTS.items() if (each := make_view(table, title, part)).metrics],
        "costs": make_view(table, "Cost", "cost", references=False),
        "metrics": [metric for metric in METRICS if metric in table.metrics],
        "differences": make_difference_view(table, "Main figures", others, ("main",)),
        "other_differences": make_difference_view(table, "All other figures", others, OTHER_DIFFERENCES),
        "plots": draw_plots(table, samples, run),
        "bars": draw_kind_bars(table, kinds),
        "kinds": make_kind_views(kinds),
        "sheets": bench_images.make_sheets(samples, run, folder, np.random.default_rng(SHEET_SEED)),
        "sheet_seed": SHEET_SEED,
        "best": best,
        "worst": worst,
        "attention": bench_images.load_attention_figures(folder),
        **collect_facts(table, samples, run),
    }


def count_parts(run: RunInfo, samples: Sequence[Sample]) -> dict[str, int]:
    """Return how many there are of what was compared."""
    suite = run.suite
    return {
        "subjects": len({sample.subject for sample in samples}),
        "prompts": len(suite.prompts),
        "seeds": len(suite.seeds),
        "variants": len({sample.variant for sample in samples}),
        "images": len(samples),
    }


def collect_facts(table: Table, samples: Sequence[Sample], run: RunInfo) -> dict[str, Any]:
    """Return the texts of the page."""
    labels, apart = list_differing_settings(run)
    return {
        "failures": count_failures(samples, run),
        "not_computed": list_not_computed(table),
        "conventions": list_conventions(run),
        "references": describe_references(run),
        "settings_labels": labels,
        "settings_apart": apart,
        "settings_shared": list_shared_settings(run),
        "digest": hash_images(samples),
        "limits": list_limits(samples),
    }


def draw_plots(table: Table, samples: Sequence[Sample], run: RunInfo) -> list[Plot]:
    """Draw the trade-off and the curve over tau, where the run has what they need."""
    styles, curves = choose_styles(table.variants), compute_tau_curves(samples, run)
    plots: list[Plot] = []
    if any(all(table.values[w.label, name].computed for name in ("prompt", "id")) for w in table.variants):
        about = "Likeness and prompt score, bars are 95 % intervals."
        about += " Whatever lies in the shade is beaten in both." if table.comparable else ""
        plots.append(Plot(encode_svg_uri(plot_trade_off(table, styles)), about))
    if curves:
        about = "ID(Prompt) for every threshold: the variants under test with their 95 % bands, reference rows dashed."
        plots.append(Plot(encode_svg_uri(plot_tau_curves(curves, styles, run.tau)), about))
    return plots


def draw_kind_bars(table: Table, kinds: Mapping[str, Table]) -> list[tuple[str, str]]:
    """Return label and plot of each metric that is drawn by kind of prompt, without reference rows that are photos."""
    compared = [variant.label for variant in table.variants if variant.is_generated]
    styles = {label: style for label, style in choose_styles(table.variants).items() if label in compared}
    computed_names = {
        name
        for kind_table in kinds.values()
        for (label, name), value in kind_table.values.items()
        if label in styles and value.computed
    }
    chosen = [metric for metric in METRICS if metric.name in BARS and metric.name in computed_names]
    return [(metric.label, encode_svg_uri(plot_kind_bars(kinds, metric, styles))) for metric in chosen]


def make_kind_views(kinds: Mapping[str, Table]) -> list[TableView]:
    """Return the main metrics for each kind of prompt."""
    views = [make_view(table, kind, "main") for kind, table in kinds.items()]
    return [each for each in views if each.metrics]
