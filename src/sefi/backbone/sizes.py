"""Stable Diffusion 1.x without a single value: for counting weights."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sefi.backbone.bundle import Backbone
from sefi.backbone.vocabulary import clip_tokenizer

CONFIGS = Path(__file__).parent / "configs" / "sd1"
RESOLUTION = 512


def empty_stable_diffusion() -> Backbone:
    """A model of the size of Stable Diffusion 1.4 on the meta device: every shape, no memory."""
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**configuration("text_encoder")))
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(configuration("unet")))
        vae = cast(AutoencoderKL, AutoencoderKL.from_config(configuration("vae")))
    scheduler = cast(DDPMScheduler, DDPMScheduler.from_pretrained(CONFIGS, subfolder="scheduler"))
    width = int(text.config.hidden_size)
    return Backbone(
        clip_tokenizer(), text, vae, unet, scheduler, f"sd1:{width}:empty", width, "sd1", RESOLUTION, "sizes only"
    )


def configuration(part: str) -> dict[str, Any]:
    """The shipped configuration of one part."""
    return json.loads((CONFIGS / part / "config.json").read_text(encoding="utf-8"))
