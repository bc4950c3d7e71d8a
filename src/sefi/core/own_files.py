"""Folders that a command writes to repeatedly; a record of what it wrote there protects everybody else's files.

The record holds the SHA-256 of each file. A file that has it is replaced unasked; one that was changed, or that
somebody else put there, is refused. A file that takes long to make is locked meanwhile.
"""

import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.core.files import (
    FileKind,
    check_output,
    fcntl,
    fit_stem,
    follow_link,
    hold_folder_lock,
    is_plain_file,
    is_regular_file,
    is_there,
    make_output_error,
    read_status,
    take_lock,
    translate_existing_file_error,
    write_file,
    write_text,
)
from sefi.core.reading import InvalidFileError, read_json, translate_file_errors
from sefi.core.text import dump_json

RECORD = ".sefi-files.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OwnFiles:
    """The files that a command writes into a folder.

    Attributes:
        kinds: what each of them holds, by name.
        identity: the name of every identity among them.
        inputs: everything that the command reads.
        overwrite: replace whatever is of the same kind and identity.
        renew: replace, without `overwrite`, what an earlier run of the command wrote and nobody changed.
    """

    folder: Path
    kinds: Mapping[str, FileKind]
    identity: str | None = None
    inputs: Iterable[Path | str | None] = ()
    overwrite: bool = False
    renew: bool = True

    def check(self) -> None:
        """Refuse, before the work, what `write` would refuse.

        Raises:
            OutputError: as in `check_output`; the folder's record is damaged, or a file was changed by somebody else.
        """
        for file in self.kinds:
            self.can_replace(file)

    def can_replace(self, file: str) -> bool:
        """Return whether a file may take the place of what is there; errors as in `check`."""
        path = self.folder / file
        digests, digest = read_digests(self.folder).get(file, []), hash_own_file(path)
        replace = self.overwrite or (self.renew and digest in digests)
        name = self.identity if self.kinds[file] is FileKind.IDENTITY else None
        # First whatever not even `overwrite` allows.
        check_output(
            path, self.kinds[file], inputs=self.inputs, overwrite=replace or bool(digests), name=name, follow=False
        )
        if digest is not None and digests and not replace:
            problem = "was changed since sefi wrote it" if self.renew else "exists"
            raise OutputError(f"'{path}' {problem}.", "Choose another --out, or replace it with --overwrite.")
        return replace

    def write(self, file: str, write: Callable[[Path], object]) -> Path:
        """Write one of the files, whole or not at all, and put it on record; return its path.

        Args:
            write: gets a temporary path, as in `write_file`.

        Raises:
            OutputError: as in `check`, for what is there by now; or it cannot be written.
        """
        path = self.folder / file

        def fill(partial: Path) -> None:
            write(partial)
            self.can_replace(file)
            add_digest(self.folder, file, partial)

        with translate_existing_file_error(path):
            write_file(path, fill, replace=self.can_replace(file))
        return path


def hash_own_file(path: Path) -> str | None:
    """Return the SHA-256 of a regular file; None if there is none.

    Raises:
        OutputError: it cannot be read, so nobody can tell what would be lost.
    """
    if read_status(path) is None or not is_regular_file(path):
        return None
    with (
        translate_file_errors(f"'{path}'", OutputError, "cannot be read", "Choose another --out."),
        path.open("rb") as file,
    ):
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_digests(folder: Path) -> dict[str, list[str]]:
    """Return the SHA-256 of each file that sefi wrote into a folder, of two where writing was cut short.

    Raises:
        OutputError: the record is damaged or of a newer version.
    """
    path = folder / RECORD
    if read_status(path) is None:
        return {}
    remedy = "Remove it; what is in the folder is then replaced with --overwrite only."
    with translate_file_errors(f"'{path}'", OutputError, "is no record of files that sefi wrote", remedy):
        record = read_json(path)
        if record.get("schema_version") != SCHEMA_VERSION:
            raise InvalidFileError(f"its version is not {SCHEMA_VERSION}")
        digests_by_name = record["files"]
        if not all(isinstance(digest, str) for digests in digests_by_name.values() for digest in digests):
            raise InvalidFileError("a SHA-256 is not a text")
        # Whoever reads this joins the folder and a name, and removes or replaces what is there.
        if strange := [name for name in digests_by_name if not is_plain_name(name)]:
            raise InvalidFileError(f"it names {strange[0][:80]!r}, which is not the plain name of a file in its folder")
        return {name: list(digests) for name, digests in digests_by_name.items()}


def is_plain_name(name: str) -> bool:
    """Return whether a text names a file in a folder, and nothing below or outside of it.

    >>> [is_plain_name(name) for name in ("ada.png", "../ada.png", "/ada.png", "..", ".", "")]
    [True, False, False, False, False, False]
    """
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name


def add_digest(folder: Path, file: str, partial: Path) -> None:
    """Record the digest of a file that is about to be written, and keep the present one: writing may be cut short.

    Raises:
        OutputError: as in `read_digests`, or the record cannot be written.
    """
    with hold_folder_lock(folder):
        digests = read_digests(folder)
        now = hash_own_file(folder / file)
        present = [one for one in digests.get(file, ()) if one == now]
        digests[file] = list(dict.fromkeys([*present, hash_own_file(partial) or ""]))
        write_digests(folder, digests)


def write_digests(folder: Path, digests: Mapping[str, Iterable[str]]) -> None:
    """Write a folder's record; `OutputError` where that fails."""
    write_text(folder / RECORD, dump_json({"schema_version": SCHEMA_VERSION, "files": digests}, indent=1) + "\n")


def drop_digests(folder: Path, files: Iterable[str]) -> None:
    """Take files out of a folder's record; one that is then empty is removed.

    Raises:
        OutputError: as in `read_digests`, or the record cannot be written.
    """
    with hold_folder_lock(folder):
        digests = {name: known for name, known in read_digests(folder).items() if name not in set(files)}
        if digests:
            write_digests(folder, digests)
        else:
            (folder / RECORD).unlink(missing_ok=True)


# ------------------------------------------------------------------ temporary folders

TEMPORARY_MARK = ".sefi-temporary"  # tells that a folder is ours, and its lock that a process is at work


@contextmanager
def make_temporary_folder() -> Generator[Path]:
    """Make a folder in the system's place for temporary files, whose contents are gone after the block.

    Yields:
        An empty folder in it; beside that is a file which a living process has locked, so that what a killed one left
        can be told apart from what others have there.
    """
    with tempfile.TemporaryDirectory(prefix="sefi-") as outer:
        handle = os.open(Path(outer, TEMPORARY_MARK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):  # a file system without locks
                take_lock(handle, wait=False)
            content = Path(outer, "content")
            content.mkdir()
            yield content
        finally:
            os.close(handle)


# ------------------------------------------------------------------ one process for an output

LONGEST_NOTE = 200  # bytes of a lock file that are read


@contextmanager
def hold_output_lock(path: Path, lock: Path | None = None) -> Generator[None]:
    """Hold the lock of a file that takes long to make, so that two processes never make it at once.

    The lock file beside it, `.STEM.lock`, says who has it. The system frees the lock of a process that ends however
    it ends; the file that it leaves is in nobody's way, and is gone after the next that holds it.

    Args:
        lock: the lock file, where another one is to be taken.

    Raises:
        OutputError: another process has it, named by its number and its machine; or nothing can be written there.
    """
    lock = locate_lock(path) if lock is None else lock
    refuse_other_file(lock, path)
    handle = open_lock(lock, path)
    try:
        with suppress(OSError):  # on a full disk it is locked, and nobody is named
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {platform.node()}".encode("utf-8", "replace"))
        yield
    finally:
        if fcntl is None:
            os.close(handle)  # Windows removes no open file
        with suppress(OSError):
            lock.unlink()
        if fcntl is not None:
            os.close(handle)


def remove_stale_lock(path: Path) -> None:
    """Remove the lock file of an output that a killed process left; one that a process holds stays."""
    if is_there(locate_lock(path)):
        with suppress(OutputError), hold_output_lock(path):
            pass


def locate_lock(path: Path) -> Path:
    """Return where the lock of an output is; of a link that of the file that it leads to.

    >>> locate_lock(Path("a/ada.safetensors")).name
    '.ada.lock'
    """
    real = follow_link(path)
    return real.with_name(f".{fit_stem(real, len('..lock'))}.lock")


def refuse_other_file(lock: Path, path: Path) -> None:
    """Refuse to lock a file by one that is no lock: it may be somebody's, and is removed in the end.

    Raises:
        OutputError: as above.
    """
    strange = os.path.lexists(lock) and not is_plain_file(lock)
    if not strange:
        with suppress(OSError), lock.open("rb") as file:
            strange = re.fullmatch(rb"(\d+ [^\n]*)?", file.read(LONGEST_NOTE + 1)) is None
    if strange:
        raise OutputError(f"'{lock}', which locks '{path}', is another file.", "Rename it, or change --out.")


def open_lock(lock: Path, path: Path) -> int:
    """Return the handle of a lock file that this process alone holds.

    Args:
        path: what is locked, for the message.

    Raises:
        OutputError: as in `hold_output_lock`.
    """
    while True:
        handle = create_lock(lock, path)
        try:
            take_lock(handle, wait=False)
        except BlockingIOError:
            os.close(handle)
            raise make_lock_error(lock, path) from None
        except OSError:  # a file system without locks
            return handle
        if is_same_file(handle, lock):
            return handle
        os.close(handle)  # whoever had it removed the file meanwhile


def create_lock(lock: Path, path: Path) -> int:
    """Return the handle of a lock file, created if it is missing; on Windows it is nobody else's then."""
    try:
        if fcntl is None and is_there(lock):
            lock.unlink()  # Windows refuses it as long as a process has the file open
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if fcntl is None and isinstance(error, PermissionError):
            raise make_lock_error(lock, path) from None
        raise make_output_error(path, error) from error


def is_same_file(handle: int, path: Path) -> bool:
    """Return whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def make_lock_error(lock: Path, path: Path) -> OutputError:
    """Return the error that names the process which is making a file."""
    note = b""
    with suppress(OSError), lock.open("rb") as file:
        note = file.read(LONGEST_NOTE)
    number, _, machine = note.decode("utf-8", "replace").partition(" ")
    who = f"Process {number}" if number.isdecimal() else "Another process"
    where = f" on {machine}" if machine and machine != platform.node() else ""
    return OutputError(f"{who}{where} is making '{path}'.", "Wait until it has ended, or choose another --out.")
