"""Draw random views of the square that is learned; what makes a view is a value and can be replayed."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from kornia import enhance
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sefi.core.config import ViewSettings
from sefi.photo.detect import (
    FaceDetector,
    Square,
    choose_face,
    crop_square,
    describe_small_face,
    find_square_around,
    find_square_in_middle,
)
from sefi.photo.read import Photo

Canvas = Literal["black", "mean", "edge"]


@dataclass(frozen=True)
class ViewParameters:
    """Everything random about one view.

    Attributes:
        brightness: factor on all values.
        contrast: factor on the distance to the mean grey.
        saturation: factor on the distance to grey.
        hue: turn of the colour circle, as a fraction of it.
        flip: whether left and right are swapped.
        scale: height of the pasted image as a share of the canvas.
        aspect: its width over its height.
        left: where it is pasted: 0 at the left edge, 1 at the right.
        top: 0 at the upper edge, 1 at the lower.
        canvas: what surrounds it: black, its mean colour, or its repeated edge.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    flip: bool = False
    scale: float = 1.0
    aspect: float = 1.0
    left: float = 0.0
    top: float = 0.0
    canvas: Canvas = "black"


def draw_parameters(settings: ViewSettings, generator: torch.Generator) -> ViewParameters:
    """Draw a view: nine uniform numbers, always in the same order (section 6.4 of the paper).

    Source: ranges of colour, aspect and canvas from Celeb Basis, `FaceIdDataset`. Differs: the
    four colour changes come in one fixed order, not a shuffled one.
    """
    u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    return ViewParameters(
        brightness=1 + settings.brightness * (2 * u[0] - 1),
        contrast=1 + settings.contrast * (2 * u[1] - 1),
        saturation=1 + settings.saturation * (2 * u[2] - 1),
        hue=settings.hue * (2 * u[3] - 1),
        flip=u[4] < settings.flip,
        scale=settings.min_scale + (settings.max_scale - settings.min_scale) * u[5],
        aspect=1 + settings.aspect * (2 * u[6] - 1),
        left=u[7],
        top=u[8],
        canvas=settings.canvas,
    )


def apply(crop: Tensor, parameters: ViewParameters) -> Tensor:
    """Return the view of `crop` that the parameters describe.

    Args:
        crop: `[3, R, R]` in [-1, 1].
        parameters: what was drawn.

    Returns:
        `[3, R, R]` in [-1, 1].
    """
    image = _recolour(crop, parameters)
    if parameters.flip:
        image = image.flip(-1)
    return _paste(image, parameters)


def _recolour(crop: Tensor, parameters: ViewParameters) -> Tensor:
    changes = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    if changes == (1, 1, 1, 0):
        return crop
    image = (crop + 1) / 2
    image = enhance.adjust_brightness_accumulative(image, parameters.brightness)
    image = enhance.adjust_contrast_with_mean_subtraction(image, parameters.contrast)
    image = enhance.adjust_saturation_with_gray_subtraction(image, parameters.saturation)
    image = enhance.adjust_hue(image, parameters.hue * 2 * math.pi)
    return (image * 2 - 1).clamp(-1, 1)


def _paste(image: Tensor, parameters: ViewParameters) -> Tensor:
    side = image.shape[-1]
    height = _round_side(side * parameters.scale, side)
    width = _round_side(side * parameters.scale * parameters.aspect, side)
    if (height, width) == (side, side):
        return image.clone()
    small = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = round(parameters.left * (side - width)), round(parameters.top * (side - height))
    return _place_on_canvas(small.clamp(-1, 1), left, top, side, parameters.canvas)


def _place_on_canvas(small: Tensor, left: int, top: int, side: int, canvas: Canvas) -> Tensor:
    """Return the small image on a canvas of `side`, its corner at (left, top)."""
    height, width = small.shape[-2:]
    right, below = side - width - left, side - height - top
    if canvas == "edge":
        return F.pad(small[None], (left, right, top, below), mode="replicate")[0]
    ground = small.new_full((3, side, side), -1.0)
    if canvas == "mean":
        ground = small.mean((1, 2), keepdim=True).expand(3, side, side).clone()
    ground[:, top : top + height, left : left + width] = small
    return ground


def _round_side(length: float, limit: int) -> int:
    return min(max(round(length), 1), limit)


FAR, NEAR = 0.6, 1.0  # below: small on a canvas; above: a part of it, enlarged
SMALLEST, LARGEST = 1 / 3, (1.2, 1.4)


@dataclass(frozen=True)
class ResizedView:
    """A view.

    Attributes:
        pixels: `[3, R, R]` in [-1, 1].
        distance: how near the subject is, for its caption.
        box: left, top, right, bottom of the image on its canvas as shares of the side; None if it fills it.
    """

    pixels: Tensor
    distance: Literal["plain", "far", "near"]
    box: tuple[float, float, float, float] | None = None


def draw_resized_view(crop: Tensor, flip: float, random: torch.Generator) -> ResizedView:
    """Draw a random view (Custom Diffusion, `diffusers_data_pipeline.py`).

    Two of three are a third to the whole of the side, the others 1.2 to 1.4 times it. What is smaller than 0.6 is
    pasted on grey, what is larger than 1 is cut; in between the image is left as it is.

    Args:
        crop: `[3, R, R]` in [-1, 1].
        flip: chance of a mirror image.
        random: five uniform numbers are drawn, always in the same order.
    """
    large, size, mirrored, across, down = torch.rand(5, generator=random, dtype=torch.float64).tolist()
    image = crop.flip(-1) if mirrored < flip else crop
    side = crop.shape[-1]
    low, high = (SMALLEST, 1.0) if large < 2 / 3 else LARGEST
    scale = low + (high - low) * size
    if FAR <= scale <= NEAR:
        return ResizedView(image.clone(), "plain")
    edge = max(1, round(scale * side))
    other = F.interpolate(image[None], (edge, edge), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    left, top = round(across * abs(side - edge)), round(down * abs(side - edge))
    if edge > side:
        return ResizedView(other[:, top : top + side, left : left + side].clone(), "near")
    canvas = crop.new_zeros(crop.shape)
    canvas[:, top : top + edge, left : left + edge] = other
    return ResizedView(canvas, "far", (left / side, top / side, (left + edge) / side, (top + edge) / side))


ROWS = 256  # converted at a time: the floats of a whole large photo would fill the memory


@dataclass(frozen=True)
class SubjectCrop:
    """The square of a photo that is learned.

    Attributes:
        pixels: `[3, resolution, resolution]` in [-1, 1].
        square: where it lies, in pixels of the photo as it was read.
        source: where the photo came from, for messages.
        remarks: what a user should know of it.
        photo_digest: SHA-256 of the whole photo's pixels, in hex; empty where it is not known. No file has it as it is.
    """

    pixels: Tensor
    square: Square
    source: str
    remarks: tuple[str, ...] = ()
    photo_digest: str = ""


@dataclass(frozen=True)
class PhotoViews:
    """The views of one photo, or of several of the same subject.

    Attributes:
        crop: the square of the photo that is learned, `[3, R, R]` in [-1, 1]; of several photos the first.
        settings: ranges of the random views.
        other_crops: those of the further photos; every view is of one of all, equally often.
    """

    crop: Tensor
    settings: ViewSettings
    other_crops: tuple[Tensor, ...] = ()

    @property
    def crops(self) -> tuple[Tensor, ...]:
        """The crops of all photos."""
        return (self.crop, *self.other_crops)

    def draw_view(self, generator: torch.Generator) -> Tensor:
        """Draw a view, `[3, R, R]` in [-1, 1]; equal generators give equal views."""
        return apply(self.draw_crop(generator), draw_parameters(self.settings, generator))

    def draw_crop(self, generator: torch.Generator) -> Tensor:
        """Draw one of the crops, `[3, R, R]`; of a single one nothing is drawn."""
        if not self.other_crops:
            return self.crop
        return self.crops[int(torch.randint(len(self.crops), (), generator=generator))]


def find_face_square(
    photo: Photo, detector: FaceDetector, *, number: int | None = None, margin: float = 2.0
) -> tuple[Square, str | None]:
    """Return the square around a photo's face, in its pixels, and a remark where the face is small.

    Args:
        photo: the photo, as read.
        detector: finds its faces.
        number: which face, counted from the left starting at 1; None if there is but one.
        margin: side of the square in multiples of the face's longer side.

    Raises:
        FaceError: no face, several without a number, or no such number.
    """
    face = choose_face(detector(convert_to_bytes(photo.pixels)), number)
    height, width = photo.pixels.shape[-2:]
    return find_square_around(face, height, width, margin), describe_small_face(face)


def crop_face(
    photo: Photo, detector: FaceDetector, resolution: int, *, number: int | None = None, margin: float = 2.0
) -> Tensor:
    """Return the photo's face with its surroundings, `[3, resolution, resolution]` in [-1, 1]: `find_face_square`."""
    square, _ = find_face_square(photo, detector, number=number, margin=margin)
    return crop_square(photo, square, resolution)


def crop_middle(photo: Photo, resolution: int) -> Tensor:
    """Return the middle of the photo as `[3, resolution, resolution]`; needs no face."""
    return crop_square(photo, find_square_in_middle(*photo.pixels.shape[-2:]), resolution)


def compute_photo_digest(pixels: Tensor) -> str:
    """Compute the SHA-256 of a photo `[3, height, width]` in [-1, 1], as bytes with its height and width, in hex."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(np.ascontiguousarray(convert_to_bytes(pixels)).data)
    return digest.hexdigest()


def convert_to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pixels `[3, height, width]` in [-1, 1] as `[height, width, 3]` bytes, for detectors."""
    _, height, width = pixels.shape
    bytes_hwc = torch.empty(height, width, 3, dtype=torch.uint8)
    for start in range(0, height, ROWS):
        rows = pixels[:, start : start + ROWS].float()
        bytes_hwc[start : start + ROWS] = ((rows + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    return bytes_hwc.numpy()
