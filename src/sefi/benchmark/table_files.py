"""Write tables as JSON, CSV, Markdown, LaTeX and Every Eval Ever; what was not computed is left out, never 0."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sefi.benchmark.plan import describe_unequal_cases, measure_completeness
from sefi.benchmark.records import RunInfo, Sample
from sefi.benchmark.statistics import CONFIDENCE, DRAWS, Interval
from sefi.benchmark.table_metrics import Metric, Unit
from sefi.benchmark.tables import Table, VariantRow, compute_all_differences, make_table, make_tables_by_kind
from sefi.core.config import FILE_SETTINGS, shorten_file_settings
from sefi.core.text import dump_json, escape_formula, make_slug
from sefi.provenance.run_record import shorten_source

TABLES_SCHEMA = 2
ARROWS = {"up": "↑", "down": "↓", "none": ""}
NOT_COMPUTED = "-"
# The z of a format writes what rounds to zero without a minus.
FORMATS: dict[Unit, str] = {
    "cosine": "{:z.3f}",
    "share": "{:z.1%}",
    "seconds": "{:z.1f} s",
    "count": "{:z,.0f}",
    "MB": "{:z,.0f} MB",
}
CSV_COLUMNS = ("kind", "variant", "control", "figure", "label", "unit", "direction", "mean", "low", "high", "n")


def format_value(value: float, unit: Unit, *, sign: bool = False) -> str:
    """Return a number with its unit, short.

    >>> format_value(0.5, "cosine"), format_value(7680, "count"), format_value(0.25, "share", sign=True)
    ('0.500', '7,680', '+25.0%')
    """
    form = FORMATS[unit].replace("{:", "{:+") if sign else FORMATS[unit]
    return NOT_COMPUTED if math.isnan(value) else form.format(value)


def format_range(interval: Interval, unit: Unit, *, sign: bool = False) -> str:
    """Return the ends of an interval in brackets; nothing without one, or where both ends read as the mean does.

    >>> format_range(Interval(0.5, 0.25, 0.75, 3), "share"), format_range(Interval(2.0, 2.0, 2.0, 3), "count")
    ('[25.0%, 75.0%]', '')
    """
    mean, low, high = (format_value(value, unit, sign=sign) for value in (interval.mean, interval.low, interval.high))
    return "" if math.isnan(interval.low) or low == high == mean else f"[{low}, {high}]"


def format_ends(table: Table, label: str, metric: Metric) -> str:
    """Return an interval's ends, and how many subjects there are where another figure of the variant has more."""
    value = table.values[label, metric.name]
    some = f"(n = {value.n})" if table.has_fewer_subjects(label, metric) else ""
    return f"{format_range(value, metric.unit)} {some}".strip()


def format_heading(metric: Metric) -> str:
    """Return a metric's label with an arrow for the better direction."""
    return f"{metric.label} {ARROWS[metric.direction]}".strip()


def convert_table(table: Table) -> dict[str, Any]:
    """Return a table as plain values for JSON; None where nothing was computed and for ends that are not known."""
    return {
        "kind": table.kind,
        "variants": [vars(variant) for variant in table.variants],
        "figures": [
            {"name": f.name, "label": f.label, "unit": f.unit, "direction": f.direction, "about": f.about}
            for f in table.metrics
        ],
        "values": {
            variant.label: {f.name: convert_interval(table.values[variant.label, f.name]) for f in table.metrics}
            for variant in table.variants
        },
        "not_computed": dict(table.missing),
    }


def convert_interval(interval: Interval) -> dict[str, float | int | None] | None:
    """Return an interval as plain values; JSON knows no nan."""
    if not interval.computed:
        return None
    return {name: None if math.isnan(value) else value for name, value in vars(interval).items()}


def format_csv(*tables: Table) -> str:
    """Return tables as one CSV text: a line for every variant and metric; empty where nothing was computed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        writer.writerows(make_csv_row(table, variant, metric) for variant in table.variants for metric in table.metrics)
    return text.getvalue()


def make_csv_row(table: Table, variant: VariantRow, metric: Metric) -> list[str | float | int | None]:
    """Return one line of the CSV file, in the order of `CSV_COLUMNS`; texts that are no formulas, then numbers."""
    interval = convert_interval(table.values[variant.label, metric.name]) or {}
    names = (metric.name, metric.label, metric.unit, metric.direction)
    texts = [escape_formula(text or "") for text in (table.kind, variant.label, variant.control, *names)]
    return [*texts, *(interval.get(name) for name in CSV_COLUMNS[-4:])]


def format_markdown(table: Table) -> str:
    """Return a Markdown table: the best of each column bold, the 95 % interval in brackets."""
    head = ["variant", *(format_heading(metric) for metric in table.metrics)]
    body = [
        [variant.label, *(format_cell(table, variant, metric) for metric in table.metrics)]
        for variant in table.variants
    ]
    rows = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(escape_cell(cell) for cell in row) + " |\n" for row in rows)


def format_cell(table: Table, variant: VariantRow, metric: Metric) -> str:
    """Return mean and interval of one variant and metric."""
    interval = table.values[variant.label, metric.name]
    shown = format_value(interval.mean, metric.unit)
    best = f"**{shown}**" if variant.label in table.find_best(metric) else shown
    return f"{best} {format_ends(table, variant.label, metric)}".strip()


def format_text(table: Table) -> str:
    """Return a table for a terminal: a line for each metric of likeness, prompt and image, a column for each variant.

    Costs are left out: they are in the files.
    """
    metrics = [metric for metric in table.metrics if metric.part != "cost"]
    head = ["", *(variant.label for variant in table.variants)]
    rows = [[format_heading(m), *(format_plain(table, v, m) for v in table.variants)] for m in metrics]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)


def format_plain(table: Table, variant: VariantRow, metric: Metric) -> str:
    """Return mean and interval of one variant and metric, unmarked."""
    interval = table.values[variant.label, metric.name]
    return f"{format_value(interval.mean, metric.unit)} {format_ends(table, variant.label, metric)}".strip()


LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "\n": " "}
)


def format_latex(table: Table) -> str:
    """Return a LaTeX table of the main metrics, for the package booktabs: the best of a column bold, as on the page."""
    metrics = [metric for metric in table.metrics if metric.part == "main"]
    head = ["variant", *(format_heading(metric) for metric in metrics)]
    body = [
        [variant.label.translate(LATEX), *(format_latex_cell(table, variant, metric) for metric in metrics)]
        for variant in table.variants
    ]
    rows = [[cell.translate(LATEX) for cell in head], *body]
    # A row may begin as the arguments of the \\ and \midrule before it do, which {} ends.
    lines = ["{}" + " & ".join(row) + r" \\" for row in rows]
    columns = "l" + "r" * len(metrics)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*parts, r"\end{tabular}"]) + "\n"


def format_latex_cell(table: Table, variant: VariantRow, metric: Metric) -> str:
    """Return mean and interval of one variant and metric for LaTeX."""
    interval = table.values[variant.label, metric.name]
    shown = format_value(interval.mean, metric.unit).translate(LATEX)
    best = rf"\textbf{{{shown}}}" if variant.label in table.find_best(metric) else shown
    ends = format_ends(table, variant.label, metric).translate(LATEX)
    return rf"{best} {{\scriptsize {ends}}}" if ends else best


def escape_cell(text: str) -> str:
    """Return a text that stays within its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def format_tables_json(samples: Sequence[Sample], run: RunInfo) -> str:
    """Return all tables of a run as one JSON text: all prompts, each kind, and the first variant less each other."""
    first, others = compute_all_differences(samples, run)
    completeness = measure_completeness(run, samples)
    content = {
        "schema": TABLES_SCHEMA,
        "suite": run.suite.name,
        "images": {"made": completeness.made, "planned": completeness.planned, "finished": completeness.finished},
        "not_comparable": describe_unequal_cases(run),
        "model": {"name": shorten_source(run.model.name), "fingerprint": run.model.fingerprint},
        "all": convert_table(make_table(samples, run)),
        "kinds": {kind: convert_table(table) for kind, table in make_tables_by_kind(samples, run).items()},
        "differences": {
            "variant": first,
            "less": {
                other: {name: convert_interval(interval) for name, interval in row.items()}
                for other, row in others.items()
            },
        },
    }
    return dump_json(content, indent=1) + "\n"


def format_tables_csv(samples: Sequence[Sample], run: RunInfo) -> str:
    """Return all tables of a run as one CSV text; the kind of prompts is a column, empty for all of them."""
    return format_csv(make_table(samples, run), *make_tables_by_kind(samples, run).values())


EVERY_EVAL_EVER = "0.2.1"  # https://github.com/evaleval/every_eval_ever, eval.schema.json


def format_every_eval_ever(samples: Sequence[Sample], run: RunInfo, seconds: int) -> dict[str, str]:
    """Return a text in the schema of Every Eval Ever for each variant that has images, by the name of its file.

    Reference rows have none. Metrics without a better direction and costs are left out, as the schema has no place for
    them.

    Args:
        samples: As for `make_table`.
        run: As for `make_table`.
        seconds: When the run was made, since 1970; the schema wants it.
    """
    table = make_table(samples, run)
    metrics = [metric for metric in table.metrics if metric.bounds is not None and metric.direction != "none"]
    texts: dict[str, str] = {}
    for variant in table.variants:
        if variant.control is not None:
            continue
        values = {metric: table.values[variant.label, metric.name] for metric in metrics}
        results = [convert_result(metric, value, run) for metric, value in values.items() if value.computed]
        record = describe_evaluation(variant, run, seconds) | {"evaluation_results": results}
        texts[f"{make_slug(variant.label)}.json"] = dump_json(record, indent=1) + "\n"
    return texts


def describe_evaluation(variant: VariantRow, run: RunInfo, seconds: int) -> dict[str, object]:
    """Return what Every Eval Ever has to know of a variant beside its scores; details are texts there."""
    model, versions = f"sefi-bench/{make_slug(variant.label)}", run.versions
    evaluators = {name: f"{one.file} sha256:{one.sha256}" for name, one in run.evaluators.items() if one is not None}
    model_name, settings = shorten_source(run.model.name), run.settings.get(variant.label, {})
    details = {"base_model": model_name, "fingerprint": run.model.fingerprint, "about": variant.about}
    files = {} if run.learning_files is None else run.learning_files.settings
    file_settings = {*FILE_SETTINGS, *(setting for named in files.values() for setting in named)}
    details["settings"] = dump_json(shorten_file_settings(settings, file_settings))
    details |= {f"{setting} sha256": digest for setting, digest in files.get(variant.label, {}).items()}
    return {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": f"{run.suite.name}/{model}/{seconds}",
        "retrieved_timestamp": str(seconds),
        "evaluation_timestamp": str(seconds),
        "source_metadata": {
            "source_name": "sefi bench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "sefi",
            "version": versions.get("sefi", "unknown"),
            "additional_details": evaluators,
        },
        "model_info": {
            "name": variant.label,
            "id": model,
            "additional_details": details,
        },
    }


def convert_result(metric: Metric, interval: Interval, run: RunInfo) -> dict[str, object]:
    """Return one score in the schema of Every Eval Ever."""
    assert metric.bounds is not None
    score: dict[str, object] = {"score": interval.mean}
    if not math.isnan(interval.low):
        bounds = {"lower": interval.low, "upper": interval.high, "confidence_level": CONFIDENCE}
        score["uncertainty"] = {
            "confidence_interval": bounds | {"method": "expanded percentile bootstrap over subjects"},
            "num_samples": interval.n,
            "num_bootstrap_samples": DRAWS,
        }
    suite = run.suite
    details = {"prompts": str(len(suite.prompts)), "seeds": str(len(suite.seeds)), "subjects": str(interval.n)}
    return {
        "evaluation_name": metric.name,
        "source_data": {"dataset_name": suite.name, "source_type": "other", "additional_details": details},
        "metric_config": {
            "evaluation_description": metric.about,
            "lower_is_better": metric.direction == "down",
            "score_type": "continuous",
            "min_score": metric.bounds[0],
            "max_score": metric.bounds[1],
            "additional_details": {"label": metric.label, "unit": metric.unit},
        },
        "score_details": score,
    }


PRIVATE = {"embedding", "image", "maps"}  # of a sample: what shows the image, or where it lay


def format_samples(samples: Sequence[Sample]) -> str:
    """Return a line of JSON for each image with all its scores; neither the image nor CLIP's vector of it."""
    ordered = sorted(samples, key=lambda sample: sample.key)
    return "".join(dump_json(sample.model_dump(mode="json", exclude=PRIVATE)) + "\n" for sample in ordered)


def format_card_text(samples: Sequence[Sample], run: RunInfo, conventions: Sequence[str]) -> str:
    """Return the Markdown text of a data set's card: what was compared, the table of main metrics, how to read it.

    Args:
        conventions: sentences on how the figures are to be read, and what they do not show.
    """
    table, suite = make_table(samples, run), run.suite
    main = replace(table, metrics=tuple(metric for metric in table.metrics if metric.part == "main"))
    completeness = measure_completeness(run, samples)
    model = shorten_source(run.model.name) or "unknown"  # no folder of somebody's machine
    evaluators = [f"- {name}: `{one.file}`, SHA-256 `{one.sha256}`" for name, one in run.evaluators.items() if one]
    parts = [
        f"{suite.about} Subjects: {len(run.subjects)}, prompts: {len(suite.prompts)}, seeds: {len(suite.seeds)}, "
        f"images: {len(samples)}; model: {model} (`{run.model.fingerprint}`). {completeness.banner}".strip(),
        "## Results\n\nMean over subjects with its 95 % interval.\n\n" + format_markdown(main).strip(),
        "## How to read it\n\n" + "\n".join(f"- {sentence}" for sentence in conventions),
        "## Evaluators\n\n" + ("\n".join(evaluators) or "None."),
        "## Files\n\n- `samples.jsonl`: every image with its scores, by subject, variant, prompt and seed\n"
        "- `tables.csv`, `tables.json`, `tables.tex`: all tables\n"
        "- `every-eval-ever-*.json`: a file for each variant in the schema of Every Eval Ever\n\n"
        "There are neither images nor photos of the subjects here.",
    ]
    return "\n\n".join(parts) + "\n"
