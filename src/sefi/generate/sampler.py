"""COMPOSER: prompts, a conditioner and seeds to pictures; knows no identity and no method."""
# diffusers annotates optional parts of its pipelines as required.
# pyright: reportArgumentType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sefi.attention.install import copy_with_key_value_attention
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateConfig
from sefi.core.nouns import GeneratedImage
from sefi.core.protocols import Conditioner, Progress
from sefi.core.streams import stream
from sefi.generate.decoding import decode_images
from sefi.generate.schedulers import create_scheduler


@dataclass(frozen=True)
class ConditionedModel:
    """A model and what its cross-attention reads.

    Attributes:
        backbone: the user's own, or a copy that shares its weights and has a method's changes in it.
        conditioner: turns prompts into contexts for it.
    """

    backbone: Backbone
    conditioner: Conditioner


def build_pipeline(
    backbone: Backbone, config: GenerateConfig, tape: AttentionRecorder | None = None
) -> StableDiffusionPipeline:
    """A stock pipeline around the frozen parts; key texts and value texts come as `prompt_embeds`.

    The UNet is a copy that shares the weights: the model itself never has our attention processors, whoever else uses
    it meanwhile.

    Args:
        config: its sampler and its number of steps.
        tape: where the attention maps go.

    Raises:
        ConfigError: more steps than the model has timesteps.
    """
    made = StableDiffusionPipeline(
        vae=backbone.vae,
        unet=copy_with_key_value_attention(backbone.unet, backbone.width, tape),
        scheduler=create_scheduler(backbone, config.scheduler, config.steps),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw_initial_noise(backbone: Backbone, seeds: Sequence[int]) -> Tensor:
    """One generator per picture, so that the batch size changes no noise (rounding: one grey level)."""
    shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    noise = torch.stack([torch.randn(shape, generator=stream(s, "picture"), dtype=torch.float32) for s in seeds])
    return noise.to(backbone.device, backbone.dtype)


def generate(
    backbone: Backbone,
    conditioner: Conditioner,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: GenerateConfig,
    progress: Progress,
) -> Iterator[GeneratedImage]:
    """One picture for every prompt and its seed, in order, `config.batch_size` at once."""
    made = build_pipeline(backbone, config)
    total = -(-len(prompts) // config.batch_size)
    progress.start(total * config.steps, "drawing")
    for start in range(0, len(prompts), config.batch_size):
        chosen = slice(start, start + config.batch_size)
        images = draw_batch(backbone, made, conditioner, list(prompts[chosen]), seeds[chosen], config, progress)
        for i, image in enumerate(images):
            yield GeneratedImage(image, prompts[start + i], seeds[start + i], start + i)
    progress.finish()


def draw_batch(
    backbone: Backbone,
    made: StableDiffusionPipeline,
    conditioner: Conditioner,
    prompts: list[str],
    seeds: Sequence[int],
    config: GenerateConfig,
    progress: Progress,
) -> list[Any]:
    """One batch through the pipeline; the context is swapped where the next step's stage differs.

    Raises:
        GenerationError: an image is not made of finite numbers.
    """
    # A UNet that takes the guidance scale as an input is called once a step, without the negative text.
    guided = config.guidance_scale > 1 and not backbone.embeds_guidance
    null = conditioner.null_context(len(prompts), config.negative_prompt).to(backbone.dtype)
    made.scheduler.set_timesteps(config.steps)
    first = int(made.scheduler.timesteps[0])
    made.scheduler = type(made.scheduler).from_config(made.scheduler.config)

    def swap(pipe: StableDiffusionPipeline, step: int, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        progress.advance()
        upcoming = pipe.scheduler.timesteps[step + 1 :]
        if len(upcoming) and conditioner.stage(int(upcoming[0])) != conditioner.stage(int(t)):
            context = conditioner.context(prompts, int(upcoming[0])).to(backbone.dtype)
            state["prompt_embeds"] = torch.cat([null, context]) if guided else context
        return state

    with torch.no_grad():
        result = made(
            prompt_embeds=conditioner.context(prompts, first).to(backbone.dtype),
            negative_prompt_embeds=null,
            latents=draw_initial_noise(backbone, seeds),
            height=backbone.resolution,
            width=backbone.resolution,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            callback_on_step_end=swap,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
            output_type="latent",
        )
    latents: Any = result.images  # pyright: ignore[reportAttributeAccessIssue]
    return decode_images(made, latents, prompts, seeds, config)
