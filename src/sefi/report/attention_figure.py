"""Figures of where the words of a prompt look: of one prompt, and of the images of a run."""

import io
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

from sefi.benchmark.evaluators import SavedMaps, read_maps
from sefi.benchmark.records import Sample
from sefi.benchmark.run import RunFolder
from sefi.benchmark.samples import contains_file, read_image
from sefi.core.errors import OutputError
from sefi.core.files import write_file
from sefi.core.text import make_slug
from sefi.provenance.save import EncodedImage, encode_image, read_marking, read_named_identities
from sefi.report.plot_style import SETTINGS, wrap_points

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
def draw_attention_figure(rows: Sequence[MapRow], *, title: str = "") -> Figure:
    """Draw one heat map per word for each row of maps, the image itself first.

    Args:
        rows: Usually two: the identity's prompt and the same prompt with the class word.
        title: A line above everything.

    Returns:
        The figure. Every map of one word has its own colour scale, so that faint words show too;
        its highest value is printed next to the word.

    Raises:
        ValueError: There is no row, or a row has another number of words than of maps.
    """
    if not rows or any(len(row.words) != len(row.maps) for row in rows):
        raise ValueError("an attention figure needs at least one row with one map per word")
    cells = max(len(row.words) for row in rows) + 1
    lines = -(-cells // COLUMNS)
    columns = -(-cells // lines)
    width = COLUMN * columns
    titles = [wrap_title(each, width) for each in (title, *map(format_row_title, rows))]
    line_breaks = sum(each.count("\n") for each in titles)
    figure = Figure(figsize=(width, 1.85 * lines * len(rows) + 0.5 + 0.2 * line_breaks), layout="constrained")
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


def format_row_title(row: MapRow) -> str:
    """Return the label of a row and how much of each placeholder's attention lies in the face."""
    if not row.shares:
        return f"{row.label} (no face found)"
    shares = ", ".join(f"{share:.0%} of the attention of '{row.words[i]}'" for i, share in row.shares.items())
    return f"{row.label}: {shares} lies inside the face"


def draw_row(axes: Sequence[Axes], row: MapRow) -> None:
    """Draw the image and then one map for each word; what is left over stays empty."""
    for axis in axes:
        axis.set_axis_off()
        for scale in (axis.xaxis, axis.yaxis):  # else the layout measures ticks that are off
            scale.set_visible(False)
    axes[0].imshow(np.asarray(row.image))
    axes[0].set_title("image", fontsize=WORD)
    grey = np.asarray(row.image.convert("L"))
    for index, (axis, word) in enumerate(zip(axes[1:], row.words, strict=False)):
        draw_map(axis, grey, row.maps[index])
        weight = "bold" if index in row.placeholders else "normal"
        name = wrap_points(word, 0.9 * POINTS * COLUMN, WORD, bold=True, most=2)
        axis.set_title(f"{name}\nmax {row.maps[index].max():.2f}", fontsize=WORD, fontweight=weight)
        if index in row.faces:
            axis.add_patch(make_face_outline(row.faces[index], row.image.size))


def draw_map(axis: Axes, grey: NDArray[np.uint8], heat: NDArray[np.float32]) -> None:
    """Draw one map, scaled to the image, over the image in grey."""
    height, width = grey.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axis.imshow(heat, cmap="inferno", alpha=0.7, extent=extent, interpolation="bilinear")


def make_face_outline(face: Box, size: tuple[int, int]) -> Rectangle:
    """Return the face's box in pixels, as an empty rectangle."""
    (left, right), (top, bottom) = ((face[axis] * length, face[axis + 2] * length) for axis, length in enumerate(size))
    corner, width, height = (left, top), right - left, bottom - top
    return Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1)


def encode_figure(figure: Figure, *, mark: bool = True, identities: Sequence[str] = ()) -> EncodedImage:
    """Encode a figure as PNG with its marks, without time stamps, so that equal figures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 0})  # read again at once
    return encode_image(Image.open(buffer).convert("RGB"), mark=mark, identities=identities)


def draw_attention(samples: Sequence[Sample], run: Path, seed: int = 0) -> list[Path]:
    """Write `attention/VARIANT.png` for every variant with maps on record; all show one prompt of one subject.

    Figures of an earlier report are removed: it may have chosen another prompt.

    Args:
        run: the folder of a run that `RunFolder.check_places` accepts.

    Returns:
        The files, in the order of the record.

    Raises:
        OutputError: A folder is in the place of a figure, or a figure cannot be removed or written.
    """
    for variant in {sample.variant for sample in samples}:
        remove_figure(locate_figure(run, variant))
    complete = [sample for sample in samples if contains_file(run, sample.maps) and contains_file(run, sample.image)]
    if not complete:
        return []
    cases = sorted({(sample.subject, sample.prompt, sample.seed) for sample in complete})
    chosen = cases[int(np.random.default_rng(seed).integers(len(cases)))]
    shown = [sample for sample in complete if (sample.subject, sample.prompt, sample.seed) == chosen]
    return [draw_sample_attention(sample, run / sample.maps, run) for sample in shown if sample.maps is not None]


def locate_figure(run: Path, variant: str) -> Path:
    """Return the file of a variant's figure in a run's folder."""
    return RunFolder(run).attention / f"{make_slug(variant)}.png"


def remove_figure(path: Path) -> None:
    """Remove the figure of an earlier report, if there is one; `OutputError` where that cannot be done."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:  # a file is in the place of the folder: there is no figure
        return
    except OSError as error:
        raise OutputError(f"'{path}' cannot be removed: {error.strerror}.", "Remove it, and report again.") from error


def draw_sample_attention(sample: Sample, file: Path, run: Path) -> Path:
    """Draw the figure of one image: the maps in a file with the identity, and below with the class word."""
    maps = read_maps(file)
    image = Image.fromarray(read_image(run / sample.image))
    title = f"{sample.variant}: {sample.subject}, {sample.text}"
    path = locate_figure(run, sample.variant)
    figure = draw_attention_figure(make_map_rows(maps, image, sample), title=title)
    marked = read_marking(run / sample.image) is not False
    digests = sorted(read_named_identities(run / sample.image))
    write_file(path, encode_figure(figure, mark=marked, identities=digests).write)
    return path


def make_map_rows(maps: SavedMaps, image: Image.Image, sample: Sample) -> list[MapRow]:
    """Return the two rows of the figure; the shares inside the face are the record's."""
    plain = tuple(sample.class_word if i in maps.placeholders else w for i, w in enumerate(maps.words))
    shares, plain_shares = select_shares(maps, sample.focus), select_shares(maps, sample.focus_plain)
    return [
        MapRow("with the identity", maps.words, maps.maps, image, maps.placeholders, {}, shares),
        MapRow("with the class word", plain, maps.reference, image, maps.placeholders, {}, plain_shares),
    ]


def select_shares(maps: SavedMaps, share: float | None) -> dict[int, float]:
    """Return the share of each placeholder's attention inside the face; nothing without a face."""
    return {} if share is None else dict.fromkeys(maps.placeholders, share)
