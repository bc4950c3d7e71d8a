"""The identities of a folder, by name: read when they are asked for, and again when their file has changed."""

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from sefi.core.errors import ConfigError, IdentityError, SefiError
from sefi.core.files import describe_missing_folder
from sefi.core.prompts import NAME
from sefi.core.reading import describe_fault, is_inside
from sefi.identity.file import Identity, compute_identity_digest
from sefi.methods.registry import is_of_tokens
from sefi.provenance.consent import check_consents
from sefi.serve.limits import ServeError

SUFFIX = ".safetensors"
LARGEST_FILE = 16 << 20  # bytes; tokens take 30 KB, and what is larger has weights
MOST_HELD, MOST_BYTES = 4096, 512 << 20  # identities, and their tensors; of Stable Diffusion's width 130 MB
MOST_LISTED = 10_000


@dataclass(frozen=True, eq=False)
class ServedIdentity:
    """An identity as it was read; another object where its file has changed since.

    Attributes:
        digest: SHA-256 of its file.
        version: of its file: time of the last change in nanoseconds, bytes, and number on the disk.
    """

    identity: Identity
    digest: str
    version: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.identity.tensors.values())


class IdentityFolder:
    """Reads identities of one folder, and holds those that were asked for last.

    Args:
        folder: with a file `NAME.safetensors` for each; files may come, change and go.
        check: raises `SefiError` for an identity that cannot be used on the model.
        most: how many are held.
        most_bytes: what the tensors of those may take; the one that was asked for last is held whatever it takes.
    """

    def __init__(
        self, folder: Path, check: Callable[[Identity], None], most: int = MOST_HELD, most_bytes: int = MOST_BYTES
    ) -> None:
        if not folder.is_dir():
            raise ConfigError(describe_missing_folder(folder), "Name the folder of identity files with --identities.")
        self.folder, self.check, self.most, self.most_bytes = folder, check, most, most_bytes
        self.loaded = 0
        self._held: OrderedDict[str, ServedIdentity] = OrderedDict()
        self._lock = threading.Lock()

    def list_names(self) -> list[str]:
        """List the names that `find_file` has files for; whether they can be used shows when they are.

        Raises:
            ServeError: 503 where the folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                files = [entry.name for entry in entries if entry.name.endswith(SUFFIX) and self.has_file(entry)]
        except OSError as error:
            raise make_folder_error(error) from None
        stems = [name.removesuffix(SUFFIX) for name in files]
        return sorted(stem for stem in stems if re.fullmatch(NAME, stem))[:MOST_LISTED]

    def get(self, name: str) -> ServedIdentity:
        """Return an identity; its file is read where it was not, or has changed.

        Raises:
            ServeError: 404 where there is no such file, 403 where its consent has expired, 422 where it cannot be used,
                503 where the folder cannot be read.
            IdentityError: the file is damaged, or of another model.
        """
        path = self.find_file(name)
        with self._lock:
            version = read_version(path)
            if version is None:
                self._held.pop(name, None)  # who is forgotten is not held either
                self.check_folder()
                raise make_missing_error(name)
            served = self._held.get(name)
            if served is None or served.version != version:
                served = self.read(path, name, version)
                self._held[name] = served
                self._held.move_to_end(name)
                self._drop_oldest()
            self._held.move_to_end(name)
        check_expiry(served.identity)
        return served

    def check_folder(self) -> None:
        """Refuse to call somebody missing where the folder itself cannot be read; `ServeError` 503."""
        try:
            os.scandir(self.folder).close()
        except OSError as error:
            raise make_folder_error(error) from None

    def _drop_oldest(self) -> None:
        taken = sum(one.size for one in self._held.values())
        while len(self._held) > 1 and (len(self._held) > self.most or taken > self.most_bytes):
            taken -= self._held.popitem(last=False)[1].size

    def find_file(self, name: str) -> Path:
        """Return the file of a name; `ServeError` 404 for what is no name, or leads out of the folder."""
        path = self.folder / f"{name}{SUFFIX}"
        if not re.fullmatch(NAME, name) or not is_inside(path, self.folder):
            raise make_missing_error(name)
        return path

    def has_file(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry is a regular file, or a link to one that does not leave the folder."""
        return is_file(entry) and (not entry.is_symlink() or is_inside(Path(entry.path), self.folder))

    def read(self, path: Path, name: str, version: tuple[int, int, int]) -> ServedIdentity:
        """Read and check a file; errors as of `get`."""
        if version[1] > LARGEST_FILE:
            raise make_weights_error(name)
        identity = load_without_folder(path)
        if identity.name != name:
            raise ServeError(
                f"{path.name} holds the identity {identity.name!r}.",
                f"Call the file {identity.name}{SUFFIX}.",
                HTTPStatus.UNPROCESSABLE_ENTITY,
            )
        if not identity.is_tokens_alone or not is_of_tokens(identity.method):
            raise make_weights_error(name)
        self.check(identity)
        self.loaded += 1
        return ServedIdentity(identity, compute_identity_digest(identity), version)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a regular file, or a link to one; a link to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def load_without_folder(path: Path) -> Identity:
    """Read an identity; an error names the file alone: where it lies is nothing for who asks over the network.

    Raises:
        IdentityError: it is damaged, or cannot be read.
    """
    try:
        return Identity.load(path)
    except SefiError as error:
        folder = f"{path.parent}{os.sep}"
        raise IdentityError(error.problem.replace(folder, ""), error.remedy.replace(folder, "")) from None


def read_version(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None where there is no regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def make_missing_error(name: str) -> ServeError:
    """Return the error for a name without a file."""
    return ServeError(
        f"There is no identity {name[:80]!r} here.", "GET /v1/identities lists the names.", HTTPStatus.NOT_FOUND
    )


def make_folder_error(error: OSError) -> ServeError:
    """Return the error for a folder that cannot be read, which a request cannot help."""
    return ServeError(
        f"The folder of identities cannot be read: {describe_fault(error)}.",
        "Tell whoever runs this server.",
        HTTPStatus.SERVICE_UNAVAILABLE,
    )


def make_weights_error(name: str) -> SefiError:
    """Return the error for an identity that changes the model itself, which a batch of several people shares."""
    return IdentityError(
        f"The identity {name!r} holds more than tokens, so it cannot share a batch.",
        "Use `sefi generate`, or learn it with a method of tokens.",
    )


def check_expiry(identity: Identity) -> None:
    """Refuse an identity whose consent has expired by today, with `ServeError` 403."""
    try:
        check_consents({identity.name: identity.header.consent})
    except ConfigError as error:
        raise ServeError(error.problem, "Ask the person again, and learn it anew.", HTTPStatus.FORBIDDEN) from None
