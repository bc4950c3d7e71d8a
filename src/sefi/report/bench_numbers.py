"""Tables of a run as the rows of text that its page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sefi.bench.figures import Figure, Part
from sefi.bench.statistics import NOTHING, Interval
from sefi.bench.table_files import told, told_range
from sefi.bench.tables import Table


@dataclass(frozen=True)
class Entry:
    """One number: its text, its interval, and what marks it."""

    text: str
    ends: str
    mark: Literal["", "best", "better", "worse", "none"]


@dataclass(frozen=True)
class Line:
    """One row: a way, a sentence on it, whether it is an anchor, and an entry for each figure."""

    label: str
    about: str
    anchor: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class View:
    """A table as a page shows it: title, columns, rows."""

    title: str
    figures: tuple[Figure, ...]
    lines: tuple[Line, ...]


def view(found: Table, title: str, part: Part, *, anchors: bool = True) -> View:
    """The figures of one part of a table.

    Args:
        found: The table.
        title: What stands above it.
        part: Which figures; those that no way has are left out.
        anchors: Whether anchors have rows.
    """
    figures = tuple(figure for figure in found.figures if figure.part == part)
    lines = [
        Line(way.label, way.about, way.control is not None, entries(found, way.label, figures))
        for way in found.ways
        if anchors or way.control is None
    ]
    return View(title, figures, tuple(lines))


def entries(found: Table, label: str, figures: Sequence[Figure]) -> tuple[Entry, ...]:
    """The numbers of one way, the leading ones marked."""
    return tuple(
        entry(found.values[label, figure.name], figure, "best" if label in found.best(figure) else "")
        for figure in figures
    )


def entry(value: Interval, figure: Figure, mark: Literal["", "best"]) -> Entry:
    """A mean with its interval; "none" marks what was not computed."""
    if not value.computed:
        return Entry("not computed", "", "none")
    return Entry(told(value.mean, figure.unit), told_range(value, figure.unit), mark)


def difference_view(
    found: Table, title: str, others: Mapping[str, Mapping[str, Interval]], parts: Sequence[Part]
) -> View:
    """The first way less every other, for the figures of some parts.

    Args:
        found: The table of all prompts: its figures and ways.
        title: What stands above it.
        others: From `differences_to_all`.
        parts: Which figures.
    """
    figures = tuple(f for f in found.figures if f.part in parts and any(f.name in row for row in others.values()))
    controls = {way.label: way.control is not None for way in found.ways}
    lines = [
        Line(
            f"less {label}",
            "",
            controls[label],
            tuple(difference(row.get(f.name, NOTHING), f, judged=found.finished) for f in figures),
        )
        for label, row in others.items()
    ]
    return View(title, figures, tuple(lines))


def difference(value: Interval, figure: Figure, *, judged: bool = True) -> Entry:
    """A difference with its sign; marked where its interval leaves out 0 and one direction is better.

    Args:
        value: The difference.
        figure: What differs.
        judged: Whether it may be marked; an unfinished run's may compare other prompts.
    """
    if not value.computed:
        return Entry("not computed", "", "none")
    text, ends = told(value.mean, figure.unit, sign=True), told_range(value, figure.unit, sign=True)
    if not judged or not value.excludes_zero or figure.direction == "none":
        return Entry(text, ends, "")
    return Entry(text, ends, "better" if (value.mean > 0) == (figure.direction == "up") else "worse")
