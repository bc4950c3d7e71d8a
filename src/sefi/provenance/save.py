"""Encode an image that was generated: with words of its origin and the invisible mark, both read back."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.core import __version__
from sefi.core.errors import OutputError
from sefi.core.files import FileKind, write_output
from sefi.provenance.mark import DECIBELS, embed_mark, find_mark
from sefi.provenance.metadata import (
    ImageRecord,
    format_parameters,
    format_xmp,
    make_png_text,
    read_source_type,
)
from sefi.provenance.payload import compute_payload, read_installation_key

Pixels = NDArray[np.uint8]

SMALLEST_MARKED = 128  # pixels of the shorter side; a smaller image has words only
STRONGER_DECIBELS = 38.0  # where the usual mark is not found again


@dataclass(frozen=True)
class EncodedImage:
    """An image's file.

    Attributes:
        content: a whole PNG or JPEG.
        has_mark: it bears the invisible mark, which was found in it.
    """

    content: bytes
    has_mark: bool

    def write(self, path: Path) -> None:
        """Write the file; for `write_file` and its like, which make that atomic."""
        path.write_bytes(self.content)


def encode_image(image: Image.Image, record: ImageRecord | None = None, *, mark: bool = True) -> EncodedImage:
    """Encode a generated image as PNG.

    Args:
        image: its transparency, if any, is dropped.
        record: what its words say of how it was made; None where it is composed of several.
        mark: also embed the invisible mark. Images under 128 pixels and those of one colour cannot bear it.

    Raises:
        OutputError: the mark is not found in the finished file, also when it is made stronger.
        ConfigError: the installation's key cannot be read.
    """
    if record is not None and not mark:
        record = replace(record, settings={**record.settings, "Invisible mark": "off"})
    words = "" if record is None else format_parameters(record)
    pixels, payload = np.asarray(image.convert("RGB")), compute_payload(words, read_installation_key())
    text = make_png_text(record, __version__)
    if not mark or not can_bear_mark(pixels):
        return EncodedImage(_save(pixels, "PNG", pnginfo=text), has_mark=False)
    for decibels in (DECIBELS, STRONGER_DECIBELS):
        content = _save(embed_mark(pixels, payload, decibels=decibels), "PNG", pnginfo=text)
        if _is_readable(content, payload):
            return EncodedImage(content, has_mark=True)
    raise OutputError(
        "The invisible mark is not found in the finished image.", "Save it without: --no-mark, or mark=False in Python."
    )


def encode_shown(image: Image.Image, kind: Literal["PNG", "JPEG"], *, is_marked: bool) -> bytes:
    """Encode an image for a page, where it may be shown smaller than its file: as JPEG of quality 90, or as PNG.

    Args:
        is_marked: its file bears the invisible mark, so this does too, and has words of its origin. A photo does not.
    """
    pixels = np.asarray(image.convert("RGB"))
    if is_marked and find_mark(pixels) is None:  # it was made smaller than the mark survives
        pixels = mark_pixels(pixels)
    if kind == "PNG":
        return _save(
            pixels, kind, optimize=True, **({"pnginfo": make_png_text(None, __version__)} if is_marked else {})
        )
    words = {"xmp": format_xmp(__version__).encode()} if is_marked else {}
    return _save(pixels, kind, quality=90, subsampling=0, **words)


def is_marked(pixels: Pixels) -> bool:
    """Return whether an image `[height, width, 3]` bears the invisible mark."""
    return find_mark(pixels) is not None


def mark_pixels(pixels: Pixels) -> Pixels:
    """Return pixels `[height, width, 3]` with the mark of an image without words, where they can bear it."""
    return embed_mark(pixels, compute_payload("", read_installation_key())) if can_bear_mark(pixels) else pixels


def save_without_words(pixels: Pixels, path: Path) -> None:
    """Write pixels that `mark_pixels` marked as PNG, with words of their origin only."""
    path.write_bytes(_save(pixels, "PNG", pnginfo=make_png_text(None, __version__)))


def can_bear_mark(pixels: Pixels) -> bool:
    """Return whether an image is large enough for the invisible mark, and not of one colour alone."""
    return min(pixels.shape[:2]) >= SMALLEST_MARKED and bool((pixels != pixels[0, 0]).any())


def save_generated_image(
    image: Image.Image,
    path: str | Path,
    *,
    record: ImageRecord | None = None,
    mark: bool = True,
    overwrite: bool = False,
) -> None:
    """Write an image that another program's pipeline generated as PNG, with words of its origin and the invisible mark.

    Args:
        record: what the words say of how it was made.
        mark: also embed the invisible mark.
        overwrite: replace a PNG that is there; anything else is never replaced.

    Raises:
        OutputError: something is there, nothing can be written, or the mark is not found in the finished file.
    """
    write_output(Path(path), FileKind.PNG, encode_image(image, record, mark=mark).write, overwrite=overwrite)


def _save(pixels: Pixels, kind: Literal["PNG", "JPEG"], **options: object) -> bytes:
    """Return pixels as a file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def _is_readable(content: bytes, payload: int) -> bool:
    """Return whether a finished file says where it comes from, and the mark in it is found, with no other payload."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        found = find_mark(np.asarray(image))
        return read_source_type(image) is not None and found is not None and found.payload in (payload, None)
