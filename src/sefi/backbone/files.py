"""Read the files of a model folder, bounded, without notices that no user can act on."""

import stat
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from sefi.core import reading
from sefi.core.errors import LESS_MEMORY, BackboneError, is_out_of_memory, make_memory_error, shorten_reason
from sefi.core.reading import DTYPE_BYTES, Layout, Limits, translate_file_errors

# While a library loads a model, it changes the whole process: how much is logged, torch's default dtype, and what
# a new module gets for its parameters (nothing, on the meta device). Whoever loads or makes modules holds this lock.
LOADING = threading.RLock()


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Hide diffusers' and transformers' progress bars and warnings for a while; other threads that load wait.

    What matters in them (missing weights, foreign classes) is checked and raised by the readers.
    """
    with LOADING:
        libraries = (diffusers_logging, transformers_logging)
        before = [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, (verbosity, bars) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if bars:
                    library.enable_progress_bar()


Value = TypeVar("Value")

# Stable Diffusion's largest configuration takes 3 KB, the index of its shards 200 KB, CLIP's tokenizer 4 MB.
MAX_JSON_BYTES = 1 << 20
# transformers writes int(1e30) as the length of a text that has no limit.
MAX_INTEGER = 10**31
# Models of other kinds, which are refused by their names, take up to 24 GB. A header of Stable Diffusion in one file
# takes 250 KB, about 1,800 tensors with EMA weights. Counters may be whole numbers, and tensors may be empty.
LIMITS = Limits(size=64 * 2**30, tensors=10_000, dtypes=frozenset(DTYPE_BYTES), empty=True)
COPY_AGAIN = "Copy or download the model again, as a Stable Diffusion 1.x, 2.x or XL folder."


def read_or_refuse(where: Path, read: Callable[[], Value], remedy: str = COPY_AGAIN, *, kind: str = "") -> Value:
    """Read with `read`, and refuse what it cannot read.

    Args:
        where: the file or folder that is read.
        read: opens it, usually in a library.
        remedy: what to do, one sentence.
        kind: what the folder was taken for.

    Raises:
        BackboneError: it failed in any way; damaged and foreign files fail in more ways than can be listed.
    """
    taken = f" as {kind}" if kind else ""
    with translate_file_errors(where, BackboneError, f"cannot be read{taken}", remedy, (Exception,)):
        return read()


@contextmanager
def translate_memory_errors(purpose: str) -> Generator[None]:
    """Raise a typed error where there is no memory for the block; other errors pass as they are.

    Args:
        purpose: what it is for, such as "to move the model to cuda".

    Raises:
        BackboneError: there was none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = f"There is not enough memory {purpose} ({shorten_reason(error)})."
        raise make_memory_error(BackboneError, problem, LESS_MEMORY) from error


def is_regular(path: Path) -> bool:
    """Return whether this is a file of stored bytes (not a folder, pipe or device), links followed."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_model_text(path: Path, largest: int = MAX_JSON_BYTES) -> str:
    """Return a UTF-8 text file.

    Raises:
        BackboneError: there is no such file, it is larger than `largest` bytes, or it is not UTF-8.
    """
    return read_or_refuse(_require_file(path), lambda: reading.read_text(path, largest))


def read_model_json(path: Path, largest: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BackboneError: no such file, too large, nested too deeply, no JSON or no object, a number out of range.
    """
    return read_or_refuse(_require_file(path), lambda: reading.read_json(path, largest, integers=MAX_INTEGER))


def read_weights_header(path: Path) -> Layout:
    """Return the checked header of a safetensors file; reads no tensor.

    Raises:
        BackboneError: no such file, or one whose header is damaged, too large or at odds with the file's size.
    """
    return read_or_refuse(
        _require_file(path), lambda: reading.read_layout(path, LIMITS), "Copy or download the file again."
    )


def _require_file(path: Path) -> Path:
    if not is_regular(path):
        raise BackboneError(f"There is no file {path}.", COPY_AGAIN)
    return path
