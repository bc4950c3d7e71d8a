"""Tables as JSON, CSV and Markdown; what was not computed is null, empty or a dash, never 0."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from sefi.bench.figures import Figure, Unit
from sefi.bench.plan import completeness
from sefi.bench.records import RunInfo, Sample
from sefi.bench.statistics import Interval
from sefi.bench.tables import Compared, Table, by_kind, differences_to_all, table
from sefi.core.json_text import dump_json

SCHEMA = 1
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
HEAD = ("kind", "way", "control", "figure", "label", "unit", "direction", "mean", "low", "high", "n")


def told(value: float, unit: Unit, *, sign: bool = False) -> str:
    """A number with its unit, short.

    >>> told(0.5, "cosine"), told(0.5, "share"), told(7680, "count"), told(0.25, "cosine", sign=True)
    ('0.500', '50.0%', '7,680', '+0.250')
    """
    form = FORMATS[unit].replace("{:", "{:+") if sign else FORMATS[unit]
    return NOT_COMPUTED if math.isnan(value) else form.format(value)


def told_range(interval: Interval, unit: Unit, *, sign: bool = False) -> str:
    """The ends of an interval in brackets; nothing where there is none or both ends read as the mean does.

    >>> told_range(Interval(0.5, 0.25, 0.75, 3), "share"), told_range(Interval(2.0, 2.0, 2.0, 3), "count")
    ('[25.0%, 75.0%]', '')
    """
    mean, low, high = (told(value, unit, sign=sign) for value in (interval.mean, interval.low, interval.high))
    return "" if math.isnan(interval.low) or low == high == mean else f"[{low}, {high}]"


def heading(figure: Figure) -> str:
    """A figure's label with an arrow for the better direction."""
    return f"{figure.label} {ARROWS[figure.direction]}".strip()


def as_json(found: Table) -> dict[str, Any]:
    """A table as plain values, ready for JSON; None where nothing was computed and for ends that are not known."""
    return {
        "kind": found.kind,
        "ways": [vars(way) for way in found.ways],
        "figures": [
            {"name": f.name, "label": f.label, "unit": f.unit, "direction": f.direction, "about": f.about}
            for f in found.figures
        ],
        "values": {
            way.label: {f.name: plain(found.values[way.label, f.name]) for f in found.figures} for way in found.ways
        },
        "not_computed": dict(found.missing),
    }


def plain(interval: Interval) -> dict[str, float | int | None] | None:
    """An interval as plain values; JSON knows no nan."""
    if not interval.computed:
        return None
    return {name: None if math.isnan(value) else value for name, value in vars(interval).items()}


def as_csv(*tables: Table) -> str:
    """Tables in one: a line for every way and figure; empty where nothing was computed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for found in tables:
        writer.writerows(line(found, way, figure) for way in found.ways for figure in found.figures)
    return text.getvalue()


def line(found: Table, way: Compared, figure: Figure) -> list[str | float | int | None]:
    """One line of the CSV file, in the order of `HEAD`."""
    interval = plain(found.values[way.label, figure.name]) or {}
    told_of = (figure.name, figure.label, figure.unit, figure.direction)
    return [found.kind, way.label, way.control, *told_of, *(interval.get(name) for name in HEAD[-4:])]


def as_markdown(found: Table) -> str:
    """A Markdown table: the best of each column bold, the 95 % interval in brackets."""
    head = ["way", *(heading(figure) for figure in found.figures)]
    body = [[way.label, *(markdown_cell(found, way, figure) for figure in found.figures)] for way in found.ways]
    rows = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(escaped(cell) for cell in row) + " |\n" for row in rows)


def markdown_cell(found: Table, way: Compared, figure: Figure) -> str:
    """Mean and interval of one way and figure."""
    interval = found.values[way.label, figure.name]
    shown = told(interval.mean, figure.unit)
    best = f"**{shown}**" if way.label in found.best(figure) else shown
    return f"{best} {told_range(interval, figure.unit)}".strip()


def escaped(text: str) -> str:
    """A text that stays within its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def tables_json(samples: Sequence[Sample], run: RunInfo) -> str:
    """All tables of a run as one JSON text: all prompts, each kind, and the first way less each other."""
    first, others = differences_to_all(samples, run)
    there = completeness(run, samples)
    content = {
        "schema": SCHEMA,
        "suite": run.suite.name,
        "images": {"made": there.made, "planned": there.planned, "finished": there.finished},
        "model": run.model.model_dump(),
        "all": as_json(table(samples, run)),
        "kinds": {kind: as_json(found) for kind, found in by_kind(samples, run).items()},
        "differences": {
            "way": first,
            "less": {other: {name: plain(found) for name, found in row.items()} for other, row in others.items()},
        },
    }
    return dump_json(content, indent=1) + "\n"


def tables_csv(samples: Sequence[Sample], run: RunInfo) -> str:
    """All tables of a run as one CSV text; the kind of prompts is a column, empty for all of them."""
    return as_csv(table(samples, run), *by_kind(samples, run).values())
