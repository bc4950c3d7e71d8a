"""A UNet whose cross-attention reads a key text and a value text, beside the model's own."""

from diffusers import UNet2DConditionModel

from sefi.attention.processor import KeyValueProcessor, LossSettings
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.weights import copy_part

CROSS = "attn2.processor"


def copy_with_key_value_attention(
    unet: UNet2DConditionModel,
    width: int,
    tape: AttentionRecorder | None = None,
    loss: LossSettings | None = None,
    *,
    detach_start: bool = False,
) -> UNet2DConditionModel:
    """Return a copy of `unet` in which every cross-attention reads a key text and a value text of `width` each.

    The copy shares the weights; `unet` itself is not touched. Self-attention keeps its processors.
    """
    copied = copy_part(unet)
    copied.set_attn_processor(
        {
            name: KeyValueProcessor(name, width, tape, loss, detach_start=detach_start)
            if name.endswith(CROSS)
            else stock
            for name, stock in copied.attn_processors.items()
        }  # pyright: ignore[reportArgumentType]
    )
    return copied
