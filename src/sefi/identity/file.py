"""One identity, one safetensors file (a very large one several): tensors and a JSON header; nothing is unpickled."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from sefi.core.config import from_saved
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.files import (
    IDENTITY_KEY as HEADER_KEY,
    Kind,
    check_replaceable,
    cut_to_bytes,
    fit_stem,
    refusal,
    refuse_existing,
    write_file,
)
from sefi.core.nouns import SCHEMA_VERSION, TABLE_DIMS, Identity, IdentityHeader
from sefi.core.reading import FLOATS, Layout, LimitError, Limits, file_errors, load_tensors, parse_object, read_layout
from sefi.core.utf8 import is_utf8

# Ours take 30 KB; baselines that store weights take more, and no identity needs 8 GB.
LIMITS = Limits(size=8 * 2**30, dtypes=FLOATS | {"U8"})
LARGEST_SHARD = 2 * 2**30
LONGEST_SHARD_STEM = 200  # bytes
SHARD_NAME = r"[^/\\\0]{1,200}\.[0-9]{1,4}\.[0-9a-f]{12}\.safetensors"
MOST_VECTORS = 33  # the most of `learn.vectors`, and the class word behind them
DIGEST = "composer"  # SHA-256 of FastComposer's weights, as bytes
# Methods whose identities are nothing without tokens; others keep weights or features.
TOKEN_METHODS = ("sefi", "textual-inversion", "prospect", "celeb-basis", "cross-init")
LONGEST_TOKEN = 1e6  # rows of token tables are shorter than 100; the model that is opened sets a closer limit
RELEARN = "Learn it again with a lower learning rate."
REMEDY = "Use a file that `sefi learn` wrote."

Tensors = dict[str, torch.Tensor]


def write_identity(
    identity: Identity,
    path: Path,
    largest: int = LARGEST_SHARD,
    *,
    overwrite: bool = False,
    replace: bool = True,
) -> None:
    """Write atomically: whoever reads sees the old identity or the whole new one.

    Args:
        largest: bytes of one file; what is more goes into files beside it, which the header names.
        overwrite: also replace an identity of another name.
        replace: False refuses whatever is there, an identity of this name too.

    Raises:
        OutputError: another identity, a file of another kind or a device is there, or it cannot be written.
    """
    check_replaceable(path, Kind.IDENTITY, overwrite=replace, name=None if overwrite else identity.name)
    tensors = {k: v.detach().cpu().contiguous() for k, v in identity.tensors.items()}
    first, *others = group_tensors(tensors, largest)
    names = [format_shard_name(path, number, part) for number, part in enumerate(others, 2)]
    header = identity.header.model_copy(update={"shards": tuple(names)})
    before = list_named_shards(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error
    for name, part in zip(names, others, strict=True):
        write_whole(part, path.with_name(name), {})
    # Last: until now whoever reads follows the old names.
    with refuse_existing(path):
        write_whole(first, path, {HEADER_KEY: header.model_dump_json()}, replace=replace)
    for name in before - set(names) - list_shards_of_others(path, before):
        path.with_name(name).unlink(missing_ok=True)


def write_whole(tensors: Tensors, path: Path, metadata: dict[str, str], *, replace: bool = True) -> None:
    """Write one safetensors file, whole or not at all."""
    write_file(path, lambda partial: save_file(tensors, partial, metadata=metadata), replace=replace)


def group_tensors(tensors: Tensors, largest: int) -> list[Tensors]:
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


def format_shard_name(path: Path, number: int, tensors: Tensors) -> str:
    """A file beside the first that no other content has: `ada.2.1f0c9a7b3d5e.safetensors`."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return f"{get_shard_stem(path)}.{number}.{digest.hexdigest()[:12]}.safetensors"


def get_shard_stem(path: Path) -> str:
    """Return what the names of an identity's further files begin with: its stem, cut where the names get too long."""
    return cut_to_bytes(fit_stem(path, len(".9999.123456789abc.safetensors")), LONGEST_SHARD_STEM)


def list_named_shards(path: Path) -> set[str]:
    """Return the further files that an identity names and `format_shard_name` made; none if there is no identity yet.

    A header can name any file, and what is named here is removed: so only names that are made for this path count.
    """
    try:
        named = read_header(path).shards if path.is_file() else ()
    except IdentityError:
        return set()
    made = re.compile(re.escape(get_shard_stem(path)) + r"\.\d+\.[0-9a-f]{12}\.safetensors")
    return {name for name in named if made.fullmatch(name)}


def list_shards_of_others(path: Path, names: set[str]) -> set[str]:
    """Return which of these files another identity of the folder names too: a copy of the file that is replaced."""
    if not names:
        return set()
    found: set[str] = set()
    for other in path.parent.glob("*.safetensors"):
        with suppress(IdentityError, OSError):
            if not other.samefile(path):
                found |= names & set(read_header(other).shards)
    return found


def read_identity(path: Path) -> Identity:
    """Read and check an identity.

    Every size that the file states is checked before a tensor is read.

    Raises:
        IdentityError: missing, truncated, foreign, newer, lacking one of its files, above a limit, or at odds with its
            own header.
    """
    with identity_errors(path):
        if path.is_dir():
            raise IdentityError(f"'{path}' is a folder.", "Name the identity file in it, NAME.safetensors.")
        if not path.is_file():
            raise IdentityError(f"There is no identity file {path}.", "Check the path, or learn it with `sefi learn`.")
        if not is_utf8(str(path)):
            raise IdentityError(f"The name {path} is not UTF-8.", "Rename the file.")
        layout = read_layout(path, LIMITS)
        header = parse_layout_header(path, layout)
        files = (path, *(get_shard_path(path, name) for name in header.shards))
        layouts = (layout, *(read_shard_layout(file) for file in files[1:]))
        check_layouts(layouts)
        check_tokens(path, header, layouts)
        tensors: Tensors = {}
        for file in files:
            tensors |= load_tensors(file)
        check_numbers(path, tensors)
    return Identity(tensors, header)


def read_header(path: Path) -> IdentityHeader:
    """Return what an identity file says about itself; errors as in `read_identity`."""
    with identity_errors(path):
        return parse_layout_header(path, read_layout(path, LIMITS))


def read_shard_layout(path: Path) -> Layout:
    """Return the layout of a further file of an identity; `IdentityError` names that file."""
    with identity_errors(path):
        return read_layout(path, LIMITS)


def identity_errors(path: Path) -> AbstractContextManager[None]:
    """Raise `IdentityError` for whatever goes wrong while an identity is read."""
    problem = "is damaged or no safetensors file of an identity"
    return file_errors(path, IdentityError, problem, "Copy it again, or learn it again.")


def parse_layout_header(path: Path, layout: Layout) -> IdentityHeader:
    """Return the checked JSON header; errors as in `parse_header`."""
    text = layout.metadata.get(HEADER_KEY)
    if text is None:
        raise IdentityError(f"{path} is a safetensors file, but no identity of sefi.", REMEDY)
    return parse_header(path, text)


def check_layouts(layouts: Sequence[Layout]) -> None:
    """Check the files of one identity together.

    Raises:
        LimitError: they are larger together than one identity may be, have too many tensors, or two have a tensor of
            the same name.
    """
    size = sum(layout.size for layout in layouts)
    if size > LIMITS.size:
        raise LimitError(f"its files have {size:,} bytes together, more than {LIMITS.size:,}")
    names = [name for layout in layouts for name in layout.shapes]
    if len(names) > LIMITS.tensors:
        raise LimitError(f"its files have {len(names):,} tensors together, more than {LIMITS.tensors:,}")
    if len(set(names)) < len(names):
        raise LimitError("two of its files have a tensor of the same name")


def get_shard_path(path: Path, name: str) -> Path:
    """Return the path of a further file of an identity.

    Raises:
        IdentityError: it is missing, or its name is not one that `format_shard_name` gives.
    """
    if not re.fullmatch(SHARD_NAME, name):
        raise IdentityError(f"The header of {path} names a strange file {name!r}.", REMEDY)
    file = path.with_name(name)
    if not file.is_file():
        raise IdentityError(f"{path} comes in several files, and {name!r} is missing.", "Copy all of them together.")
    return file


def parse_header(path: Path, text: str) -> IdentityHeader:
    """Return the JSON header, checked.

    Raises:
        IdentityError: no JSON object, a newer schema, an unknown field, a value outside its range, or settings that
            no version of the program would have saved.
    """
    with file_errors(f"The header of {path}", IdentityError, "is damaged", REMEDY):
        tree = parse_object(text)
        version = tree.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise IdentityError(f"{path} was written by a newer sefi (schema {version}).", "Update sefi.")
        header = IdentityHeader.model_validate(tree)
        if len(set(header.shards)) < len(header.shards):
            raise LimitError("it names a file twice")
        check_settings(header)
    return header


def check_settings(header: IdentityHeader) -> None:
    """Check the saved settings; names that this version does not know are passed over.

    Raises:
        LimitError: a value is of the wrong kind or outside its range, or differs from the header's own.
    """
    try:
        from_saved(header.settings)
    except ConfigError as error:
        raise LimitError(f"settings: {error.problem}") from None
    learn = header.settings.get("learn", {})
    if learn.get("stages", header.stages) != header.stages:
        raise LimitError(f"it states {header.stages} stages, its settings {learn['stages']}")


def check_tokens(path: Path, header: IdentityHeader, layouts: Sequence[Layout]) -> None:
    """Check that the tokens, where a method has them, have the shape that the header states.

    Raises:
        IdentityError: they are missing or of another shape.
    """
    shapes = {name: shape for layout in layouts for name, shape in layout.shapes.items()}
    if "tokens" not in shapes:
        if header.method in TOKEN_METHODS:
            raise IdentityError(f"{path} holds no tokens.", REMEDY)
        return
    found, shape = shapes["tokens"], (header.stages, 2, header.width)
    # Several tokens in the place of one name stand before the width.
    if found != shape and (len(found) != TABLE_DIMS or found[:2] + found[3:] != shape or found[2] > MOST_VECTORS):
        raise IdentityError(f"{path}: tokens are {found}, the header says {shape}.", REMEDY)


def check_numbers(path: Path, tensors: Tensors) -> None:
    """Check that every tensor has floating-point numbers, all of them finite; a digest has bytes.

    Raises:
        IdentityError: one is not finite, or a token is longer than any.
        LimitError: one has whole numbers and is no digest.
    """
    for name, tensor in tensors.items():
        if name == DIGEST:
            continue
        if not tensor.is_floating_point():
            raise LimitError(f"{name[:80]!r} has whole numbers")
        if not torch.isfinite(tensor).all():
            raise IdentityError(f"{path}: {name[:80]} holds numbers that are not finite.", RELEARN)
    longest = float(tensors["tokens"].double().norm(dim=-1).max()) if "tokens" in tensors else 0.0
    if longest > LONGEST_TOKEN:
        raise IdentityError(f"{path} has a token of norm {longest:.3g}; no text encoder takes that.", RELEARN)
