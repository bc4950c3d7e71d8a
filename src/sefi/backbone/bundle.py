"""The frozen parts of one text-to-image model as one value, which makes every call of them; and its fingerprint."""

import hashlib
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from sefi.backbone.files import translate_memory_errors
from sefi.backbone.kinds import EMBEDDED, Family
from sefi.backbone.part_configs import PIXEL_STEP
from sefi.backbone.signature import ModelSignature, count_base_rows, get_token_table, sign_model
from sefi.core.errors import BackboneError, ConfigError
from sefi.core.hints import DTYPE_ALIASES, suggest

Part = TypeVar("Part", bound=nn.Module)
Pipeline = (
    StableDiffusionPipeline
    | StableDiffusionXLPipeline
    | StableDiffusionImg2ImgPipeline
    | StableDiffusionXLImg2ImgPipeline
    | StableDiffusionControlNetPipeline
    | StableDiffusionXLControlNetPipeline
    | StableDiffusionControlNetImg2ImgPipeline
    | StableDiffusionXLControlNetImg2ImgPipeline
)
# By whether the model is SDXL, whether an image is started from, and whether a ControlNet takes part.
PIPELINE_CLASSES: dict[tuple[bool, bool, bool], type[Pipeline]] = {
    (False, False, False): StableDiffusionPipeline,
    (True, False, False): StableDiffusionXLPipeline,
    (False, True, False): StableDiffusionImg2ImgPipeline,
    (True, True, False): StableDiffusionXLImg2ImgPipeline,
    (False, False, True): StableDiffusionControlNetPipeline,
    (True, False, True): StableDiffusionXLControlNetPipeline,
    (False, True, True): StableDiffusionControlNetImg2ImgPipeline,
    (True, True, True): StableDiffusionXLControlNetImg2ImgPipeline,
}
PREDICTION_TYPES = ("epsilon", "v_prediction")


class SafetyNetwork(Protocol):
    """A model's own network that finds images not to be shown; `sefi.backbone.folder.SafetyChecker` reads one."""

    def load(self) -> object:
        """Read it, if it is not read yet; `BackboneError` where that fails."""
        ...

    def find_flagged(self, images: Sequence[Image], device: torch.device | str = "cpu") -> list[bool]:
        """Return for each image whether it is not to be shown."""
        ...


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """What the text encoders make of a batch of texts, as the UNet takes it.

    Attributes:
        states: `[batch, word, width]`; several texts side by side on the last axis where the attention processors of a
            UNet read them.
        pooled: one vector for each text, `[batch, pooled]`; None for families without.
        extra: further conditions by the UNet's names for them, as SDXL's `time_ids` `[batch, 6]`.
    """

    states: Tensor
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def select(self, which: Tensor) -> "TextEncoding":
        """Return the texts of these numbers `[batch]`."""
        return self._change(lambda values: values[which])

    def expand(self, count: int) -> "TextEncoding":
        """Return a single text `count` times."""
        return self._change(lambda values: values.expand(count, *values.shape[1:]))

    def to(self, dtype: torch.dtype) -> "TextEncoding":
        """Return it in another dtype."""
        return self._change(lambda values: values.to(dtype))

    def chunk(self, count: int) -> "list[TextEncoding]":
        """Split the batch into `count` equal parts."""
        pooled = [None] * count if self.pooled is None else self.pooled.chunk(count)
        extra = {name: value.chunk(count) for name, value in self.extra.items()}
        return [
            TextEncoding(states, pooled[n], {name: values[n] for name, values in extra.items()})
            for n, states in enumerate(self.states.chunk(count))
        ]

    def _change(self, change: Callable[[Tensor], Tensor]) -> "TextEncoding":
        pooled = None if self.pooled is None else change(self.pooled)
        return TextEncoding(change(self.states), pooled, {name: change(value) for name, value in self.extra.items()})


def join_batches(encodings: Sequence[TextEncoding]) -> TextEncoding:
    """Return the texts of several batches as one batch."""
    first = encodings[0]
    pooled = [one.pooled for one in encodings if one.pooled is not None]
    return TextEncoding(
        torch.cat([one.states for one in encodings]),
        torch.cat(pooled) if pooled else None,
        {name: torch.cat([one.extra[name] for one in encodings]) for name in first.extra},
    )


@dataclass(frozen=True)
class ModelParts:
    """Tokenizers, text encoders, autoencoder, UNet and noise schedule; sizes unchecked.

    Attributes:
        tokenizer: text to token ids.
        text_encoder: token ids to text states `[batch, word, width]`.
        vae: images to latents and back.
        unet: noisy latents, timestep and text encoding to the prediction.
        scheduler: the noise schedule the model was trained with (betas, prediction type).
        family: which kind of model this is; what the calls below depend on.
        tokenizer_2: the second tokenizer of a family with two text encoders; None for the others.
        text_encoder_2: the second text encoder, which also gives the pooled text.
        safety_checker: the model's own network that finds images not to be shown; None where it brings none.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    family: Family
    _: KW_ONLY
    tokenizer_2: PreTrainedTokenizerBase | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    safety_checker: SafetyNetwork | None = None

    @property
    def tokenizers(self) -> tuple[PreTrainedTokenizerBase, ...]:
        """The tokenizers, one for each text encoder."""
        return (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders; their states ride side by side on the last axis."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every part that has weights, by name."""
        encoders = dict(zip(("text_encoder", "text_encoder_2"), self.text_encoders, strict=False))
        return {**encoders, "unet": self.unet, "vae": self.vae}

    @property
    def token_tables(self) -> tuple[Tensor, ...]:
        """The token table of each text encoder, `[row, width]`."""
        return tuple(get_token_table(encoder) for encoder in self.text_encoders)

    @property
    def token_width(self) -> int:
        """Numbers of one token: the widths of all token tables together (768 for Stable Diffusion 1.x)."""
        return sum(self.token_widths)

    @property
    def token_widths(self) -> tuple[int, ...]:
        """Numbers of one token in each text encoder's table (768 and 1280 for SDXL)."""
        return tuple(table.shape[1] for table in self.token_tables)

    @property
    def latent_factor(self) -> int:
        """Image pixels per latent cell, per side (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def trained_resolution(self) -> int:
        """Side of an image at the trained size, in pixels."""
        return int(self.unet.config["sample_size"]) * self.latent_factor


# Latent consistency models are distilled with guidance scales of about 4 to 15: learn where they were trained.
LEARNING_GUIDANCE = 7.5


@dataclass(frozen=True)
class Backbone(ModelParts):
    """A latent diffusion model in the Stable Diffusion format; every weight is frozen.

    No size is assumed: text length, width, latent channels, latent size and the VAE's factor are
    read from the parts.

    Attributes:
        fingerprint: `family:width:hash` of the token tables and the UNet's first convolution: a name for records.
            Whether an identity fits is decided by `signature`.
        resolution: side of an image at the trained size, in pixels.
        source: what the user named (folder, file, hub id or embedded model).
        signature: samples of every tensor as the model was opened; copies with changed weights keep it.
        freezes: put the parts into evaluation mode and stop their gradients; False where they belong to somebody else.
        clip_skip: which layer of the text encoders is read, counted from the usual one, which is 1; see `skip_layers`.
        replaced_rows: of a view whose text encoders are one training's own copies; see `copy_text_encoders`.
    """

    fingerprint: str
    resolution: int
    source: str
    signature: ModelSignature | None = None
    freezes: bool = True
    clip_skip: int = 1
    replaced_rows: "ReplacedRows | None" = None

    def __post_init__(self) -> None:
        """Freeze every part, in evaluation mode, and sign the model where that was not done."""
        if (self.family == "sdxl") != (len(self.text_encoders) == len(self.tokenizers) == 2):
            raise ValueError(f"a model of family {self.family} with {len(self.text_encoders)} text encoders")
        if self.signature is None:
            signature = sign_model(self.tokenizers, self.text_encoders, self.unet, self.vae)
            object.__setattr__(self, "signature", signature)
        for part in self.networks.values() if self.freezes else ():
            part.eval()
            part.requires_grad_(requires_grad=False)

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the model's networks, in place as torch does, and return the model.

        Args:
            device: such as `cpu`, `cuda` or `mps`; None leaves them where they are.
            dtype: of all weights but those that need float32, or its name; None leaves them as they are.

        Raises:
            BackboneError: there is no such device, or not enough memory on it.
            ConfigError: there is no such dtype.
        """
        before = self.device.type
        place = self.device if device is None else parse_device(str(device))
        place_networks(self, place, self.dtype if dtype is None else parse_dtype(dtype))
        if before != place.type and "mps" in (before, place.type):
            set_channel_order(self.unet, self.vae)
        return self

    def __repr__(self) -> str:
        """Return what it is in one line."""
        number = str(self.dtype).removeprefix("torch.")
        return f"<Backbone {self.source!r}: {self.family}, {self.resolution} px, {number} on {self.device}>"

    @property
    def is_embedded(self) -> bool:
        """Whether this is the model in the package, with its own weights or with a method's changes."""
        return self.source == EMBEDDED

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
        configs: list[Any] = [encoder.config for encoder in self.text_encoders]
        limits = [int(tokenizer.model_max_length) for tokenizer in self.tokenizers]
        return min(*limits, *(int(config.max_position_embeddings) for config in configs))

    @property
    def latent_size(self) -> int:
        """Cells per side of a latent at the trained size (64 for Stable Diffusion 1.x)."""
        return self.resolution // self.latent_factor

    @property
    def size_step(self) -> int:
        """Pixels of which an image's sides are multiples: whole latent cells, and 8, as diffusers' pipelines ask."""
        return math.lcm(self.latent_factor, PIXEL_STEP)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent (4 for Stable Diffusion)."""
        return int(self.unet.config["in_channels"])

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self.unet.parameters()).device  # diffusers' own property asks every module for hooks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.unet.parameters()).dtype

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (a latent consistency model), and needs one pass."""
        return self.unet.config["time_cond_proj_dim"] is not None

    def get_token_row(self, token: Sequence[int]) -> Tensor:
        """Return one token's rows of the token tables side by side, float32 `[width]` on the CPU.

        Args:
            token: its number in each tokenizer.
        """
        rows = [table[number].detach().float().cpu() for table, number in zip(self.token_tables, token, strict=True)]
        return torch.cat(rows)

    def encode_text(self, ids: Tensor, rows: Tensor | None = None, mask: Tensor | None = None) -> TextEncoding:
        """Encode texts; differentiable in the replacement rows and in what of the text encoders is trained.

        Args:
            ids: `[batch, encoder, word]`, each text as each tokenizer numbers it; more words than `text_length` are
                chunks of that many, each encoded alone.
            rows: replacement token embeddings `[batch, word, width]`, shaped as `get_token_row`.
            mask: where they go, boolean `[batch, word]`.

        Returns:
            States after the last normalisation; of SDXL those before the last layer, as its pipeline takes them, with
            the pooled text of the first chunk and the sizes of an image that is neither scaled nor cropped. With
            `clip_skip` the states of so many layers before, less one.
        """
        if ids.shape[-1] > self.text_length:
            return self._encode_chunks(ids, rows, mask)
        encoders = self.text_encoders
        place = get_token_table(encoders[0]).device  # a pipeline's UNet may be elsewhere
        ids = ids.to(place)
        if rows is None or mask is None:
            return self._run_text_encoders(encoders, ids)
        own = self.replaced_rows
        if own is None:
            # On copies: a hook on the model's own token table would write these rows into other threads' texts.
            own, encoders = ReplacedRows(), tuple(copy_part(encoder) for encoder in encoders)
            own.hook(encoders)
        with own.replace(rows.to(place).split(list(self.token_widths), dim=-1), mask.to(place)):
            return self._run_text_encoders(encoders, ids)

    def copy_text_encoders(self) -> "Backbone":
        """Return a view of this model whose text encoders are copies that share its weights.

        For who encodes texts with other rows again and again, which would copy the text encoders every time.
        """
        copies, rows = tuple(copy_part(encoder) for encoder in self.text_encoders), ReplacedRows()
        rows.hook(copies)
        names = [name for name in ("text_encoder", "text_encoder_2") if getattr(self, name) is not None]
        return replace(self, replaced_rows=rows, **dict(zip(names, copies, strict=True)))

    def _run_text_encoders(self, encoders: Sequence[Any], ids: Tensor) -> TextEncoding:
        """Run the text encoders on ids `[batch, encoder, word]`, each where it lives.

        What comes out is where the first one lives.
        """
        each = [ids[:, number].to(get_token_table(one).device) for number, one in enumerate(encoders)]
        if self.family != "sdxl":
            return TextEncoding(self._encode_words(encoders[0], each[0]))
        # Copies: transformers leaves hooks in the modules whose hidden states it returns.
        own = self.replaced_rows is not None
        answers = [
            (one if own else copy_part(one))(some, output_hidden_states=True)
            for one, some in zip(encoders, each, strict=True)
        ]
        place = each[0].device
        states = torch.cat([answer.hidden_states[-1 - self.clip_skip].to(place) for answer in answers], dim=-1)
        sizes = states.new_tensor([self.resolution, self.resolution, 0, 0, self.resolution, self.resolution])
        return TextEncoding(states, answers[-1].text_embeds.to(place), {"time_ids": sizes.expand(len(ids), -1)})

    def _encode_words(self, encoder: Any, ids: Tensor) -> Tensor:  # noqa: ANN401
        """Encode texts `[batch, word]` by one encoder; states of an earlier layer are normalised as the last one's."""
        if self.clip_skip == 1:
            return encoder(ids).last_hidden_state
        # A copy: transformers leaves hooks in the modules whose hidden states it returns.
        copied = encoder if self.replaced_rows is not None else copy_part(encoder)
        states = copied(ids, output_hidden_states=True).hidden_states[-self.clip_skip]
        return getattr(copied, "text_model", copied).final_layer_norm(states)

    def _encode_chunks(self, ids: Tensor, rows: Tensor | None, mask: Tensor | None) -> TextEncoding:
        """Encode texts of several chunks, arguments as for `encode_text`."""
        texts, count = len(ids), ids.shape[-1] // self.text_length
        ids = ids.unflatten(-1, (count, self.text_length)).transpose(1, 2).flatten(0, 1)
        rows = None if rows is None else rows.reshape(texts * count, self.text_length, -1)
        mask = None if mask is None else mask.reshape(texts * count, self.text_length)
        chunks = self.encode_text(ids, rows, mask)
        first = chunks.select(torch.arange(texts, device=chunks.states.device) * count)
        return replace(first, states=chunks.states.reshape(texts, count * self.text_length, -1))

    def skip_layers(self, clip_skip: int | None) -> "Backbone":
        """Return a view of this model whose texts are read from an earlier layer of the text encoders.

        Args:
            clip_skip: as AUTOMATIC1111 counts: 1 or None is the usual layer, 2 the one before; diffusers says 1 for it.

        Raises:
            ConfigError: the text encoders do not have so many layers.
        """
        clip_skip = 1 if clip_skip is None else clip_skip
        if clip_skip == self.clip_skip:
            return self
        configs: list[Any] = [encoder.config for encoder in self.text_encoders]
        # SDXL's usual layer is the one before the last.
        deepest = min(int(config.num_hidden_layers) for config in configs) - (self.family == "sdxl")
        if not 1 <= clip_skip <= deepest:
            raise ConfigError(
                f"This model has no text of clip_skip {clip_skip}: its text encoder has too few layers.",
                f"Set generate.clip_skip to 1{'' if deepest < 2 else f' to {deepest}'}.",
            )
        return replace(self, clip_skip=clip_skip)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, encoding: TextEncoding, unet: UNet2DConditionModel | None = None
    ) -> Tensor:
        """Return the UNet's prediction for noisy latents; differentiable.

        A UNet that takes the guidance scale as an input gets `LEARNING_GUIDANCE`.

        Args:
            noisy: `[batch, channel, height, width]`.
            timesteps: `[batch]`, from 0 (clean) to T - 1.
            encoding: its states as the attention processors of `unet` read them.
            unet: a copy with other attention processors; None takes the model's own.

        Returns:
            Noise or velocity (`prediction_type`), shaped as `noisy`.
        """
        called = self.unet if unet is None else unet
        conditions = None if encoding.pooled is None else {"text_embeds": encoding.pooled, **encoding.extra}
        answer = called(
            noisy,
            timesteps,
            encoding.states,
            timestep_cond=self._embed_guidance(noisy),
            added_cond_kwargs=conditions,
        )
        return cast(Tensor, answer.sample)

    def build_pipeline(
        self,
        scheduler: Any,  # noqa: ANN401
        unet: UNet2DConditionModel | None = None,
        *,
        from_image: bool = False,
        controlnet: ControlNetModel | None = None,
    ) -> Pipeline:
        """Build the family's stock pipeline, which takes text encodings and no prompts.

        Args:
            scheduler: any of diffusers for this noise schedule.
            unet: a copy with other attention processors; None takes the model's own.
            from_image: start from a given image instead of noise.
            controlnet: what a control image goes through, with attention processors as those of `unet`.
        """
        parts: dict[str, Any] = {"vae": self.vae, "unet": self.unet if unet is None else unet, "scheduler": scheduler}
        parts |= {"text_encoder": None, "tokenizer": None, "feature_extractor": None}
        if from_image:
            parts["vae"] = _copy_vae_of_fixed_dtype(self.vae)
        if controlnet is not None:
            parts["controlnet"] = controlnet
        sdxl = self.family == "sdxl"
        if sdxl:
            parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        else:
            parts |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = PIPELINE_CLASSES[sdxl, from_image, controlnet is not None](**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _embed_guidance(self, noisy: Tensor) -> Tensor | None:
        """Embed the guidance scale as `StableDiffusionPipeline` does: `[batch, time_cond_proj_dim]`."""
        size = self.unet.config["time_cond_proj_dim"]
        if size is None:
            return None
        weight = torch.full((len(noisy),), LEARNING_GUIDANCE - 1, device=noisy.device)
        return get_timestep_embedding(1000 * weight, int(size)).to(noisy.dtype)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode each image to a scaled latent, drawn from the VAE's posterior.

        Args:
            pixels: `[batch, 3, height, width]` in [-1, 1].
            generator: draws the posterior's noise; None takes its mean.

        Returns:
            `[batch, channel, height / factor, width / factor]`, about unit variance.
        """
        posterior = self._encode_posterior(pixels)
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents * self._scale).to(self.dtype)

    @torch.no_grad()
    def encode_image_posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each image to mean and deviation of its scaled latent, each shaped as `encode_image` returns it."""
        posterior = self._encode_posterior(pixels)
        mean, deviation = posterior.mean * self._scale, posterior.std * self._scale
        return mean.to(self.dtype), deviation.to(self.dtype)

    def _encode_posterior(self, pixels: Tensor) -> Any:  # noqa: ANN401
        # SDXL's autoencoder stays in single precision in a half-precision model: it overflows.
        encoded = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        return cast(AutoencoderKLOutput, encoded).latent_dist

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode each scaled latent to an image, `[batch, 3, height, width]`, clipped to [-1, 1]."""
        return self.decode_with_gradients(latents).clamp(-1, 1)

    def decode_with_gradients(self, latents: Tensor) -> Tensor:
        """Decode as `decode`; differentiable, and not clipped."""
        unscaled = latents.to(self.device, self.vae.dtype) / self._scale
        decoded = self.vae.decode(cast(torch.FloatTensor, unscaled))
        return cast(DecoderOutput, decoded).sample

    @property
    def _scale(self) -> float:
        return float(self.vae.config["scaling_factor"])


def parse_device(device: str) -> torch.device:
    """Return a device of this machine.

    Raises:
        BackboneError: it is unknown, or not there; names the devices that are.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or (found.index or 0) >= count_devices(found.type):
        there = ["cpu", *(f"{kind}:{number}" for kind in ("cuda", "mps") for number in range(count_devices(kind)))]
        raise BackboneError(
            f"This machine has no device '{device}' that can be used.",
            f"Name one of these with --device: {', '.join(there)}.",
        )
    return found


def count_devices(kind: str) -> int:
    """Count the devices of a kind on this machine that models run on."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a dtype of weights, which may be given by its name: `float32`, `bfloat16` or `float16`.

    Raises:
        ConfigError: it is unknown, or of no floating point numbers.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    found = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise ConfigError(f"There is no dtype {dtype!r} of weights.", suggest(str(dtype), DTYPES, DTYPE_ALIASES))
    return found


def place_networks(parts: ModelParts, device: torch.device, dtype: torch.dtype) -> None:
    """Move every network to a device and a dtype, in place.

    SDXL's autoencoder stays in float32 in a float16 model: it overflows, and its file says so.

    Raises:
        BackboneError: there is not enough memory on the device.
    """
    overflows = parts.family == "sdxl" and dtype == torch.float16 and bool(parts.vae.config["force_upcast"])
    with translate_memory_errors(f"to move the model to {device}"):
        for name, network in parts.networks.items():
            network.to(device, torch.float32 if name == "vae" and overflows else dtype)


def set_channel_order(*networks: nn.Module) -> None:
    """Set the order of the weights of networks in memory for convolutions whose channels are last, in place.

    Their values and shapes stay, the last bits of what they compute do not. It takes less time on processors
    (`experiments/engine.py channels`). On Apple's GPUs they get the usual order, which their kernels are made for.
    """
    for network in networks:
        on_mps = next(network.parameters()).device.type == "mps"
        order = torch.contiguous_format if on_mps else torch.channels_last
        nn.Module.to(network, memory_format=order)  # pyright: ignore[reportCallIssue]


class ReplacedRows(threading.local):
    """Rows that the token embeddings of text encoders return in the place of words, during one call of one thread.

    Differentiable in the rows; copies no table and names no inner module of a text encoder.
    """

    def __init__(self) -> None:
        self.rows: Sequence[Tensor] = ()
        self.mask: Tensor | None = None

    def hook(self, encoders: Sequence[Any]) -> None:
        """Let the token embeddings of text encoders, which are copies, return what replaces them."""
        for number, encoder in enumerate(encoders):
            encoder.get_input_embeddings().register_forward_hook(partial(self._overwrite, number))

    @contextmanager
    def replace(self, rows: Sequence[Tensor], mask: Tensor) -> Generator[None]:
        """Replace token embeddings by rows `[batch, word, width]` where `mask [batch, word]` is true, for a block."""
        self.rows, self.mask = rows, mask
        try:
            yield
        finally:
            self.rows, self.mask = (), None

    def _overwrite(self, number: int, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        if self.mask is None:
            return output
        return torch.where(self.mask.to(output.device)[..., None], self.rows[number].to(output), output)


def _copy_vae_of_fixed_dtype(vae: AutoencoderKL) -> AutoencoderKL:
    """Return a copy of an autoencoder, with the same weights, that takes pixels of any dtype and is never cast.

    SDXL's pipelines cast the autoencoder they are given to float32 and back where its configuration says so; all users
    of a model share its weights.
    """
    copied = copy_part(vae)
    copied.register_to_config(force_upcast=False)

    def encode(x: Tensor, return_dict: bool = True) -> Any:  # noqa: ANN401, FBT001, FBT002
        return vae.encode(x.to(vae.dtype), return_dict)

    copied.encode = encode
    return copied


def compute_fingerprint(parts: ModelParts) -> str:
    """Return `family:width:16 hex digits` over token tables, without added tokens, and the UNet's first convolution.

    The width is a token's. This names a model in records and in identity files of version 1. Every tensor is rounded to
    bfloat16 first, so that a model opened in float32 and in bfloat16 has one name; a float16 copy is rounded twice and
    may have another. Whether an identity fits is decided by `sefi.backbone.signature`.
    """
    digest = hashlib.sha256()
    for tokenizer, table in zip(parts.tokenizers, parts.token_tables, strict=True):
        digest.update(_round_to_bytes(table[: count_base_rows(tokenizer, table)]))
    digest.update(_round_to_bytes(parts.unet.conv_in.weight))
    return f"{parts.family}:{parts.token_width}:{digest.hexdigest()[:16]}"


def _round_to_bytes(weight: Tensor) -> bytes:
    rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
    return rounded.view(torch.uint8).numpy().tobytes()


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Add noise to latents: `sqrt(a_t) x0 + sqrt(1 - a_t) noise` (Ho et al. 2020, eq. 4).

    Args:
        x0: clean latents `[batch, ...]`.
        noise: standard normal, shaped as `x0`.
        t: timesteps `[batch]`, whole numbers from 0 (clean) to T - 1.
        alphas_cumprod: `[T]`, the product of (1 - beta) up to each timestep.
    """
    signal, disturbance = _compute_amplitudes(x0, t, alphas_cumprod)
    return signal * x0 + disturbance * noise


def compute_target(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Compute what the model should predict, shaped as `x0`.

    `epsilon` is the noise itself (Ho et al. 2020, eq. 14); `v_prediction` is
    `sqrt(a_t) noise - sqrt(1 - a_t) x0` (Salimans and Ho 2022, appendix D).

    Raises:
        BackboneError: the prediction type is another one.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, disturbance = _compute_amplitudes(x0, t, alphas_cumprod)
        return signal * noise - disturbance * x0
    raise BackboneError(
        f"This model predicts '{prediction_type}', which is not supported.",
        f"Use a model that predicts one of: {', '.join(PREDICTION_TYPES)}.",
    )


def compute_clean(noisy: Tensor, prediction: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Compute the clean latents that a prediction for noisy ones means: `x0` of `add_noise` and `compute_target`.

    `epsilon`: `(x_t - sqrt(1 - a_t) e) / sqrt(a_t)` (Song et al. 2021, eq. 9); `v_prediction`:
    `sqrt(a_t) x_t - sqrt(1 - a_t) v` (Salimans and Ho 2022, appendix D).
    """
    signal, disturbance = _compute_amplitudes(noisy, t, alphas_cumprod)
    if prediction_type == "epsilon":
        return (noisy - disturbance * prediction) / signal
    return signal * noisy - disturbance * prediction


def _compute_amplitudes(x0: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `sqrt(a_t)` and `sqrt(1 - a_t)`, shaped to multiply `x0`."""
    # Square roots before the cast: in half precision 1 - a_t loses its digits near t = 0.
    signal_share = move_to_device(alphas_cumprod.float(), x0.device)[t.to(x0.device)]
    signal_share = signal_share.reshape(-1, *[1] * (x0.ndim - 1))
    return signal_share.sqrt().to(x0.dtype), (1 - signal_share).sqrt().to(x0.dtype)


def move_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; to CUDA they go by page-locked memory, so that nobody waits until they are there."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def copy_part(part: Part, replaced: Mapping[int, nn.Parameter] | None = None) -> Part:
    """Return a copy of a module tree that shares every weight and buffer with the original.

    The modules are new objects: attention processors, hooks, layers, modes and parameters that are put into the copy
    never reach the original. A tree of Stable Diffusion's size takes milliseconds and no memory for weights.

    Args:
        replaced: other parameters for the copy, by the `id` of those in the original.

    Raises:
        BackboneError: a module's `forward` was replaced (offloading, a wrapper), so that a copy would run the original.
    """
    return _copy_module(part, replaced or {}, {})


def _copy_module(module: Part, replaced: Mapping[int, nn.Parameter], copies: dict[int, nn.Module]) -> Part:
    """Copy a tree; a module or parameter that occurs twice does so in the copy.

    Args:
        copies: the modules that are copied already, by the `id` of the original.
    """
    if id(module) in copies:
        return copies[id(module)]  # pyright: ignore[reportReturnType]
    if "forward" in vars(module):
        raise BackboneError(
            f"The model's {type(module).__name__} has another `forward` than its class.",
            "Remove offloading hooks and wrappers from the model first.",
        )
    copied = copies[id(module)] = copy(module)
    state = vars(copied)
    state.pop("_compiled_call_impl", None)  # it would run the original
    # Lists, dictionaries and sets: hooks, parameters, buffers, and what libraries note about a layer.
    state |= {name: copy(value) for name, value in state.items() if isinstance(value, dict | list | set)}
    state["_parameters"] = {name: replaced.get(id(weight), weight) for name, weight in state["_parameters"].items()}
    state["_modules"] = {
        name: None if child is None else _copy_module(child, replaced, copies)
        for name, child in state["_modules"].items()
    }
    return copied
