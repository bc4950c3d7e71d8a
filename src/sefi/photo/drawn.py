"""Whether a picture is a photograph or one of the flat drawings that the embedded model knows, from its statistics."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sefi.core.errors import PhotoError

WEIGHTS = Path(__file__).parent.parent / "models" / "photographs.json"
RESOLUTION = 96  # of the pictures that the classifier was fitted on: the embedded model's
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
LUMINANCE = (0.299, 0.587, 0.114)
LEVELS = 16  # of each colour, where colours are counted
COMMON = (1, 8, 32)  # the most frequent colours
SMALL = 1e-2


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on the statistics; `benchmarks/photographs.py` fits it.

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
        """Return a logit for each row of `[picture, statistic]`, above 0 for photographs."""
        return ((statistics - self.mean) / self.scale) @ self.weights + self.bias


@cache
def read_classifier() -> Classifier:
    """Return the classifier in the package."""
    values = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    rows = (torch.tensor(values[name]) for name in ("mean", "scale", "weights"))
    return Classifier(*rows, bias=float(values["bias"]))


def check_drawn(square: Tensor) -> None:
    """Refuse a photograph `[3, RESOLUTION, RESOLUTION]` in [-1, 1], where the model knows drawings only.

    Raises:
        PhotoError: it has the statistics of a photograph.
    """
    if score_photograph(square) > 0:
        raise PhotoError(
            "This looks like a photograph, and the embedded model knows drawn people and animals only.",
            "Name a Stable Diffusion model with --model, or learn it anyway with --anyway (in Python anyway=True).",
        )


def score_photograph(square: Tensor) -> float:
    """Return how surely a picture `[3, RESOLUTION, RESOLUTION]` in [-1, 1] is a photograph: a logit, above 0 it is."""
    return float(read_classifier().score(measure_statistics(square[None]))[0])


def measure_statistics(pictures: Tensor) -> Tensor:
    """Return `[picture, statistic]` of pictures `[picture, 3, R, R]` in [-1, 1].

    A drawing is flat between few edges, so most of its differences between neighbours are far below their mean; a
    photograph has detail everywhere. Shares of the mean barely change with size, blur and compression.
    """
    rgb = (pictures.float() + 1) / 2
    grey = (rgb * torch.tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    details = [measure_details(grey), measure_details(F.avg_pool2d(grey, 2))]
    return torch.cat([*details, measure_colours(rgb)], dim=1)


def measure_details(grey: Tensor) -> Tensor:
    """Return how differences between neighbours, first and second, are spread, `[picture, 13]`."""
    across, down = grey.diff(dim=-1).abs().flatten(1), grey.diff(dim=-2).abs().flatten(1)
    corners = grey.diff(dim=-1).diff(dim=-1).diff(dim=-2).diff(dim=-2).abs().flatten(1) / 4
    slopes = torch.cat([across, down], dim=1)
    steep, fine = (values.mean(1, keepdim=True) + 1e-4 for values in (slopes, corners))
    spread = [torch.log(quantiles(values) / mean + SMALL) for values, mean in ((slopes, steep), (corners, fine))]
    return torch.cat([spread[0], torch.log(steep), spread[1], torch.log(fine), torch.log(fine / steep)], dim=1)


def measure_colours(rgb: Tensor) -> Tensor:
    """Return how saturated, bright and various the colours are, `[picture, 16]`."""
    bright, dark = rgb.amax(1), rgb.amin(1)
    saturation = (bright - dark) / (bright + SMALL)
    tint = rgb.mean((2, 3)).std(1, keepdim=True)
    counted = torch.stack([count_colours(one) for one in rgb])
    return torch.cat([quantiles(saturation.flatten(1)), quantiles(bright.flatten(1)), tint, counted], dim=1)


def count_colours(rgb: Tensor) -> Tensor:
    """Return log number, shares of the most common, and entropy of the coarse colours of `[3, R, R]` in [0, 1]."""
    red, green, blue = (rgb * (LEVELS - 0.01)).long()
    counts = torch.bincount((red * LEVELS**2 + green * LEVELS + blue).flatten(), minlength=LEVELS**3).float()
    shares = counts[counts > 0].sort(descending=True).values / counts.sum()
    common = [shares[:n].sum() for n in COMMON]
    return torch.stack([torch.tensor(float(len(shares))).log(), *common, -(shares * shares.log()).sum()])


def quantiles(values: Tensor) -> Tensor:
    """Return the values `[picture, value]` below which each of `SHARES` lies, `[picture, share]`."""
    return torch.stack([values.quantile(share, dim=1) for share in SHARES], dim=1)
