"""One training step's loss: noise a view, predict, compare maps (the paper's equations 1 to 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sefi.attention.install import copy_with_key_value_attention
from sefi.attention.processor import LossSettings
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.bundle import Backbone
from sefi.backbone.schedule import add_noise, target
from sefi.core.config import LearnConfig
from sefi.identity.stages import get_stages
from sefi.learn.texts import TrainingTexts, encode_key_value_texts


@dataclass(frozen=True)
class TrainingSample:
    """The random part of one step.

    Attributes:
        latents: scaled latents of views, `[batch, channel, h, w]`.
        noise: standard normal, shaped as `latents`.
        timesteps: `[batch]`.
        template: sentence numbers, `[batch]`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    template: Tensor


@dataclass(frozen=True)
class Losses:
    """The two terms and their weighted sum, each a scalar."""

    total: Tensor
    denoise: Tensor
    attention: Tensor


def compute_losses(
    backbone: Backbone, texts: TrainingTexts, tokens: Tensor, sample: TrainingSample, config: LearnConfig
) -> Losses:
    """Mean squared denoising error plus lambda times the attention loss.

    Args:
        tokens: `[stage, 2, width]` or `[stage, 2, vector, width]`, what is learned.
    """
    stage = get_stages(sample.timesteps, len(tokens), backbone.num_train_timesteps)
    # The tokens and the texts' masks may live beside the optimiser while the model is on an accelerator.
    context = encode_key_value_texts(backbone, texts, sample.template, tokens.to(stage.device)[stage])
    noisy = add_noise(sample.latents, sample.noise, sample.timesteps, backbone.scheduler.alphas_cumprod)
    height, width = int(noisy.shape[-2]), int(noisy.shape[-1])
    settings = LossSettings(
        texts.counted[sample.template].to(noisy.device),
        (height, width),
        config.attention_reduction,
        config.detach_query,
    )
    # Without a weight nothing is recorded, and the cheaper fused attention runs.
    tape = AttentionRecorder() if config.attention_weight > 0 else None
    unet = copy_with_key_value_attention(backbone.unet, backbone.width, tape, settings)
    found = backbone.predict(noisy, sample.timesteps, context, unet)
    wanted = target(
        sample.latents,
        sample.noise,
        sample.timesteps,
        backbone.scheduler.alphas_cumprod,
        backbone.prediction_type,
    )
    denoise = F.mse_loss(found.float(), wanted.float())
    attention = tape.average_losses().mean() if tape is not None else torch.zeros((), dtype=torch.float32)
    return Losses(denoise + config.attention_weight * attention, denoise, attention)
