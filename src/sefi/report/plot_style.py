"""The look of all plots, and labels that keep out of each other's way."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Annotation
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from sefi.benchmark.suite import ANOTHER_PHOTO, ANOTHER_SUBJECT
from sefi.benchmark.tables import VariantRow
from sefi.report.contact_sheet import wrap_text

# Light and dark of each. The first four follow Okabe and Ito 2008: distinct for people who see red and green alike;
# every variant has its own marker and its name next to it too.
PALETTE = {
    "#0072b2": "#5fb4ea",
    "#d55e00": "#f58a55",
    "#00875f": "#4fcfa5",
    "#a8447c": "#e59ac6",
    "#9a6a00": "#efc050",
    "#5b4fc4": "#a9a1f5",
    "#7d4f2a": "#d0a47c",
    "#4f6b00": "#b5cf5c",
}
TEXT, SOFT, LINE, REFERENCE = "#1d1d22", "#62626c", "#dcdad2", "#77777f"
THEME = {**PALETTE, TEXT: "#ececf0", SOFT: "#a3a3ae", LINE: "#3a3a43", REFERENCE: "#9a9aa5"}
MARKERS = "osD^vP<>"
REFERENCE_MARKERS = {"class word": "*", "photo": "X", ANOTHER_PHOTO: "p", ANOTHER_SUBJECT: "h"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.unicode_minus": False,
    "text.parse_math": False,  # a name with two dollar signs is a name
}


@dataclass(frozen=True)
class Style:
    """How one variant looks in every plot; a reference row is grey and hollow."""

    colour: str
    marker: str
    reference: bool

    @property
    def fill(self) -> str:
        """Inside of its marker."""
        return "none" if self.reference else self.colour


def choose_styles(variants: Sequence[VariantRow]) -> dict[str, Style]:
    """Return a style for each variant by its label: the next colour and marker in turn, reference rows in grey."""
    styles: dict[str, Style] = {}
    turn = 0
    for variant in variants:
        if variant.control is not None:
            styles[variant.label] = Style(REFERENCE, REFERENCE_MARKERS.get(variant.control, "X"), reference=True)
            continue
        again = turn // len(PALETTE)  # when the colours begin again, each meets another marker
        styles[variant.label] = Style(
            list(PALETTE)[turn % len(PALETTE)], MARKERS[(turn + again) % len(MARKERS)], reference=False
        )
        turn += 1
    return styles


def make_axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure, in inches, with axes side by side, without a background: the page's own shows through."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasAgg(figure)
        axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for each in axes:
        each.set_facecolor("none")
        each.tick_params(colors=SOFT, labelsize=9, length=0)
        each.grid(color=LINE, linewidth=0.8)
        each.set_axisbelow(True)
        for spine in each.spines.values():
            spine.set_visible(False)
    return figure, axes


def render_svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG with text as text: equal figures are equal texts, without a time stamp.

    Args:
        figure: From `make_axes`.
        name: Salt of the marks inside the file, so that two figures of one page share none.
    """
    buffer = io.BytesIO()
    with rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": name})
    return apply_theme(buffer.getvalue().decode("utf-8"))


def apply_theme(svg: str) -> str:
    """Return an SVG whose colours follow the reader's light or dark, in the reader's own type."""
    for number, light in enumerate(THEME):
        svg = svg.replace(light, f"var(--c{number}, {light})")
    svg = svg.replace("'DejaVu Sans'", FONT)
    rules = [
        ":root {" + " ".join(f"--c{n}: {c};" for n, c in enumerate(tones)) + "}" for tones in (THEME, THEME.values())
    ]
    style = f"<style>{rules[0]} @media (prefers-color-scheme: dark) {{ {rules[1]} }}</style>"
    head, defs, rest = svg.partition("<defs>")
    return head + style + defs + rest


def encode_svg_uri(svg: str) -> str:
    """Return an SVG as a `data:` address, so that a page needs no other file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


Point = tuple[float, float]
# Where a name may stand next to its point, in typographic points, best first: slantwise, clear of upright bars.
OFFSETS = tuple((x, side * y) for y in (4, 18, 46) for x in (8, -8) for side in (1, -1))
MARKER = 7  # half the side of what a marker covers
FAMILY = "DejaVu Sans"
HINTED = 1.05  # letters fitted to pixels are up to 5 % wider than their outlines
NAME_SIZE, NAME_WIDTH, NAME_LINES = 10, 150.0, 3  # of a name in a plot: typographic points, and lines at most


def label_points(
    axis: Axes, points: Mapping[str, Point], colours: Mapping[str, str], lines: Sequence[tuple[Point, Point]] = ()
) -> None:
    """Write each name next to its point, at the first place where it covers least.

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
        costs = [compute_cost(axis, write_label(axis, text, point, offset, colours[name]), taken) for offset in OFFSETS]
        label = write_label(axis, text, point, OFFSETS[int(np.argmin(costs))], colours[name])
        taken.append(label.get_window_extent())


def write_label(axis: Axes, text: str, point: Point, offset: Point, colour: str) -> Annotation:
    """Write a text at one place next to its point; it grows away from the point."""
    across, upright = "left" if offset[0] > 0 else "right", "bottom" if offset[1] > 0 else "top"
    made = axis.annotate(text, point, offset, textcoords="offset points", color=colour, ha=across, va=upright)
    made.set_fontweight("bold")
    return made


def compute_cost(axis: Axes, name: Annotation, taken: Sequence[Bbox]) -> int:
    """Return what a name would cover, and whether it would leave the axes; the name is removed again."""
    box, frame = name.get_window_extent(), axis.get_window_extent()
    name.remove()
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return box.count_overlaps(taken) + 1000 * outside  # among many names the edge still counts most


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return the values moved apart so that no two are nearer than `gap`, with their order and mean.

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
    """Return the name of a variant in lines that leave room for the plot next to them."""
    return wrap_points(name, NAME_WIDTH, NAME_SIZE, bold=True, most=NAME_LINES)


def wrap_points(content: str, width: float, size: float, *, bold: bool = False, most: int = 4) -> str:
    """Return a text of one size, both in typographic points, in lines of at most a width; see `wrap_text`."""
    return wrap_text(content, width, lambda line: measure_text(line, size, bold=bold), most)


def measure_text(line: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a line in the type of our plots, in typographic points like its size, at any resolution."""
    return HINTED * text_to_path.get_text_width_height_descent(line, get_font(size, bold=bold), ismath=False)[0]


@cache
def get_font(size: float, *, bold: bool) -> FontProperties:
    """Return the type of our plots in one size."""
    return FontProperties(family=FAMILY, size=size, weight="bold" if bold else "normal")
