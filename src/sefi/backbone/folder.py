"""A pipeline folder in the Stable Diffusion format to the five parts of the model."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from sefi.backbone.files import is_regular, read_json
from sefi.backbone.kinds import article, pipeline_kind
from sefi.backbone.part_configs import (
    REMEDY,
    check_fit,
    latent_size,
    read_text_config,
    read_unet_config,
    read_vae_config,
    shown,
)
from sefi.backbone.part_weights import load_part
from sefi.backbone.parts import Parts
from sefi.backbone.schedule import noise_settings
from sefi.backbone.tokenizer_files import read_tokenizer
from sefi.core.errors import BackboneError

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


def read_folder(folder: Path, dtype: torch.dtype) -> Parts:
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
    size = {"sample_size": latent_size(unet, vae, folder / "unet" / CONFIG)}
    scheduler = read_scheduler(folder)
    return Parts(
        tokenizer=read_tokenizer(folder / "tokenizer", text.vocab_size),
        # The implementation is named: the library must never take it from a file.
        text_encoder=load_part(
            CLIPTextModel, folder / "text_encoder", text.arguments(), dtype, attn_implementation="sdpa"
        ),
        vae=load_part(AutoencoderKL, folder / "vae", vae.arguments(), dtype),
        unet=load_part(UNet2DConditionModel, folder / "unet", unet.arguments() | size, dtype),
        scheduler=scheduler,
    )


def read_scheduler(folder: Path) -> DDPMScheduler:
    """The noise schedule of a pipeline folder, whichever sampler it names.

    Raises:
        BackboneError: the file is missing or damaged, describes no diffusion in T steps, or a setting is out of range.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    if "beta_schedule" not in config:
        raise BackboneError(
            f"{folder} has no diffusion noise schedule (its scheduler is {config.get('_class_name')}).",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    return DDPMScheduler(**noise_settings(config))


def _check_index(folder: Path) -> None:
    """Refuse a folder that is no pipeline, or one of another kind, by its index alone."""
    if not is_regular(folder / INDEX):
        raise _no_pipeline(folder)
    index = read_json(folder / INDEX)
    kind = pipeline_kind(index)
    if kind is not None:
        raise BackboneError(f"{folder} is {article(kind)} {kind}, which is not supported yet.", REMEDY)
    for part in NEEDED:
        _check_part(folder, part, index.get(part))


def _no_pipeline(folder: Path) -> BackboneError:
    files = sorted(folder.glob("[!.]*.safetensors"))
    if is_regular(folder / CONFIG):
        name = shown(read_json(folder / CONFIG).get("_class_name", "a single part"))
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
                f"{folder / INDEX} names {shown(entry)} as its {part}.",
                f"Expected {' or '.join(CLASSES.get(part, ('a class of diffusers',)))}: "
                "use a Stable Diffusion 1.x or 2.x model.",
            )
