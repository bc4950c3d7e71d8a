"""Cross-attention with a key text and a value text of its own, and the reference text's map in place."""
# diffusers declares the layers of an attention block optional; a cross-attention block has them all.
# pyright: reportOptionalCall=false, reportOptionalSubscript=false

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from sefi.attention.maps import compute_map_difference, reshape_to_maps
from sefi.attention.recorder import AttentionRecorder


@dataclass(frozen=True)
class LossSettings:
    """What of the maps is compared.

    Attributes:
        words: which words count, boolean `[batch, word]`.
        latent: height and width of the latent; maps are compared at half of it.
        reduction: "sum" or "mean".
        detach_query: let the loss reach the key tokens only through this layer's keys.
    """

    words: Tensor
    latent: tuple[int, int]
    reduction: Literal["sum", "mean"]
    detach_query: bool


class KeyValueProcessor:
    """Processor for one cross-attention layer; keeps nothing between calls.

    The context is `[batch, word, 2 * width]`: key text, value text; or `3 * width` with the reference text.
    Equal key and value texts give what the stock processor gives.

    Args:
        detach_start: no gradient through key and value of the first word (Custom Diffusion's second regulariser).
    """

    def __init__(
        self,
        name: str,
        width: int,
        tape: AttentionRecorder | None,
        loss: LossSettings | None,
        *,
        detach_start: bool = False,
    ) -> None:
        self.name, self.width, self.tape, self.loss = name, width, tape, loss
        self.detach_start = detach_start

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Positions `[batch, position, channel]` read the texts."""
        key_text, value_text, *reference = encoder_hidden_states.split(self.width, dim=-1)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key = split_heads(attn.to_k(key_text), attn.heads)
        value = split_heads(attn.to_v(value_text), attn.heads)
        if self.detach_start:
            key, value = start_detached(key), start_detached(value)
        if self.tape is None:
            read = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        else:
            weights = compute_attention_weights(query, key, attn.scale)
            reference_key = split_heads(attn.to_k(reference[0]), attn.heads) if reference else None
            self.record(self.tape, query, key, weights, reference_key, attn.scale)
            read = weights.to(value.dtype) @ value
        joined = read.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](joined))

    def record(
        self,
        tape: AttentionRecorder,
        query: Tensor,
        key: Tensor,
        weights: Tensor,
        reference_key: Tensor | None,
        scale: float,
    ) -> None:
        """Write this layer's loss, or its maps, to the tape."""
        if reference_key is None and not tape.keep_maps:
            return
        height, width = self.picture(query.shape[2])
        reference: Tensor | None = None
        if reference_key is not None:
            with torch.no_grad():
                reference = reshape_to_maps(compute_attention_weights(query, reference_key, scale), height, width)
        if self.loss is not None and reference is not None:
            seen = compute_attention_weights(query.detach(), key, scale) if self.loss.detach_query else weights
            side = (max(1, self.loss.latent[0] // 2), max(1, self.loss.latent[1] // 2))
            found = reshape_to_maps(seen, height, width)
            tape.losses.append(compute_map_difference(found, reference, self.loss.words, side, self.loss.reduction))
        if tape.keep_maps:
            maps = reshape_to_maps(weights, height, width)
            tape.maps[self.name] = maps if tape.keep_gradient else maps.detach()
            if reference is not None:
                tape.reference_maps[self.name] = reference

    def picture(self, positions: int) -> tuple[int, int]:
        """Height and width of this layer's map: the latent halved until it has that many positions."""
        height, width = self.loss.latent if self.loss is not None else (int(positions**0.5),) * 2
        while height * width > positions:
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


def start_detached(x: Tensor) -> Tensor:
    """`[batch, head, word, channel]` without gradient through the first word."""
    return torch.cat([x[:, :, :1].detach(), x[:, :, 1:]], dim=2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[batch, length, head * channel]` to `[batch, head, length, channel]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def compute_attention_weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """`softmax(Q K^T * scale)` in single precision, `[batch, head, position, word]`."""
    return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(dim=-1)
