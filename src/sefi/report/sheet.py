"""Images in labelled rows and columns, drawn into one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sefi.report.wrapping import wrap_text

PAPER = (250, 249, 246)
INK = (32, 32, 36)
GAP = 6  # pixels between two images
SPACING = 2  # pixels between two lines
TITLE_LINES = 12
LINE = 1.25  # line height as a multiple of the font size


@dataclass(frozen=True)
class Row:
    """One row of a sheet: a label and its images, left to right; None leaves a hole."""

    label: str
    images: Sequence[Image.Image | None]


def contact_sheet(rows: Sequence[Row], columns: Sequence[str] = (), *, cell: int = 160) -> Image.Image:
    """Draw rows of images under column titles.

    Args:
        rows: The rows, top to bottom; each holds as many images as there are columns.
        columns: Titles above the columns, wrapped to their width; none leaves no space for them.
        cell: Side of the square that every image is scaled to fit, in pixels.

    Returns:
        An RGB picture, rows from the top.

    Raises:
        ValueError: There is no image, or a row is longer than the titles.
    """
    width = max((len(row.images) for row in rows), default=0)
    if width == 0 or (columns and width > len(columns)):
        raise ValueError(f"{width} images in the longest row do not fit {len(columns)} titles")
    type_size = max(11, cell // 12)
    font = ImageFont.load_default(type_size)
    titles = [wrap_text(title, cell, font.getlength, TITLE_LINES) for title in columns]
    lines = int(cell / (LINE * type_size + SPACING))
    labels = [wrap_text(row.label, cell // 2, font.getlength, max(1, lines)) for row in rows]
    top = text_height(titles, font) + GAP
    left = cell // 2 + 2 * GAP if any(labels) else GAP
    size = (left + width * (cell + GAP), top + len(rows) * (cell + GAP))
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.multiline_text((left + column * (cell + GAP), GAP), title, INK, font, spacing=SPACING)
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + index * (cell + GAP)
        pen.multiline_text((GAP, y), label, INK, font, spacing=SPACING)
        paste_row(page, row.images, (left, y), cell)
    return page


def paste_row(page: Image.Image, images: Sequence[Image.Image | None], corner: tuple[int, int], cell: int) -> None:
    """Paste one row of images, the first with its upper left corner at `corner`."""
    for column, image in enumerate(images):
        if image is not None:
            fitted = fit(image, cell)
            margin = ((cell - fitted.width) // 2, (cell - fitted.height) // 2)
            x = corner[0] + column * (cell + GAP) + margin[0]
            page.paste(fitted, (x, corner[1] + margin[1]))


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scale an image, keeping its shape, so that its long side measures `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def text_height(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Height in pixels of the tallest of some wrapped texts."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    ascent = font.getbbox("Ay")[3]
    return round(lines * ascent * LINE) + GAP if lines else 0
