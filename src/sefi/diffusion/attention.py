"""Cross-attention with a key text and a value text: recorder, maps, processor, and the UNet copy that has them."""
# diffusers declares the layers of an attention block optional; a cross-attention block has them all.
# pyright: reportOptionalCall=false, reportOptionalSubscript=false

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from sefi.backbone.bundle import copy_part


@dataclass
class AttentionRecorder:
    """Losses and maps of one forward pass, recorded by the attention processors.

    Attributes:
        keep_maps: record every layer's maps, not only the loss.
        keep_gradient: record them with their gradient, for losses on the maps themselves.
        latent_size: height and width of the latent, where it is not square.
        losses: attention loss of each layer, each `[batch]`.
        maps: each layer's maps `[batch, head, word, height, width]`, by layer name.
        reference_maps: the same of the reference text.
        loss_options: what the attention loss compares; whoever calls the UNet may change it between two passes.
    """

    keep_maps: bool = False
    keep_gradient: bool = False
    latent_size: tuple[int, int] | None = None
    losses: list[Tensor] = field(default_factory=list[Tensor])
    maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    reference_maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    loss_options: "LossOptions | None" = None

    def clear(self) -> None:
        """Remove everything that was recorded."""
        self.losses.clear()
        self.maps.clear()
        self.reference_maps.clear()

    def pop_mean_loss(self) -> Tensor:
        """Return the mean loss over layers, `[batch]`, and remove the losses."""
        total = sum(self.losses[1:], self.losses[0]) / len(self.losses)
        self.losses.clear()
        return total


def reshape_to_maps(weights: Tensor, height: int, width: int) -> Tensor:
    """Reshape weights `[batch, head, position, word]` to maps `[batch, head, word, height, width]`."""
    return weights.transpose(2, 3).unflatten(-1, (height, width))


def resize_maps(maps: Tensor, side: tuple[int, int]) -> Tensor:
    """Resize maps `[batch, head, word, h, w]` to `side`, bilinearly; sums over words stay what they were."""
    if maps.shape[-2:] == side:
        return maps  # what interpolation would give, without its backward pass
    flat = maps.flatten(0, 1)
    return F.interpolate(flat, size=side, mode="bilinear", align_corners=False).unflatten(0, maps.shape[:2])


def compute_map_difference(
    maps: Tensor,
    reference: Tensor,
    words: Tensor,
    side: tuple[int, int],
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """Return the paper's attention loss of one layer (Algorithm 1), `[batch]`.

    Args:
        maps, reference: `[batch, head, word, h, w]`; no gradient flows into the reference.
        words: which words count, boolean `[batch, word]`.
        side: resize both to this height and width first.
        reduction: sum over heads, words and pixels (lambda = 0.003 belongs to it), or mean.

    Differs: Algorithm 1 prints MSE(A_t, A_t); we read MSE(A_r, A_t).
    """
    # Resizing is linear: one resize of the difference gives the difference of the resized maps at half the price.
    error = resize_maps(maps - reference.detach(), side).pow(2) * words[:, None, :, None, None]
    total = error.sum((1, 2, 3, 4))
    if reduction == "sum":
        return total
    return total / (words.sum(1) * maps.shape[1] * side[0] * side[1])


def compute_map_excess(maps: Tensor, reference: Tensor, options: "LossOptions", side: tuple[int, int]) -> Tensor:
    """Return the hinge of the attention loss of one layer, `[batch]`.

    L = sum over heads, the chosen words and pixels of (outside * max(0, A - A_ref))^2, or its mean: a word may look
    where the class word looks, and anywhere inside the face; nothing pulls it to the reference.

    Args:
        maps, reference: `[batch, head, word, h, w]`; no gradient flows into the reference.
        side: resize both to this height and width first.
    """
    excess = resize_maps(maps - reference.detach(), side).clamp(min=0)
    if options.outside is not None:
        excess = excess * F.interpolate(options.outside.float(), side, mode="area")[:, :, None]
    words = options.words[:, None, :, None, None]
    total = (excess.pow(2) * words).sum((1, 2, 3, 4))
    if options.reduction == "sum":
        return total
    return total / (options.words.sum(1) * maps.shape[1] * side[0] * side[1])


def average_word_maps(recorder: AttentionRecorder, side: int | tuple[int, int], *, reference: bool = False) -> Tensor:
    """Average the last pass's maps over layers and heads: `[batch, word, height, width]`, summing to 1 over words.

    Args:
        side: height and width of the result; one number for both.
    """
    size = (side, side) if isinstance(side, int) else side
    layers = (recorder.reference_maps if reference else recorder.maps).values()
    return torch.stack([resize_maps(m.float(), size).mean(1) for m in layers]).mean(0)


@dataclass(frozen=True)
class LossOptions:
    """Which parts of the maps the attention loss compares.

    Attributes:
        words: which words count, boolean `[batch, word]`.
        latent_size: height and width of the latent; maps are compared at half of it.
        reduction: "sum" or "mean".
        detach_query: let the loss reach the key tokens only through this layer's keys.
        hinge: count only what exceeds the reference.
        outside: where it counts, shares of latent cells `[batch, 1, h, w]` in [0, 1]; None: everywhere.
    """

    words: Tensor
    latent_size: tuple[int, int]
    reduction: Literal["sum", "mean"]
    detach_query: bool
    hinge: bool = False
    outside: Tensor | None = None


class KeyValueProcessor:
    """Processor for one cross-attention layer; keeps nothing between calls, but for the block of `reuse_projections`.

    The context is `[batch, word, 2 * width]`: key text, value text; or `3 * width` with the reference text, where the
    width is that of the text which the layer was made for.
    Equal key and value texts give what the stock processor gives.

    Args:
        detach_start: no gradient through key and value of the first word (Custom Diffusion's second regulariser).
    """

    def __init__(
        self,
        name: str,
        recorder: AttentionRecorder | None,
        *,
        detach_start: bool = False,
    ) -> None:
        self.name, self.recorder, self.detach_start = name, recorder, detach_start
        self.reuses = False
        self.projected: tuple[Tensor, int | None, Tensor, Tensor] | None = None  # context, its version, key and value

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Let positions `[batch, position, channel]` read the texts; no Stable Diffusion gives a mask or `temb`."""
        reference = encoder_hidden_states.split(attn.cross_attention_dim, dim=-1)[2:]
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = self.project_texts(attn, encoder_hidden_states)
        if self.detach_start:
            key, value = detach_first_word(key), detach_first_word(value)
        if self.recorder is None:
            read = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        else:
            weights = compute_attention_weights(query, key, attn.scale)
            reference_key = split_heads(attn.to_k(reference[0]), attn.heads) if reference else None
            self.record(self.recorder, query, key, weights, reference_key, attn.scale)
            read = weights.to(value.dtype) @ value
        joined = read.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](joined))

    def project_texts(self, attn: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value `[batch, head, word, channel]`; within `reuse_projections` once for each context."""
        if self.projected is not None:
            known, version, key, value = self.projected
            if known is context and version == get_change_number(context):  # changed in place: another text
                return key, value
        key_text, value_text = context.split(attn.cross_attention_dim, dim=-1)[:2]
        key, value = split_heads(attn.to_k(key_text), attn.heads), split_heads(attn.to_v(value_text), attn.heads)
        if self.reuses:
            self.projected = (context, get_change_number(context), key, value)
        return key, value

    def record(
        self,
        recorder: AttentionRecorder,
        query: Tensor,
        key: Tensor,
        weights: Tensor,
        reference_key: Tensor | None,
        scale: float,
    ) -> None:
        """Record this layer's loss, or its maps."""
        if reference_key is None and not recorder.keep_maps:
            return
        options = recorder.loss_options
        height, width = get_map_size(query.shape[2], recorder.latent_size if options is None else options.latent_size)
        reference: Tensor | None = None
        if reference_key is not None:
            with torch.no_grad():
                reference = reshape_to_maps(compute_attention_weights(query, reference_key, scale), height, width)
        if options is not None and reference is not None:
            seen = compute_attention_weights(query.detach(), key, scale) if options.detach_query else weights
            side = (max(1, options.latent_size[0] // 2), max(1, options.latent_size[1] // 2))
            compared = reshape_to_maps(seen, height, width)
            if options.hinge:
                recorder.losses.append(compute_map_excess(compared, reference, options, side))
            else:
                difference = compute_map_difference(compared, reference, options.words, side, options.reduction)
                recorder.losses.append(difference)
        if recorder.keep_maps:
            maps = reshape_to_maps(weights, height, width)
            recorder.maps[self.name] = maps if recorder.keep_gradient else maps.detach()
            if reference is not None:
                recorder.reference_maps[self.name] = reference


def get_change_number(tensor: Tensor) -> int | None:
    """Return a number that changes with every change in place; None within `torch.inference_mode`, which has none."""
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001


def get_map_size(positions: int, latent_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return height and width of a layer's map: the latent halved until it has that many positions."""
    height, width = latent_size or (int(positions**0.5),) * 2
    while height * width > positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


def detach_first_word(x: Tensor) -> Tensor:
    """Return `x [batch, head, word, channel]` without gradient through the first word."""
    return torch.cat([x[:, :, :1].detach(), x[:, :, 1:]], dim=2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split `[batch, length, head * channel]` into `[batch, head, length, channel]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def compute_attention_weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Compute `softmax(Q K^T * scale)` in single precision, `[batch, head, position, word]`."""
    return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(dim=-1)


CROSS = "attn2.processor"
UNet = UNet2DConditionModel  # for rooms that know diffusers through this one
Denoiser = TypeVar("Denoiser", UNet2DConditionModel, ControlNetModel)


def copy_with_key_value_attention(
    unet: Denoiser,
    recorder: AttentionRecorder | None = None,
    *,
    detach_start: bool = False,
) -> Denoiser:
    """Return a copy of a UNet, or of a ControlNet, in which every cross-attention reads a key text and a value text.

    The copy shares the weights; the original is not touched. Self-attention keeps its processors.
    """
    copied = copy_part(unet)
    copied.set_attn_processor(
        {
            name: KeyValueProcessor(name, recorder, detach_start=detach_start) if name.endswith(CROSS) else stock
            for name, stock in copied.attn_processors.items()
        }  # pyright: ignore[reportArgumentType]
    )
    return copied


@contextmanager
def reuse_projections(*denoisers: UNet2DConditionModel | ControlNetModel) -> Generator[None]:
    """Let a block project each context to keys and values once, however many denoising steps read it.

    A stage's steps are given the same tensor, so its keys and values are the same numbers. Nothing is held afterwards.

    Args:
        denoisers: copies of `copy_with_key_value_attention`, whose weights do not change within the block.
    """
    found = [one for denoiser in denoisers for one in denoiser.attn_processors.values()]
    processors = [one for one in found if isinstance(one, KeyValueProcessor)]
    for processor in processors:
        processor.reuses = True
    try:
        yield
    finally:
        for processor in processors:
            processor.reuses, processor.projected = False, None
