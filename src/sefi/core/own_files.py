"""Folders that a command fills again and again: a record of what it wrote there tells that from anybody else's files.

The record holds the SHA-256 of each file. A file that has it is replaced unasked; one that was changed, or that
somebody else put there, is refused.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.core.files import Kind, check_output, locked, read_status, refuse_existing, write_file, write_text
from sefi.core.json_text import dump_json
from sefi.core.reading import LimitError, file_errors, read_json

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
    kinds: Mapping[str, Kind]
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
            self.check_one(file)

    def check_one(self, file: str) -> bool:
        """Return whether a file may take the place of what is there; errors as in `check`."""
        path = self.folder / file
        digests, digest = read_digests(self.folder).get(file, []), digest_of(path)
        replace = self.overwrite or (self.renew and digest in digests)
        name = self.identity if self.kinds[file] is Kind.IDENTITY else None
        # First whatever not even `overwrite` allows.
        check_output(path, self.kinds[file], inputs=self.inputs, overwrite=replace or bool(digests), name=name)
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
            self.check_one(file)
            add_digest(self.folder, file, partial)

        with refuse_existing(path):
            write_file(path, fill, replace=self.check_one(file))
        return path


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a regular file; None if there is none.

    Raises:
        OutputError: it cannot be read, so nobody can tell what would be lost.
    """
    if read_status(path) is None or not path.is_file():
        return None
    with file_errors(f"'{path}'", OutputError, "cannot be read", "Choose another --out."), path.open("rb") as file:
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
    with file_errors(f"'{path}'", OutputError, "is no record of files that sefi wrote", remedy):
        record = read_json(path)
        if record.get("schema_version") != SCHEMA_VERSION:
            raise LimitError(f"its version is not {SCHEMA_VERSION}")
        found = record["files"]
        if not all(isinstance(digest, str) for digests in found.values() for digest in digests):
            raise LimitError("a SHA-256 is no text")
        return {name: list(digests) for name, digests in found.items()}


def add_digest(folder: Path, file: str, partial: Path) -> None:
    """Put on record what a file is about to become, beside what it still is: writing may be cut short.

    Raises:
        OutputError: as in `read_digests`, or the record cannot be written.
    """
    with locked(folder):
        digests = read_digests(folder)
        now = digest_of(folder / file)
        kept = [one for one in digests.get(file, ()) if one == now]
        digests[file] = list(dict.fromkeys([*kept, digest_of(partial) or ""]))
        write_text(folder / RECORD, dump_json({"schema_version": SCHEMA_VERSION, "files": digests}, indent=1) + "\n")
