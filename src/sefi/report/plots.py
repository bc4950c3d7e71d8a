"""The plots of a benchmark run: likeness and prompt score, ID(Prompt) over tau, and bars for each kind of prompt."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, PercentFormatter

from sefi.benchmark.statistics import NO_INTERVAL, Interval
from sefi.benchmark.table_files import format_value
from sefi.benchmark.table_metrics import Metric
from sefi.benchmark.tables import Curve, Table
from sefi.report.plot_style import (
    NAME_SIZE,
    SETTINGS,
    SOFT,
    TEXT,
    Point,
    Style,
    keep_inside,
    label_points,
    make_axes,
    measure_text,
    render_svg,
    spread,
    wrap_name,
    wrap_points,
)

# Least span that the variants are taken to have, in prompt score and ID: two variants may be next to each other.
SPAN = (0.05, 0.2)
WIDTH, HEIGHT = 5.6, 4.2  # inches of a plot with names of one line
COLUMN = 1.38  # inches of one kind's bars
POINTS = 72  # typographic, to an inch
LINE = 0.18  # inches of one line of a name
REACH = 1.5  # a reference row more spans than this away from the variants is named at the edge and not drawn


@rc_context(SETTINGS)
def plot_trade_off(table: Table, styles: Mapping[str, Style]) -> str:
    """Plot ID against prompt score: a point with 95 % bars for each variant, the Pareto frontier of those under test.

    Without it where the variants have different subjects and prompts.

    Args:
        table: A table that has the figures `prompt` and `id`.
        styles: From `choose_styles`.

    Returns:
        SVG. A variant with only one of the figures is left out; a distant reference row is named at the edge.

    Raises:
        ValueError: No variant has both figures.
    """
    both = {
        variant.label: (table.values[variant.label, "prompt"], table.values[variant.label, "id"])
        for variant in table.variants
    }
    points = {label: pair for label, pair in both.items() if all(each.computed for each in pair)}
    if not points:
        raise ValueError("no variant has both a prompt score and an ID")
    means = {label: (x.mean, y.mean) for label, (x, y) in points.items()}
    far = find_distant(means, [variant.label for variant in table.variants if variant.is_generated])
    near = {label: mean for label, mean in means.items() if label not in far}
    away = ", ".join(f"{label} ({x:.2f}, {y:.2f})" for label, (x, y) in far.items())
    title = wrap_points(f"not drawn, far away: {away}", 0.95 * WIDTH * POINTS, 9, most=12) if far else ""
    figure, (axis,) = make_axes(WIDTH, HEIGHT + LINE * title.count("\n"))
    if far:
        figure.suptitle(title, x=0.98, ha="right", fontsize=9, color=SOFT)
    for label in near:
        draw_point(axis, *points[label], styles[label])
    if table.comparable:
        draw_frontier(axis, find_pareto_front([mean for label, mean in means.items() if not styles[label].reference]))
    axis.set_xlabel("prompt score (CLIP cosine): follows the prompt better to the right", color=SOFT)
    axis.set_ylabel("ID (cosine to the photo): more alike upwards", color=SOFT)
    bars = [bar for label in near for bar in make_error_bars(*points[label])]
    label_points(axis, near, {label: styles[label].colour for label in near}, bars)
    return render_svg(figure, "trade-off")


def find_distant(means: Mapping[str, Point], near: Sequence[str]) -> dict[str, Point]:
    """Return the points so distant that they would squeeze the near ones into a corner."""
    core = np.array([means[label] for label in near if label in means] or list(means.values()))
    reach = REACH * np.maximum(np.ptp(core, axis=0), SPAN)
    low, high = core.min(0) - reach, core.max(0) + reach
    return {label: mean for label, mean in means.items() if (mean < low).any() or (mean > high).any()}


def draw_point(axis: Axes, x: Interval, y: Interval, style: Style) -> None:
    """Draw a variant's marker with its bars; what has no interval has no bar."""
    for (left, bottom), (right, top) in make_error_bars(x, y):
        axis.plot([left, right], [bottom, top], color=style.colour, linewidth=1.4)
    axis.plot([x.mean], [y.mean], style.marker, color=style.colour, markerfacecolor=style.fill, markersize=9)


def make_error_bars(x: Interval, y: Interval) -> list[tuple[Point, Point]]:
    """Return the level and the upright bar of a point, each from end to end, where it has an interval."""
    bars = [((x.low, y.mean), (x.high, y.mean)), ((x.mean, y.low), (x.mean, y.high))]
    return [bar for bar in bars if not np.isnan(bar).any()]


def find_pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both, from left to right.

    >>> find_pareto_front([(1, 1), (2, 3), (3, 2), (2, 2)])
    [(2, 3), (3, 2)]
    """
    front: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front[::-1]


def draw_frontier(axis: Axes, frontier: Sequence[Point]) -> None:
    """Draw the frontier as steps: whatever lies below and left of it is beaten in both."""
    if not frontier:
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    xs = [left, *(x for x, _ in frontier), frontier[-1][0]]
    ys = [frontier[0][1], *(y for _, y in frontier), bottom]
    axis.fill_between(xs, ys, bottom, step="pre", color=SOFT, alpha=0.07, linewidth=0, zorder=0)
    axis.plot(xs, ys, drawstyle="steps-pre", color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


@rc_context(SETTINGS)
def plot_tau_curves(curves: Mapping[str, Curve], styles: Mapping[str, Style], tau: float | None) -> str:
    """Plot ID(Prompt) over the threshold: a curve for each variant, bands of those under test, and the run's tau.

    Args:
        curves: From `compute_tau_curves`.
        styles: From `choose_styles`.
        tau: The run's own, marked by a line; None marks nothing.

    Returns:
        SVG.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("there is no curve of ID(Prompt)")
    names = {label: wrap_name(label) for label in curves}
    lines = max(name.count("\n") + 1 for name in names.values())
    figure, (axis,) = make_axes(WIDTH, max(HEIGHT, 1 + LINE * lines * len(names)))
    for label, curve in curves.items():
        draw_curve(axis, curve, styles[label])
    if tau is not None:
        axis.axvline(tau, color=TEXT, linewidth=1, linestyle=(0, (2, 2)))
        axis.annotate(
            f"tau {tau:.3f}",
            (tau, 1),
            (5, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=TEXT,
        )
    axis.set_xlabel("tau: lowest prompt score that counts", color=SOFT)
    axis.set_ylabel("ID(Prompt)", color=SOFT)
    name_curves(axis, curves, styles, LINE * lines)
    return render_svg(figure, "tau")


def draw_curve(axis: Axes, curve: Curve, style: Style) -> None:
    """Draw one curve; a reference row's is thin, dashed and without a band."""
    means = [point.mean for point in curve.points]
    if style.reference:
        axis.plot(curve.taus, means, color=style.colour, linewidth=1, linestyle=(0, (5, 2)))
        return
    lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
    axis.fill_between(curve.taus, lows, highs, color=style.colour, alpha=0.15, linewidth=0)
    axis.plot(curve.taus, means, color=style.colour, linewidth=2)


def name_curves(axis: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style], gap: float) -> None:
    """Write each curve's name at its left end, where the curves are furthest apart.

    Args:
        axis: With everything else in it: names take up to half of its width.
        curves: By label.
        styles: By label.
        gap: Inches from a name's middle to the next one's.
    """
    axis.get_figure(root=True).draw_without_rendering()  # pyright: ignore[reportOptionalMemberAccess]
    low, high = axis.get_ylim()
    columns, rows = (length / axis.get_figure(root=True).dpi for length in axis.get_window_extent().size)  # pyright: ignore[reportOptionalMemberAccess]
    taus = next(iter(curves.values())).taus
    first, width = float(taus[0]), float(np.ptp(taus))
    widest = max(measure_text(line, NAME_SIZE, bold=True) for label in curves for line in wrap_name(label).split("\n"))
    share = 0.04 + widest / POINTS / columns
    starts = [curve.points[0].mean for curve in curves.values()]
    gap = min(gap / rows, 1 / len(starts)) * (high - low)
    heights = keep_inside(spread(starts, gap), gap, low, high)
    for label, start, height in zip(curves, starts, heights, strict=True):
        axis.plot([first - 0.02 * width, first], [height, start], color=styles[label].colour, linewidth=0.8)
        name = axis.text(first - 0.03 * width, height, wrap_name(label), color=styles[label].colour, ha="right")
        name.set(fontweight="bold", va="center", in_layout=False)
    axis.set_ylim(low, high)
    axis.set_xticks([tick for tick in axis.get_xticks() if first <= tick <= taus[-1]])
    axis.set_xlim(first - width * share / (1 - share), taus[-1])


@rc_context(SETTINGS)
def plot_kind_bars(tables: Mapping[str, Table], metric: Metric, styles: Mapping[str, Style]) -> str:
    """Plot one metric for each kind of prompt, side by side: a bar for each variant with its interval and number.

    Args:
        tables: Kind to table, from `make_tables_by_kind`.
        metric: Which one.
        styles: From `choose_styles`; their order is that of the bars.

    Returns:
        SVG.

    Raises:
        ValueError: No kind has the metric.
    """
    kinds = {kind: table for kind, table in tables.items() if metric in table.metrics}
    labels = [label for label in styles if any(get_value(table, label, metric).computed for table in kinds.values())]
    if not labels:
        raise ValueError(f"no kind of prompt has {metric.label}")
    names = [wrap_name(label) for label in labels]
    titles = [wrap_points(kind, 0.85 * COLUMN * POINTS, 10) for kind in kinds]
    widest = max(measure_text(line, NAME_SIZE, bold=True) for name in names for line in name.split("\n"))
    lines, above = (1 + max(text.count("\n") for text in texts) for texts in (names, titles))
    size = (0.15 + widest / POINTS + COLUMN * len(kinds), 0.45 + LINE * above + (0.1 + LINE * lines) * len(labels))
    canvas, axes = make_axes(*size, len(kinds))
    rows = [[get_value(table, label, metric) for label in labels] for table in kinds.values()]
    limits = compute_limits([each for row in rows for each in row], metric)
    for axis, title, row in zip(axes, titles, rows, strict=True):
        draw_bars(axis, row, [styles[label] for label in labels], metric)
        axis.set(xlim=limits, ylim=(len(labels) - 0.5, -0.5))
        axis.set_title(title, fontsize=10, color=TEXT, loc="left")
        axis.set_yticks(range(len(labels)), names if axis is axes[0] else [""] * len(labels))
    for name, label in zip(axes[0].get_yticklabels(), labels, strict=True):
        name.set(color=styles[label].colour, fontweight="bold", fontsize=10)
    return render_svg(canvas, f"bars of {metric.name}")


def get_value(table: Table, label: str, metric: Metric) -> Interval:
    """Return one variant's value in a table of one kind, which may have no image of that variant."""
    return table.values.get((label, metric.name), NO_INTERVAL)


def draw_bars(axis: Axes, rows: Sequence[Interval], styles: Sequence[Style], metric: Metric) -> None:
    """Draw the bars of one kind, top to bottom, each with its number behind it."""
    for position, (row, style) in enumerate(zip(rows, styles, strict=True)):
        if not row.computed:
            continue
        axis.barh(position, row.mean, 0.62, color=style.fill, edgecolor=style.colour, linewidth=1.2, alpha=0.85)
        axis.plot([row.low, row.high], [position, position], color=TEXT, linewidth=1.4)
        end = max(0.0, row.mean, row.mean if math.isnan(row.high) else row.high)
        axis.annotate(
            format_value(row.mean, metric.unit),
            (end, position),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=TEXT,
        )
    axis.locator_params(axis="x", nbins=3)
    if metric.unit == "share":
        axis.xaxis.set_major_locator(FixedLocator([0, 1]))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(visible=False, axis="y")


def compute_limits(values: Sequence[Interval], metric: Metric) -> Point:
    """Return one scale for all kinds, from 0, with room for the numbers behind the bars."""
    ends = [end for each in values for end in (each.mean, each.low, each.high) if not math.isnan(end)]
    highest = 1.0 if metric.unit == "share" else max(0.0, *ends)
    return min(0.0, *ends), 1.45 * highest or 1.0
