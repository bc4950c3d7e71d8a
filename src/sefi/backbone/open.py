"""Open a model by what the user named, try it with one dry call, and describe published sizes without values."""

import json
import re
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sefi.backbone.bundle import (
    PREDICTION_TYPES,
    Backbone,
    ModelParts,
    TextEncoding,
    compute_fingerprint,
    parse_device,
    parse_dtype,
    place_networks,
    set_channel_order,
)
from sefi.backbone.checkpoint import CONFIGS, PAD_TOKENS, read_checkpoint
from sefi.backbone.files import quiet_libraries, read_or_refuse, translate_memory_errors
from sefi.backbone.folder import read_folder
from sefi.backbone.kinds import EMBEDDED, REMEDY
from sefi.backbone.tokenizer import create_clip_tokenizer
from sefi.core.errors import BackboneError, check_type
from sefi.core.reading import describe_fault

Published = Literal["sd1", "sd2", "sdxl"]


def create_empty_stable_diffusion(family: Published = "sd1") -> Backbone:
    """Create a model of a published size on the meta device (1.4, 2.1 or XL 1.0): every shape, no memory."""
    second: dict[str, Any] = {}
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**read_shipped_config("text_encoder", family)))
        unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(read_shipped_config("unet", family)))
        vae = cast(AutoencoderKL, AutoencoderKL.from_config(read_shipped_config("vae", family)))
        if family == "sdxl":
            config = CLIPTextConfig(**read_shipped_config("text_encoder_2", family))
            second = {"text_encoder_2": CLIPTextModelWithProjection(config)}
    tokenizers = [create_clip_tokenizer(pad) for pad in PAD_TOKENS[family]]
    parts = ModelParts(
        tokenizer=tokenizers[0],
        text_encoder=text,
        vae=vae,
        unet=unet,
        scheduler=cast(DDPMScheduler, DDPMScheduler.from_pretrained(CONFIGS / family, subfolder="scheduler")),
        family=family,
        tokenizer_2=tokenizers[1] if second else None,
        **second,
    )
    return Backbone(
        **vars(parts),
        fingerprint=f"{family}:{parts.token_width}:empty",
        resolution=parts.trained_resolution,
        source="sizes only",
    )


def read_shipped_config(part: str, family: Published = "sd1") -> dict[str, Any]:
    """Read the shipped configuration of one part."""
    return json.loads((CONFIGS / family / part / "config.json").read_text(encoding="utf-8"))


PROMPT = "a photo"
WIDER = "Open it in float32 or bfloat16, or copy or download the model again."


def check_calls(backbone: Backbone) -> None:
    """Encode a prompt, predict noise, decode and encode; no gradient, a few latent cells.

    Raises:
        BackboneError: a part fails, answers in another shape or with numbers that are not finite, or lacks memory.
    """
    side = 2 ** max(1, len(backbone.unet.config["block_out_channels"]) - 1)
    latents = torch.linspace(-1, 1, backbone.latent_channels * side * side, device=backbone.device)
    latents = latents.reshape(1, backbone.latent_channels, side, side).to(backbone.dtype)
    part = "text encoder"
    try:
        with translate_memory_errors(f"to run '{backbone.source}'"), torch.no_grad():
            encoding = _encode_prompt(backbone)
            _check(backbone, part, encoding.states, (1, encoding.states.shape[1], backbone.token_width))
            part = "UNet"
            t = torch.tensor([backbone.num_train_timesteps // 2], device=backbone.device)
            _check(backbone, part, backbone.predict(latents, t, encoding), tuple(latents.shape))
            part = "VAE"
            few = latents[..., :2, :2]
            pixels = backbone.decode(few)
            _check(backbone, part, pixels, (1, 3, 2 * backbone.latent_factor, 2 * backbone.latent_factor))
            _check(backbone, part, backbone.encode_image(pixels), tuple(few.shape))
    except BackboneError:
        raise
    except Exception as error:
        raise BackboneError(f"The {part} of '{backbone.source}' fails: {describe_fault(error)}.", REMEDY) from error


def _encode_prompt(backbone: Backbone) -> TextEncoding:
    texts: list[list[Any]] = []
    for tokenizer in backbone.tokenizers:
        ids = [tokenizer.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        texts.append(ids[: backbone.text_length])
    return backbone.encode_text(torch.tensor([texts]))


def _check(backbone: Backbone, part: str, answer: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(answer.shape) != shape:
        raise BackboneError(f"The {part} of '{backbone.source}' answers {tuple(answer.shape)}, not {shape}.", REMEDY)
    if not torch.isfinite(answer).all():
        number = str(backbone.dtype).removeprefix("torch.")
        raise BackboneError(f"The {part} of '{backbone.source}' gives numbers that are not finite in {number}.", WIDER)


MODELS = Path(__file__).parents[1] / "models"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # a path that is no hub id
# Configurations, tokenizer and full-precision safetensors; never pickled weights.
HUB_FILES = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors"]
HUB_NEVER = ["vae_1_0/*", "*flax*"]
HUB_SKIPPED = ["*fp16*", "*bf16*", "*non_ema*", *HUB_NEVER]


def open_backbone(
    source: str = EMBEDDED,
    *,
    allow_download: bool = False,
    dtype: str | torch.dtype | None = torch.float32,
    device: str = "cpu",
) -> Backbone:
    """Open a model and freeze it.

    Args:
        source: `tiny-portraits` (in the package), a model folder, a `.safetensors` checkpoint, or
            a hub id `owner/name`.
        allow_download: whether a hub id may be downloaded; without it only the local cache is read.
        dtype: of all weights, or its name; None takes bfloat16 on CUDA, float32 elsewhere and for the embedded model.
        device: where the model runs, such as `cpu`, `cuda` or `mps`.

    Raises:
        BackboneError: nothing there, or nothing that can be opened; says what to do.
        ConfigError: there is no such dtype.
    """
    check_type(source, (str, Path), "The model", BackboneError, "Give its name, its folder or its file.")
    source = str(source)
    place = parse_device(device)
    if dtype is None:
        dtype = torch.float32 if source == EMBEDDED else choose_dtype(place)
    dtype = parse_dtype(dtype)
    # A float16 fingerprint would be rounded twice (see `compute_fingerprint`), so read wide, cast later.
    read_as = torch.float32 if dtype == torch.float16 else dtype
    path = _locate(source, allow_download=allow_download)
    read = read_folder if path.is_dir() else read_checkpoint
    with quiet_libraries():
        parts = read_or_refuse(path, lambda: read(path, read_as))
        _check_fit(parts, source)
        backbone = read_or_refuse(path, lambda: _build_backbone(parts, source, dtype, place))
        check_calls(backbone)
    return backbone


def check_source(source: str, *, allow_download: bool = False) -> None:
    """Refuse a model that is not there, without opening it; one that may be downloaded counts as there.

    Raises:
        BackboneError: there is no such path, nor a model of that name in the local cache.
    """
    if not (allow_download and _find_existing(source) is None and _is_hub_id(source)):
        _locate(source, allow_download=False)


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return what a device calculates in fast and without overflow: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a processor has no instructions for a 16-bit dtype, so that it is many times slower than float32.

    False where it is not known: on other devices, and without oneDNN.
    """
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or dtype not in checks or not torch.backends.mkldnn.is_available():
        return False
    supported = getattr(torch.ops.mkldnn, checks[dtype], None)
    return supported is not None and not supported()


def _locate(source: str, *, allow_download: bool) -> Path:
    """Return where the model's files are."""
    if source == EMBEDDED:
        return _locate_embedded()
    path = _find_existing(source)
    if path is not None:
        return path
    if _is_hub_id(source):
        return _fetch_from_hub(source, allow_download=allow_download)
    raise BackboneError(
        f"There is no model at '{source}'.",
        f"Check the path. Name a model folder, a .safetensors checkpoint, a hub id (owner/name) or '{EMBEDDED}'.",
    )


def _is_hub_id(source: str) -> bool:
    is_file = source.startswith(".") or source.lower().endswith(WEIGHT_SUFFIXES)
    return HUB_ID.fullmatch(source) is not None and not is_file


def _find_existing(source: str) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a zero byte
        return None


def _locate_embedded() -> Path:
    folder = MODELS / EMBEDDED
    if folder.is_dir():
        return folder
    raise BackboneError(
        f"The embedded model '{EMBEDDED}' is not in this installation.",
        "Install the package again, or name another model.",
    )


def _fetch_from_hub(source: str, *, allow_download: bool) -> Path:
    folder = _fetch_snapshot(source, HUB_SKIPPED, allow_download=allow_download)
    second = ("text_encoder_2",) if (folder / "text_encoder_2").is_dir() else ()
    parts = ("unet", "vae", "text_encoder", *second)
    if all(any((folder / part).glob("[!.]*.safetensors")) for part in parts):
        return folder
    # Some repositories hold half-precision weights only.
    return _fetch_snapshot(source, HUB_NEVER, allow_download=allow_download)


def _fetch_snapshot(source: str, skipped: list[str], *, allow_download: bool) -> Path:
    try:
        return Path(
            snapshot_download(
                source,
                local_files_only=not allow_download,
                allow_patterns=HUB_FILES,
                ignore_patterns=skipped,
            )
        )
    except LocalEntryNotFoundError as error:
        raise _make_missing_error(source, allow_download=allow_download) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BackboneError(
            f"'{source}' could not be downloaded: {str(error).splitlines()[0][:300]}",
            "Check the id and your connection, or name a local folder.",
        ) from error


def _make_missing_error(source: str, *, allow_download: bool) -> BackboneError:
    if allow_download:
        return BackboneError(
            f"'{source}' could not be reached and is not in the local cache.",
            "Check your connection, or name a local folder.",
        )
    return BackboneError(
        f"'{source}' is neither a local path nor in the local model cache.",
        "Check the path; if it is a hub id, allow the download (`--download`, or allow_download=True).",
    )


def _check_fit(parts: ModelParts, source: str) -> None:
    """Refuse a prediction that is not learned, and words without a row in the text encoder's table."""
    for tokenizer, table in zip(parts.tokenizers, parts.token_tables, strict=True):
        if len(tokenizer) > len(table):
            _refuse(source, f"the tokenizer knows {len(tokenizer)} words, the table {len(table)}")
    if parts.scheduler.config["prediction_type"] not in PREDICTION_TYPES:
        _refuse(source, f"it predicts '{parts.scheduler.config['prediction_type']}'")


def _refuse(source: str, reason: str) -> None:
    raise BackboneError(f"'{source}' cannot be used: {reason}.", REMEDY)


def _build_backbone(parts: ModelParts, source: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    fingerprint = compute_fingerprint(parts)
    place_networks(parts, device, dtype)
    backbone = Backbone(
        **vars(parts),
        fingerprint=fingerprint,
        resolution=parts.trained_resolution,
        source=source,
    )
    # After it was signed, which reads the weights in their usual order.
    set_channel_order(backbone.unet, backbone.vae)
    return backbone
