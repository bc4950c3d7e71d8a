"""Read untrusted files: a stated size is checked before it is used, and every fault is a typed error.

Parsing comes in two steps. First the limits: bytes, depth, counts, dtypes, the sum of all tensors against the
length of the file. Whatever goes wrong after that is caught by `translate_file_errors`, which names the file.
"""

import json
import math
import os
import stat
import struct
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from sefi.core.errors import (
    SefiError,
    describe_first_fault,
    is_out_of_memory,
    make_memory_error,
    shorten_reason,
)
from sefi.core.text import is_utf8

if TYPE_CHECKING:  # `sefi verify` reads files without torch
    import torch

LARGEST_JSON = 4 * 2**20
LARGEST_RUN_INFO = 32 * 2**20  # of a benchmark's `run.json`, which names every image of folders, in some 200 bytes
RECORDS = "records.json"  # in a folder of images: the runs of `sefi generate` that made them
LARGEST_RECORDS = 16 * 2**20  # of that file; a run of a hundred images takes 60 KB, and parsed JSON 40 times its bytes
LARGEST_HEADER = 2**20
LARGEST_WEIGHTS = 8 * 2**30
DEEPEST = 32  # levels of lists and mappings
LARGEST_INTEGER = 2**63
MOST_TENSORS = 8192  # a checkpoint of a whole Stable Diffusion 1.x has 4,410
MOST_DIMENSIONS = 8
LONGEST_NAME = 512  # characters of a tensor's name; the longest of Stable Diffusion 1.x has about 110
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# Everything that parsers and libraries raise for damaged or hostile content. Never KeyboardInterrupt or SystemExit.
# A panic in Rust (tokenizers, safetensors) is no `Exception`; `is_fault` knows it by its name.
FAULTS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,  # UnicodeError, JSONDecodeError, TOMLDecodeError and pydantic's ValidationError are ValueErrors
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    BufferError,
    MemoryError,
    RuntimeError,  # RecursionError and NotImplementedError are RuntimeErrors
    SyntaxError,
    struct.error,
    SafetensorError,
)


class InvalidFileError(ValueError):
    """A file's content cannot be used; the message ends a sentence about the file."""


@contextmanager
def translate_file_errors(
    path: object,
    error: type[SefiError],
    problem: str,
    remedy: str,
    also: tuple[type[Exception], ...] = (),
) -> Generator[None]:
    """Raise one typed error about a file for whatever goes wrong in the block.

    Args:
        path: the file, for the message.
        error: type of the error.
        problem: what is wrong, the words after the path, such as "is no list of names"; the reason is added.
        remedy: what to do, one sentence.
        also: exceptions of the library that reads this kind of file.

    Raises:
        SefiError: `error`; one that is raised in the block passes as it is.
    """
    try:
        yield
    except SefiError:
        raise
    except BaseException as fault:
        if not is_fault(fault, also):
            raise
        if is_out_of_memory(fault):
            reason = f"there is not enough memory ({shorten_reason(fault)})"
            problem = f"{path} cannot be read: {reason}."
            raise make_memory_error(error, problem, "Close other programs, and run it again.") from fault
        unread = isinstance(fault, OSError) and bool(fault.strerror)
        raise error(f"{path} {'cannot be read' if unread else problem}: {describe_fault(fault)}.", remedy) from fault


def is_fault(fault: BaseException, also: tuple[type[Exception], ...] = ()) -> bool:
    """Return whether an exception tells of a file's content, not of the user or of the program.

    Args:
        also: further exceptions that do.
    """
    return isinstance(fault, (*FAULTS, *also)) or type(fault).__name__ == "PanicException"


def describe_fault(fault: BaseException) -> str:
    """Return in a few words why reading failed."""
    match fault:
        case ValidationError():
            text = describe_first_fault(fault)
        case UnicodeError():
            text = "it is not UTF-8 text"
        case RecursionError():
            text = "it is nested too deeply"
        case MemoryError():
            text = "it needs more memory than there is"
        case OSError() if fault.strerror:
            text = fault.strerror
        case KeyError():
            text = f"{fault} is missing"
        case _:
            text = str(fault) or type(fault).__name__
    return " ".join(text.split())[:200].rstrip(".")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, there or not, lies in a folder when all links are followed; links in a circle are not."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def measure_file(path: Path, largest: int) -> int:
    """Measure a regular file in bytes.

    Raises:
        InvalidFileError: it is a device, a pipe or a folder, or larger than `largest` bytes.
        OSError: it is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFileError("it is not a regular file")
    if status.st_size > largest:
        raise InvalidFileError(f"it has {status.st_size:,} bytes, more than {largest:,}")
    return status.st_size


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the content of a regular file of at most `largest` bytes; errors as in `measure_file`."""
    measure_file(path, largest)
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise InvalidFileError(f"it has more than {largest:,} bytes")
    return content


def read_text(path: Path, largest: int) -> str:
    """Return the content of a UTF-8 text file; errors as in `read_bytes`, and `UnicodeDecodeError`."""
    return read_bytes(path, largest).decode("utf-8")


def read_user_text(path: Path, largest: int) -> str:
    """Return what somebody wrote into a UTF-8 text file, without the byte order mark that some editors begin with.

    Errors as of `read_text`.
    """
    return read_text(path, largest).removeprefix("\ufeff")


def read_json(path: Path, largest: int = LARGEST_JSON, *, integers: int = LARGEST_INTEGER) -> dict[str, Any]:
    """Return the JSON object in a file, within all limits; the errors of `read_text` and `parse_object`."""
    return parse_object(read_text(path, largest), integers=integers)


def parse_object(text: str, *, integers: int = LARGEST_INTEGER) -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: JSON.
        integers: whole numbers are below it, and at least its negative.

    Raises:
        ValueError: the text is no JSON or something else than an object; `InvalidFileError` as in `check_values`, or
            where an object names a key twice.
    """
    value: object = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_repeated_keys)
    if not isinstance(value, dict):
        raise InvalidFileError("it holds no JSON object")
    check_values(value, integers=integers)
    return cast(dict[str, Any], value)


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise InvalidFileError(f"it holds the number {name}")


def refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that names a key twice: another reader of the file may take the other value."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise InvalidFileError("it names a key twice")
    return members


def check_values(tree: object, *, integers: int = LARGEST_INTEGER) -> None:
    """Check what a parser of JSON or TOML returned, without recursion.

    Args:
        tree: lists and mappings.
        integers: whole numbers are below it, and at least its negative; without it they fit into 64 bits.

    Raises:
        InvalidFileError: it is nested more than 32 levels, a number is not finite or too large, or a text has half of a
            character.
    """
    level: list[object] = [tree]
    for _ in range(DEEPEST):
        check_leaves(level, integers)
        level = [inner for value in level if isinstance(value, (dict, list)) for inner in list_children(value)]
        if not level:
            return
    raise InvalidFileError(f"it is nested more than {DEEPEST} levels")


def check_leaves(values: Sequence[object], integers: int) -> None:
    """Check the texts and numbers among values, all at once; errors as in `check_values`."""
    texts = "".join(value for value in values if isinstance(value, str))
    if not is_utf8(texts):
        raise InvalidFileError("a text has half of a character")
    if not all(math.isfinite(value) for value in values if isinstance(value, float)):
        raise InvalidFileError("a number is not finite")
    numbers = [value for value in values if isinstance(value, int)]
    if numbers and not (-integers <= min(numbers) and max(numbers) < integers):
        raise InvalidFileError("a whole number is too large")


def list_mappings(value: object) -> list[dict[str, Any]]:
    """List the objects in a list of JSON; none where it is no list."""
    return [one for one in cast("list[object]", value) if isinstance(one, dict)] if isinstance(value, list) else []


def read_mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object in an object of JSON; an empty one where it is none."""
    value = record.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def list_children(value: dict[Any, Any] | list[Any]) -> Iterable[object]:
    """Return what a mapping or a list holds."""
    return (*value.keys(), *value.values()) if isinstance(value, dict) else value


# ---------------------------------------------------------------- safetensors


@dataclass(frozen=True)
class Limits:
    """What a safetensors file may hold.

    Attributes:
        size: bytes of the file.
        tensors: most tensors.
        dtypes: allowed dtypes, as safetensors names them.
        header: bytes of its JSON header.
        empty: whether a tensor may have no values.
    """

    size: int = LARGEST_WEIGHTS
    tensors: int = MOST_TENSORS
    dtypes: frozenset[str] = FLOATS
    header: int = LARGEST_HEADER
    empty: bool = False


WEIGHTS = Limits()


@dataclass(frozen=True)
class Layout:
    """The checked header of a safetensors file.

    Attributes:
        metadata: texts by name.
        shapes: shape of each tensor by name.
        dtypes: dtype of each tensor by name, as safetensors names it.
        size: bytes of the file.
    """

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    size: int


def read_layout(path: Path, limits: Limits = WEIGHTS) -> Layout:
    """Return the header of a safetensors file; no tensor is read.

    Raises:
        InvalidFileError: it is above a limit, or its header does not describe exactly the bytes that follow it.
        ValueError: the header is no JSON.
        OSError: it cannot be read.
    """
    size = measure_file(path, limits.size)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InvalidFileError("it is cut short or no safetensors file")
        if length > limits.header:
            raise InvalidFileError(f"its header states {length:,} bytes; at most {limits.header:,} are read")
        header = parse_object(file.read(length).decode("utf-8"))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InvalidFileError("its metadata holds something other than texts")
    if len(header) > limits.tensors:
        raise InvalidFileError(f"it has {len(header):,} tensors; at most {limits.tensors:,} are read")
    shapes = read_shapes(header, size - 8 - length, limits)
    return Layout(metadata, shapes, {name: header[name]["dtype"] for name in shapes}, size)


def read_shapes(header: Mapping[str, Any], length: int, limits: Limits) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor.

    Raises:
        InvalidFileError: an entry is malformed, of a dtype that is not allowed, or empty where the limits do not allow
            it, a name is too long, or the tensors do not fill the `length` bytes of data from end to end.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not 0 < len(name) <= LONGEST_NAME:
            raise InvalidFileError(f"a tensor has a name of {len(name):,} characters; 1 to {LONGEST_NAME} are read")
        shapes[name], span = read_entry(name[:80], entry, limits)
        spans.append(span)
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise InvalidFileError("its tensors overlap or leave gaps")
        reached = end
    if reached != length:
        raise InvalidFileError(f"it states {reached:,} bytes of tensors and has {length:,}")
    return shapes


def read_entry(name: str, entry: object, limits: Limits) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return shape and byte range of one tensor; errors as in `read_shapes`."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            raise InvalidFileError(f"the entry of {name!r} is malformed")
    if dtype not in limits.dtypes:
        raise InvalidFileError(f"{name!r} is of dtype {dtype[:20]}")
    if len(shape) > MOST_DIMENSIONS or not all(type(side) is int and side >= (not limits.empty) for side in shape):
        raise InvalidFileError(f"{name!r} has a shape that is not allowed: {str(shape)[:40]}")
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise InvalidFileError(f"the data of {name!r} are not as long as its shape needs")
    return tuple(shape), (begin, end)


def load_tensors(path: Path, framework: Literal["pt", "numpy"] = "pt", *, as_views: bool = False) -> dict[str, Any]:
    """Return every tensor of a file whose layout was checked.

    PyTorch's tensors are copies in memory of their own. safetensors gives views of the mapped file, whose addresses
    depend on the length of the header, and a matrix product with one row has other last bits at another address: an
    identity would give other images after a header with one digit more.

    Args:
        framework: PyTorch's tensors or numpy's arrays.
        as_views: of PyTorch's take the views: for those who copy them anyway, as they may be gigabytes.

    Raises:
        InvalidFileError: its name is not UTF-8, which safetensors cannot open.
    """
    if not is_utf8(str(path)):
        raise InvalidFileError("its name is not UTF-8")
    copied = framework == "pt" and not as_views
    with safe_open(path, framework=framework) as file:
        views = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        return {name: view.clone() if copied else view for name, view in views}


def read_tensors(
    path: Path, limits: Limits = WEIGHTS, *, as_views: bool = False
) -> "tuple[Mapping[str, str], dict[str, torch.Tensor]]":
    """Return metadata and tensors of a safetensors file, errors as in `read_layout`.

    Args:
        as_views: as `load_tensors` takes it.
    """
    layout = read_layout(path, limits)
    return layout.metadata, load_tensors(path, as_views=as_views)


def check_shapes(
    tensors: "Mapping[str, torch.Tensor]", expected: "Mapping[str, torch.Tensor]", what: str = "weights"
) -> None:
    """Check names, shapes and dtypes of tensors against those that are to be replaced.

    Raises:
        InvalidFileError: they differ.
    """
    if tensors.keys() != expected.keys():
        strange = sorted(tensors.keys() ^ expected.keys())[0]
        raise InvalidFileError(f"its {what} are not those expected: {strange[:80]!r} is missing or unknown")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise InvalidFileError(f"{name[:80]!r} of its {what} has a wrong shape or dtype")
