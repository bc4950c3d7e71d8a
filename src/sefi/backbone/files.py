"""A model's files, read by `sefi.core.reading` within limits of their own; every fault is a `BackboneError`."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sefi.core import reading
from sefi.core.errors import BackboneError
from sefi.core.reading import DTYPE_BYTES, Layout, Limits, file_errors

Value = TypeVar("Value")

# Stable Diffusion's largest configuration takes 3 KB, the index of its shards 200 KB, CLIP's tokenizer 4 MB.
MAX_JSON_BYTES = 1 << 20
# transformers writes int(1e30) as the length of a text that has no limit.
MAX_INTEGER = 10**31
# Models of other kinds, which are refused by their names, take up to 24 GB. A header of Stable Diffusion in one file
# takes 250 KB, about 1,800 tensors with EMA weights. Counters may be whole numbers, and tensors may be empty.
LIMITS = Limits(size=64 * 2**30, tensors=10_000, dtypes=frozenset(DTYPE_BYTES), empty=True)
COPY_AGAIN = "Copy or download the model again, as a Stable Diffusion 1.x or 2.x folder."


def guarded(where: Path, read: Callable[[], Value], remedy: str = COPY_AGAIN, *, kind: str = "") -> Value:
    """Return what `read` returns.

    Args:
        where: the file or folder that is read.
        read: opens it, usually in a library.
        remedy: what to do, one sentence.
        kind: what the folder was taken for.

    Raises:
        BackboneError: it failed in any way; damaged and foreign files fail in more ways than can be listed.
    """
    taken = f" as {kind}" if kind else ""
    with file_errors(where, BackboneError, f"cannot be read{taken}", remedy, (Exception,)):
        return read()


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
    return guarded(_present(path), lambda: reading.read_text(path, largest))


def read_json(path: Path, largest: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BackboneError: no such file, too large, nested too deeply, no JSON or no object, a number out of range.
    """
    return guarded(_present(path), lambda: reading.read_json(path, largest, integers=MAX_INTEGER))


def read_header(path: Path) -> Layout:
    """Return the checked header of a safetensors file; reads no tensor.

    Raises:
        BackboneError: no such file, or one whose header is damaged, too large or at odds with the file's size.
    """
    return guarded(_present(path), lambda: reading.read_layout(path, LIMITS), "Copy or download the file again.")


def _present(path: Path) -> Path:
    if not is_regular(path):
        raise BackboneError(f"There is no file {path}.", COPY_AGAIN)
    return path
