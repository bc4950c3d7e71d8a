"""Draw images in labelled rows and columns as one image, and wrap text into lines that fit."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sefi.photo.augment import SubjectCrop, convert_to_bytes
from sefi.photo.detect import Square, resize_pixels
from sefi.photo.read import Photo

DOTS = "..."


def wrap_text(content: str, width: float, measure: Callable[[str], float], most: int) -> str:
    """Return a text in lines of at most a width: broken between words, and inside a word only if it alone is wider.

    Args:
        content: Any text; its own line breaks count as spaces.
        width: Greatest width of a line, in the unit of `measure`.
        measure: The width of a line.
        most: Greatest number of lines; of a longer text the end is left out, marked by three dots.
    """
    lines = [""]
    for word in content.split():
        if len(lines) > most + 1:  # the first may be empty
            break
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer) <= width:
            lines[-1] = longer
        else:
            lines += split_word(word, width, measure)
    lines = [line for line in lines if line]
    if len(lines) <= most:
        return "\n".join(lines)
    last = next(split_word(lines[most - 1], width - measure(DOTS), measure))
    return "\n".join([*lines[: most - 1], last + DOTS])


def split_word(word: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    """Yield the pieces of a word, each as long as the width allows and at least one letter."""
    while word:
        letters = bisect_right(range(1, len(word) + 1), width, key=lambda count: measure(word[:count]))
        yield word[: max(1, letters)]
        word = word[max(1, letters) :]


PAPER = (250, 249, 246)
TEXT_COLOUR = (32, 32, 36)
CELL = 160  # side of the square that every image is scaled to fit, in pixels
GAP = 6  # pixels between two images
SPACING = 2  # pixels between two lines
TITLE_LINES = 12
LINE = 1.25  # line height as a multiple of the font size
CROP_CELL = 384  # pixels
OUTLINE = (214, 40, 57)


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet: a label and its images, left to right; None leaves a hole."""

    label: str
    images: Sequence[Image.Image | None]


def draw_contact_sheet(rows: Sequence[SheetRow], columns: Sequence[str] = (), *, cell: int = CELL) -> Image.Image:
    """Draw rows of images under column titles.

    Args:
        rows: The rows, top to bottom; each holds as many images as there are columns.
        columns: Titles above the columns, wrapped to their width; none leaves no space for them.
        cell: Side of the square that every image is scaled to fit, in pixels.

    Returns:
        An RGB image, rows from the top.

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
    top = measure_height(titles, font) + GAP
    left = cell // 2 + 2 * GAP if any(labels) else GAP
    size = (left + width * (cell + GAP), top + len(rows) * (cell + GAP))
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.multiline_text((left + column * (cell + GAP), GAP), title, TEXT_COLOUR, font, spacing=SPACING)
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + index * (cell + GAP)
        pen.multiline_text((GAP, y), label, TEXT_COLOUR, font, spacing=SPACING)
        paste_row(page, row.images, (left, y), cell)
    return page


def draw_crop_sheet(photos: Sequence[Photo], crops: Sequence[SubjectCrop]) -> Image.Image:
    """Draw each photo with the square that is learned, and that square beside it."""
    rows = [
        SheetRow(
            crop.source, [draw_photo_with_square(photo, crop.square), Image.fromarray(convert_to_bytes(crop.pixels))]
        )
        for photo, crop in zip(photos, crops, strict=True)
    ]
    return draw_contact_sheet(rows, ["photo", "what is learned"], cell=CROP_CELL)


def draw_photo_with_square(photo: Photo, square: Square) -> Image.Image:
    """Draw a photo, made small, with the outline of a square of its pixels."""
    height, width = photo.pixels.shape[-2:]
    scale = min(1.0, CROP_CELL / max(height, width))
    small = resize_pixels(photo.pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    image = Image.fromarray(convert_to_bytes(small))
    left, top, side = (round(value * scale) for value in (square.left, square.top, square.side))
    ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), outline=OUTLINE, width=3)
    return image


def paste_row(page: Image.Image, images: Sequence[Image.Image | None], corner: tuple[int, int], cell: int) -> None:
    """Paste one row of images, the first with its upper left corner at `corner`."""
    for column, image in enumerate(images):
        if image is not None:
            fitted = fit_image(image, cell)
            margin = ((cell - fitted.width) // 2, (cell - fitted.height) // 2)
            x = corner[0] + column * (cell + GAP) + margin[0]
            page.paste(fitted, (x, corner[1] + margin[1]))


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Scale an image, keeping its shape, so that its long side measures `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def measure_height(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Return the height in pixels of the tallest of some wrapped texts."""
    lines = max((text.count("\n") + 1 for text in texts if text), default=0)
    ascent = font.getbbox("Ay")[3]
    return round(lines * ascent * LINE) + GAP if lines else 0
