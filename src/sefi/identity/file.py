"""One identity, one safetensors file (a very large one several): tensors and a JSON header; nothing is unpickled."""

import hashlib
import json
import re
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sefi.core.errors import IdentityError
from sefi.core.files import IDENTITY_KEY as HEADER_KEY, Kind, check_replaceable, refusal, write_file
from sefi.core.nouns import SCHEMA_VERSION, TABLE_DIMS, Identity, IdentityHeader

# Ours take 30 KB; baselines that store weights take more, and no identity needs 8 GB.
LARGEST_FILE = 8 * 2**30
LARGEST_SHARD = 2 * 2**30
LONGEST_TOKEN = 1e6  # rows of token tables are shorter than 100; the model that is opened sets a closer limit
RELEARN = "Learn it again with a lower learning rate."
REMEDY = "Use a file that `sefi learn` wrote."

Tensors = dict[str, torch.Tensor]


def write_identity(identity: Identity, path: Path, largest: int = LARGEST_SHARD, *, overwrite: bool = False) -> None:
    """Write atomically: whoever reads sees the old identity or the whole new one.

    Args:
        largest: bytes of one file; what is more goes into files beside it, which the header names.
        overwrite: also replace an identity of another name.

    Raises:
        OutputError: another identity, a file of another kind or a device is there, or it cannot be written.
    """
    check_replaceable(path, Kind.IDENTITY, overwrite=True, name=None if overwrite else identity.name)
    tensors = {k: v.detach().cpu().contiguous() for k, v in identity.tensors.items()}
    first, *others = split(tensors, largest)
    names = [shard_name(path, number, part) for number, part in enumerate(others, 2)]
    header = identity.header.model_copy(update={"shards": tuple(names)})
    before = shards_named_in(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error
    for name, part in zip(names, others, strict=True):
        write_whole(part, path.with_name(name), {})
    # Last: until now whoever reads follows the old names.
    write_whole(first, path, {HEADER_KEY: header.model_dump_json()})
    for name in before - set(names):
        path.with_name(name).unlink(missing_ok=True)


def write_whole(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all."""
    write_file(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def split(tensors: Tensors, largest: int) -> list[Tensors]:
    """Tensors in as few groups as their order allows, none above `largest` bytes unless one tensor alone is."""
    groups: list[Tensors] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > largest:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return groups


def shard_name(path: Path, number: int, tensors: Tensors) -> str:
    """A file beside the first that no other content has: `ada.2.1f0c9a7b3d5e.safetensors`."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return f"{path.stem}.{number}.{digest.hexdigest()[:12]}.safetensors"


def shards_named_in(path: Path) -> set[str]:
    """Return the further files that an identity names and that `shard_name` made; none if there is no identity yet.

    A header can name any file, and what is named here is removed: so only names that are made for this path count.
    """
    try:
        named = read_header(path).shards if path.is_file() else ()
    except (IdentityError, SafetensorError, OSError, ValueError):
        return set()
    made = re.compile(re.escape(path.stem) + r"\.\d+\.[0-9a-f]{12}\.safetensors")
    return {name for name in named if made.fullmatch(name)}


def read_identity(path: Path) -> Identity:
    """Read and check an identity.

    Raises:
        IdentityError: missing, truncated, foreign, newer, lacking one of its files, or at odds with its own header.
    """
    if not path.is_file():
        raise IdentityError(f"There is no identity file {path}.", "Check the path, or learn it with `sefi learn`.")
    try:
        header = read_header(path)
        tensors: Tensors = {}
        for file in (path, *(beside(path, name) for name in header.shards)):
            tensors |= read_tensors(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise IdentityError(
            f"{path} is damaged or no safetensors file.", "Copy it again, or learn it again."
        ) from error
    check_tokens(path, header, tensors)
    return Identity(tensors, header)


def read_header(path: Path) -> IdentityHeader:
    """What an identity file says about itself."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(HEADER_KEY)
    if text is None:
        raise IdentityError(f"{path} is a safetensors file, but no identity of sefi.", REMEDY)
    return parse_header(path, text)


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a safetensors file.

    Raises:
        IdentityError: it is too large.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise IdentityError(f"{path} is larger than any identity.", REMEDY)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def beside(path: Path, name: str) -> Path:
    """A further file of an identity.

    Raises:
        IdentityError: it is missing, or its name would lead elsewhere.
    """
    file = path.with_name(name) if name and name == Path(name).name else None
    if file is None or file.suffix != ".safetensors":
        raise IdentityError(f"The header of {path} names a strange file {name!r}.", REMEDY)
    if not file.is_file():
        raise IdentityError(f"{path} comes in several files, and {name!r} is missing.", "Copy all of them together.")
    return file


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
    """Tokens, where a method has them, must have the shape that the header tells; every number must be finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise IdentityError(f"{path}: {name} holds numbers that are not finite.", RELEARN)
    if "tokens" not in tensors:
        if header.method == "sefi":
            raise IdentityError(f"{path} holds no tokens.", REMEDY)
        return
    tokens, shape = tensors["tokens"], (header.stages, 2, header.width)
    found = tuple(tokens.shape)
    # Several tokens in the place of one name stand before the width.
    if found != shape and (len(found) != TABLE_DIMS or found[:2] + found[3:] != shape or not found[2]):
        raise IdentityError(f"{path}: tokens are {found}, the header says {shape}.", REMEDY)
    longest = float(tokens.double().norm(dim=-1).max())
    if longest > LONGEST_TOKEN:
        raise IdentityError(f"{path} has a token of norm {longest:.3g}; no text encoder takes that.", RELEARN)
