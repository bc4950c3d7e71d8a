"""Say what marks an image bears: words of origin, the invisible mark, content credentials; without torch."""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sefi.core.errors import PhotoError
from sefi.core.files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_folder, is_there
from sefi.core.reading import InvalidFileError, read_bytes, translate_file_errors
from sefi.provenance.content_credentials import MIME_TYPES, Credentials, read_credentials
from sefi.provenance.mark import FoundMark, find_mark
from sefi.provenance.metadata import LONGEST_TEXT, PARAMETERS_KEY, SOURCE_TYPE, read_source_type
from sefi.provenance.payload import compute_installation_number, compute_payload, split_payload

SUFFIXES = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)  # that a folder is searched for; what cannot be read is listed
LARGEST_FILE = 64 << 20  # bytes
MOST_PIXELS = 64_000_000
SMALLEST_SIDE = 16  # pixels
MOST_FOLDERS = 1_000_000  # in a folder
DECODE_ERRORS = (SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Verification:
    """What an image bears.

    Attributes:
        source_type: IPTC's digital source type in its XMP packet; None if there is none.
        parameters: the words that say how it was made, as AUTOMATIC1111 writes them; None if there are none.
        mark: the invisible mark; None if none is found.
        installation: the number of the installation that made it, 0 for one without a key; None without a payload.
        is_ours: it was made by the installation whose key was given.
        words_fit: the words are those that the image was saved with; None where nobody can tell: without a payload, or
            with that of another installation, whose key is secret.
        credentials: signed content credentials (C2PA); None where the library that reads them is not installed.
    """

    path: Path
    size: tuple[int, int]
    source_type: str | None
    parameters: str | None
    mark: FoundMark | None
    installation: int | None
    is_ours: bool
    words_fit: bool | None
    credentials: Credentials | None

    @property
    def is_declared(self) -> bool:
        """Whether its words say that a trained model made it."""
        return self.source_type == SOURCE_TYPE

    @property
    def is_marked(self) -> bool:
        """Whether any of the three says that a trained model made it; a damaged signature says nothing of it."""
        signed = self.credentials is not None and self.credentials.valid and self.credentials.is_generated
        return self.is_declared or self.mark is not None or signed


def list_images(paths: list[Path], unread: list[Path] | None = None) -> list[Path]:
    """List the images among files and in folders, those inside included; links are not followed into folders.

    Args:
        unread: gets the folders that cannot be read.

    Raises:
        PhotoError: there is no such file, or a folder has no images.
    """
    found: list[Path] = []
    closed = list[Path]() if unread is None else unread
    for path in paths:
        if is_folder(path):
            before = len(closed)
            inside = sorted(_yield_images(path, closed))
            if not inside and len(closed) == before:
                raise PhotoError(f"'{path}' holds no images.", "Name a folder with PNG, JPEG or WebP files.")
            found += inside
        elif is_there(path):
            found.append(path)
        else:
            raise PhotoError(f"There is no file '{path}'.", "Check the path.")
    return list(dict.fromkeys(found))


def _yield_images(folder: Path, unread: list[Path]) -> Iterator[Path]:
    """Yield the files of a folder whose names are those of images; `unread` gets the folders that cannot be read."""

    def note(error: OSError) -> None:
        unread.append(Path(os.fsdecode(error.filename)))

    for number, (where, _, names) in enumerate(os.walk(folder, onerror=note)):
        if number > MOST_FOLDERS:
            raise PhotoError(f"'{folder}' has more than {MOST_FOLDERS:,} folders.", "Name a part of it.")
        yield from (Path(where) / name for name in names if name.lower().endswith(SUFFIXES))


def verify_image(path: Path, key: bytes | None = None) -> Verification:
    """Find every mark in an image.

    Args:
        key: of an installation, whose images are recognised; see `read_installation_key`.

    Raises:
        PhotoError: it is no PNG, JPEG or WebP image, damaged, or larger than 64 MB or 64 megapixels.
    """
    content, pixels, source_type, parameters = _read_image(path)
    mark = find_mark(pixels)
    payload = None if mark is None else mark.payload
    installation = None if payload is None else split_payload(payload)[0]
    ours = key is not None and installation == compute_installation_number(key)
    words = parameters or ""
    fits = None
    if payload is not None and (ours or installation == 0):
        fits = payload == compute_payload(words, key if ours else None)
    return Verification(
        path=path,
        size=(pixels.shape[1], pixels.shape[0]),
        source_type=source_type,
        parameters=parameters,
        mark=mark,
        installation=installation,
        is_ours=ours,
        words_fit=fits,
        credentials=read_credentials(content),
    )


def _read_image(path: Path) -> tuple[bytes, NDArray[np.uint8], str | None, str | None]:
    """Read an image: its bytes, upright pixels `[height, width, 3]`, source type and parameters."""
    remedy = "Name a PNG, JPEG or WebP image of at most 64 MB."
    with translate_file_errors(path, PhotoError, "cannot be checked", remedy, DECODE_ERRORS):
        content = read_bytes(path, LARGEST_FILE)
        try:
            image_file = Image.open(io.BytesIO(content), formats=tuple(MIME_TYPES))
        except UnidentifiedImageError:  # its own words name an object in memory
            raise InvalidFileError("it is no PNG, JPEG or WebP image, or a damaged one") from None
        with image_file as image:
            _check_size(path, image)
            image.load()  # a PNG's text may follow its pixels
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return content, np.asarray(upright), read_source_type(image), _read_parameters(image)


def _check_size(path: Path, image: Image.Image) -> None:
    """Refuse an image by what its header says, before it is decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS or min(width, height) < SMALLEST_SIDE:
        raise PhotoError(
            f"'{path}' has {width} x {height} pixels.",
            f"Images of {SMALLEST_SIDE} pixels a side to {MOST_PIXELS // 10**6} megapixels are checked.",
        )


def _read_parameters(image: Image.Image) -> str | None:
    """Read the words that say how an image was made: of a PNG's text, or of a JPEG's or WebP's EXIF comment."""
    text = image.info.get(PARAMETERS_KEY)
    if not isinstance(text, str):
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
        text = _decode_comment(comment) if isinstance(comment, bytes) else None
    return text if text is not None and len(text) <= LONGEST_TEXT else None


def _decode_comment(comment: bytes) -> str | None:
    """Decode an EXIF user comment, which AUTOMATIC1111 writes the parameters of JPEG and WebP files into."""
    for start, decode in (
        (b"UNICODE\0", partial(str, encoding="utf-16-be", errors="replace")),
        (b"ASCII\0\0\0", partial(str, encoding="ascii", errors="replace")),
    ):
        if comment.startswith(start):
            return re.sub(r"\x00+$", "", decode(comment[len(start) :]))
    return None
