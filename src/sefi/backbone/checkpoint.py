"""A single-file checkpoint in the original layout to the five parts of the model."""

from pathlib import Path
from typing import cast

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from sefi.backbone.fingerprint import family_of
from sefi.backbone.folder import LOAD_ERRORS, read_scheduler
from sefi.backbone.parts import Parts
from sefi.backbone.vocabulary import END, clip_tokenizer
from sefi.core.errors import BackboneError

CONFIGS = Path(__file__).parent / "configs"
UNET_PREFIX = "model.diffusion_model."
TEXT_KEY = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = UNET_PREFIX + "input_blocks.0.0.weight"
SDXL_PREFIX = "conditioner.embedders."
PAD_TOKEN = {"sd1": END, "sd2": "!"}
MAX_HEADER_BYTES = 100_000_000
# ModelSpec's words for what the UNet predicts; files without it follow their family's config.
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


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
    family, metadata = _inspect(path)
    folder = CONFIGS / family
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(folder),
            tokenizer=clip_tokenizer(PAD_TOKEN[family]),
            safety_checker=None,
            feature_extractor=None,
            torch_dtype=dtype,
            local_files_only=True,
        )
    except LOAD_ERRORS as error:
        raise _unreadable(path, str(error)) from error
    _check_complete(path, pipeline)
    return Parts(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=pipeline.vae,
        unet=pipeline.unet,
        scheduler=_scheduler(folder, metadata),
    )


def _inspect(path: Path) -> tuple[str, dict[str, str]]:
    """Family and metadata from the header alone; refuses what is not a whole SD 1 or 2 model."""
    _check_magic(path)
    try:
        with safe_open(path, framework="pt") as header:
            keys = set(header.keys())
            shapes = {key: list(header.get_slice(key).get_shape()) for key in (TEXT_KEY, INPUT_KEY) if key in keys}
            metadata = dict(header.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    return _family(path, keys, shapes), metadata


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    header_bytes = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and header_bytes <= MAX_HEADER_BYTES:
        if path.suffix == ".safetensors":
            return
        # By any other name diffusers would unpickle it.
        raise BackboneError(f"{path} is a safetensors file by another name.", "Rename it.")
    raise BackboneError(
        f"{path} is not a safetensors file; a pickled checkpoint (.ckpt, .pt, .bin) may run code "
        "when opened and is refused.",
        "Use the model's .safetensors file, or convert it.",
    )


def _family(path: Path, keys: set[str], shapes: dict[str, list[int]]) -> str:
    if any(key.startswith(SDXL_PREFIX) for key in keys):
        raise BackboneError(
            f"{path} is an SDXL checkpoint, which is not supported yet.",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    if set(shapes) != {TEXT_KEY, INPUT_KEY}:
        raise BackboneError(
            f"{path} holds no Stable Diffusion UNet (is it a LoRA, a VAE or an embedding?).",
            "Name a whole checkpoint, in the original layout.",
        )
    if shapes[INPUT_KEY][1] != 4:
        raise BackboneError(
            f"{path} takes {shapes[INPUT_KEY][1]} input channels: it is an inpainting, depth or editing model.",
            "Use the text-to-image checkpoint of the same family.",
        )
    width = shapes[TEXT_KEY][-1]
    if family_of(width) not in PAD_TOKEN:
        raise BackboneError(
            f"{path} reads text of width {width}, which is neither SD 1.x (768) nor 2.x (1024).",
            "Use a Stable Diffusion 1.x or 2.x model.",
        )
    return family_of(width)


def _check_complete(path: Path, pipeline: StableDiffusionPipeline) -> None:
    # diffusers leaves a weight that the file lacks without storage ("meta") instead of failing.
    for name in ("text_encoder", "vae", "unet"):
        missing = [key for key, value in getattr(pipeline, name).named_parameters() if value.is_meta]
        if missing:
            raise _unreadable(path, f"its {name} lacks {len(missing)} weights, such as {missing[0]}")


def _scheduler(folder: Path, metadata: dict[str, str]) -> DDPMScheduler:
    scheduler = read_scheduler(folder)
    prediction = PREDICTION.get(metadata.get("modelspec.prediction_type", "").lower())
    if prediction is None:
        return scheduler
    changed = DDPMScheduler.from_config(scheduler.config, prediction_type=prediction)
    return cast(DDPMScheduler, changed)


def _unreadable(path: Path, reason: str) -> BackboneError:
    first = (reason.strip().splitlines() or ["unknown error"])[0][:300]
    return BackboneError(f"{path} could not be read: {first}.", "Copy or download the file again.")
