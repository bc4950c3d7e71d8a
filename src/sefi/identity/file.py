"""One identity, one safetensors file: tensors by name and a JSON header; nothing is ever unpickled."""

import json
import os
import tempfile
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sefi.core.errors import IdentityError, OutputError
from sefi.core.nouns import SCHEMA_VERSION, TABLE_DIMS, Identity, IdentityHeader

HEADER_KEY = "sefi"
# Ours take 30 KB; baselines that store weights take more, and no identity needs 8 GB.
LARGEST_FILE = 8 * 2**30
REMEDY = "Use a file that `sefi learn` wrote."


def write_identity(identity: Identity, path: Path) -> None:
    """Write atomically: whoever reads sees the old file or the whole new one."""
    header = {HEADER_KEY: identity.header.model_dump_json()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in identity.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        try:
            save_file(tensors, partial, metadata=header)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written: {reason}.", "Choose another --out.") from error


def read_identity(path: Path) -> Identity:
    """Read and check an identity.

    Raises:
        IdentityError: missing, truncated, foreign, newer, or inconsistent with its own header.
    """
    if not path.is_file():
        raise IdentityError(f"There is no identity file {path}.", "Check the path, or learn it with `sefi learn`.")
    if path.stat().st_size > LARGEST_FILE:
        raise IdentityError(f"{path} is larger than any identity.", REMEDY)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            if text is None:
                raise IdentityError(f"{path} is a safetensors file, but no identity of sefi.", REMEDY)
            header = parse_header(path, text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise IdentityError(
            f"{path} is damaged or no safetensors file.", "Copy it again, or learn it again."
        ) from error
    check_tokens(path, header, tensors)
    return Identity(tensors, header)


def parse_header(path: Path, text: str) -> IdentityHeader:
    """The JSON header, checked."""
    try:
        version = json.loads(text).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise IdentityError(f"{path} was written by a newer sefi (schema {version}).", "Update sefi.")
        return IdentityHeader.model_validate_json(text)
    except (ValidationError, json.JSONDecodeError, AttributeError) as error:
        raise IdentityError(f"The header of {path} is damaged.", REMEDY) from error


def check_tokens(path: Path, header: IdentityHeader, tensors: dict[str, torch.Tensor]) -> None:
    """Tokens, where a method has them, must have the shape that the header tells, and be finite."""
    if "tokens" not in tensors:
        if header.method == "sefi":
            raise IdentityError(f"{path} holds no tokens.", REMEDY)
        return
    tokens, shape = tensors["tokens"], (header.stages, 2, header.width)
    found = tuple(tokens.shape)
    # Several tokens in the place of one name stand before the width.
    if found != shape and (len(found) != TABLE_DIMS or found[:2] + found[3:] != shape or not found[2]):
        raise IdentityError(f"{path}: tokens are {found}, the header says {shape}.", REMEDY)
    if not torch.isfinite(tokens).all():
        raise IdentityError(f"{path}: tokens are not finite numbers.", "Learn it again with a lower learning rate.")
