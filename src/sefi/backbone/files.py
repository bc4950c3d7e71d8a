"""Bounded reading of a model's files: JSON and the headers of safetensors, checked before anything is allocated."""

import json
import math
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sefi.core.errors import BackboneError, SefiError

Value = TypeVar("Value")

# Stable Diffusion's largest configuration takes 3 KB, the index of its shards 200 KB, CLIP's tokenizer 4 MB.
MAX_JSON_BYTES = 1 << 20
# A whole Stable Diffusion in one file: about 1,800 tensors with EMA weights, a header of 250 KB.
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 8
BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,199}")
COPY_AGAIN = "Copy or download the model again, as a Stable Diffusion 1.x or 2.x folder."


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about its tensors, checked against its size.

    Attributes:
        dtypes: by tensor name, as safetensors writes them (`F32`, `BF16` ...).
        shapes: by tensor name.
        metadata: texts beside the tensors.
    """

    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def guarded(where: Path, read: Callable[[], Value], remedy: str = COPY_AGAIN, *, kind: str = "") -> Value:
    """Return what `read` returns.

    Args:
        where: the file or folder that is read.
        kind: what the folder was taken for.

    Raises:
        BackboneError: it failed in any way; damaged and foreign files fail in more ways than can be listed.
    """
    try:
        return read()
    except SefiError:
        raise
    except BaseException as error:
        if not _is_failure(error):
            raise
        taken = f" as {kind}" if kind else ""
        raise BackboneError(f"{where} could not be read{taken}: {first_line(error)}", remedy) from error


def _is_failure(error: BaseException) -> bool:
    """Whether a library failed. A panic in Rust (tokenizers, safetensors) is not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 300 characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def is_regular(path: Path) -> bool:
    """Whether this is a file of stored bytes (not a folder, pipe or device); a link counts as what it leads to."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_text(path: Path, largest: int = MAX_JSON_BYTES) -> str:
    """Return a UTF-8 text file.

    Raises:
        BackboneError: there is no such file, it is larger than `largest` bytes, or it is not UTF-8.
    """
    if not is_regular(path):
        raise BackboneError(f"There is no file {path}.", COPY_AGAIN)

    def read() -> str:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest:,} bytes")
        return content.decode("utf-8")

    return guarded(path, read)


def read_json(path: Path, largest: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BackboneError: no such file, too large, nested too deeply, no JSON or no object, a number that is not finite.
    """
    text = read_text(path, largest)
    return guarded(path, lambda: parse_object(text))


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; `ValueError` for anything else."""
    content: object = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; reads no tensor.

    Raises:
        BackboneError: no such file, or one whose header is damaged, too large or at odds with the file's size.
    """
    if not is_regular(path):
        raise BackboneError(f"There is no file {path}.", COPY_AGAIN)
    return guarded(path, lambda: _checked_header(path), "Copy or download the file again.")


def _checked_header(path: Path) -> Header:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_HEADER_BYTES:
            raise ValueError(f"its header is missing or larger than {MAX_HEADER_BYTES:,} bytes")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("it is cut off within its header")
    entries = parse_object(text.decode("utf-8"))
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise ValueError("its metadata are not texts")
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it names {len(entries):,} tensors; at most {MAX_TENSORS:,}")
    room = path.stat().st_size - 8 - length
    tensors = {name: _checked_tensor(name, entry, room) for name, entry in entries.items()}
    stored = sum(size for _, _, size in tensors.values())
    if stored > room:
        raise ValueError(f"it is cut off: its tensors take {stored:,} bytes, and {room:,} are there")
    dtypes = {name: dtype for name, (dtype, _, _) in tensors.items()}
    return Header(dtypes, {name: shape for name, (_, shape, _) in tensors.items()}, metadata)


def _checked_tensor(name: str, entry: object, room: int) -> tuple[str, tuple[int, ...], int]:
    """Return number type, shape and bytes of one tensor; `ValueError` where they do not fit."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            sizes_are_whole = all(type(size) is int and size >= 0 for size in shape)
        case _:
            raise ValueError(f"its entry for {name[:80]!r} is damaged")
    if dtype not in BYTES_OF:
        raise ValueError(f"{name[:80]!r} is stored as {dtype[:20]}; expected {', '.join(FLOATS)}")
    if not sizes_are_whole or len(shape) > MAX_DIMENSIONS or not 0 <= start <= end:
        raise ValueError(f"shape or place of {name[:80]!r} is out of range")
    if end > room:
        raise ValueError(f"it is cut off: {name[:80]!r} should end after {end:,} bytes, and {room:,} are there")
    size = math.prod(shape) * BYTES_OF[dtype]
    if size != end - start:
        raise ValueError(f"shape and place of {name[:80]!r} do not fit")
    return dtype, tuple(shape), size
