"""Save a generated image with its marks, and read the file back before it takes its name.

Pixels get the invisible mark, the file gets its words. Images with a shorter side of 192 pixels and more carry the mark
or are not saved; from 128 pixels on it is tried; smaller ones have the words alone, and these say so.
"""

import io
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sefi.core import __version__
from sefi.core.errors import OutputError, check_type
from sefi.core.files import FileKind, write_output
from sefi.provenance.mark import DECIBELS, embed_mark, find_mark
from sefi.provenance.metadata import (
    PARAMETERS_KEY,
    SOURCE_TYPE,
    UNMARKED,
    ImageRecord,
    format_parameters,
    format_xmp,
    make_png_text,
    read_identity_digests,
    read_source_type,
    read_xmp,
)
from sefi.provenance.payload import compute_payload, read_installation_key

SMALLEST_PROMISED = 192  # pixels of the shorter side, from which on an image carries the mark or is not saved
SMALLEST_TRIED = 128  # one tile of the mark
STRONGER = 4.0  # decibels, of the second try
JPEG_QUALITY = 90
IMAGE_TYPES = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile, b"RIFF": WebPImageFile}  # by their first bytes


@dataclass(frozen=True)
class EncodedImage:
    """An image as its file has it.

    Attributes:
        content: the file's bytes.
        pixels: what is read from them.
        invisible_mark: the mark was found in these pixels.
        payload: the mark's 32 bits, if they were read; small images carry none.
    """

    content: bytes
    pixels: Image.Image
    invisible_mark: bool
    payload: int | None = None

    def write(self, path: Path) -> None:
        """Write the file, and read it back.

        Raises:
            OutputError: other bytes are read than were written.
        """
        path.write_bytes(self.content)
        if path.read_bytes() != self.content:
            raise OutputError(f"'{path.name}' is read back with other bytes.", "Check the disk, and try again.")


Convert = Callable[[Image.Image], Image.Image]


def encode_image(
    image: Image.Image,
    record: ImageRecord | None = None,
    *,
    mark: bool = True,
    kind: str = "PNG",
    optimize: bool = False,
    convert: Convert | None = None,
    identities: Sequence[str] = (),
) -> EncodedImage:
    """Encode an image with its marks, and read them back from the bytes.

    What it was read with, such as EXIF, is not copied.

    Args:
        image: of any mode; transparency is kept.
        record: what made it; None for sheets and figures, which say only that a machine made them.
        mark: False leaves the pixels as they are, and the words say so.
        kind: "PNG" or "JPEG".
        convert: what happens to the marked image before it is encoded, such as a palette.
        identities: SHA-256 of those that it shows, where there is no record.

    Raises:
        OutputError: the mark cannot be read back from an image whose shorter side has 192 pixels or more.
        ConfigError: the installation's key is damaged.
    """
    plain = _drop_metadata(image)
    encode = partial(_encode, kind=kind, optimize=optimize, convert=convert, identities=identities)
    if mark and min(plain.size) >= SMALLEST_TRIED:
        words = "" if record is None else format_parameters(record)
        payload = compute_payload(words, read_installation_key())
        for decibels in (DECIBELS, DECIBELS - STRONGER):
            encoded = _find_in_encoded(encode(_mark_pixels(plain, payload, decibels), record), payload)
            if encoded.invisible_mark:
                return encoded
        if min(plain.size) >= SMALLEST_PROMISED:
            raise OutputError(
                "The invisible mark cannot be read back from this image; it is not saved.",
                "Save it without one: --no-mark, or mark=False in Python. Its file says so then.",
            )
    return encode(plain, _note_unmarked(record, "too small" if mark else "off"), unmarked=True)


def encode_copy(
    image: Image.Image,
    *,
    mark: bool = True,
    kind: str = "PNG",
    optimize: bool = False,
    identities: Sequence[str] = (),
) -> EncodedImage:
    """Encode a copy of a saved image, as for a page: a mark that it still has is kept as it is, otherwise embedded."""
    if mark and min(image.size) >= SMALLEST_TRIED:
        plain = _encode(_drop_metadata(image), None, kind=kind, optimize=optimize, convert=None, identities=identities)
        copied = _find_in_encoded(plain)
        if copied.invisible_mark:
            return copied
    return encode_image(image, mark=mark, kind=kind, optimize=optimize, identities=identities)


def encode_photo(image: Image.Image, identities: Sequence[str] = ()) -> EncodedImage:
    """Encode what was not generated as PNG without marks; it names the identities that were learned from it."""
    buffer, plain = io.BytesIO(), _drop_metadata(image)
    text = make_png_text(None, __version__, identities=identities, generated=False) if identities else None
    plain.save(buffer, format="PNG", pnginfo=text)
    return EncodedImage(buffer.getvalue(), plain, invisible_mark=False)


def save_image(
    image: Image.Image,
    path: str | Path,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    seed: int = 0,
    model: str = "",
    mark: bool = True,
    **settings: object,
) -> None:
    """Write a generated image of your own as PNG with the marks that `sefi generate` writes.

    Args:
        image: of a diffusers pipeline with `sefi.attach`, or of any other model.
        path: nothing may be there.
        prompt: with `<name>` for the subjects, which is written as `<subject>`; without a prompt the file says only
            that a machine made the image.
        mark: False writes the words alone, which say so.
        settings: what else is to be said: `steps=30`, `guidance_scale=7.5`, `scheduler="ddim"`.

    Raises:
        OutputError: something is there, it cannot be written, or the mark cannot be read back.
    """
    check_type(image, Image.Image, "The image", OutputError, "Give a Pillow image, such as `pipe(...).images[0]`.")
    check_type(path, (str, Path), "The file", OutputError, "Give its path.")
    record = None
    if prompt:
        record = ImageRecord(
            prompt, seed, image.size, negative_prompt, settings=settings, model=model, version=__version__
        )
    write_output(Path(path), FileKind.PNG, encode_image(image, record, mark=mark).write)


@contextmanager
def open_words(path: Path) -> Generator[Image.Image]:
    """Open a PNG, JPEG or WebP image to read its words, whatever its size: no pixel is decoded.

    `Image.open` refuses images of many pixels, and they may name somebody too.

    Yields:
        The image; its pixels must not be loaded.

    Raises:
        OutputError: it is a WebP image of so many pixels that its decoder refuses to begin.
        OSError, ValueError, SyntaxError: it cannot be read, or is another file.
    """
    with path.open("rb") as file:
        head = file.read(max(map(len, IMAGE_TYPES)))
        file.seek(0)
        kind = next((kind for start, kind in IMAGE_TYPES.items() if head.startswith(start)), None)
        if kind is None:
            raise UnidentifiedImageError(f"'{path}' is no PNG, JPEG or WebP image.")
        try:
            image = kind(file)
        except Image.DecompressionBombError as error:
            problem = f"'{path}' has too many pixels for its metadata to be read."
            raise OutputError(problem, "Choose another file, or remove it if it is yours.") from error
        with image:
            yield image


def read_named_identities(path: Path) -> frozenset[str]:
    """Read the first digits of the SHA-256 of each identity that a saved image names; none if it cannot be read.

    Raises:
        OutputError: it is a WebP image of so many pixels that nobody knows whom it names.
    """
    with suppress(OSError, ValueError, SyntaxError), open_words(path) as image:
        return read_identity_digests(image)
    return frozenset()


def read_marking(path: Path) -> bool | None:
    """Read whether a saved image was to be marked; None if its file does not say that a machine made it."""
    with open_words(path) as image:
        if read_source_type(image) != SOURCE_TYPE:
            return None
        return UNMARKED not in (read_xmp(image) or "")


def _note_unmarked(record: ImageRecord | None, reason: str) -> ImageRecord | None:
    """Return a record that says why there is no invisible mark."""
    return None if record is None else replace(record, settings={**record.settings, "Invisible mark": reason})


def _drop_metadata(image: Image.Image) -> Image.Image:
    """Return an image as RGB, or RGBA where it is transparent, with nothing but its pixels."""
    return Image.fromarray(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"), np.uint8))


def _mark_pixels(image: Image.Image, payload: int, decibels: float) -> Image.Image:
    """Return an image with the mark in its colours; transparency stays."""
    pixels = np.asarray(image)
    marked = embed_mark(np.ascontiguousarray(pixels[..., :3]), payload, decibels=decibels)
    return Image.fromarray(np.concatenate([marked, pixels[..., 3:]], axis=2))


def _encode(
    image: Image.Image,
    record: ImageRecord | None,
    *,
    kind: str,
    optimize: bool,
    convert: Convert | None,
    unmarked: bool = False,
    identities: Sequence[str] = (),
) -> EncodedImage:
    """Encode an image with its words, and check that they are read again."""
    image = image if convert is None else convert(image)
    buffer = io.BytesIO()
    if kind == "JPEG":
        xmp = format_xmp(__version__, unmarked=unmarked, identities=identities).encode()
        image.convert("RGB").save(
            buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=optimize, xmp=xmp
        )
    else:
        text = make_png_text(record, __version__, unmarked=unmarked, identities=identities)
        image.save(buffer, format="PNG", optimize=optimize, pnginfo=text)
    with Image.open(io.BytesIO(buffer.getvalue()), formats=(kind,)) as read:
        words = None if record is None or kind == "JPEG" else format_parameters(record)
        if read_source_type(read) != SOURCE_TYPE or read.info.get(PARAMETERS_KEY) != words:
            raise OutputError(f"The words of a {kind} cannot be read back.", "Report this, please.")
        return EncodedImage(buffer.getvalue(), _drop_metadata(read), invisible_mark=False)


def _find_in_encoded(encoded: EncodedImage, payload: int | None = None) -> EncodedImage:
    """Return an encoded image with what is found in it."""
    pixels: NDArray[np.uint8] = np.ascontiguousarray(np.asarray(encoded.pixels)[..., :3])
    found = find_mark(pixels, search=False)
    if found is None:
        return encoded
    return replace(encoded, invisible_mark=True, payload=payload if found.payload == payload else None)
