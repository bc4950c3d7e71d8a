"""Latents to images; what is not finite is refused before it can be saved as a black image."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image
from torch import Tensor

from sefi.core.config import GenerateConfig
from sefi.core.errors import GenerationError

STRONG_GUIDANCE = 20.0


def decode_images(
    made: StableDiffusionPipeline, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], config: GenerateConfig
) -> list[Image]:
    """Return the images of a batch's scaled latents `[image, channel, h, w]`, as the pipeline itself decodes them.

    Raises:
        GenerationError: a latent or a pixel is not a finite number; names the image, its seed and the likely cause.
    """
    vae: Any = made.vae
    with torch.no_grad():
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    # One question to the device for the whole batch.
    drawn, decoded = torch.stack([_finite_images(latents), _finite_images(pixels)]).cpu().tolist()
    for number, fine in enumerate(decoded):
        if not (fine and drawn[number]):
            remedy = _remedy(config, latents.dtype, decoding=drawn[number])
            raise GenerationError(
                f"The image of {prompts[number]!r} with seed {seeds[number]} is not made of finite numbers"
                f"{': the latent is, but the VAE cannot decode it' if drawn[number] else ''}; nothing of it is saved.",
                remedy,
            )
    return cast(list[Image], made.image_processor.postprocess(pixels, output_type="pil"))


def _finite_images(values: Tensor) -> Tensor:
    """Which images `[image, ...]` consist of finite numbers, boolean `[image]`."""
    return torch.isfinite(values).flatten(1).all(dim=1)


def _remedy(config: GenerateConfig, dtype: torch.dtype, *, decoding: bool) -> str:
    """What most likely helps: another number type, less guidance, other tokens or another VAE."""
    if dtype == torch.float16:
        return "float16 overflows easily, in the VAE above all: use --dtype float32 or bfloat16."
    if decoding:
        return "Use a model whose VAE is whole, such as another copy of this one."
    if config.guidance_scale > STRONG_GUIDANCE:
        return f"Lower the guidance scale of {config.guidance_scale:g}; 5 to 10 is usual."
    return "Check the identity's tokens (`sefi inspect` shows their norms): learn it again with a lower learning rate."
