"""A single-file checkpoint in the original layout to the five parts of the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextModel

from sefi.backbone.files import LIMITS, guarded, is_regular, read_header
from sefi.backbone.fingerprint import family_of
from sefi.backbone.folder import read_scheduler
from sefi.backbone.kinds import article, file_kind
from sefi.backbone.part_weights import check_finite, refuse_other_numbers
from sefi.backbone.parts import Parts
from sefi.backbone.schedule import noise_settings
from sefi.backbone.vocabulary import END, clip_tokenizer
from sefi.core.errors import BackboneError
from sefi.core.reading import Layout

Part = TypeVar("Part", bound=nn.Module)

CONFIGS = Path(__file__).parent / "configs"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
# EMA copies and the training's own numbers stay in the file.
READ = (UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX)
TEXT_KEY = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = UNET_PREFIX + "input_blocks.0.0.weight"
PAD_TOKEN = {"sd1": END, "sd2": "!"}
# ModelSpec's words for what the UNet predicts; files without it follow their family's config.
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
REMEDY = "Use a Stable Diffusion 1.x or 2.x model."
WHOLE = "Use a whole checkpoint: UNet, VAE and text encoder in one file."


def read_checkpoint(path: Path, dtype: torch.dtype) -> Parts:
    """Read one `.safetensors` file of SD 1.x or 2.x; needs no network.

    Configurations and the tokenizer come with the package. A 2.x file is taken to predict v at
    768 pixels unless its header says otherwise (`modelspec.prediction_type`).

    Args:
        path: the file; both its content and its name must say safetensors.
        dtype: number type of the weights once read.

    Raises:
        BackboneError: pickled, damaged, not a whole model, an inpainting model, or not SD 1 or 2.
    """
    _check_magic(path)
    header = read_header(path)
    family = _family(path, header)
    _check_whole(path, header)
    refuse_other_numbers(path, header)
    folder = CONFIGS / family
    tensors = guarded(path, lambda: _tensors(path), "Copy or download the file again.")
    return Parts(
        tokenizer=clip_tokenizer(PAD_TOKEN[family]),
        text_encoder=_text_encoder(path, tensors, folder, dtype),
        vae=_model(AutoencoderKL, "vae", path, tensors, folder, dtype),
        unet=_model(UNet2DConditionModel, "unet", path, tensors, folder, dtype),
        scheduler=_scheduler(folder, header.metadata),
    )


def _check_magic(path: Path) -> None:
    if not is_regular(path):
        raise BackboneError(f"{path} is no file.", "Name a .safetensors checkpoint or a model folder.")
    with path.open("rb") as file:
        start = file.read(9)
    header_bytes = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and header_bytes <= LIMITS.header:
        if path.suffix == ".safetensors":
            return
        raise BackboneError(f"{path} is a safetensors file by another name.", "Rename it.")
    raise BackboneError(
        f"{path} is not a safetensors file; a pickled checkpoint (.ckpt, .pt, .bin) may run code "
        "when opened and is refused.",
        "Use the model's .safetensors file, or convert it.",
    )


def _family(path: Path, header: Layout) -> str:
    """Return `sd1` or `sd2` from the header alone; refuses what is neither."""
    kind = file_kind(header.shapes, header.metadata)
    if kind is not None:
        outcome = ", which is not supported yet" if "checkpoint" in kind else ", not a whole model"
        raise BackboneError(f"{path} is {article(kind)} {kind}{outcome}.", REMEDY)
    text, inputs = header.shapes.get(TEXT_KEY), header.shapes.get(INPUT_KEY)
    if not text or inputs is None or len(inputs) != 4:
        raise BackboneError(
            f"{path} holds no Stable Diffusion UNet (is it a LoRA, a VAE or an embedding?).",
            "Name a whole checkpoint, in the original layout.",
        )
    if inputs[1] != 4:
        raise BackboneError(
            f"{path} takes {inputs[1]} input channels: it is an inpainting, depth or editing model.",
            "Use the text-to-image checkpoint of the same family.",
        )
    if family_of(text[-1]) not in PAD_TOKEN:
        raise BackboneError(
            f"{path} reads text of width {text[-1]}, which is neither SD 1.x (768) nor 2.x (1024).", REMEDY
        )
    return family_of(text[-1])


def _check_whole(path: Path, header: Layout) -> None:
    """Refuse a file without VAE or text encoder, saying which."""
    parts = {"VAE": (VAE_PREFIX,), "text encoder": (CLIP_PREFIX, OPEN_CLIP_PREFIX)}
    missing = [part for part, starts in parts.items() if not any(name.startswith(starts) for name in header.shapes)]
    if missing:
        raise BackboneError(f"{path} holds no {' and no '.join(missing)}.", WHOLE)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read what belongs to the three parts, under today's names."""
    with safe_open(path, framework="pt") as file:
        return {_renamed(name): file.get_tensor(name) for name in file.keys() if name.startswith(READ)}  # noqa: SIM118


def _renamed(name: str) -> str:
    """Older files name the text encoder's weights without `text_model.`."""
    bare = name.removeprefix(CLIP_PREFIX)
    if bare == name or bare.startswith(("text_model.", "text_projection.")):
        return name
    return f"{CLIP_PREFIX}text_model.{bare}"


def _model(
    cls: type[Part], name: str, path: Path, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype
) -> Part:
    loader: Any = cls
    # Copies: the converters take out of the mapping what they have used.
    model = guarded(
        path,
        lambda: loader.from_single_file(
            dict(tensors), config=str(folder), subfolder=name, torch_dtype=dtype, local_files_only=True
        ),
        "Copy or download the file again.",
    )
    _check_complete(path, name, model)
    return model


def _text_encoder(path: Path, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> CLIPTextModel:
    build: Any = create_diffusers_clip_model_from_ldm
    settings = {"subfolder": "text_encoder", "config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    model = guarded(
        path,
        lambda: cast(CLIPTextModel, build(CLIPTextModel, dict(tensors), **settings)),
        "Copy or download the file again.",
    )
    _check_complete(path, "text_encoder", model)
    return model


def _check_complete(path: Path, name: str, model: nn.Module) -> None:
    # diffusers leaves a weight that the file lacks without storage ("meta") instead of failing.
    missing = [key for key, value in model.named_parameters() if value.is_meta]
    if missing:
        raise BackboneError(
            f"{path} cannot be read: its {name} lacks {len(missing)} weights, such as {missing[0]}.", WHOLE
        )
    check_finite(model, path)


def _scheduler(folder: Path, metadata: Mapping[str, str]) -> DDPMScheduler:
    scheduler = read_scheduler(folder)
    prediction = PREDICTION.get(metadata.get("modelspec.prediction_type", "").lower())
    if prediction is None:
        return scheduler
    return DDPMScheduler(**noise_settings(dict(scheduler.config) | {"prediction_type": prediction}))
