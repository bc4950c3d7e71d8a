"""Attention maps over an image, drawn as one figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from sefi.report.ink import SETTINGS
from sefi.report.labels import wrap_points

COLUMNS = 10  # words side by side before the figure goes on below
DPI = 150
COLUMN = 1.45  # inches of a column
TITLE, WORD, POINTS = 11, 8, 72  # type sizes in typographic points, and how many are an inch
TITLE_LINES = 8

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapRow:
    """The maps of one prompt.

    Attributes:
        label: What the row shows, e.g. "<ada>" or "person".
        words: One label for each map, start and end tokens included.
        maps: `[word, height, width]`, non-negative, summing to 1 over words at each place.
        image: The generated image under the maps.
        placeholders: Indices of the words that carry an identity.
        faces: The face of each placeholder: left, top, right, bottom in fractions of the image.
        shares: Part of each placeholder's attention inside its face, 0 to 1.
    """

    label: str
    words: Sequence[str]
    maps: NDArray[np.float32]
    image: Image.Image
    placeholders: Sequence[int]
    faces: Mapping[int, Box] = field(default_factory=dict[int, Box])
    shares: Mapping[int, float] = field(default_factory=dict[int, float])


@rc_context(SETTINGS)
def attention_figure(rows: Sequence[MapRow], *, title: str = "") -> Figure:
    """One heat map per word for each row of maps, the image itself first.

    Args:
        rows: Usually two: the identity's prompt and the same prompt with the class word.
        title: A line above everything.

    Returns:
        The figure. Every map of one word has its own colour scale, so that faint words show too;
        its highest value is printed beside the word.

    Raises:
        ValueError: There is no row, or a row has another number of words than of maps.
    """
    if not rows or any(len(row.words) != len(row.maps) for row in rows):
        raise ValueError("an attention figure needs at least one row with one map per word")
    cells = max(len(row.words) for row in rows) + 1
    lines = -(-cells // COLUMNS)
    columns = -(-cells // lines)
    width = COLUMN * columns
    titles = [wrap_title(each, width) for each in (title, *map(row_title, rows))]
    more = sum(each.count("\n") for each in titles)
    figure = Figure(figsize=(width, 1.85 * lines * len(rows) + 0.5 + 0.2 * more), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(titles[0], fontsize=TITLE)
    panels = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for panel, row, row_titled in zip(panels, rows, titles[1:], strict=True):
        panel.suptitle(row_titled, fontsize=9)
        draw_row(panel.subplots(lines, columns, squeeze=False).flatten(), row)
    return figure


def wrap_title(title: str, width: float) -> str:
    """Return a title in lines that fit a figure, whose width is in inches."""
    return wrap_points(title, 0.95 * POINTS * width, TITLE, most=TITLE_LINES)


def row_title(row: MapRow) -> str:
    """The label of a row and how much of each placeholder's attention lies in the face."""
    if not row.shares:
        return f"{row.label} (no face found)"
    told = ", ".join(f"{share:.0%} of '{row.words[i]}'" for i, share in row.shares.items())
    return f"{row.label}: {told} lies inside the face"


def draw_row(axes: Sequence[Axes], row: MapRow) -> None:
    """Draw the image and then one map for each word; what is left over stays empty."""
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(np.asarray(row.image))
    axes[0].set_title("image", fontsize=WORD)
    grey = np.asarray(row.image.convert("L"))
    for index, (axis, word) in enumerate(zip(axes[1:], row.words, strict=False)):
        draw_map(axis, grey, row.maps[index])
        weight = "bold" if index in row.placeholders else "normal"
        name = wrap_points(word, 0.9 * POINTS * COLUMN, WORD, bold=True, most=2)
        axis.set_title(f"{name}\nmax {row.maps[index].max():.2f}", fontsize=WORD, fontweight=weight)
        if index in row.faces:
            axis.add_patch(face_outline(row.faces[index], row.image.size))


def draw_map(axis: Axes, grey: NDArray[np.uint8], heat: NDArray[np.float32]) -> None:
    """Lay one map, scaled to the image, over the image in grey."""
    height, width = grey.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axis.imshow(heat, cmap="inferno", alpha=0.7, extent=extent, interpolation="bilinear")


def face_outline(face: Box, size: tuple[int, int]) -> Rectangle:
    """The face's box in pixels, as an empty rectangle."""
    (left, right), (top, bottom) = ((face[axis] * length, face[axis + 2] * length) for axis, length in enumerate(size))
    corner, width, height = (left, top), right - left, bottom - top
    return Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without time stamps, so that equal figures are equal files."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": "sefi"})
