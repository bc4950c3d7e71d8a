"""A short name for a model's weights, so that an identity finds the model it belongs to."""

import hashlib
from typing import cast

import torch
from torch import Tensor

from sefi.backbone.bundle import Family
from sefi.backbone.parts import Parts

FAMILY_OF_WIDTH: dict[int, Family] = {768: "sd1", 1024: "sd2"}


def family_of(width: int) -> Family:
    """Kind of model with this text width: 768 is SD 1.x, 1024 SD 2.x, all others are tiny."""
    return FAMILY_OF_WIDTH.get(width, "tiny")


def fingerprint_of(parts: Parts) -> str:
    """`family:width:16 hex digits` over the token table and the UNet's first convolution.

    Both are rounded to bfloat16 first, so that a model opened in float32 and in bfloat16 is
    the same model. A float16 load of a float32 file is rounded twice and may differ: open such
    a file in float32 and cast it afterwards (`open_backbone` does).
    """
    table = parts.text_encoder.get_input_embeddings().weight
    digest = hashlib.sha256()
    for weight in (cast(Tensor, table), parts.unet.conv_in.weight):
        digest.update(_rounded_bytes(weight))
    width = int(parts.text_encoder.config.hidden_size)
    return f"{family_of(width)}:{width}:{digest.hexdigest()[:16]}"


def _rounded_bytes(weight: Tensor) -> bytes:
    rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
    return rounded.view(torch.uint8).numpy().tobytes()
