"""Views of one photo in very different sizes: small on an empty canvas, as it is, or a part of it enlarged."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FAR, NEAR = 0.6, 1.0  # below: small on a canvas; above: a part of it, enlarged
SMALLEST, LARGEST = 1 / 3, (1.2, 1.4)


@dataclass(frozen=True)
class Resized:
    """A view.

    Attributes:
        pixels: `[3, R, R]` in [-1, 1].
        seen: how it looks, for its caption.
        box: left, top, right, bottom of the picture on its canvas as shares of the side; None if it fills it.
    """

    pixels: Tensor
    seen: Literal["plain", "far", "near"]
    box: tuple[float, float, float, float] | None = None


def resized_view(square: Tensor, flip: float, random: torch.Generator) -> Resized:
    """A random view (Custom Diffusion, `diffusers_data_pipeline.py`).

    Two of three are a third to the whole of the side, the others 1.2 to 1.4 times it. What is smaller than 0.6 is
    pasted on grey, what is larger than 1 is cut; in between the picture is left as it is.

    Args:
        square: `[3, R, R]` in [-1, 1].
        flip: chance of a mirror image.
        random: five uniform numbers are drawn, always in the same order.
    """
    large, size, mirrored, across, down = torch.rand(5, generator=random, dtype=torch.float64).tolist()
    picture = square.flip(-1) if mirrored < flip else square
    side = square.shape[-1]
    low, high = (SMALLEST, 1.0) if large < 2 / 3 else LARGEST
    scale = low + (high - low) * size
    if FAR <= scale <= NEAR:
        return Resized(picture.clone(), "plain")
    edge = max(1, round(scale * side))
    other = F.interpolate(picture[None], (edge, edge), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    left, top = round(across * abs(side - edge)), round(down * abs(side - edge))
    if edge > side:
        return Resized(other[:, top : top + side, left : left + side].clone(), "near")
    canvas = square.new_zeros(square.shape)
    canvas[:, top : top + edge, left : left + edge] = other
    return Resized(canvas, "far", (left / side, top / side, (left + edge) / side, (top + edge) / side))
