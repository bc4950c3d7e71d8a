"""The frozen parts of one text-to-image model as one value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from sefi.backbone.signature import ModelSignature, sign_model

Family = Literal["sd1", "sd2", "sdxl", "tiny"]

# Latent consistency models are distilled with guidance scales of about 4 to 15: learn where they were trained.
LEARNING_GUIDANCE = 7.5


@dataclass(frozen=True)
class Backbone:
    """A latent diffusion model in the Stable Diffusion format; every weight is frozen.

    No size is assumed: text length, width, latent channels, latent size and the VAE's factor are
    read from the parts.

    Attributes:
        tokenizer: text to token ids.
        text_encoder: token ids to text states `[batch, word, width]`.
        vae: pictures to latents and back.
        unet: noisy latents, timestep and context to the prediction.
        scheduler: the noise schedule the model was trained with (betas, prediction type).
        fingerprint: `family:width:hash`, equal for the same weights however they were opened.
        width: width of one text token.
        family: which kind of model this is.
        resolution: side of a picture at the trained size, in pixels.
        source: what the user named (folder, file, hub id or embedded model).
        judges: folder with the embedded model's judges, None for other models.
        signature: samples of every tensor as the model was opened; copies with changed weights keep it.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    fingerprint: str
    width: int
    family: Family
    resolution: int
    source: str
    judges: Path | None = None
    signature: ModelSignature | None = None

    def __post_init__(self) -> None:
        """Freeze: evaluation mode, no gradient to any weight; and sign the model, where that was not done."""
        if self.signature is None:
            signature = sign_model(self.tokenizer, self.text_encoder, self.unet, self.vae)
            object.__setattr__(self, "signature", signature)
        for part in (self.text_encoder, self.vae, self.unet):
            part.eval()
            part.requires_grad_(requires_grad=False)

    @property
    def num_train_timesteps(self) -> int:
        """Number of training timesteps T (1000 for Stable Diffusion)."""
        return int(self.scheduler.config["num_train_timesteps"])

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` or `v_prediction`."""
        return str(self.scheduler.config["prediction_type"])

    @property
    def text_length(self) -> int:
        """Words of a padded prompt, start and end included (77 for Stable Diffusion)."""
        positions = int(self.text_encoder.config.max_position_embeddings)
        return min(int(self.tokenizer.model_max_length), positions)

    @property
    def latent_factor(self) -> int:
        """Picture pixels per latent cell, per side (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def latent_size(self) -> int:
        """Cells per side of a latent at the trained size (64 for Stable Diffusion 1.x)."""
        return self.resolution // self.latent_factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4 for Stable Diffusion)."""
        return int(self.unet.config["in_channels"])

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.unet.dtype

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (a latent consistency model), and needs one pass."""
        return self.unet.config["time_cond_proj_dim"] is not None

    def predict(
        self, noisy: Tensor, timesteps: Tensor, context: Tensor, unet: UNet2DConditionModel | None = None
    ) -> Tensor:
        """Return the UNet's prediction for noisy latents; differentiable.

        A UNet that takes the guidance scale as an input gets `LEARNING_GUIDANCE`.

        Args:
            noisy: `[batch, channel, height, width]`.
            timesteps: `[batch]`, from 0 (clean) to T - 1.
            context: text states `[batch, word, width]`, or what the attention processors of `unet` read.
            unet: a copy with other attention processors; None takes the model's own.

        Returns:
            Noise or velocity (`prediction_type`), shaped as `noisy`.
        """
        called = self.unet if unet is None else unet
        return cast(Tensor, called(noisy, timesteps, context, timestep_cond=self._guidance_embedding(noisy)).sample)

    def _guidance_embedding(self, noisy: Tensor) -> Tensor | None:
        """Embed the guidance scale as `StableDiffusionPipeline` does: `[batch, time_cond_proj_dim]`."""
        size = self.unet.config["time_cond_proj_dim"]
        if size is None:
            return None
        weight = torch.full((len(noisy),), LEARNING_GUIDANCE - 1, device=noisy.device)
        return get_timestep_embedding(1000 * weight, int(size)).to(noisy.dtype)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a scaled latent of each picture from the VAE's posterior.

        Args:
            pixels: `[batch, 3, height, width]` in [-1, 1].
            generator: draws the posterior's noise; None takes its mean.

        Returns:
            `[batch, channel, height / factor, width / factor]`, about unit variance.
        """
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        posterior = cast(AutoencoderKLOutput, encoded).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Picture of each scaled latent: `[batch, 3, height, width]`, clipped to [-1, 1]."""
        unscaled = latents.to(self.device, self.dtype) / self._scale
        decoded = self.vae.decode(cast(torch.FloatTensor, unscaled))
        return cast(DecoderOutput, decoded).sample.clamp(-1, 1)

    @property
    def _scale(self) -> float:
        return float(self.vae.config["scaling_factor"])
