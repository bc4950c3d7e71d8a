"""A pipeline folder in the Stable Diffusion format to the five parts of the model; a ControlNet's folder."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sefi.backbone.bundle import Backbone, ModelParts, set_channel_order
from sefi.backbone.files import is_regular, quiet_libraries, read_model_json, read_or_refuse, translate_memory_errors
from sefi.backbone.kinds import REMEDY, choose_article, detect_family, detect_pipeline_kind, is_sdxl_index
from sefi.backbone.part_configs import (
    ADDITIONS,
    UNSUPPORTED,
    SDXLUNetConfig,
    TextConfig,
    UNetConfig,
    check_fit,
    compute_latent_size,
    quote_value,
    read_clip_config,
    read_text_config,
    read_unet_config,
    read_vae_config,
    validate_part_config,
)
from sefi.backbone.tokenizer import read_tokenizer
from sefi.backbone.weights import load_part
from sefi.core.errors import BackboneError, describe_first_fault

Encoder = TypeVar("Encoder", bound=CLIPTextModel | CLIPTextModelWithProjection)

INDEX = "model_index.json"
CONFIG = "config.json"
NEEDED = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
SECOND = ("tokenizer_2", "text_encoder_2")  # of SDXL
# The only classes a folder may name: a config is input, not code to look up freely.
CLASSES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
}


def read_folder(folder: Path, dtype: torch.dtype) -> ModelParts:
    """Read a pipeline folder (`model_index.json` and one sub-folder per part); safetensors only.

    Every configuration is checked before the first weight is read.

    Raises:
        BackboneError: not such a folder, a part missing or damaged, pickled weights only, or a
            model of another kind.
    """
    sdxl = is_sdxl_index(_check_index(folder))
    unet = read_unet_config(folder / "unet" / CONFIG, SDXLUNetConfig if sdxl else UNetConfig)
    vae = read_vae_config(folder / "vae" / CONFIG)
    names = ("text_encoder", "text_encoder_2")[: 1 + sdxl]
    texts = [read_text_config(folder / name / CONFIG) for name in names]
    check_fit(unet, vae, texts, folder / "unet" / CONFIG)
    size = {"sample_size": compute_latent_size(unet, vae, folder / "unet" / CONFIG)}
    scheduler = read_scheduler(folder)
    second: dict[str, Any] = {}
    if sdxl:
        second = {
            "tokenizer_2": read_tokenizer(folder / "tokenizer_2", texts[1].vocab_size),
            "text_encoder_2": _load_text_encoder(
                CLIPTextModelWithProjection, folder / "text_encoder_2", texts[1], dtype
            ),
        }
    return ModelParts(
        tokenizer=read_tokenizer(folder / "tokenizer", texts[0].vocab_size),
        text_encoder=_load_text_encoder(CLIPTextModel, folder / "text_encoder", texts[0], dtype),
        vae=load_part(AutoencoderKL, folder / "vae", vae.list_arguments(), dtype),
        unet=load_part(UNet2DConditionModel, folder / "unet", unet.list_arguments() | size, dtype),
        scheduler=scheduler,
        family="sdxl" if sdxl else detect_family(unet.cross_attention_dim),
        safety_checker=find_safety_checker(folder),
        **second,
    )


def _load_text_encoder(cls: type[Encoder], where: Path, config: TextConfig, dtype: torch.dtype) -> Encoder:
    # The implementation is named: the library must never take it from a file.
    return load_part(cls, where, config.list_arguments(), dtype, attn_implementation="sdpa")


def read_scheduler(folder: Path) -> DDPMScheduler:
    """Read the noise schedule of a pipeline folder, whichever sampler it names.

    Raises:
        BackboneError: the file is missing or damaged, describes no diffusion in T steps, or a setting is out of range.
    """
    config = read_model_json(folder / "scheduler" / "scheduler_config.json")
    if "beta_schedule" not in config:
        raise BackboneError(
            f"{folder} has no diffusion noise schedule (its scheduler is {config.get('_class_name')}).",
            REMEDY,
        )
    return DDPMScheduler(**parse_noise_settings(config))


def _check_index(folder: Path) -> dict[str, Any]:
    """Return a folder's index; refuses one that is no pipeline, or of another kind, by the index alone."""
    if not is_regular(folder / INDEX):
        raise _make_no_pipeline_error(folder)
    index = read_model_json(folder / INDEX)
    kind = detect_pipeline_kind(index)
    if kind is not None:
        raise BackboneError(f"{folder} is {choose_article(kind)} {kind}, which is not supported yet.", REMEDY)
    for part in (*NEEDED, *SECOND) if is_sdxl_index(index) else NEEDED:
        _check_part(folder, part, index.get(part))
    return index


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
                "use a Stable Diffusion 1.x, 2.x or XL model.",
            )


Spacing = Literal["leading", "trailing"]


class NoiseConfig(BaseModel):
    """The fields of a model's scheduler file that are read: how it was trained, no sampler options.

    Models that were trained or distilled to begin at T - 1 (Turbo, zero terminal SNR) have trailing timesteps; any
    other spacing is the sampler's business, and Stable Diffusion's own is leading.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Spacing = "leading"

    @model_validator(mode="before")
    @classmethod
    def choose_spacing(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Choose trailing timesteps where the file says so, or where the noisiest timestep has no signal."""
        trailing = values.get("timestep_spacing") == "trailing" or values.get("rescale_betas_zero_snr") is True
        return {**values, "timestep_spacing": "trailing" if trailing else "leading"}

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
            "Correct scheduler/scheduler_config.json, or use a Stable Diffusion 1.x, 2.x or XL model.",
        ) from None
    betas = settings["trained_betas"]
    return settings | {"trained_betas": None if betas is None else list(betas)}


Embedding = Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=7)]
# What a ControlNet must share with the UNet: it reads the same latents and texts, and adds to what each layer gives.
SHARED = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", *ADDITIONS)


class ControlNetConfig(UNetConfig):
    """A `ControlNetModel`: the downward half of a UNet, with layers that read an image."""

    unsupported: ClassVar[Mapping[str, str]] = {n: m for n, m in UNSUPPORTED.items() if n not in ADDITIONS}

    layers_per_block: Annotated[int, Field(ge=1, le=8)] = 2  # pyright: ignore[reportIncompatibleVariableOverride]
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: Annotated[int, Field(ge=2, le=8192)] | None = None
    projection_class_embeddings_input_dim: Annotated[int, Field(ge=1, le=65536)] | None = None
    conditioning_channels: Literal[3] = 3
    conditioning_embedding_out_channels: Embedding = Field(default=[16, 32, 96, 256])
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    global_pool_conditions: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def set_upward_blocks(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Set the blocks of the way up, which a ControlNet does not have, to as many as lead down."""
        blocks = values.get("block_out_channels")
        count = len(blocks) if isinstance(blocks, list) else len(UNetConfig().block_out_channels)
        return values | {"up_block_types": ["CrossAttnUpBlock2D"] * count}

    def list_arguments(self) -> dict[str, Any]:
        """Return the stated fields that the class has."""
        absent = ("up_block_types", "out_channels", "sample_size")
        return {name: value for name, value in super().list_arguments().items() if name not in absent}


def read_controlnet(folder: Path, backbone: Backbone) -> ControlNetModel:
    """Read a ControlNet's folder (`config.json` and safetensors weights), frozen, for this model.

    Raises:
        BackboneError: no such folder, damaged or pickled weights, a ControlNet of another model, or no memory for it.
    """
    path = folder / CONFIG
    if not is_regular(path):
        raise BackboneError(
            f"{folder} holds no {CONFIG}, so it is not a ControlNet's folder.",
            f"Name the folder that holds {CONFIG} and the safetensors weights, in the format of diffusers.",
        )
    values = read_model_json(path)
    name = values.get("_class_name", "ControlNetModel")
    if name != "ControlNetModel":
        raise BackboneError(f"{path}: `_class_name` is {quote_value(name)}, not ControlNetModel.", USE_CONTROLNET)
    config = validate_part_config(ControlNetConfig, path, values)
    check_controlnet_fit(config.model_dump(), backbone, str(path))
    with quiet_libraries():
        network = load_part(ControlNetModel, folder, config.list_arguments(), backbone.dtype)
    with translate_memory_errors("for the ControlNet"):
        torch.nn.Module.to(network, backbone.device, backbone.dtype)
        set_channel_order(network)
    return network.eval().requires_grad_(requires_grad=False)


USE_CONTROLNET = "Use a ControlNet that was trained for this model's family."


def check_controlnet_fit(config: Mapping[str, Any], backbone: Backbone, source: str) -> None:
    """Refuse a ControlNet that was made for another UNet; names the field.

    Raises:
        BackboneError: it reads other latents or texts, or has other layers.
    """
    for name in SHARED:
        own, other = (_spread_per_block(one[name], config) for one in (config, backbone.unet.config))
        if own != other:
            raise BackboneError(f"{source}: `{name}` is {own}, and this model's UNet has {other}.", USE_CONTROLNET)
    factor = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    if factor != backbone.latent_factor:
        raise BackboneError(
            f"{source}: it makes a cell of {factor} x {factor} pixels, and this model's VAE of "
            f"{backbone.latent_factor} x {backbone.latent_factor}.",
            USE_CONTROLNET,
        )


def _spread_per_block(value: object, config: Mapping[str, Any]) -> object:
    """Return a field as a list where one number stands for every block, or as it is."""
    blocks = len(config["block_out_channels"])
    if isinstance(value, (list, tuple)):
        numbers = list(value)
        return numbers[0] if len(set(numbers)) == 1 and len(numbers) == blocks > 1 else numbers
    return value


# ------------------------------------------------------------------ safety checker

CHECKER = "safety_checker"
WITHOUT_CHECKER = (
    "Copy or download the model again, or leave its safety checker out, which is recorded: --no-safety-checker "
    "(Python: safety_checker=False)."
)
# What CLIP subtracts from the colours of an image, in [0, 1], and divides them by.
CLIP_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
CLIP_SPREAD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


class SafetyChecker:
    """The network of a model's folder that finds images not to be shown, read when it is first asked.

    Args:
        folder: with its `config.json` and safetensors weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._network: StableDiffusionSafetyChecker | None = None
        self._lock = threading.Lock()

    def load(self) -> StableDiffusionSafetyChecker:
        """Return the network, in float32: in half precision it could overflow, and then flags nothing.

        Raises:
            BackboneError: its files are missing, damaged, pickled or too large, or there is no memory for it.
        """
        with self._lock:
            if self._network is None:
                try:
                    self._network = self._read()
                except BackboneError as error:
                    if error.lacks_memory:
                        raise
                    raise BackboneError(error.problem, WITHOUT_CHECKER) from error
            return self._network

    def _read(self) -> StableDiffusionSafetyChecker:
        config = read_clip_config(self.folder / CONFIG)
        with quiet_libraries():
            network = load_part(StableDiffusionSafetyChecker, self.folder, config.list_arguments(), torch.float32)
        return network.eval().requires_grad_(requires_grad=False)

    def find_flagged(self, images: Sequence[Image.Image], device: torch.device | str = "cpu") -> list[bool]:
        """Return for each image whether it is not to be shown.

        Raises:
            BackboneError: the network cannot be read, does not run, or lacks memory.
        """
        network = self.load()
        purpose = "to look for images that are not to be shown"
        with translate_memory_errors(purpose):
            torch.nn.Module.to(network, device)
            pixels = torch.stack([prepare_for_clip(one, network.config.vision_config.image_size) for one in images])

        def find() -> list[bool]:
            # Whoever reports the images makes the network's warning.
            with translate_memory_errors(purpose), torch.no_grad(), quiet_libraries():
                return network(pixels.to(device), [np.zeros(1) for _ in images])[1]

        return [bool(one) for one in read_or_refuse(self.folder, find, "Copy or download the model again.")]


def find_safety_checker(folder: Path) -> SafetyChecker | None:
    """Return the safety checker that a folder's index names; None where it names none, or another class.

    One that is named and not there is refused when it is asked, not passed over: nobody would know that it is gone.
    """
    named = read_model_json(folder / INDEX).get(CHECKER)
    is_known = isinstance(named, list) and "StableDiffusionSafetyChecker" in named
    return SafetyChecker(folder / CHECKER) if is_known else None


def prepare_for_clip(image: Image.Image, side: int) -> torch.Tensor:
    """Return an image as CLIP sees it, `[3, side, side]`: the middle square of its shorter side, normalised."""
    width, height = image.size
    short = min(width, height)
    size = (int(width * side / short), int(height * side / short))
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    rgb = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
    return torch.from_numpy((rgb - CLIP_MEAN) / CLIP_SPREAD).permute(2, 0, 1)
