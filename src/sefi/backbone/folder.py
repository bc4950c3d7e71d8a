"""A pipeline folder in the Stable Diffusion format to the five parts of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import CLIPTextModel

from sefi.backbone.bundle import ModelParts
from sefi.backbone.files import is_regular, read_model_json
from sefi.backbone.kinds import choose_article, detect_family, detect_pipeline_kind
from sefi.backbone.part_configs import (
    REMEDY,
    check_fit,
    compute_latent_size,
    quote_value,
    read_text_config,
    read_unet_config,
    read_vae_config,
)
from sefi.backbone.tokenizer import read_tokenizer
from sefi.backbone.weights import load_part
from sefi.core.errors import BackboneError, describe_first_fault

INDEX = "model_index.json"
CONFIG = "config.json"
NEEDED = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
# The only classes a folder may name: a config is input, not code to look up freely.
CLASSES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
}


def read_folder(folder: Path, dtype: torch.dtype) -> ModelParts:
    """Read a pipeline folder (`model_index.json` and one sub-folder per part); safetensors only.

    Every configuration is checked before the first weight is read.

    Raises:
        BackboneError: not such a folder, a part missing or damaged, pickled weights only, or a
            model of another kind (SDXL and later).
    """
    _check_index(folder)
    unet = read_unet_config(folder / "unet" / CONFIG)
    vae = read_vae_config(folder / "vae" / CONFIG)
    text = read_text_config(folder / "text_encoder" / CONFIG)
    check_fit(unet, vae, text, folder / "unet" / CONFIG)
    size = {"sample_size": compute_latent_size(unet, vae, folder / "unet" / CONFIG)}
    scheduler = read_scheduler(folder)
    return ModelParts(
        tokenizer=read_tokenizer(folder / "tokenizer", text.vocab_size),
        # The implementation is named: the library must never take it from a file.
        text_encoder=load_part(
            CLIPTextModel, folder / "text_encoder", text.list_arguments(), dtype, attn_implementation="sdpa"
        ),
        vae=load_part(AutoencoderKL, folder / "vae", vae.list_arguments(), dtype),
        unet=load_part(UNet2DConditionModel, folder / "unet", unet.list_arguments() | size, dtype),
        scheduler=scheduler,
        family=detect_family(unet.cross_attention_dim),
    )


def read_scheduler(folder: Path) -> DDPMScheduler:
    """Read the noise schedule of a pipeline folder, whichever sampler it names.

    Raises:
        BackboneError: the file is missing or damaged, describes no diffusion in T steps, or a setting is out of range.
    """
    config = read_model_json(folder / "scheduler" / "scheduler_config.json")
    if "beta_schedule" not in config:
        raise BackboneError(
            f"{folder} has no diffusion noise schedule (its scheduler is {config.get('_class_name')}).",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    return DDPMScheduler(**parse_noise_settings(config))


def _check_index(folder: Path) -> None:
    """Refuse a folder that is no pipeline, or one of another kind, by its index alone."""
    if not is_regular(folder / INDEX):
        raise _make_no_pipeline_error(folder)
    index = read_model_json(folder / INDEX)
    kind = detect_pipeline_kind(index)
    if kind is not None:
        raise BackboneError(f"{folder} is {choose_article(kind)} {kind}, which is not supported yet.", REMEDY)
    for part in NEEDED:
        _check_part(folder, part, index.get(part))


def _make_no_pipeline_error(folder: Path) -> BackboneError:
    files = sorted(folder.glob("[!.]*.safetensors"))
    if is_regular(folder / CONFIG):
        name = quote_value(read_model_json(folder / CONFIG).get("_class_name", "a single part"))
        return BackboneError(f"{folder} holds no {INDEX}: it is one part of a model ({name}).", _FOLDER)
    if files:
        return BackboneError(
            f"{folder} holds no {INDEX}, so it is not a model folder.", f"Name the file itself, such as {files[0]}."
        )
    return BackboneError(f"{folder} holds no {INDEX}, so it is not a model folder.", _FOLDER)


_FOLDER = f"Name the folder that contains {INDEX}, unet, vae and text_encoder."


def _check_part(folder: Path, part: str, entry: object) -> None:
    match entry:
        case [str(), str(class_name)] if class_name in CLASSES.get(part, (class_name,)):
            return
        case _:
            raise BackboneError(
                f"{folder / INDEX} names {quote_value(entry)} as its {part}.",
                f"Expected {' or '.join(CLASSES.get(part, ('a class of diffusers',)))}: "
                "use a Stable Diffusion 1.x or 2.x model.",
            )


class NoiseConfig(BaseModel):
    """The fields of a model's scheduler file that are read: the noise that it was trained with, no sampler options."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    @model_validator(mode="after")
    def check_noise(self) -> Self:
        """Check that there is a beta in (0, 1] for each timestep, and v-prediction where the last signal is zero."""
        betas = self.trained_betas
        if betas is not None and (len(betas) != self.num_train_timesteps or not all(0 < beta <= 1 for beta in betas)):
            raise ValueError(f"trained_betas must be {self.num_train_timesteps} numbers in (0, 1]")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs v_prediction: a model that predicts noise says nothing at zero signal"
            )
        return self


def parse_noise_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked noise settings of a scheduler's configuration, as diffusers' schedulers take them.

    Raises:
        BackboneError: one is out of range or of another kind; the message names it.
    """
    try:
        settings = NoiseConfig.model_validate(dict(config)).model_dump()
    except ValidationError as error:
        raise BackboneError(
            f"This model's noise schedule cannot be used: {describe_first_fault(error)}.",
            "Correct scheduler/scheduler_config.json, or use a Stable Diffusion 1.x or 2.x model.",
        ) from None
    betas = settings["trained_betas"]
    return settings | {"trained_betas": None if betas is None else list(betas)}
