"""Identity files: one safetensors file (several for a very large identity) with tensors and a JSON header."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_serializer
from safetensors.torch import save, save_file

from sefi.core.config import AnyConfig, Config, parse_saved_config, shorten_file_settings
from sefi.core.errors import ConfigError, IdentityError, OutputError, check_type
from sefi.core.files import (
    IDENTITY_KEY as HEADER_KEY,
    SHARD_END,
    SHARD_NAME,
    FileKind,
    check_replaceable,
    follow_link,
    get_shard_stem,
    is_regular_file,
    make_output_error,
    read_content,
    remove_file,
    translate_existing_file_error,
    write_file,
)
from sefi.core.own_files import make_temporary_folder
from sefi.core.prompts import NAME
from sefi.core.reading import (
    FLOATS,
    InvalidFileError,
    Layout,
    Limits,
    load_tensors,
    parse_object,
    read_layout,
    translate_file_errors,
)
from sefi.core.text import dump_json, is_utf8
from sefi.identity.hub import FILE, download_folder, make_card, upload_folder
from sefi.provenance.consent import check_consents
from sefi.provenance.run_record import RunRecord

# Ours take 30 KB; baselines that store weights take more, and no identity needs 8 GB.
LIMITS = Limits(size=8 * 2**30, dtypes=FLOATS | {"U8"})
LARGEST_SHARD = 2 * 2**30
LARGEST_HASHED_FILE = 64 << 20  # bytes of tensors; a file of so many is made in memory to be hashed
SALT_NUMBERS = 1 << 18  # of each tensor: weights have more, and need not all be read
MOST_VECTORS = 33  # the most of `learn.vectors`, and the class word behind them
# First in the file, whatever else is in it, and of no text encoder's width: so programs that take a file's only tensor
# or its first one for a textual inversion refuse this file (docs/hosts/export.md).
MARK = "AN IDENTITY OF SEFI: sefi export makes textual inversions of it"
DIGEST = "composer"  # SHA-256 of FastComposer's weights, as bytes
LONGEST_TOKEN = 1e6  # rows of token tables are shorter than 100; the model that is opened sets a closer limit
RELEARN = "Learn it again with a lower learning rate."
OWN_WEIGHTS = ("unet.", "text_encoder.", "text_encoder_2.")  # begin the names of a method's weights for the model
REMEDY = "Use a file that `sefi learn` wrote."

ORDER = "stage = floor(stages * t / T), t = 0 clean; slot 0 key, slot 1 value"
# The newest that is read; 1 had no `signature`, 2 no `widths`, 3 neither `record` nor `prediction_type`.
SCHEMA_VERSION = 4
TWO_ENCODER_VERSION = 3  # what is written with `widths` and without a record
ONE_ENCODER_VERSION = 2  # what is written without `widths`: earlier versions of the package read it
LARGEST_WIDTH = 8192  # of a token embedding; those of text-to-image models have 768 to 4,096
TOKEN_DIMS = 4  # of tokens, where a name has several: stage, key or value, vector, width

Tensors = dict[str, torch.Tensor]


class IdentityHeader(BaseModel):
    """What an identity file says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # "inf" as text is none either

    schema_version: int = Field(default=ONE_ENCODER_VERSION, ge=1)
    name: str = Field(pattern=f"^{NAME}$")
    method: str = Field(min_length=1, max_length=64)
    stages: int = Field(ge=1, le=100)
    order: str = Field(default=ORDER, max_length=200)
    base_model: str = Field(max_length=200)
    signature: dict[str, str] = Field(default_factory=dict, max_length=10_000)
    width: int = Field(ge=1, le=LARGEST_WIDTH)
    widths: tuple[int, ...] = Field(default=(), max_length=4)
    prediction_type: str = Field(default="", max_length=64)
    class_word: str = Field(min_length=1, max_length=100)
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    library_versions: dict[str, str] = Field(default_factory=dict, max_length=64)
    consent: str | None = Field(default=None, max_length=10_000)
    metrics: dict[str, float] = Field(default_factory=dict, max_length=64)
    shards: tuple[str, ...] = Field(default=(), max_length=64)
    record: RunRecord | None = None

    @field_serializer("record")
    def shorten_record(self, record: RunRecord | None) -> dict[str, Any] | None:
        """Return the record without what it does not state."""
        return None if record is None else record.dump()


@dataclass(frozen=True, slots=True)
class Identity:
    """What was learned: named tensors and a header."""

    tensors: dict[str, torch.Tensor]
    header: IdentityHeader

    @property
    def name(self) -> str:
        """The placeholder's name, without angle brackets."""
        return self.header.name

    @property
    def method(self) -> str:
        """The method that learned it."""
        return self.header.method

    @property
    def tokens(self) -> torch.Tensor:
        """Key and value token of every stage, `[stage, 2, width]`; of several tokens `[stage, 2, vector, width]`.

        Raises:
            IdentityError: the identity has none, as those of methods that change the model.
        """
        if "tokens" not in self.tensors:
            raise IdentityError(
                f"{self.name!r} was learned with {self.method} and has no tokens.",
                "Use one of a method that learns tokens, such as the default one (`sefi methods`).",
            )
        return self.tensors["tokens"]

    @property
    def stage_tokens(self) -> torch.Tensor:
        """The tokens as `[stage, 2, vector, width]`, one or more tokens in the place of the placeholder."""
        return add_vector_axis(self.tokens)

    @property
    def has_weights(self) -> bool:
        """Whether it has weights of the model's networks, instead of tokens or with them."""
        return any(name.startswith(OWN_WEIGHTS) for name in self.tensors)

    @property
    def is_tokens_alone(self) -> bool:
        """Whether its tokens are all that is applied; what a method keeps for readers beside them does not count."""
        return "tokens" in self.tensors and not self.has_weights

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one safetensors file, atomically; an earlier identity of the same name is replaced.

        Args:
            overwrite: also replace an identity of another name; anything else is never replaced.

        Raises:
            OutputError: another identity, a file of another kind or a device is there, or it cannot be written.
        """
        check_type(path, (str, Path), "The file", OutputError, "Give its path.")
        write_identity(self, Path(path), overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> Identity:
        """Read a file that `save` wrote; `IdentityError` for anything else."""
        check_type(path, (str, Path), "The identity", IdentityError, "Give an identity, or the path of its file.")
        return read_identity(Path(path))

    def push_to_hub(
        self, repository: str, *, private: bool = True, consent: str | None = None, token: str | None = None
    ) -> str:
        """Upload it to the Hugging Face hub, with a card that states consent, scores and settings.

        Settings that name a file have its name there, without the folder.

        Args:
            repository: `owner/name`; created if it does not exist.
            private: only you see it. A public one needs `consent`.
            consent: who allowed what; None takes what the identity itself states.
            token: of the hub; None takes the one that you are logged in with.

        Returns:
            The commit's address.

        Raises:
            IdentityError: no connection, no right to write there, or a likeness would be public without consent.
            ConfigError: the consent has expired.
        """
        # Where files lie on the own machine is nobody else's business; learning is over, and reads them no more.
        shortened = shorten_file_settings(self.header.settings)
        header = self.header.model_copy(update={"consent": consent or self.header.consent, "settings": shortened})
        check_consents({self.name: header.consent})
        if not private and not (header.consent or "").strip():
            raise IdentityError(
                f"Nobody is known to have agreed that {self.name!r} is public.",
                "State it: consent='Ada Example agreed on 2026-05-01 to ...', or leave the repository private.",
            )
        with make_temporary_folder() as folder:
            write_identity(Identity(self.tensors, header), folder / FILE)
            (folder / "README.md").write_text(make_card(header.model_dump(), repository), encoding="utf-8")
            return upload_folder(folder, repository, private=private, token=token)

    @staticmethod
    def from_pretrained(repository: str, *, allow_download: bool = False, token: str | None = None) -> Identity:
        """Return the identity of a repository that `push_to_hub` wrote.

        Args:
            repository: `owner/name` on the Hugging Face hub.
            allow_download: whether the network may be used; without it only the local cache is read.
            token: of the hub, for private ones; None takes the one that you are logged in with.

        Raises:
            IdentityError: it is not there or cannot be read.
        """
        folder = download_folder(repository, LIMITS.size, allow_download=allow_download, token=token)
        return read_identity(folder / FILE)

    def __repr__(self) -> str:
        """Return what it is in one line, without its numbers."""
        header = self.header
        return (
            f"<Identity {self.name!r}: {header.class_word}, {self.method}, {header.stages} stages, {header.base_model}>"
        )


def compute_tokens_digest(identity: Identity) -> str:
    """Compute the SHA-256 of an identity's tokens as float32, in hex."""
    return hashlib.sha256(identity.tokens.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def make_photo_salt(identity: Identity) -> bytes:
    """Make what the hashes of an identity's photos are salted with: a digest of its seed and of what was learned.

    Equal trainings give equal salts, so that a seed gives one file. Two identities have two, so that their hashes do
    not say that they are of one photo; the square that was learned, which the record has too, and the tokens may.
    """
    digest = hashlib.sha256(f"{identity.header.seed}/photo salt".encode())
    for name, tensor in sorted(identity.tensors.items()):
        flat = tensor.detach().flatten()[:SALT_NUMBERS].cpu().contiguous()
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.digest()


def add_vector_axis(tokens: torch.Tensor) -> torch.Tensor:
    """Add an axis for vectors to tokens `[stage, 2, width]`; those that have it are returned as they are."""
    return tokens if tokens.ndim == TOKEN_DIMS else tokens[:, :, None]


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
        path: a link stands for the file that it leads to; further files are written next to that file.
        largest: bytes of one file; the rest goes into further files of the same folder, which the header names.
        overwrite: also replace an identity of another name.
        replace: False refuses whatever is there, an identity of this name too.

    Raises:
        OutputError: another identity, a file of another kind or a device is there, or it cannot be written.
    """
    check_replaceable(path, FileKind.IDENTITY, overwrite=replace, name=None if overwrite else identity.name)
    path, given = follow_link(path), path
    first, *others = group_tensors(list_saved_tensors(identity), largest)
    parts = {format_shard_name(path, number, part): part for number, part in enumerate(others, 2)}
    header = identity.header.model_copy(update={"shards": tuple(parts)})
    before = list_named_shards(path)
    # Earlier versions wrote them next to a link, and named them for it.
    before_by_link = set[str]() if given == path else list_named_shards(given)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_output_error(path, error) from error
    with remove_new_shards_on_failure(path, parts):
        for name, part in parts.items():
            write_whole(part, path.with_name(name), {})
        # Last, so that a reader sees the old header and its files until now.
        with translate_existing_file_error(path):
            write_whole(first, path, {HEADER_KEY: dump_header(header)}, replace=replace)
    remove_shards(path, before - parts.keys())
    remove_shards(given, before_by_link - (parts.keys() if given.parent == path.parent else set()))


@contextmanager
def remove_new_shards_on_failure(path: Path, names: Iterable[str]) -> Generator[None]:
    """Remove those further files of an identity that a block has written, if it fails: no header names them."""
    new = {name for name in names if not path.with_name(name).exists()}
    try:
        yield
    except BaseException:
        with suppress(OSError, OutputError):  # the error that is raised counts
            remove_shards(path, new - list_named_shards(path))  # another process may have written the same identity
        raise


def remove_shards(path: Path, names: set[str]) -> None:
    """Remove further files of an identity, but for those that another identity of the folder names too."""
    for name in names - list_shards_of_others(path, names):
        remove_file(path.with_name(name))


def list_saved_tensors(identity: Identity) -> Tensors:
    """Return the tensors as a file holds them, the one that other programs refuse first."""
    split = split_tokens(identity.tensors, identity.header.widths)
    tensors = {k: v.detach().cpu().contiguous() for k, v in split.items()}
    return {MARK: torch.zeros(1, 1, dtype=torch.float64)} | tensors


def compute_identity_digest(identity: Identity) -> str:
    """Compute the SHA-256, in hex, of the file that `save` writes; of a large identity that of header and tensors.

    It is the same before the identity is written and after it was read: further files, and the order in which tensors
    came from the network, are not in it.
    """
    tensors = list_saved_tensors(identity)
    header = dump_header(identity.header.model_copy(update={"shards": ()}))
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST_HASHED_FILE:
        return hashlib.sha256(save(tensors, metadata={HEADER_KEY: header})).hexdigest()
    return hash_header_and_tensors(header, dict(sorted(tensors.items())))


def list_identity_digests(identity: Identity) -> list[str]:
    """List the SHA-256 by which files may name an identity that was read.

    Of one in several files there are two: earlier the names of its files were in it, and the tensors in their order
    there.
    """
    digests = [compute_identity_digest(identity)]
    if identity.header.shards:
        digests.append(hash_header_and_tensors(dump_header(identity.header), list_saved_tensors(identity)))
    return digests


def hash_header_and_tensors(header: str, tensors: Tensors) -> str:
    """Compute the SHA-256, in hex, of a header and of tensors in their order."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dump_header(header: IdentityHeader) -> str:
    """Return the JSON header; `widths` are left out where there is one text encoder, others where there are none."""
    optional = ("widths", "prediction_type", "record")
    return header.model_dump_json(exclude={name for name in optional if not getattr(header, name)})


def add_record(identity: Identity, record: RunRecord) -> Identity:
    """Return an identity with the record of how it was learned."""
    header = identity.header.model_copy(update={"record": record, "schema_version": SCHEMA_VERSION})
    return Identity(identity.tensors, header)


def split_tokens(tensors: Tensors, widths: Sequence[int]) -> Tensors:
    """Return the tensors as a file holds them: the tokens of each text encoder by themselves, `tokens`, `tokens_2` ...

    Args:
        widths: of the tokens of each text encoder; none where there is one.
    """
    if not widths or "tokens" not in tensors:
        return tensors
    parts = tensors["tokens"].split(list(widths), dim=-1)
    others = {name: tensor for name, tensor in tensors.items() if name != "tokens"}
    return {**dict(zip(list_token_names(widths), parts, strict=True)), **others}


def join_tokens(tensors: Tensors, widths: Sequence[int]) -> Tensors:
    """Return the tensors of a file with the tokens of all text encoders side by side, as `tokens`."""
    names = list_token_names(widths)
    if not widths or "tokens" not in tensors:
        return tensors
    others = {name: tensor for name, tensor in tensors.items() if name not in names}
    return {"tokens": torch.cat([tensors[name] for name in names], dim=-1), **others}


def list_token_names(widths: Sequence[int]) -> list[str]:
    """List the names in a file of each text encoder's tokens."""
    return ["tokens", *(f"tokens_{number}" for number in range(2, len(widths) + 1))]


def write_whole(tensors: Tensors, path: Path, metadata: dict[str, str], *, replace: bool = True) -> None:
    """Write one safetensors file atomically."""
    write_file(path, lambda partial: save_file(tensors, partial, metadata=metadata), replace=replace)


def group_tensors(tensors: Tensors, largest: int) -> list[Tensors]:
    """Group tensors in order into few groups; none exceeds `largest` bytes unless one tensor alone does."""
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
    """Format a further file's name, which no other content has: `ada.2.1f0c9a7b3d5e.safetensors`."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return f"{get_shard_stem(path)}.{number}.{digest.hexdigest()[:12]}.safetensors"


def list_named_shards(path: Path) -> set[str]:
    """Return the further files that an identity names and `format_shard_name` made; none if there is no identity yet.

    A header can name any file, and what is named here is removed: so only names that are made for this path count.
    """
    try:
        named = read_identity_header(path).shards if path.is_file() else ()
    except IdentityError:
        return set()
    made = compile_shard_name(path)
    return {name for name in named if made.fullmatch(name)}


def compile_shard_name(path: Path) -> re.Pattern[str]:
    """Return what the names that `format_shard_name` makes for an identity look like."""
    return re.compile(re.escape(get_shard_stem(path)) + SHARD_END)


def list_shard_files(path: Path) -> set[str]:
    """List the files in an identity's folder that are called as its further ones, whoever names them.

    A copy of the identity may name some, and a writing that was killed leaves some that nobody names. Where their names
    are cut, another identity's may be the same: then only those count that this one names.
    """
    made, stem = compile_shard_name(path), get_shard_stem(path)
    files = [one for one in path.parent.glob("*.safetensors") if one != path]
    if stem != path.stem and any(one.name.startswith(stem) and not made.fullmatch(one.name) for one in files):
        return list_named_shards(path)
    return {one.name for one in files if made.fullmatch(one.name)}


def list_shards_of_others(path: Path, names: set[str]) -> set[str]:
    """Return which of these files another identity of the folder names too: a copy of the file that is replaced."""
    if not names:
        return set()
    found: set[str] = set()
    for other in path.parent.glob("*.safetensors"):
        with suppress(IdentityError, OSError):
            if not path.exists() or not other.samefile(path):
                found |= names & set(read_identity_header(other).shards)
    return found


def read_identity(path: Path) -> Identity:
    """Read and check an identity.

    Every size that the file states is checked before a tensor is read.

    Raises:
        IdentityError: missing, truncated, foreign, newer, lacking one of its files, above a limit, or at odds with its
            own header.
    """
    with translate_identity_errors(path):
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
        tensors.pop(MARK, None)  # files of earlier versions have none
        tensors = join_tokens(tensors, header.widths)
        check_numbers(path, tensors)
    return Identity(tensors, header)


def read_identity_header(path: Path) -> IdentityHeader:
    """Return what an identity file says about itself; errors as in `read_identity`."""
    with translate_identity_errors(path):
        return parse_layout_header(path, read_layout(path, LIMITS))


def read_shard_layout(path: Path) -> Layout:
    """Return the layout of a further file of an identity; `IdentityError` names that file."""
    with translate_identity_errors(path):
        return read_layout(path, LIMITS)


@contextmanager
def translate_identity_errors(path: Path) -> Generator[None]:
    """Raise `IdentityError` for whatever goes wrong while an identity is read; an image is called one."""
    problem = "is damaged or no safetensors file of an identity"
    try:
        with translate_file_errors(path, IdentityError, problem, "Copy it again, or learn it again."):
            yield
    except IdentityError:
        with suppress(OutputError):
            if is_regular_file(path) and read_content(path).kind in (FileKind.PNG, FileKind.IMAGE):
                remedy = f"Learn it first: sefi learn {path} --name NAME, then -i NAME.safetensors."
                raise IdentityError(f"{path} is an image, not an identity.", remedy) from None
        raise


def parse_layout_header(path: Path, layout: Layout) -> IdentityHeader:
    """Return the checked JSON header; errors as in `parse_header`."""
    text = layout.metadata.get(HEADER_KEY)
    if text is None:
        remedy = "Use a file that `sefi learn` wrote, or make one of a textual inversion with `sefi import`."
        raise IdentityError(f"{path} is a safetensors file, but no identity of sefi.", remedy)
    return parse_header(path, text)


def check_layouts(layouts: Sequence[Layout]) -> None:
    """Check the files of one identity together.

    Raises:
        InvalidFileError: they are larger together than one identity may be, have too many tensors, or two have a tensor
            of the same name.
    """
    size = sum(layout.size for layout in layouts)
    if size > LIMITS.size:
        raise InvalidFileError(f"its files have {size:,} bytes together, more than {LIMITS.size:,}")
    names = [name for layout in layouts for name in layout.shapes]
    if len(names) > LIMITS.tensors:
        raise InvalidFileError(f"its files have {len(names):,} tensors together, more than {LIMITS.tensors:,}")
    if len(set(names)) < len(names):
        raise InvalidFileError("two of its files have a tensor of the same name")


def get_shard_path(path: Path, name: str) -> Path:
    """Return the path of a further file of an identity: next to it, or where it is a link next to its target.

    The hub's cache has links to all files of a repository in one folder, and their contents elsewhere.

    Raises:
        IdentityError: it is missing, or its name is not one that `format_shard_name` gives.
    """
    if not SHARD_NAME.fullmatch(name):
        raise IdentityError(f"The header of {path} names a strange file {name!r}.", REMEDY)
    for file in (path.with_name(name), follow_link(path).with_name(name)):
        if file.is_file():
            return file
    raise IdentityError(f"{path} comes in several files, and {name!r} is missing.", "Copy all of them together.")


def parse_header(path: Path, text: str) -> IdentityHeader:
    """Return the JSON header, checked.

    Raises:
        IdentityError: no JSON object, a newer schema, an unknown field, a value outside its range, or settings that
            no version of the program would have saved.
    """
    with translate_file_errors(f"The header of {path}", IdentityError, "is damaged", REMEDY):
        tree = parse_object(text)
        version = tree.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise IdentityError(f"{path} was written by a newer sefi (schema {version}).", "Update sefi.")
        header = IdentityHeader.model_validate(tree)
        if len(set(header.shards)) < len(header.shards):
            raise InvalidFileError("it names a file twice")
        if header.widths and (min(header.widths) < 1 or sum(header.widths) != header.width):
            raise InvalidFileError(f"its widths {header.widths} are not {header.width} together")
        check_settings(header)
    return header


def read_saved_config(header: IdentityHeader, kind: type[AnyConfig]) -> AnyConfig:
    """Return the settings that an identity was learned with, as its method has them.

    Raises:
        IdentityError: a value is of the wrong kind or outside its range.
    """
    try:
        return parse_saved_config(header.settings, kind)
    except ConfigError as error:
        raise IdentityError(f"The saved settings of {header.name!r} are damaged: {error.problem}", REMEDY) from None


def check_settings(header: IdentityHeader) -> None:
    """Check the saved settings that every method has; those of one method are checked where it applies an identity.

    Raises:
        InvalidFileError: a value is of the wrong kind or outside its range, or differs from the header's own.
    """
    try:
        check_saved_settings(dump_json(header.settings))
    except ConfigError as error:
        raise InvalidFileError(f"settings: {error.problem}") from None
    learn = header.settings.get("learn", {})
    if learn.get("stages", header.stages) != header.stages:
        raise InvalidFileError(f"it states {header.stages} stages, its settings {learn['stages']}")


@lru_cache(maxsize=64)
def check_saved_settings(text: str) -> None:
    """Check settings as JSON, as `parse_saved_config` does; once for the many identities that were learned alike."""
    parse_saved_config(json.loads(text), Config)


def check_tokens(path: Path, header: IdentityHeader, layouts: Sequence[Layout]) -> None:
    """Check that the tokens, where a method has them, have the shape that the header states.

    Raises:
        IdentityError: they are missing or of another shape.
    """
    shapes = {name: shape for layout in layouts for name, shape in layout.shapes.items() if name != MARK}
    if not shapes:
        raise IdentityError(f"{path} holds no tensors.", REMEDY)
    if "tokens" not in shapes:  # a method that saves weights or features; others refuse it when it is used
        return
    widths = header.widths or (header.width,)
    for name, width in zip(list_token_names(widths), widths, strict=True):
        found, shape = shapes.get(name, ()), (header.stages, 2, width)
        # Several tokens in the place of one name stand before the width.
        several = len(found) == TOKEN_DIMS and found[:2] + found[3:] == shape and found[2] <= MOST_VECTORS
        if (found != shape and not several) or found[:-1] != shapes["tokens"][:-1]:
            raise IdentityError(f"{path}: {name} are {found}, the header says {shape}.", REMEDY)


def check_numbers(path: Path, tensors: Tensors) -> None:
    """Check that every tensor has floating-point numbers, all of them finite; a digest has bytes.

    Raises:
        IdentityError: one is not finite, or a token is longer than any.
        InvalidFileError: one has whole numbers and is no digest.
    """
    for name, tensor in tensors.items():
        if name == DIGEST:
            continue
        if not tensor.is_floating_point():
            raise InvalidFileError(f"{name[:80]!r} has whole numbers")
        if not torch.isfinite(tensor).all():
            raise IdentityError(f"{path}: {name[:80]} holds numbers that are not finite.", RELEARN)
    longest = float(tensors["tokens"].double().norm(dim=-1).max()) if "tokens" in tensors else 0.0
    if longest > LONGEST_TOKEN:
        raise IdentityError(f"{path} has a token of norm {longest:.3g}; no text encoder takes that.", RELEARN)


def check_together(identities: Sequence[Identity]) -> None:
    """Refuse identities that cannot share a prompt on any model.

    Raises:
        IdentityError: two have one name, or they were learned with several methods.
    """
    check_names_differ(identities)
    methods = sorted({one.method for one in identities})
    if len(methods) > 1:
        raise IdentityError(
            f"Identities of several methods cannot share a prompt: {' and '.join(methods)} change the model or "
            "its texts in ways that do not fit together.",
            "Learn all of them with one method.",
        )


def check_tokens_alone(identities: Iterable[Identity], remedy: str) -> None:
    """Refuse identities of which a part only would be used, where tokens are used and nothing else.

    Raises:
        IdentityError: one has weights of the model, or no tokens.
    """
    for one in identities:
        if not one.is_tokens_alone:
            raise IdentityError(
                f"{one.name!r} was learned with {one.method}, which is more than tokens; only tokens are used here.",
                remedy,
            )


def check_names_differ(identities: Sequence[Identity]) -> None:
    """Refuse two identities of one name.

    Raises:
        IdentityError: there are some.
    """
    names = [one.name for one in identities]
    for name in names:
        if names.count(name) > 1:
            raise IdentityError(f"Two identities are called {name!r}.", "Learn one of them again with another --name.")
