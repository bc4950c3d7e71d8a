"""A short name for a model's weights, so that an identity finds the model it belongs to."""

import hashlib

import torch
from torch import Tensor

from sefi.backbone.bundle import Family
from sefi.backbone.parts import Parts
from sefi.backbone.signature import base_rows, table_of

FAMILY_OF_WIDTH: dict[int, Family] = {768: "sd1", 1024: "sd2"}


def family_of(width: int) -> Family:
    """Kind of model with this text width: 768 is SD 1.x, 1024 SD 2.x, all others are tiny."""
    return FAMILY_OF_WIDTH.get(width, "tiny")


def fingerprint_of(parts: Parts) -> str:
    """Return `family:width:16 hex digits` over the token table, without added tokens, and the UNet's first convolution.

    This names a model in records and in identity files of version 1. Both tensors are rounded to bfloat16 first, so
    that a model opened in float32 and in bfloat16 has one name; a float16 copy is rounded twice and may have another.
    Whether an identity fits is decided by `sefi.backbone.signature`.
    """
    table = table_of(parts.text_encoder)
    digest = hashlib.sha256()
    for weight in (table[: base_rows(parts.tokenizer, table)], parts.unet.conv_in.weight):
        digest.update(_rounded_bytes(weight))
    width = int(parts.text_encoder.config.hidden_size)
    return f"{family_of(width)}:{width}:{digest.hexdigest()[:16]}"


def _rounded_bytes(weight: Tensor) -> bytes:
    rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
    return rounded.view(torch.uint8).numpy().tobytes()
