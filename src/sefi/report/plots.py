"""The plots of a benchmark run: likeness against obedience, ID(Prompt) over tau, and bars for each kind of prompt."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, PercentFormatter
from numpy.typing import NDArray

from sefi.bench.curves import Curve
from sefi.bench.figures import Figure
from sefi.bench.statistics import NOTHING, Interval
from sefi.bench.table_files import told
from sefi.bench.tables import Table
from sefi.report.ink import INK, SOFT, Style, blank, svg_text
from sefi.report.labels import Point, label_points, spread

# Least span that the ways are taken to have, in prompt score and ID: two ways may be next to each other.
SPAN = (0.05, 0.2)
REACH = 1.5  # an anchor more spans than this away from the ways is named at the edge and not drawn


def trade_off(found: Table, styles: Mapping[str, Style]) -> str:
    """ID against prompt score: a point with 95 % bars for each way, and the Pareto frontier of those under test.

    Args:
        found: A table that has the figures `prompt` and `id`.
        styles: From `way_styles`.

    Returns:
        SVG. A way with only one of the figures is left out; an anchor far from all ways is named at the edge.

    Raises:
        ValueError: No way has both figures.
    """
    both = {way.label: (found.values[way.label, "prompt"], found.values[way.label, "id"]) for way in found.ways}
    points = {label: pair for label, pair in both.items() if all(each.computed for each in pair)}
    if not points:
        raise ValueError("no way has both a prompt score and an ID")
    means = {label: (x.mean, y.mean) for label, (x, y) in points.items()}
    far = beyond_reach(means, [way.label for way in found.ways if way.control in (None, "class word")])
    near = {label: mean for label, mean in means.items() if label not in far}
    figure, (axis,) = blank(5.6, 4.2)
    for label in near:
        draw_point(axis, *points[label], styles[label])
    draw_frontier(axis, pareto([mean for label, mean in means.items() if not styles[label].anchor]))
    axis.set_xlabel("prompt score (CLIP cosine): obeys better to the right", color=SOFT)
    axis.set_ylabel("ID (cosine to the photo): more alike upwards", color=SOFT)
    if far:
        away = ", ".join(f"{label} ({x:.2f}, {y:.2f})" for label, (x, y) in far.items())
        axis.set_title(f"not drawn, far away: {away}", fontsize=9, color=SOFT, loc="right")
    bars = [bar for label in near for bar in bars_of(*points[label])]
    label_points(axis, near, {label: styles[label].colour for label in near}, bars)
    return svg_text(figure, "trade-off")


def beyond_reach(means: Mapping[str, Point], drawn: Sequence[str]) -> dict[str, Point]:
    """The points that would squeeze those drawn in any case into a corner."""
    core = np.array([means[label] for label in drawn if label in means] or list(means.values()))
    reach = REACH * np.maximum(np.ptp(core, axis=0), SPAN)
    low, high = core.min(0) - reach, core.max(0) + reach
    return {label: mean for label, mean in means.items() if (mean < low).any() or (mean > high).any()}


def draw_point(axis: Axes, x: Interval, y: Interval, style: Style) -> None:
    """A way's marker with its bars; what has no interval has no bar."""
    for (left, bottom), (right, top) in bars_of(x, y):
        axis.plot([left, right], [bottom, top], color=style.colour, linewidth=1.4)
    axis.plot([x.mean], [y.mean], style.marker, color=style.colour, markerfacecolor=style.fill, markersize=9)


def bars_of(x: Interval, y: Interval) -> list[tuple[Point, Point]]:
    """The level and the upright bar of a point, each from end to end, where it has an interval."""
    bars = [((x.low, y.mean), (x.high, y.mean)), ((x.mean, y.low), (x.mean, y.high))]
    return [bar for bar in bars if not np.isnan(bar).any()]


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, from left to right.

    >>> pareto([(1, 1), (2, 3), (3, 2), (2, 2)])
    [(2, 3), (3, 2)]
    """
    kept: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def draw_frontier(axis: Axes, frontier: Sequence[Point]) -> None:
    """The frontier as steps: whatever lies below and left of it is beaten in both."""
    if not frontier:
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    xs = [left, *(x for x, _ in frontier), frontier[-1][0]]
    ys = [frontier[0][1], *(y for _, y in frontier), bottom]
    axis.fill_between(xs, ys, bottom, step="pre", color=SOFT, alpha=0.07, linewidth=0, zorder=0)
    axis.plot(xs, ys, drawstyle="steps-pre", color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def tau_plot(curves: Mapping[str, Curve], styles: Mapping[str, Style], tau: float | None) -> str:
    """ID(Prompt) over the threshold, a curve for each way, its 95 % band if it is under test, and the run's tau.

    Args:
        curves: From `tau_curves`.
        styles: From `way_styles`.
        tau: The run's own, marked by a line; None marks nothing.

    Returns:
        SVG.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("there is no curve of ID(Prompt)")
    figure, (axis,) = blank(5.6, 4.2)
    for label, curve in curves.items():
        draw_curve(axis, curve, styles[label])
    taus = next(iter(curves.values())).taus
    name_curves(axis, {label: curve.points[0].mean for label, curve in curves.items()}, styles, taus)
    if tau is not None:
        axis.axvline(tau, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axis.annotate(
            f"tau {tau:.3f}",
            (tau, 1),
            (5, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=INK,
        )
    axis.set_xlabel("tau: lowest prompt score that counts", color=SOFT)
    axis.set_ylabel("ID(Prompt)", color=SOFT)
    return svg_text(figure, "tau")


def draw_curve(axis: Axes, curve: Curve, style: Style) -> None:
    """One curve; an anchor's is thin, dashed and without a band."""
    means = [point.mean for point in curve.points]
    if style.anchor:
        axis.plot(curve.taus, means, color=style.colour, linewidth=1, linestyle=(0, (5, 2)))
        return
    lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
    axis.fill_between(curve.taus, lows, highs, color=style.colour, alpha=0.15, linewidth=0)
    axis.plot(curve.taus, means, color=style.colour, linewidth=2)


def name_curves(
    axis: Axes, starts: Mapping[str, float], styles: Mapping[str, Style], taus: NDArray[np.float64]
) -> None:
    """Each curve's name at its left end, where the curves are furthest apart."""
    first, width = float(taus[0]), float(np.ptp(taus))
    low, high = axis.get_ylim()
    heights = spread(list(starts.values()), 0.05 * (high - low))
    for (label, start), height in zip(starts.items(), heights, strict=True):
        axis.plot([first - 0.02 * width, first], [height, start], color=styles[label].colour, linewidth=0.8)
        written = axis.text(first - 0.03 * width, height, label, color=styles[label].colour, ha="right", va="center")
        written.set(fontweight="bold", in_layout=False)
    axis.set_xticks([tick for tick in axis.get_xticks() if first <= tick <= taus[-1]])
    share = 0.04 + share_of(axis, axis.texts)
    axis.set_xlim(first - width * share / (1 - share), taus[-1])


def share_of(axis: Axes, names: Sequence[Text]) -> float:
    """Width of the widest name as a share of the axes, at most a half."""
    axis.get_figure(root=True).draw_without_rendering()  # pyright: ignore[reportOptionalMemberAccess]
    widest = max(name.get_window_extent().width for name in names)
    return min(0.5, widest / axis.get_window_extent().width)


def kind_bars(tables: Mapping[str, Table], figure: Figure, styles: Mapping[str, Style]) -> str:
    """One figure for each kind of prompt, side by side: a bar for each way with its 95 % interval and its number.

    Args:
        tables: Kind to table, from `by_kind`.
        figure: Which figure.
        styles: From `way_styles`; their order is that of the bars.

    Returns:
        SVG.

    Raises:
        ValueError: No kind has the figure.
    """
    kinds = {kind: found for kind, found in tables.items() if figure in found.figures}
    labels = [label for label in styles if any(value(found, label, figure).computed for found in kinds.values())]
    if not labels:
        raise ValueError(f"no kind of prompt has {figure.label}")
    canvas, axes = blank(1.0 + 1.38 * len(kinds), 0.65 + 0.28 * len(labels), len(kinds))
    rows = [[value(found, label, figure) for label in labels] for found in kinds.values()]
    limits = common_limits([each for row in rows for each in row], figure)
    for axis, kind, row in zip(axes, kinds, rows, strict=True):
        draw_bars(axis, row, [styles[label] for label in labels], figure)
        axis.set(xlim=limits, ylim=(len(labels) - 0.5, -0.5))
        axis.set_title(kind, fontsize=10, color=INK, loc="left")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
    for name, label in zip(axes[0].get_yticklabels(), labels, strict=True):
        name.set(color=styles[label].colour, fontweight="bold", fontsize=10)
    return svg_text(canvas, f"bars of {figure.name}")


def value(found: Table, label: str, figure: Figure) -> Interval:
    """One way's value in a table of one kind, which may have no picture of that way."""
    return found.values.get((label, figure.name), NOTHING)


def draw_bars(axis: Axes, rows: Sequence[Interval], styles: Sequence[Style], figure: Figure) -> None:
    """The bars of one kind, top to bottom, each with its number behind it."""
    for place, (row, style) in enumerate(zip(rows, styles, strict=True)):
        if not row.computed:
            continue
        axis.barh(place, row.mean, 0.62, color=style.fill, edgecolor=style.colour, linewidth=1.2, alpha=0.85)
        axis.plot([row.low, row.high], [place, place], color=INK, linewidth=1.4)
        end = max(0.0, row.mean, row.mean if math.isnan(row.high) else row.high)
        axis.annotate(
            told(row.mean, figure.unit),
            (end, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axis.locator_params(axis="x", nbins=3)
    if figure.unit == "share":
        axis.xaxis.set_major_locator(FixedLocator([0, 1]))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(visible=False, axis="y")


def common_limits(values: Sequence[Interval], figure: Figure) -> Point:
    """One scale for all kinds, from 0, with room for the numbers behind the bars."""
    ends = [end for each in values for end in (each.mean, each.low, each.high) if not math.isnan(end)]
    highest = 1.0 if figure.unit == "share" else max(0.0, *ends)
    return min(0.0, *ends), 1.45 * highest or 1.0
