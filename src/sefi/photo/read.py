"""A photo file to upright RGB in [-1, 1]."""

import io
import math
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

from sefi.core.errors import PhotoError
from sefi.core.nouns import Photo

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 60_000_000
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
# Pillow warns above 89 megapixels and raises above 179; a warning may have been made an error.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_photo(path: str | Path) -> Photo:
    """Read a photograph: turned upright (EXIF), in sRGB, transparency over white.

    Args:
        path: a JPEG, PNG, WebP, GIF or BMP file with one picture.

    Returns:
        Pixels `[3, height, width]`, float32 in [-1, 1], rows from the top.

    Raises:
        PhotoError: missing, not a file, over 64 MB or 60 megapixels (checked before decoding),
            under 32 pixels, animated, damaged, or of another format.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_header(path, image)
            upright = ImageOps.exif_transpose(image)
            rgb = _to_rgb(upright)
    except Image.UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not a picture of a known format.", "Save it as JPEG or PNG.") from error
    except BOMBS as error:
        raise _too_large(path, "far more than 60") from error
    except DECODE_ERRORS as error:
        raise PhotoError(f"{path} is damaged and cannot be decoded.", "Save or copy the photo again.") from error
    return Photo(pixels=pixels_of(rgb), source=path.name)


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


def _check_header(path: Path, image: Image.Image) -> None:
    """Refuse by what the header says; nothing is decoded yet."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width} x {height} pixels, {math.ceil(width * height / 1e5) / 10}")
    if min(width, height) < MIN_SIDE:
        raise PhotoError(
            f"{path} is only {width} x {height} pixels.",
            f"Use a photo of at least {MIN_SIDE} pixels a side; 512 or more is better.",
        )
    # MPO is the JPEG of many phones: a second picture follows, which is no animation.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise PhotoError(f"{path} is animated.", "Save one frame of it as JPEG or PNG.")


def _too_large(path: Path, megapixels: str) -> PhotoError:
    return PhotoError(f"{path} has {megapixels} megapixels; at most 60 are read.", "Save it smaller.")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit sRGB from any mode: the colour profile first, then transparency over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        image = (image.convert("RGBA") if alpha else image).convert("RGB")
    rgb = _with_profile(image, profile).convert("RGB")
    return rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), alpha)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (Pillow modes I;16, I) to 8: the high byte."""
    values = np.asarray(image).astype(np.int64) >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours moved to sRGB where the file carries a colour profile (wide-gamut phones, print)."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        moved = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a damaged profile does not make the picture unusable
    return moved if moved is not None else image


def pixels_of(image: Image.Image) -> torch.Tensor:
    """`[3, height, width]`, 0..255 to [-1, 1]."""
    bytes_hwc = torch.from_numpy(np.array(image, dtype=np.uint8))
    return bytes_hwc.permute(2, 0, 1).float().div_(127.5).sub_(1.0).contiguous()
