"""A photo file to upright RGB in [-1, 1]."""

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps

from sefi.core.errors import PhotoError
from sefi.core.nouns import Photo

MAX_BYTES = 64 * 1024 * 1024
# A sequential JPEG is decoded at half or a quarter of its size, which costs little; every other file is decoded whole.
# Peaks of a process that reads a file at these bounds and cuts a face out, 270 MB of which are the libraries
# (`python benchmarks/photo_memory.py`): JPEG 560 MB, progressive JPEG 700, PNG 810, WebP 1300.
MAX_PIXELS = 64_000_000
MAX_JPEG_PIXELS = 205_000_000
# A larger photo is halved until it is within this. Photos of 24 megapixels are read as they are (peak: 800 MB).
WHOLE_PIXELS = 25_000_000
ROWS = 1024  # converted at a time: only the decoded file and the result exist at full size
MIN_SIDE = 32
# Recognised by content, never by name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
BACKGROUND = (255, 255, 255)
# What Pillow raises for damaged files, format by format.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)
# A GIF's frame may make the picture larger than its header says.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow tries for one format after another until one opens the file.
OPEN_ERRORS = (SyntaxError, IndexError, TypeError, struct.error)
# How Pillow scales a PNG's values up, by the raw mode that it reads them in; it leaves a transparent colour as it is.
PNG_SCALES = {"L;2": 85, "L;4": 17}
# What a colour profile calls the colours that it is for, by Pillow's mode.
PROFILE_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
SPACE_IN_PROFILE = slice(16, 20)


def read_photo(path: str | Path) -> Photo:
    """Read a photograph: turned upright (EXIF), in sRGB, transparency over white.

    Args:
        path: a JPEG, PNG, WebP, GIF or BMP file with one picture.

    Returns:
        Pixels `[3, height, width]`, float32 in [-1, 1], rows from the top. A photo of more than 25 megapixels is
        halved, quartered or divided by eight on both sides.

    Raises:
        PhotoError: missing, not a file, over 64 MB, over 64 megapixels (205 for a JPEG that is not progressive; both
            checked before decoding), under 32 pixels, animated, damaged, or of another format.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        with _open(content) as image:
            _check_header(path, image)
            upright = ImageOps.exif_transpose(_to_small_rgb(image))
    except Image.UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not a picture of a known format.", "Save it as JPEG or PNG.") from error
    except BOMBS as error:
        raise PhotoError(f"{path} has far more pixels than can be read.", "Save it smaller.") from error
    except DECODE_ERRORS as error:
        raise PhotoError(f"{path} is damaged and cannot be decoded.", "Save or copy the photo again.") from error
    return Photo(pixels=pixels_of(upright), source=path.name)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise PhotoError(f"There is no file {path}.", "Check the path.")
        if not path.is_file():
            raise PhotoError(f"{path} is not a file.", "Name one photo.")
        if path.stat().st_size > MAX_BYTES:
            raise PhotoError(f"{path} is larger than 64 MB.", "Save it smaller, as JPEG.")
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror}.", "Check its name and permissions.") from error
    if not content:
        raise PhotoError(f"{path} is empty.", "Copy the photo again.")
    return content


def _open(content: bytes) -> ImageFile.ImageFile:
    """Open a picture as `Image.open` does, but for the limit on its size: that is a setting of the whole process."""
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(content[:16]) is True:
                return factory(io.BytesIO(content), "")
        except OPEN_ERRORS:
            continue
    raise Image.UnidentifiedImageError


def _check_header(path: Path, image: Image.Image) -> None:
    """Refuse by what the header says; nothing is decoded yet."""
    width, height = image.size
    most = MAX_JPEG_PIXELS if _is_sequential_jpeg(image) else MAX_PIXELS
    if width * height > most:
        raise PhotoError(
            f"{path} has {width} x {height} pixels ({width * height / 1e6:.1f} megapixels); "
            f"at most {most / 1e6:.0f} megapixels are read.",
            "Save it smaller.",
        )
    if min(width, height) < MIN_SIDE:
        raise PhotoError(
            f"{path} is only {width} x {height} pixels.",
            f"Use a photo of at least {MIN_SIDE} pixels a side; 512 or more is better.",
        )
    # MPO is the JPEG of many phones: a second picture follows, which is no animation.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise PhotoError(f"{path} is animated.", "Save one frame of it as JPEG or PNG.")


def _is_sequential_jpeg(image: Image.Image) -> bool:
    """Return whether the decoder can go through the file row by row; a progressive JPEG is in memory whole."""
    return image.format in ("JPEG", "MPO") and "progressive" not in image.info


def _to_small_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Return eight-bit sRGB of at most 25 megapixels, in strips: one step's copies of a large photo fill the memory."""
    width, height = image.size
    factor = next(one for one in (1, 2, 4, 8) if width * height <= WHOLE_PIXELS * one**2)
    raw_mode = _raw_mode(image)
    image.draft(None, (width // factor, height // factor))  # only a JPEG can; for the others this does nothing
    image.load()
    factor = max(1, round(factor * image.width / width))
    whole = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        whole.paste(_to_rgb(strip, raw_mode).reduce(factor), (0, top // factor))
    whole.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return whole


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how Pillow unpacks a PNG's values, which tells their bits; empty for other formats."""
    arguments = image.tile[0].args if image.format == "PNG" and image.tile else ""
    return arguments if isinstance(arguments, str) else ""


def _to_rgb(image: Image.Image, raw_mode: str) -> Image.Image:
    """Return eight-bit sRGB from any mode: the colour profile first, then transparency over white."""
    alpha = _alpha_of(image, raw_mode)
    image.info.pop("transparency", None)  # conversions would look for its colour
    rgb = _with_profile(_colours_of(image, raw_mode), image.info.get("icc_profile"))
    return rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), alpha)


def _alpha_of(image: Image.Image, raw_mode: str) -> Image.Image | None:
    """Return how opaque each pixel is, as mode L; None if all are."""
    if not image.has_transparency_data:
        return None
    if image.mode == "P" or "transparency" not in image.info:
        return image.convert("RGBA").getchannel("A")
    # One colour is transparent. Of 16 bits a channel only the high byte is decoded, so it stands for all 256 colours.
    key = image.info["transparency"]
    bands = image.convert("L").split() if image.mode == "1" else image.split()
    same = np.ones((image.height, image.width), bool)
    for band, value in zip(bands, key if isinstance(key, tuple) else (key,), strict=True):
        stored = value >> 8 if raw_mode == "RGB;16B" else value
        same &= np.asarray(band) == stored * PNG_SCALES.get(raw_mode, 1)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _colours_of(image: Image.Image, raw_mode: str) -> Image.Image:
    """Return the picture without transparency, in the mode L, RGB or CMYK that its colour profile is for."""
    if image.mode.startswith("I") or image.mode == "F":
        high_bytes = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high_bytes.clip(0, 255).astype(np.uint8))
    if raw_mode == "LA;16B":  # grey that Pillow reads as RGBA
        return image.getchannel("R")
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return image if image.mode in PROFILE_SPACES else image.convert("RGB")


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return sRGB, by the file's colour profile (wide-gamut phones, print) if it is one for such colours."""
    if profile:
        # A damaged profile does not make the picture unusable.
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile[SPACE_IN_PROFILE] == PROFILE_SPACES[image.mode]:
                moved = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return cast(Image.Image, moved)
    return image.convert("RGB")


def pixels_of(image: Image.Image) -> torch.Tensor:
    """`[3, height, width]`, 0..255 to [-1, 1]."""
    bytes_hwc = torch.from_numpy(np.array(image, dtype=np.uint8))
    pixels = torch.empty(3, image.height, image.width)  # filled in place: a large photo is not held twice
    return pixels.copy_(bytes_hwc.permute(2, 0, 1)).div_(127.5).sub_(1.0)
