"""One square picture to one random view; the draw is a value and can be replayed."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from kornia import enhance
from torch import Tensor
from torch.nn import functional as F

from sefi.core.config import ViewConfig

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
        scale: height of the pasted picture as a share of the canvas.
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


def draw_parameters(config: ViewConfig, generator: torch.Generator) -> ViewParameters:
    """Draw a view: nine uniform numbers, always in the same order (section 6.4 of the paper).

    Source: ranges of colour, aspect and canvas from Celeb Basis, `FaceIdDataset`. Differs: the
    four colour changes come in one fixed order, not a shuffled one.
    """
    u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    return ViewParameters(
        brightness=1 + config.brightness * (2 * u[0] - 1),
        contrast=1 + config.contrast * (2 * u[1] - 1),
        saturation=1 + config.saturation * (2 * u[2] - 1),
        hue=config.hue * (2 * u[3] - 1),
        flip=u[4] < config.flip,
        scale=config.min_scale + (config.max_scale - config.min_scale) * u[5],
        aspect=1 + config.aspect * (2 * u[6] - 1),
        left=u[7],
        top=u[8],
        canvas=config.canvas,
    )


def apply(square: Tensor, parameters: ViewParameters) -> Tensor:
    """The view of `square` that the parameters describe.

    Args:
        square: `[3, R, R]` in [-1, 1].
        parameters: what was drawn.

    Returns:
        `[3, R, R]` in [-1, 1].
    """
    picture = _recoloured(square, parameters)
    if parameters.flip:
        picture = picture.flip(-1)
    return _pasted(picture, parameters)


def _recoloured(square: Tensor, parameters: ViewParameters) -> Tensor:
    changes = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    if changes == (1, 1, 1, 0):
        return square
    picture = (square + 1) / 2
    picture = enhance.adjust_brightness_accumulative(picture, parameters.brightness)
    picture = enhance.adjust_contrast_with_mean_subtraction(picture, parameters.contrast)
    picture = enhance.adjust_saturation_with_gray_subtraction(picture, parameters.saturation)
    picture = enhance.adjust_hue(picture, parameters.hue * 2 * math.pi)
    return (picture * 2 - 1).clamp(-1, 1)


def _pasted(picture: Tensor, parameters: ViewParameters) -> Tensor:
    side = picture.shape[-1]
    height = _whole_side(side * parameters.scale, side)
    width = _whole_side(side * parameters.scale * parameters.aspect, side)
    if (height, width) == (side, side):
        return picture.clone()
    small = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = round(parameters.left * (side - width)), round(parameters.top * (side - height))
    return _framed(small.clamp(-1, 1), left, top, side, parameters.canvas)


def _framed(small: Tensor, left: int, top: int, side: int, canvas: Canvas) -> Tensor:
    """The small picture on a canvas of `side`, its corner at (left, top)."""
    height, width = small.shape[-2:]
    right, below = side - width - left, side - height - top
    if canvas == "edge":
        return F.pad(small[None], (left, right, top, below), mode="replicate")[0]
    ground = small.new_full((3, side, side), -1.0)
    if canvas == "mean":
        ground = small.mean((1, 2), keepdim=True).expand(3, side, side).clone()
    ground[:, top : top + height, left : left + width] = small
    return ground


def _whole_side(length: float, limit: int) -> int:
    return min(max(round(length), 1), limit)
