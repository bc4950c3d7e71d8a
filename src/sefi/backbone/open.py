"""Open a frozen model by name: embedded, a folder, a single file or a hub id."""

import re
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.backbone.checkpoint import read_checkpoint
from sefi.backbone.dry_call import check_calls
from sefi.backbone.files import guarded
from sefi.backbone.fingerprint import family_of, fingerprint_of
from sefi.backbone.folder import read_folder
from sefi.backbone.parts import Parts
from sefi.backbone.quiet import quiet_libraries
from sefi.backbone.schedule import PREDICTION_TYPES
from sefi.core.errors import BackboneError

EMBEDDED = "tiny-portraits"
MODELS = Path(__file__).parents[1] / "models"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Configurations, tokenizer and full-precision safetensors; never pickled weights.
HUB_FILES = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors"]
HUB_NEVER = ["safety_checker/*", "*flax*"]
HUB_SKIPPED = ["*fp16*", "*bf16*", "*non_ema*", *HUB_NEVER]


def open_backbone(
    source: str = EMBEDDED,
    *,
    allow_download: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Backbone:
    """Open a model and freeze it.

    Args:
        source: `tiny-portraits` (in the package), a model folder, a `.safetensors` checkpoint, or
            a hub id `owner/name`.
        allow_download: whether a hub id may be downloaded; without it only the local cache is read.
        dtype: number type of all weights.
        device: where the model runs, such as `cpu`, `cuda` or `mps`.

    Raises:
        BackboneError: nothing there, or nothing that can be opened; says what to do.
    """
    # A float16 fingerprint would be rounded twice (see fingerprint.py), so read wide, cast later.
    read_as = torch.float32 if dtype == torch.float16 else dtype
    place = _checked_device(device)
    path, judges = _locate(source, allow_download=allow_download)
    read = read_folder if path.is_dir() else read_checkpoint
    with quiet_libraries():
        parts = guarded(path, lambda: read(path, read_as))
        _check_fit(parts, source)
        backbone = guarded(path, lambda: _bundle(parts, source, judges, dtype, place))
        check_calls(backbone)
    return backbone


def _locate(source: str, *, allow_download: bool) -> tuple[Path, Path | None]:
    """Where the model's files are, and its judges if it brings any."""
    if source == EMBEDDED:
        return _embedded(), MODELS / "judges"
    path = _existing(source)
    if path is not None:
        return path, None
    if HUB_ID.fullmatch(source) and not source.startswith("."):
        return _hub(source, allow_download=allow_download), None
    raise BackboneError(
        f"There is no model at '{source}'.",
        f"Name a model folder, a .safetensors checkpoint, a hub id (owner/name) or '{EMBEDDED}'.",
    )


def _existing(source: str) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a zero byte
        return None


def _embedded() -> Path:
    folder = MODELS / EMBEDDED
    if folder.is_dir():
        return folder
    raise BackboneError(
        f"The embedded model '{EMBEDDED}' is not in this installation.",
        "Install the package again, or name another model.",
    )


def _hub(source: str, *, allow_download: bool) -> Path:
    folder = _snapshot(source, HUB_SKIPPED, allow_download=allow_download)
    if all(any((folder / part).glob("[!.]*.safetensors")) for part in ("unet", "vae", "text_encoder")):
        return folder
    # Some repositories hold half-precision weights only.
    return _snapshot(source, HUB_NEVER, allow_download=allow_download)


def _snapshot(source: str, skipped: list[str], *, allow_download: bool) -> Path:
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
        raise _not_at_hand(source, allow_download=allow_download) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BackboneError(
            f"'{source}' could not be downloaded: {str(error).splitlines()[0][:300]}",
            "Check the id and your connection, or name a local folder.",
        ) from error


def _not_at_hand(source: str, *, allow_download: bool) -> BackboneError:
    if allow_download:
        return BackboneError(
            f"'{source}' could not be reached and is not in the local cache.",
            "Check your connection, or name a local folder.",
        )
    return BackboneError(
        f"'{source}' is neither a local path nor in the local model cache.",
        "Allow the download (`--download`, or allow_download=True), or name a local folder.",
    )


def _checked_device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(f"'{device}' is not a device.", "Use cpu, cuda, cuda:1 or mps.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError("No CUDA device was found.", "Use --device cpu.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise BackboneError("No Apple GPU (mps) was found.", "Use --device cpu.")
    return found


def _check_fit(parts: Parts, source: str) -> None:
    """Refuse a prediction that is not learned, and words without a row in the text encoder's table."""
    table_rows = cast(Tensor, parts.text_encoder.get_input_embeddings().weight).shape[0]
    if len(parts.tokenizer) > table_rows:
        _refuse(source, f"the tokenizer knows {len(parts.tokenizer)} words, the table {table_rows}")
    if parts.scheduler.config["prediction_type"] not in PREDICTION_TYPES:
        _refuse(source, f"it predicts '{parts.scheduler.config['prediction_type']}'")


def _refuse(source: str, reason: str) -> None:
    raise BackboneError(f"'{source}' cannot be used: {reason}.", "Use a Stable Diffusion 1.x or 2.x model.")


def _bundle(parts: Parts, source: str, judges: Path | None, dtype: torch.dtype, device: torch.device) -> Backbone:
    fingerprint = fingerprint_of(parts)
    for model in (parts.text_encoder, parts.vae, parts.unet):
        torch.nn.Module.to(model, device, dtype)
    width = int(parts.text_encoder.config.hidden_size)
    factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
    return Backbone(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=parts.vae,
        unet=parts.unet,
        scheduler=parts.scheduler,
        fingerprint=fingerprint,
        width=width,
        family=family_of(width),
        resolution=int(parts.unet.config["sample_size"]) * factor,
        source=source,
        judges=judges,
    )
