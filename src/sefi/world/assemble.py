"""Trained parts to a Stable Diffusion folder that stock diffusers opens."""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.world.diffusion_training import Trained, new_schedule
from sefi.world.text_training import bake_names


def assemble(folder: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKL, weights: dict[str, Tensor]) -> None:
    """Write the pipeline in half precision.

    Args:
        folder: where it goes.
        weights: the averaged state of a `Trained`; the named characters' tokens are computed here.
    """
    model = Trained(tokenizer)
    model.load_state_dict(weights)
    bake_names(model.words())
    write_pipeline(folder, tokenizer, vae, model.text, model.unet)


def write_pipeline(
    folder: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel
) -> None:
    """Write a Stable Diffusion folder in half precision, as stock diffusers opens it."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format),  # pyright: ignore[reportCallIssue]
        scheduler=new_schedule(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Remove the training machine's paths from configurations, and let every part open in single precision.

    Half precision is for storage; left to themselves, transformers opens what was stored and diffusers does not.
    """
    for file in folder.rglob("*config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        if "dtype" in content:
            content["dtype"] = "float32"
        write_text(file, dump_json(content, indent=2, sort_keys=True) + "\n")
