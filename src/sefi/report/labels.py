"""Names in plots: broken into lines that fit, and moved where they would cover each other."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.text import Annotation
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from sefi.report.wrapping import wrap_text

Point = tuple[float, float]
# Where a name may stand beside its point, in typographic points, best first: slantwise, clear of upright bars.
PLACES = tuple((x, side * y) for y in (4, 18, 46) for x in (8, -8) for side in (1, -1))
MARKER = 7  # half the side of what a marker covers
FAMILY = "DejaVu Sans"
HINTED = 1.05  # letters fitted to pixels are up to 5 % wider than their outlines
NAME_SIZE, NAME_WIDTH, NAME_LINES = 10, 150.0, 3  # of a name in a plot: typographic points, and lines at most


def label_points(
    axis: Axes, points: Mapping[str, Point], colours: Mapping[str, str], lines: Sequence[tuple[Point, Point]] = ()
) -> None:
    """Write each name beside its point, at the first place where it covers least.

    Args:
        axis: With its final limits.
        points: Name to place, in data units.
        colours: Name to colour.
        lines: What else should not be covered: both ends of level or upright lines, in data units.
    """
    axis.get_figure(root=True).draw_without_rendering()  # pyright: ignore[reportOptionalMemberAccess]
    ends = [*lines, *((point, point) for point in points.values())]
    taken = [Bbox(axis.transData.transform(end)) for end in ends]
    taken = [box.padded(1 if box.width or box.height else MARKER) for box in taken]
    for name, point in points.items():
        text = wrap_name(name)
        costs = [cost(axis, written(axis, text, point, place, colours[name]), taken) for place in PLACES]
        kept = written(axis, text, point, PLACES[int(np.argmin(costs))], colours[name])
        taken.append(kept.get_window_extent())


def written(axis: Axes, text: str, point: Point, place: Point, colour: str) -> Annotation:
    """Write a text at one place beside its point; it grows away from the point."""
    across, upright = "left" if place[0] > 0 else "right", "bottom" if place[1] > 0 else "top"
    made = axis.annotate(text, point, place, textcoords="offset points", color=colour, ha=across, va=upright)
    made.set_fontweight("bold")
    return made


def cost(axis: Axes, name: Annotation, taken: Sequence[Bbox]) -> int:
    """What a name would cover, and whether it would leave the axes; takes the name away again."""
    box, frame = name.get_window_extent(), axis.get_window_extent()
    name.remove()
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return box.count_overlaps(taken) + 1000 * outside  # among many names the edge still counts most


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Values moved apart so that no two are nearer than `gap`, order and mean kept.

    >>> spread([3.0, 0.0, 0.0], 0.75)
    [2.75, -0.25, 0.5]

    Args:
        values: Heights in any order.
        gap: Least distance.
    """
    order = np.argsort(values, kind="stable")
    moved = np.array(values, np.float64)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return [float(v) for v in moved - (moved.mean() - np.mean(values))]


def keep_inside(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return values of which none is nearer than `gap` to another, nor than half of it to either end.

    >>> keep_inside([0.0, 1.0, 1.0], 0.25, 0.0, 1.0)
    [0.125, 0.625, 0.875]

    Args:
        values: Heights in any order; those that are far enough from each other and the ends stay.
        gap: Least distance; `gap * len(values)` is at most `high - low`.
        low: The lower end.
        high: The upper end.
    """
    moved = list(values)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for index in reversed(order):
        moved[index] = min(moved[index], high - gap / 2)
        high = moved[index] - gap / 2
    for index in order:
        moved[index] = max(moved[index], low + gap / 2)
        low = moved[index] + gap / 2
    return moved


def wrap_name(name: str) -> str:
    """Return the name of a way in lines that leave room for the plot beside them."""
    return wrap_points(name, NAME_WIDTH, NAME_SIZE, bold=True, most=NAME_LINES)


def wrap_points(content: str, width: float, size: float, *, bold: bool = False, most: int = 4) -> str:
    """Return a text of one size, both in typographic points, in lines of at most a width; see `wrap_text`."""
    return wrap_text(content, width, lambda line: text_width(line, size, bold=bold), most)


def text_width(line: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a line in the type of our plots, in typographic points like its size, at any resolution."""
    return HINTED * text_to_path.get_text_width_height_descent(line, font_of(size, bold=bold), ismath=False)[0]


@cache
def font_of(size: float, *, bold: bool) -> FontProperties:
    """Return the type of our plots in one size."""
    return FontProperties(family=FAMILY, size=size, weight="bold" if bold else "normal")
