"""Read an identity file that sefi wrote: its tokens and what its header says, nothing else, and never more than stated.

The file is safetensors: eight bytes with the header's length, a JSON header, the tensors' bytes. It is read by itself,
because a file from elsewhere shall be checked before anything of its size is allocated.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

NEWEST_SCHEMA = 4  # 1 had no signature of the model, 2 no second text encoder, 3 no record of the learning
LARGEST_FILE = 64 * 2**20  # bytes; an identity of tokens takes 30 KB to a few MB
LARGEST_HEADER = 2**20
MOST_STAGES, MOST_VECTORS, LARGEST_WIDTH = 100, 33, 8192
NAME = r"[A-Za-z0-9_-]{1,64}"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LONGEST_TOKEN = 1e6  # rows of token tables are shorter than 100
OWN_WEIGHTS = ("unet.", "text_encoder.", "text_encoder_2.")
RELEARN = "Learn it with a method that learns tokens, such as `sefi learn --method sefi`."
COPY = "Copy the file again, or learn the identity again."


@dataclass(frozen=True)
class Identity:
    """What a node needs of an identity.

    Attributes:
        name: its placeholder's, `<name>` in prompts.
        class_word: what the placeholder is where the identity is off.
        tokens: one for each text encoder, `[stage, 2, vector, width]`, float32; slot 0 makes keys, slot 1 values, and
            stage 0 is the least noisy.
    """

    name: str
    class_word: str
    tokens: tuple[Tensor, ...]

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.tokens[0])


class IdentityFileError(ValueError):
    """A file cannot be used; says what is wrong and what to do."""

    def __init__(self, path: object, problem: str, remedy: str = COPY) -> None:
        super().__init__(f"{path}: {problem}. {remedy}")


def read_identity(path: str | Path) -> Identity:
    """Read the tokens of an identity file.

    Raises:
        IdentityFileError: no identity, one without tokens or with weights of its own, newer than this reader, damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe would never end
            raise IdentityFileError(path, "is no file", "Check the path.")
        with path.open("rb") as file:
            size = path.stat().st_size
            entries, start = read_entries(file, path, size)
            header = parse_header(path, entries)
            check_method(path, header, entries)
            names = ["tokens", *(f"tokens_{number}" for number in range(2, len(header["widths"]) + 1))]
            tokens = [read_tensor(file, path, entries.get(name), start, size) for name in names]
    except OSError as error:
        raise IdentityFileError(path, f"cannot be read: {error.strerror}", "Check the path.") from error
    return Identity(header["name"], header["class_word"], check_tokens(path, header, tokens))


def read_entries(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Read the header: what it says of every tensor, and where the tensors' bytes start.

    Raises:
        IdentityFileError: it is larger than any, or no JSON object.
    """
    if size > LARGEST_FILE:
        raise IdentityFileError(path, f"has {size:,} bytes, more than {LARGEST_FILE:,}", RELEARN)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8 or length > LARGEST_HEADER:
        raise IdentityFileError(path, "is cut short or no safetensors file")
    entries = parse_object(path, file.read(length))
    return entries, 8 + length


def parse_object(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text; `IdentityFileError` for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise IdentityFileError(path, "its header is damaged")
    return value


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a key twice, with `ValueError`: another reader may take the other value."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key is named twice")
    return members


def parse_header(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Return sefi's own header; `widths` has the width of each text encoder's tokens.

    Raises:
        IdentityFileError: there is none, or a value that no version writes.
    """
    metadata = entries.get("__metadata__")
    text = metadata.get("sefi") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise IdentityFileError(path, "is no identity of sefi", "Use a file that `sefi learn` wrote.")
    header = parse_object(path, text)
    version = header.get("schema_version", 2)
    if not isinstance(version, int) or version < 1:
        raise IdentityFileError(path, "its header is damaged")
    if version > NEWEST_SCHEMA:
        raise IdentityFileError(path, f"was written by a newer sefi (schema {version})", "Update this node pack.")
    header["widths"] = header.get("widths") or [header.get("width")]
    words = all(isinstance(header.get(name), str) for name in ("name", "class_word", "method"))
    if not (words and re.fullmatch(NAME, header["name"]) and has_sizes(header)):
        raise IdentityFileError(path, "its header is damaged")
    return header


def has_sizes(header: dict[str, Any]) -> bool:
    """Return whether stages and widths are numbers that an identity can have."""
    stages, widths = header.get("stages"), header["widths"]
    if type(stages) is not int or not isinstance(widths, list) or len(widths) > 2:
        return False
    return 1 <= stages <= MOST_STAGES and all(type(width) is int and 1 <= width <= LARGEST_WIDTH for width in widths)


def check_method(path: Path, header: dict[str, Any], entries: dict[str, Any]) -> None:
    """Refuse identities that tokens alone do not make.

    Raises:
        IdentityFileError: its method changed weights of the model, or learned no tokens.
    """
    if header.get("shards") or any(name.startswith(OWN_WEIGHTS) for name in entries):
        raise IdentityFileError(path, f"the method {header['method']!r} changed weights of the model", RELEARN)
    if "tokens" not in entries:
        raise IdentityFileError(path, f"the method {header['method']!r} learned no tokens", RELEARN)


def read_tensor(file: BinaryIO, path: Path, entry: object, start: int, size: int) -> Tensor:
    """Read one tensor as float32.

    Raises:
        IdentityFileError: it is missing, or its place and shape contradict each other or the file.
    """
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in DTYPES:
            kind = DTYPES[dtype]
        case _:
            raise IdentityFileError(path, "its tokens are missing or of a kind that no identity has")
    sides = len(shape) <= 4 and all(type(side) is int and 1 <= side <= LARGEST_WIDTH for side in shape)
    if not sides or not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * kind.itemsize:
        raise IdentityFileError(path, "its tokens have another length than its header says")
    file.seek(start + begin)
    data = bytearray(file.read(end - begin))
    if len(data) < end - begin:
        raise IdentityFileError(path, "is cut short")
    return torch.frombuffer(data, dtype=kind).reshape(shape).float()


def check_tokens(path: Path, header: dict[str, Any], tokens: list[Tensor]) -> tuple[Tensor, ...]:
    """Return tokens with an axis for vectors, `[stage, 2, vector, width]`, one tensor for each text encoder.

    Raises:
        IdentityFileError: their shape is not the header's, or a number is not finite.
    """
    full = tuple(one if one.ndim == 4 else one[:, :, None] if one.ndim == 3 else one for one in tokens)
    for one, width in zip(full, header["widths"], strict=True):
        vectors = one.shape[2] if one.ndim == 4 else 0
        if not 1 <= vectors <= MOST_VECTORS or one.shape != (header["stages"], 2, full[0].shape[2], width):
            raise IdentityFileError(path, f"its tokens are {tuple(one.shape)}, which its header contradicts")
        if not torch.isfinite(one).all():
            raise IdentityFileError(path, "a token is not finite", "Learn it again with a lower learning rate.")
        if one.norm(dim=-1).max() > LONGEST_TOKEN:
            raise IdentityFileError(path, "a token is longer than any", "Learn it again with a lower learning rate.")
    return full
