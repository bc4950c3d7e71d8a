"""Attention maps: their shape on the picture, their size, the difference of two."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sefi.attention.recorder import AttentionRecorder


def reshape_to_maps(weights: Tensor, height: int, width: int) -> Tensor:
    """Weights `[batch, head, position, word]` as maps `[batch, head, word, height, width]`."""
    return weights.transpose(2, 3).unflatten(-1, (height, width))


def resize_maps(maps: Tensor, side: tuple[int, int]) -> Tensor:
    """Maps `[batch, head, word, h, w]` bilinearly resized to `side`; sums over words stay what they were."""
    flat = maps.flatten(0, 1)
    return F.interpolate(flat, size=side, mode="bilinear", align_corners=False).unflatten(0, maps.shape[:2])


def compute_map_difference(
    found: Tensor,
    reference: Tensor,
    words: Tensor,
    side: tuple[int, int],
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """The paper's attention loss of one layer (Algorithm 1), `[batch]`.

    Args:
        found, reference: maps `[batch, head, word, h, w]`; no gradient flows into the reference.
        words: which words count, boolean `[batch, word]`.
        side: resize both to this height and width first.
        reduction: sum over heads, words and pixels (lambda = 0.003 belongs to it), or mean.

    Differs: Algorithm 1 prints MSE(A_t, A_t); we read MSE(A_r, A_t).
    """
    # Resizing is linear: one resize of the difference gives the difference of the resized maps at half the price.
    error = resize_maps(found - reference.detach(), side).pow(2) * words[:, None, :, None, None]
    total = error.sum((1, 2, 3, 4))
    if reduction == "sum":
        return total
    return total / (words.sum(1) * found.shape[1] * side[0] * side[1])


def average_word_maps(tape: AttentionRecorder, side: int, *, reference: bool = False) -> Tensor:
    """The last pass's maps averaged over layers and heads: `[batch, word, side, side]`, summing to 1 over words."""
    layers = (tape.reference_maps if reference else tape.maps).values()
    return torch.stack([resize_maps(m.float(), (side, side)).mean(1) for m in layers]).mean(0)
