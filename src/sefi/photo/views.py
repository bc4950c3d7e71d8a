"""A photo to the square that is learned and its endless random views."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sefi.core.config import ViewConfig
from sefi.core.nouns import Photo
from sefi.core.protocols import FaceDetector
from sefi.photo.augment import ViewParameters, apply, draw_parameters
from sefi.photo.crop import cut, square_around, square_in_middle
from sefi.photo.detect import MIN_FACE_SIDE, choose_face

ROWS = 256  # converted at a time: the floats of a whole large photo would fill the memory


@dataclass(frozen=True)
class PhotoViews:
    """The views of one photo.

    Attributes:
        square: the picture as cropped, `[3, R, R]` in [-1, 1].
        config: ranges of the random views.
    """

    square: Tensor
    config: ViewConfig

    @property
    def clean(self) -> Tensor:
        """The picture itself, `[3, R, R]`."""
        return self.square

    def draw(self, generator: torch.Generator) -> ViewParameters:
        """What makes the next view, as a value."""
        return draw_parameters(self.config, generator)

    def view(self, generator: torch.Generator) -> Tensor:
        """A random view, `[3, R, R]` in [-1, 1]; equal generators give equal views."""
        return apply(self.square, self.draw(generator))


def face_square(
    photo: Photo,
    detector: FaceDetector,
    resolution: int,
    *,
    number: int | None = None,
    margin: float = 2.0,
    min_side: float = MIN_FACE_SIDE,
) -> Tensor:
    """The photo's face with its surroundings, `[3, resolution, resolution]` in [-1, 1].

    Args:
        photo: the photo, as read.
        detector: finds its faces.
        resolution: side of the result in pixels.
        number: which face, counted from the left starting at 1; None if there is but one.
        margin: side of the crop in multiples of the face's longer side.
        min_side: shortest allowed side of the face in photo pixels.

    Raises:
        FaceError: no face, several without a number, no such number, or too small a face.
    """
    face = choose_face(detector(rgb_bytes(photo.pixels)), number, min_side=min_side)
    height, width = photo.pixels.shape[-2:]
    return cut(photo, square_around(face, height, width, margin), resolution)


def whole_square(photo: Photo, resolution: int) -> Tensor:
    """The middle of the photo as `[3, resolution, resolution]`; needs no face."""
    return cut(photo, square_in_middle(*photo.pixels.shape[-2:]), resolution)


def rgb_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels `[3, height, width]` in [-1, 1] as `[height, width, 3]` bytes, for detectors."""
    _, height, width = pixels.shape
    bytes_hwc = torch.empty(height, width, 3, dtype=torch.uint8)
    for start in range(0, height, ROWS):
        rows = pixels[:, start : start + ROWS].float()
        bytes_hwc[start : start + ROWS] = ((rows + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    return bytes_hwc.numpy()
