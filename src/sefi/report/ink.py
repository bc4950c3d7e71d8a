"""Colours, markers and type that all plots of a run share, and saving as SVG that follows light and dark."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sefi.bench.tables import Compared

# Light and dark of each. The first four follow Okabe and Ito 2008: told apart by people who see red and green alike;
# every way has its own marker and its name beside it too.
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
INK, SOFT, LINE, ANCHOR = "#1d1d22", "#62626c", "#dcdad2", "#77777f"
THEME = {**PALETTE, INK: "#ececf0", SOFT: "#a3a3ae", LINE: "#3a3a43", ANCHOR: "#9a9aa5"}
MARKERS = "osD^vP<>"
ANCHOR_MARKERS = {"class word": "*", "photo": "X", "same": "p", "other": "h"}
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
    """How one way looks in every plot; an anchor is grey and hollow."""

    colour: str
    marker: str
    anchor: bool

    @property
    def fill(self) -> str:
        """Inside of its marker."""
        return "none" if self.anchor else self.colour


def way_styles(ways: Sequence[Compared]) -> dict[str, Style]:
    """A style for each way by its label: the next colour and marker in turn, anchors in grey."""
    styles: dict[str, Style] = {}
    turn = 0
    for way in ways:
        if way.control is not None:
            styles[way.label] = Style(ANCHOR, ANCHOR_MARKERS.get(way.control, "X"), anchor=True)
            continue
        again = turn // len(PALETTE)  # when the colours begin again, each meets another marker
        styles[way.label] = Style(
            list(PALETTE)[turn % len(PALETTE)], MARKERS[(turn + again) % len(MARKERS)], anchor=False
        )
        turn += 1
    return styles


def blank(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure, in inches, with axes side by side, without paper: the page's own shows through."""
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


def svg_text(figure: Figure, name: str) -> str:
    """A figure as SVG with text as text: equal figures are equal texts, without a time stamp.

    Args:
        figure: From `blank`.
        name: Salt of the marks inside the file, so that two figures of one page share none.
    """
    buffer = io.BytesIO()
    with rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": name})
    return themed(buffer.getvalue().decode("utf-8"))


def themed(svg: str) -> str:
    """An SVG whose colours follow the reader's light or dark, in the reader's own type."""
    for number, light in enumerate(THEME):
        svg = svg.replace(light, f"var(--c{number}, {light})")
    svg = svg.replace("'DejaVu Sans'", FONT)
    rules = [
        ":root {" + " ".join(f"--c{n}: {c};" for n, c in enumerate(tones)) + "}" for tones in (THEME, THEME.values())
    ]
    style = f"<style>{rules[0]} @media (prefers-color-scheme: dark) {{ {rules[1]} }}</style>"
    head, defs, rest = svg.partition("<defs>")
    return head + style + defs + rest


def svg_uri(svg: str) -> str:
    """An SVG as a `data:` address, so that a page needs no other file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")
