"""COMPOSER: our processors in, and whatever was there back out."""

from collections.abc import Generator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel

from sefi.attention.processor import KeyValueProcessor, LossSettings
from sefi.attention.tape import Tape

CROSS = "attn2.processor"


@contextmanager
def key_value_attention(
    unet: UNet2DConditionModel,
    width: int,
    tape: Tape | None = None,
    loss: LossSettings | None = None,
    *,
    detach_start: bool = False,
) -> Generator[None]:
    """Within the block every cross-attention of `unet` reads a key text and a value text of `width` each.

    Self-attention is not touched. On leaving, also through an error, every processor is the object it was.
    """
    before = dict(unet.attn_processors)
    ours = {
        name: KeyValueProcessor(name, width, tape, loss, detach_start=detach_start) if name.endswith(CROSS) else stock
        for name, stock in before.items()
    }
    try:
        unet.set_attn_processor(ours)  # pyright: ignore[reportArgumentType]
        yield
    finally:
        unet.set_attn_processor(before)
