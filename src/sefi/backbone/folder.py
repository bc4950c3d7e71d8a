"""A pipeline folder in the Stable Diffusion format to the five parts of the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from sefi.backbone.parts import Parts
from sefi.core.errors import BackboneError

Part = TypeVar("Part", bound=torch.nn.Module)
Value = TypeVar("Value")

INDEX = "model_index.json"
NEEDED = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
# The only model classes a folder may name: a config is input, not code to look up freely.
MODELS: dict[str, str] = {
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
    "unet": "UNet2DConditionModel",
}
MAX_JSON_BYTES = 1 << 20
# What the libraries raise for damaged, foreign or mismatched files.
COPY_AGAIN = "Copy or download the model again, as a Stable Diffusion 1.x or 2.x folder."
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def read_folder(folder: Path, dtype: torch.dtype) -> Parts:
    """Read a pipeline folder (`model_index.json` and one sub-folder per part); safetensors only.

    Raises:
        BackboneError: not such a folder, a part missing or damaged, pickled weights only, or a
            model of another kind (SDXL and later).
    """
    index = _read_index(folder)
    return Parts(
        tokenizer=_tokenizer(folder, str(index["tokenizer"][1])),
        text_encoder=_model(CLIPTextModel, folder, "text_encoder", dtype),
        vae=_model(AutoencoderKL, folder, "vae", dtype),
        unet=_model(UNet2DConditionModel, folder, "unet", dtype),
        scheduler=read_scheduler(folder),
    )


def read_scheduler(folder: Path) -> DDPMScheduler:
    """The noise schedule of a pipeline folder, whichever sampler it names.

    Raises:
        BackboneError: the file is missing or damaged, or describes no diffusion in T steps.
    """
    config = _read_json(folder / "scheduler" / "scheduler_config.json")
    if "beta_schedule" not in config:
        raise BackboneError(
            f"{folder} has no diffusion noise schedule (its scheduler is {config.get('_class_name')}).",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    return guarded(folder / "scheduler", lambda: cast(DDPMScheduler, DDPMScheduler.from_config(config)))


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise BackboneError(
            f"{folder} holds no {INDEX}, so it is not a model folder.",
            "Name the folder that contains model_index.json, unet, vae and text_encoder.",
        )
    index = _read_json(folder / INDEX)
    if "text_encoder_2" in index or "transformer" in index:
        raise BackboneError(
            f"{folder} holds a {index.get('_class_name')}, which is not supported yet.",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    for part in NEEDED:
        _check_part(folder, part, index.get(part))
    return index


def _check_part(folder: Path, part: str, entry: object) -> None:
    match entry:
        case [str(), str(class_name)] if MODELS.get(part, class_name) == class_name:
            return
        case _:
            raise BackboneError(
                f"{folder / INDEX} names {entry!r} as its {part}.",
                f"Expected {MODELS.get(part, 'a class of transformers or diffusers')}: "
                "use a Stable Diffusion 1.x or 2.x model.",
            )


def _read_json(path: Path) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("the file is larger than a configuration")
        content: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object")
        return content

    return guarded(path, read)


def _tokenizer(folder: Path, class_name: str) -> PreTrainedTokenizerBase:
    cls = getattr(transformers, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedTokenizerBase)):
        raise BackboneError(
            f"{folder / INDEX} names '{class_name}' as its tokenizer.",
            "Expected a tokenizer class of transformers, such as CLIPTokenizer.",
        )
    where = folder / "tokenizer"
    loader: Any = cls
    return guarded(where, lambda: loader.from_pretrained(where, local_files_only=True))


def _model(cls: type[Part], folder: Path, name: str, dtype: torch.dtype) -> Part:
    loader: Any = cls  # diffusers and transformers share this call, but no base class
    where = folder / name
    variant = _weights_variant(where)
    model, report = guarded(
        where,
        lambda: loader.from_pretrained(
            where,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        ),
    )
    if report["missing_keys"]:
        raise BackboneError(
            f"{where} lacks {len(report['missing_keys'])} weights, such as {sorted(report['missing_keys'])[0]}.",
            "The file is incomplete: copy or download the model again.",
        )
    return model


def _weights_variant(where: Path) -> str | None:
    """`fp16` where only half-precision files are kept, else None."""
    names = [path.name for path in where.glob("*.safetensors")]
    if any(".fp16" not in name for name in names):
        return None
    if names:
        return "fp16"
    if any(where.glob("*.bin")) or any(where.glob("*.ckpt")):
        raise BackboneError(
            f"{where} holds pickled weights only, which may run code when opened.",
            "Convert the model to safetensors (`pipeline.save_pretrained(..., safe_serialization=True)`).",
        )
    raise BackboneError(f"{where} holds no weights.", "Copy or download the model again, as safetensors.")


def guarded(where: Path, read: Callable[[], Value], remedy: str = COPY_AGAIN, *, kind: str = "") -> Value:
    """What `read` returns.

    Raises:
        BackboneError: it failed in one of the ways in which damaged and foreign folders fail; `kind` is what the
            folder was taken for.
    """
    try:
        return read()
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        taken = f" as {kind}" if kind else ""
        raise BackboneError(f"{where} could not be read{taken}: {reason[0][:300]}", remedy) from error
