"""Tiny models of the real classes, as folders and as single files."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sefi.backbone.bundle import ModelParts
from sefi.backbone.tokenizer import create_clip_tokenizer
from sefi.core.config import Config, override
from sefi.methods import PRESETS

# Sizes that cannot be confused: text width 24, text length 13, 3 latent channels, factor 4.
WIDTH, LENGTH, CHANNELS, LATENT = 24, 13, 3, 8
WORDS = ["a</w>", "photo</w>", "of</w>", "person</w>", "face</w>"]


def tiny_tokenizer() -> CLIPTokenizer:
    """A word-per-token CLIP tokenizer: every letter, five words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(x + "</w>" for x in letters), *WORDS]
    unique = list(dict.fromkeys(words))
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(unique)},
        merges=[],
        model_max_length=LENGTH,
    )


def tiny_text_encoder(width: int, length: int, words: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=length,
            projection_dim=width,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def tiny_unet(width: int, channels: int, sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def tiny_vae(channels: int, **changes: object) -> AutoencoderKL:
    settings: dict = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": LATENT * 4,
        "scaling_factor": 0.5,
    }
    return AutoencoderKL(**settings | changes)


@pytest.fixture(scope="session")
def parts() -> ModelParts:
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer()
    return ModelParts(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(WIDTH, LENGTH, len(tokenizer)),
        vae=tiny_vae(CHANNELS),
        unet=tiny_unet(WIDTH, CHANNELS, LATENT),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            prediction_type="v_prediction",
        ),
        family="tiny",
    )  # fmt: skip


@pytest.fixture(scope="session")
def sd1_parts() -> ModelParts:
    """Shaped like SD 1.x where a single file shows it: width 768, 77 words, 4 channels."""
    torch.manual_seed(11)
    return ModelParts(
        tokenizer=create_clip_tokenizer(),
        text_encoder=tiny_text_encoder(768, 77, 49408),
        vae=tiny_vae(4),
        unet=tiny_unet(768, 4, LATENT),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        family="sd1",
    )


def write_folder(parts: ModelParts, folder: Path, scheduler: ConfigMixin | None = None) -> Path:
    """Save parts as a pipeline folder with diffusers' own writer."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=scheduler or PNDMScheduler.from_config(parts.scheduler.config, steps_offset=1, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(parts, tmp_path_factory.mktemp("model") / "tiny")


# Text width, text length, latent channels and latent size of the models that learn.
SMALL = (24, 17, 4, 8)


def write_learnable(
    tokenizer: CLIPTokenizer, folder: Path, *, unet: dict | None = None, vae: dict | None = None
) -> Path:
    """Write a folder whose tokenizer knows the learning sentences; `unet` and `vae` change arguments of the classes."""
    torch.manual_seed(13)
    width, length, channels, latent = SMALL
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    types = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    settings = {"sample_size": latent, "cross_attention_dim": width, "attention_head_dim": 2, **sizes, **types}
    parts = ModelParts(
        tokenizer=tokenizer,
        text_encoder=tiny_text_encoder(width, length, len(tokenizer)),
        vae=tiny_vae(channels, **(vae or {})),
        unet=UNet2DConditionModel(**settings | (unet or {})),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        family="tiny",
    )
    return write_folder(parts, folder)


@pytest.fixture
def learnable(tokenizer: CLIPTokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Write a model that learns, with arguments of its classes changed."""
    return partial(write_learnable, tokenizer, tmp_path / "learnable")


@pytest.fixture(scope="session")
def learnable_original(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable(tokenizer, tmp_path_factory.mktemp("learnable") / "original")


@pytest.fixture
def learnable_copy(learnable_original: Path, tmp_path: Path) -> Path:
    """A model that learns, for a test to change."""
    return Path(shutil.copytree(learnable_original, tmp_path / "copy"))


@pytest.fixture
def few_steps() -> Config:
    """Two steps of learning, two of generation."""
    few = ["learn.steps=2", "learn.batch=1", "views.latent_pool=2", "generate.steps=2", "generate.guidance_scale=3"]
    return override(PRESETS["default"], few)
