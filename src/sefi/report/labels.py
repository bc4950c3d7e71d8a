"""Names in plots, moved where they would cover each other."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

Point = tuple[float, float]
# Where a name may stand beside its point, in typographic points, best first: slantwise, clear of upright bars.
PLACES = ((8, 6), (8, -14), (-8, 6), (-8, -14), (8, 20), (8, -28), (-8, 20), (-8, -28))
NAME_WIDTH = 0.45  # of the axes that a name may take: beside any point there is room on one side
SMALLEST = 4.0  # typographic points that a text may shrink to
MARKER = 7  # half the side of what a marker covers


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
    widest = NAME_WIDTH * axis.get_window_extent().width
    for name, point in points.items():
        costs = [cost(axis, written(axis, name, point, place, colours[name], widest), taken) for place in PLACES]
        kept = written(axis, name, point, PLACES[int(np.argmin(costs))], colours[name], widest)
        taken.append(kept.get_window_extent())


def written(axis: Axes, name: str, point: Point, place: Point, colour: str, widest: float) -> Annotation:
    """A name, no wider than so many pixels, at one place beside its point."""
    side = "left" if place[0] > 0 else "right"
    made = axis.annotate(name, point, place, textcoords="offset points", color=colour, ha=side, fontweight="bold")
    fit_text(made, widest)
    return made


def cost(axis: Axes, name: Annotation, taken: Sequence[Bbox]) -> int:
    """What a name would cover, and whether it would leave the axes; takes the name away again."""
    box, frame = name.get_window_extent(), axis.get_window_extent()
    name.remove()
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return box.count_overlaps(taken) + 10 * outside


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


def fit_text(text: Text, width: float) -> None:
    """Break a text between words into lines of at most `width` pixels; shrink it where a word alone is longer.

    Args:
        text: Of a figure with a canvas; its own line breaks stay. Of a word that is too long even at the smallest size
            the end is cut off and marked.
        width: In pixels of the figure.
    """
    whole = text.get_text()
    while True:
        text.set_text("\n".join(line for own in whole.split("\n") for line in broken(text, own, width)))
        if text.get_window_extent().width <= width:
            return
        size = float(text.get_fontsize())
        if size <= SMALLEST:
            whole = "\n".join(shortened(text, own, width) for own in text.get_text().split("\n"))
            text.set_text(whole)
            return
        text.set_fontsize(max(SMALLEST, size - 0.5))


def broken(text: Text, line: str, width: float) -> list[str]:
    """A line as lines that fit where words allow it, measured in the style of a text."""
    lines = [""]
    for word in line.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and measured(text, longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def shortened(text: Text, line: str, width: float) -> str:
    """As much of a line as fits, with a mark where something is cut off."""
    if measured(text, line) <= width:
        return line
    while line and measured(text, line + "\N{HORIZONTAL ELLIPSIS}") > width:
        line = line[:-1]
    return line + "\N{HORIZONTAL ELLIPSIS}"


def measured(text: Text, line: str) -> float:
    """Width in pixels of a line in the style of a text."""
    text.set_text(line)
    return text.get_window_extent().width
