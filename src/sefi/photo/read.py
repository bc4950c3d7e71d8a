"""Read a photo file to upright RGB in [-1, 1]; tell photographs from the drawings that the embedded model knows."""

import io
import json
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageFile, ImageOps
from pillow_heif import HeifImageFile, get_file_mimetype
from torch import Tensor
from torch.nn import functional as F

from sefi.core.errors import PhotoError, check_type
from sefi.core.reading import InvalidFileError, read_bytes


@dataclass(frozen=True, slots=True)
class Photo:
    """An upright photo.

    Attributes:
        pixels: RGB float32 `[3, height, width]` in [-1, 1], rows from the top.
        source: where it came from, for messages.
        original_size: height and width of the upright photo before it was made smaller; None where it was not.
    """

    pixels: Tensor
    source: str
    original_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright photo as its owner knows it."""
        return self.original_size or (self.pixels.shape[-2], self.pixels.shape[-1])

    @property
    def reduction(self) -> int:
        """How many pixels of the original one pixel is, on each side; 1 for a photo that was read as it is."""
        return round(max(self.size) / max(self.pixels.shape[-2:]))  # the smaller side was rounded up


MAX_BYTES = 64 * 1024 * 1024
# A sequential JPEG is decoded at half or a quarter of its size, which costs little; every other file is decoded whole.
# Peaks of a process that reads a file at these bounds and cuts a face out, 270 MB of which are the libraries
# (`python experiments/photo_memory.py`): JPEG 560 MB, progressive JPEG 700, PNG 810, WebP 1300.
MAX_PIXELS = 64_000_000
MAX_JPEG_PIXELS = 205_000_000
# A larger photo is halved until it is within this. Photos of 24 megapixels are read as they are (peak: 800 MB).
WHOLE_PIXELS = 25_000_000
ROWS = 1024  # converted at a time: only the decoded file and the result exist at full size
MIN_SIDE = 32
SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that swap width and height
# Recognised by content, never by name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
HEIF_TYPES = ("image/heic", "image/heif")  # of phones; pillow-heif reads them
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
    RuntimeError,  # of libheif
    AssertionError,  # of Pillow, for an image that the caller has closed
    Warning,  # on damage, where warnings are errors
)
# A GIF's frame may make the image larger than its header says.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
# What Pillow tries for one format after another until one opens the file.
OPEN_ERRORS = (SyntaxError, IndexError, TypeError, struct.error, Warning)
# How Pillow scales a PNG's values up, by the raw mode that it reads them in; it leaves a transparent colour as it is.
PNG_SCALES = {"L;2": 85, "L;4": 17}
PNG_GREY_16 = ("I;16B", "I;16")  # the raw modes of grey of 16 bits
GREY_REMEDY = "Give grey from 0 to 255 (mode L), or of 16 bits (mode I;16)."
# What a colour profile calls the colours that it is for, by Pillow's mode.
PROFILE_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
SPACE_IN_PROFILE = slice(16, 20)
# Of the classifier of photographs.
CLASSIFIER_FILE = Path(__file__).parent.parent / "models" / "photographs.json"
CLASSIFIER_RESOLUTION = 96  # of the images that it was fitted on: the embedded model's
DRAWING_SCORE = -6.0  # its score below which hardly any photograph is; most drawings are
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
LUMINANCE = (0.299, 0.587, 0.114)
LEVELS = 16  # of each colour, where colours are counted
COMMON = (1, 8, 32)  # the most frequent colours
SMALL = 1e-2


def read_photo(photo: str | Path | Image.Image | NDArray[np.uint8]) -> Photo:
    """Read a photograph: turned upright (EXIF), in sRGB, transparency over white.

    Args:
        photo: a JPEG, PNG, WebP, HEIC, AVIF, GIF or BMP file with one image; a Pillow image, whose size and colours
            stay; or an RGB array `[height, width, 3]`.

    Returns:
        Pixels `[3, height, width]`, float32 in [-1, 1], rows from the top. A photo of more than 25 megapixels is
        halved, quartered or divided by eight on both sides, and says how large its original was.

    Raises:
        PhotoError: missing, not a file, over 64 MB, over 64 megapixels (205 for a JPEG that is not progressive; both
            checked before decoding), under 32 pixels, animated, damaged, or of another format.
    """
    if isinstance(photo, np.ndarray):
        photo = _make_image(photo)
    if isinstance(photo, Image.Image):
        with _translate_decode_errors("The image"):
            _check_header("The image", photo)
            upright, original_size = _turn_upright(_convert_to_small_rgb(photo), photo.size)
        return Photo(convert_to_pixels(upright), "image", original_size)
    check_type(photo, (str, Path), "The photo", PhotoError, "Give a file, a Pillow image or an RGB array.")
    path = Path(photo)
    content = _read_bytes(path)
    with _translate_decode_errors(path), _open(content) as image:
        _check_header(path, image)
        size = image.size  # decoding may change it
        upright, original_size = _turn_upright(_convert_to_small_rgb(image, ours=True), size)
    return Photo(convert_to_pixels(upright), path.name, original_size)


def _turn_upright(rgb: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int] | None]:
    """Turn an image upright; return it, and height and width of its upright original where that was larger.

    Args:
        size: width and height of the original, as stored.
    """
    width, height = size
    if rgb.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
        width, height = height, width
    return ImageOps.exif_transpose(rgb), None if rgb.size == size else (height, width)


@contextmanager
def _translate_decode_errors(photo: Path | str) -> Generator[None]:
    """Raise `PhotoError` for whatever Pillow raises of an image that it cannot read."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise PhotoError(f"{photo} is not an image of a known format.", "Save it as JPEG or PNG.") from error
    except BOMBS as error:
        raise PhotoError(f"{photo} has far more pixels than can be read.", "Save it smaller.") from error
    except DECODE_ERRORS as error:
        raise PhotoError(f"{photo} is damaged and cannot be decoded.", "Save or copy the photo again.") from error


def _make_image(array: NDArray[np.uint8]) -> Image.Image:
    """Return an RGB array as an image."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise PhotoError(
            f"An array of {array.dtype} and shape {array.shape} is no RGB image.",
            "Give uint8 values [height, width, 3], from 0 to 255.",
        )
    return Image.fromarray(array)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.exists():
            raise PhotoError(f"There is no file {path}.", "Check the path.")
        if not path.is_file():
            if path.is_dir():
                remedy = "Name its photos, or give the folder to sefi batch, which learns everybody in it."
                raise PhotoError(f"{path} is a folder.", remedy)
            raise PhotoError(f"{path} is not a file.", "Name one photo.")
        content = read_bytes(path, MAX_BYTES)
    except InvalidFileError as error:
        raise PhotoError(f"{path} is larger than 64 MB.", "Save it smaller, as JPEG.") from error
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror}.", "Check its name and permissions.") from error
    if not content:
        raise PhotoError(f"{path} is empty.", "Copy the photo again.")
    return content


def _open(content: bytes) -> ImageFile.ImageFile:
    """Open an image as `Image.open` does, but for the limit on its size: that is a setting of the whole process."""
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(content[:16]) is True:
                return factory(io.BytesIO(content), "")
        except OPEN_ERRORS:
            continue
    if get_file_mimetype(content[:16]) in HEIF_TYPES:  # not registered with Pillow, which belongs to the process
        with suppress(*OPEN_ERRORS):
            return HeifImageFile(io.BytesIO(content), "")
    raise Image.UnidentifiedImageError


def _check_header(path: Path | str, image: Image.Image) -> None:
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
    # MPO is the JPEG of many phones, HEIF their other format: further images follow, which are no animation.
    if image.format not in ("MPO", "HEIF") and getattr(image, "n_frames", 1) > 1:
        raise PhotoError(f"{path} is animated.", "Save one frame of it as JPEG or PNG.")


def _is_sequential_jpeg(image: Image.Image) -> bool:
    """Return whether the decoder can go through the file row by row; a progressive JPEG is in memory whole."""
    return image.format in ("JPEG", "MPO") and "progressive" not in image.info


def _convert_to_small_rgb(image: Image.Image, *, ours: bool = False) -> Image.Image:
    """Return eight-bit sRGB of at most 25 megapixels, in strips: one step's copies of a large photo fill the memory.

    Args:
        ours: it was opened here, so that a large JPEG may be decoded smaller, which changes the size of the image; a
            caller's is decoded whole.
    """
    width, height = image.size
    factor = next(one for one in (1, 2, 4, 8) if width * height <= WHOLE_PIXELS * one**2)
    raw_mode = _find_raw_mode(image)
    if ours and image.format in ("JPEG", "MPO"):
        image.draft(None, (width // factor, height // factor))
    image.load()
    _check_grey_values(image, raw_mode)
    factor = max(1, round(factor * image.width / width))
    whole = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        whole.paste(_convert_to_rgb(strip, raw_mode).reduce(factor), (0, top // factor))
    whole.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return whole


def _check_grey_values(image: Image.Image, raw_mode: str) -> None:
    """Refuse grey of more than eight bits whose white is not known."""
    if image.mode == "F":
        raise PhotoError("A Pillow image of mode F is read as no colours: its white is not known.", GREY_REMEDY)
    if image.mode == "I" and raw_mode not in PNG_GREY_16:
        least, most = cast(tuple[int, int], image.getextrema())
        if least < 0 or most > 255:
            raise PhotoError(f"A Pillow image of mode I has values from {least} to {most}.", GREY_REMEDY)


def _find_raw_mode(image: Image.Image) -> str:
    """Return how Pillow unpacks a PNG's values, which tells their bits; empty for other formats.

    Of an image that its caller has loaded or copied Pillow has forgotten it: what its pixels show is enough then.
    """
    if image.format == "PNG" and isinstance(image, ImageFile.ImageFile):
        if image.tile:
            arguments = image.tile[0].args
            return arguments if isinstance(arguments, str) else ""
        if image.mode == "I":
            return "I;16B"
    return _find_raw_mode_by_pixels(image) if image.format in ("PNG", None) else ""  # a copy has no format


def _find_raw_mode_by_pixels(image: Image.Image) -> str:
    """Return how Pillow has unpacked a PNG's values as far as its pixels show it, otherwise empty."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        return "RGB;16B"
    if image.mode == "L" and isinstance(key, int):
        return _find_grey_scale(image, key)
    profile = image.info.get("icc_profile")
    if image.mode == "RGBA" and profile and profile[SPACE_IN_PROFILE] == PROFILE_SPACES["L"] and _is_grey(image):
        return "LA;16B"
    return ""


def _find_grey_scale(image: Image.Image, key: int) -> str:
    """Return the raw mode of grey of 2 or 4 bits: its few values were scaled up, which the transparent one was not."""
    colours = [cast(int, colour) for _, colour in image.getcolors(16) or []]
    scaled = (
        mode
        for mode, scale in PNG_SCALES.items()
        if key * scale <= 255 and all(colour % scale == 0 for colour in colours)
    )
    return next(scaled, "") if colours else ""


def _is_grey(image: Image.Image) -> bool:
    """Return whether red, green and blue are the same everywhere."""
    red, green, blue, _ = image.split()
    return all(ImageChops.difference(red, band).getbbox() is None for band in (green, blue))


def _convert_to_rgb(image: Image.Image, raw_mode: str) -> Image.Image:
    """Return eight-bit sRGB from any mode: the colour profile first, then transparency over white."""
    if image.mode == "La":  # grey times its opacity, which Pillow converts to nothing else
        image = image.convert("LA")
    alpha = _extract_alpha(image, raw_mode)
    image.info.pop("transparency", None)  # conversions would look for its colour
    rgb = _apply_profile(_extract_colours(image, raw_mode), image.info.get("icc_profile"))
    return rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, BACKGROUND), alpha)


def _extract_alpha(image: Image.Image, raw_mode: str) -> Image.Image | None:
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


def _extract_colours(image: Image.Image, raw_mode: str) -> Image.Image:
    """Return the image without transparency, in the mode L, RGB or CMYK that its colour profile is for."""
    if image.mode.startswith("I"):
        shift = 8 if image.mode != "I" or raw_mode in PNG_GREY_16 else 0
        return Image.fromarray((np.asarray(image).astype(np.int64) >> shift).clip(0, 255).astype(np.uint8))
    if raw_mode == "LA;16B":  # grey that Pillow reads as RGBA
        return image.getchannel("R")
    if image.mode in ("1", "LA"):
        return image.convert("L")
    return image if image.mode in PROFILE_SPACES else image.convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return sRGB, by the file's colour profile (wide-gamut phones, print) if it is one for such colours."""
    if profile:
        # A damaged profile does not make the image unusable.
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile[SPACE_IN_PROFILE] == PROFILE_SPACES[image.mode]:
                moved = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return cast(Image.Image, moved)
    return image.convert("RGB")


def convert_to_pixels(image: Image.Image) -> torch.Tensor:
    """Return `[3, height, width]` in [-1, 1] of an image of 0 to 255."""
    bytes_hwc = torch.from_numpy(np.array(image, dtype=np.uint8))
    pixels = torch.empty(3, image.height, image.width)  # filled in place: a large photo is not held twice
    return pixels.copy_(bytes_hwc.permute(2, 0, 1)).div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on the statistics; `experiments/photographs.py` fits it.

    Attributes:
        mean, scale: of each statistic, `[statistic]`.
        weights: `[statistic]`.
        bias: so chosen that photographs are above 0.
    """

    mean: Tensor
    scale: Tensor
    weights: Tensor
    bias: float

    def score(self, statistics: Tensor) -> Tensor:
        """Return a logit for each row of `[image, statistic]`, above 0 for photographs."""
        return ((statistics - self.mean) / self.scale) @ self.weights + self.bias


@cache
def read_classifier() -> Classifier:
    """Return the classifier in the package."""
    values = json.loads(CLASSIFIER_FILE.read_text(encoding="utf-8"))
    rows = (torch.tensor(values[name]) for name in ("mean", "scale", "weights"))
    return Classifier(*rows, bias=float(values["bias"]))


def refuse_photograph(square: Tensor) -> None:
    """Refuse a photograph where the model knows drawings only.

    Args:
        square: `[3, CLASSIFIER_RESOLUTION, CLASSIFIER_RESOLUTION]` in [-1, 1].

    Raises:
        PhotoError: it has the statistics of a photograph.
    """
    if score_photograph(square) > 0:
        raise PhotoError(
            "This looks like a photograph, and the embedded model knows drawn people and animals only.",
            "Name a Stable Diffusion model with --model, or learn it anyway: --any-style (in Python any_style=True).",
        )


def refuse_drawing(square: Tensor) -> None:
    """Refuse a drawing like those of the embedded model, where the model is another.

    Only what is surely one: such a model knows drawings too, and a photograph must not be refused.

    Args:
        square: `[3, CLASSIFIER_RESOLUTION, CLASSIFIER_RESOLUTION]` in [-1, 1].

    Raises:
        PhotoError: it has the statistics of a flat drawing.
    """
    if score_photograph(square) < DRAWING_SCORE:
        raise PhotoError(
            "This looks like a drawing, and this model is meant for photographs.",
            "Leave out --model for drawings of the embedded model, or learn it anyway: --any-style "
            "(in Python any_style=True).",
        )


def score_photograph(square: Tensor) -> float:
    """Return how surely an image is a photograph: a logit, above 0 it is one.

    Args:
        square: `[3, CLASSIFIER_RESOLUTION, CLASSIFIER_RESOLUTION]` in [-1, 1].
    """
    return float(read_classifier().score(measure_statistics(square[None]))[0])


def measure_statistics(images: Tensor) -> Tensor:
    """Return `[image, statistic]` of images `[image, 3, R, R]` in [-1, 1].

    A drawing is flat between few edges, so most of its differences between neighbours are far below their mean; a
    photograph has detail everywhere. Shares of the mean barely change with size, blur and compression.
    """
    rgb = (images.float() + 1) / 2
    grey = (rgb * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    details = [measure_details(grey), measure_details(F.avg_pool2d(grey, 2))]
    return torch.cat([*details, measure_colours(rgb)], dim=1)


def measure_details(grey: Tensor) -> Tensor:
    """Return how differences between neighbours, first and second, are spread, `[image, 13]`."""
    across, down = grey.diff(dim=-1).abs().flatten(1), grey.diff(dim=-2).abs().flatten(1)
    corners = grey.diff(dim=-1).diff(dim=-1).diff(dim=-2).diff(dim=-2).abs().flatten(1) / 4
    slopes = torch.cat([across, down], dim=1)
    steep, fine = (values.mean(1, keepdim=True) + 1e-4 for values in (slopes, corners))
    spread = [
        torch.log(compute_quantiles(values) / mean + SMALL) for values, mean in ((slopes, steep), (corners, fine))
    ]
    return torch.cat([spread[0], torch.log(steep), spread[1], torch.log(fine), torch.log(fine / steep)], dim=1)


def measure_colours(rgb: Tensor) -> Tensor:
    """Return how saturated, bright and various the colours are, `[image, 16]`."""
    bright, dark = rgb.amax(1), rgb.amin(1)
    saturation = (bright - dark) / (bright + SMALL)
    tint = rgb.mean((2, 3)).std(1, keepdim=True)
    counted = torch.stack([count_colours(one) for one in rgb])
    return torch.cat(
        [compute_quantiles(saturation.flatten(1)), compute_quantiles(bright.flatten(1)), tint, counted], dim=1
    )


def count_colours(rgb: Tensor) -> Tensor:
    """Return log number, shares of the most common, and entropy of the coarse colours of `[3, R, R]` in [0, 1]."""
    red, green, blue = (rgb * (LEVELS - 0.01)).long()
    counts = torch.bincount((red * LEVELS**2 + green * LEVELS + blue).flatten(), minlength=LEVELS**3).float()
    shares = counts[counts > 0].sort(descending=True).values / counts.sum()
    common = [shares[:n].sum() for n in COMMON]
    return torch.stack([torch.tensor(float(len(shares))).log(), *common, -(shares * shares.log()).sum()])


def compute_quantiles(values: Tensor) -> Tensor:
    """Return the values `[image, value]` below which each of `SHARES` lies, `[image, share]`."""
    return torch.stack([values.quantile(share, dim=1) for share in SHARES], dim=1)
