"""The five parts of a model as they were read, before they are frozen into a bundle."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Parts:
    """Tokenizer, text encoder, autoencoder, UNet and noise schedule; sizes unchecked."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
