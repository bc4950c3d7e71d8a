"""A photo to a square crop: around a face, or around its middle."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sefi.core.nouns import Face, Photo


@dataclass(frozen=True)
class Square:
    """A square region in whole photo pixels; it may reach outside the photo."""

    left: int
    top: int
    side: int


def square_around(face: Face, height: int, width: int, margin: float) -> Square:
    """The square with the face in its middle, `margin` times the face's longer side.

    It stays inside the photo: first made smaller, down to the face itself, then moved. Only a
    face larger than the photo's short side reaches outside.

    Args:
        face: the face, in photo pixels.
        height: of the photo.
        width: of the photo.
        margin: side of the square in multiples of the face's longer side (2 shows the hair).
    """
    longer = max(face.width, face.height, 1.0)
    side = round(max(longer, min(margin * longer, height, width)))
    return Square(
        left=_placed(face.left + face.width / 2, side, width),
        top=_placed(face.top + face.height / 2, side, height),
        side=side,
    )


def square_in_middle(height: int, width: int) -> Square:
    """The largest square in the middle of the photo."""
    side = min(height, width)
    return Square(left=(width - side) // 2, top=(height - side) // 2, side=side)


def cut(photo: Photo, square: Square, resolution: int) -> Tensor:
    """The square's pixels at `[3, resolution, resolution]`, in [-1, 1].

    What lies outside the photo repeats the photo's edge.
    """
    height, width = photo.pixels.shape[-2:]
    bottom, right = square.top + square.side, square.left + square.side
    if min(square.top, square.left) >= 0 and bottom <= height and right <= width:
        region = photo.pixels[:, square.top : bottom, square.left : right]  # no copy of a large photo
    else:
        rows = torch.arange(square.top, bottom).clamp(0, height - 1)
        columns = torch.arange(square.left, right).clamp(0, width - 1)
        region = photo.pixels[:, rows][:, :, columns]
    return resized(region, resolution, resolution)


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pixels `[3, h, w]` at another size: bicubic, smoothed when shrinking, clipped to [-1, 1]."""
    if pixels.shape[-2:] == (height, width):
        return pixels.clone()
    scaled = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return scaled[0].clamp(-1, 1)


def _placed(centre: float, side: int, length: int) -> int:
    """Start of `side` pixels around the centre, moved inside `length` where that is possible."""
    start = round(centre - side / 2)
    if side > length:
        return start
    return min(max(start, 0), length - side)
