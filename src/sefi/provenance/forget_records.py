"""What records of images, `records.json`, say of an identity: the runs of `sefi generate` with it, and their files."""

import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sefi.core.errors import OutputError
from sefi.core.files import hold_folder_lock, write_text
from sefi.core.reading import InvalidFileError, read_json
from sefi.core.text import dump_json
from sefi.provenance.leftovers import Trace
from sefi.provenance.metadata import DIGITS
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import read_named_identities

RECORDS = "records.json"
LARGEST_RECORDS = 16 << 20  # bytes
# What `sefi batch` knows of an identity: `records/ada.json` in the folder of `ada.safetensors`.
BATCH_RECORDS, BATCH_SCHEMA = "records", "sefi-batch-item/1"
CHANGED = "its record says that the identity made it, but it was changed since"
WITHOUT_HASH = "its record names it without a SHA-256, and the file says nothing of the identity"

Run = dict[str, Any]


@contextmanager
def translate_unread(path: Path) -> Generator[None]:
    """Raise `OutputError` for a record that is there and cannot be read; pass over one that is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        problem = f"'{path}' cannot be read: {error.strerror}. It says whose images are beside it."
        raise OutputError(problem, "Make it readable, or move it away and look at the images yourself.") from error


def read_runs(path: Path) -> list[Run] | None:
    """Return the runs in a record of images; None where it is none that `sefi generate` wrote.

    Raises:
        OutputError: the disk does not give it, and nobody knows whose images are beside it.
    """
    with suppress(InvalidFileError, ValueError, RecursionError), translate_unread(path):
        record = read_json(path, LARGEST_RECORDS)
        runs = [record] if "images" in record else record.get("runs")  # at first a file had one run alone
        if isinstance(runs, list) and all(isinstance(run, dict) for run in runs):
            return runs
    return None


@dataclass(frozen=True)
class RunsOnRecord:
    """The runs in one record of images, and which of them an identity made.

    Attributes:
        path: the record.
        identity: the identity's file.
        digests: SHA-256 of it.
        runs: what the record lists.
    """

    path: Path
    identity: Path
    digests: frozenset[str]
    runs: Sequence[Run]

    def list_ours(self) -> list[Run]:
        """List the runs with the identity."""
        return [run for run in self.runs if self.has_identity(run)]

    def has_identity(self, run: Run) -> bool:
        """Return whether a run was made with the identity.

        By its SHA-256; earlier versions recorded a path, which shows the identity only if it leads from the record's
        own folder to it: what it was typed in is not on record.
        """
        record = run.get("run")
        if isinstance(record, dict):
            named = record.get("identities", {})
            return isinstance(named, dict) and bool(self.digests & {str(one) for one in named.values()})
        return self.identity.is_file() and self.identity in map(self.find_named_file, list_named_paths(run))

    def find_named_file(self, name: str) -> Path | None:
        """Return the file that a path in the record names; None for a path that none can have."""
        with suppress(OSError, ValueError):
            return (self.path.parent / name).resolve()
        return None

    def has_namesake(self, name: str) -> bool:
        """Return whether a run was made with an identity of a name."""
        stated = [run["run"].get("identities") for run in self.runs if is_mapping(run.get("run"))]
        named = any(isinstance(names, dict) and name in names for names in stated)
        return named or any(map(self.is_doubtful, self.runs))

    def is_doubtful(self, run: Run) -> bool:
        """Return whether a run of an earlier version names a file that is called as the identity's, perhaps another."""
        old = not is_mapping(run.get("run")) and not self.has_identity(run)
        return old and any(Path(name).name == self.identity.name for name in list_named_paths(run))

    def list_files(self, runs: Iterable[Run]) -> dict[Path, set[str]]:
        """List the files of runs that are in the record's folder, each with the SHA-256 on record, if there are any."""
        found: dict[Path, set[str]] = {}
        for run in runs:
            images = run.get("images")
            listed = [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []
            files = [*listed, {"file": run.get("grid")}, *list_image_records(run)]
            for name, sha256 in ((one.get("file"), one.get("sha256")) for one in files):
                path = self.path.parent / Path(name).name if isinstance(name, str) and Path(name).suffix else None
                if path is not None and is_plain_file(path):
                    found.setdefault(path, set()).update([sha256] if isinstance(sha256, str) else [])
        return found

    def is_proven(self, path: Path, hashes: Iterable[str]) -> bool:
        """Return whether a file is still what a run made, or says in its own words that it is of the identity."""
        named = {digest[:DIGITS] for digest in self.digests}
        with suppress(OSError):
            return compute_file_digest(path) in set(hashes) or bool(named & read_named_identities(path))
        return False

    def list_images(self, runs: Iterable[Run]) -> list[tuple[Path, str]]:
        """List the images that are still those that the runs made, each with how that is known."""
        reason = "a record says that the identity made it"
        return [(path, reason) for path, hashes in self.list_files(runs).items() if self.is_proven(path, hashes)]

    def list_unproven(self, runs: Iterable[Run]) -> Iterator[Trace]:
        """Yield files that runs name and that nothing else shows to be what they made.

        Besides the files of these runs, those of an earlier version's runs that may have been the identity's.
        """
        for path, hashes in self.list_files(runs).items():
            if not self.is_proven(path, hashes):
                yield Trace(path, CHANGED if hashes else WITHOUT_HASH)
        for path in self.list_files(run for run in self.runs if self.is_doubtful(run)):
            yield Trace(path, "its record names a file that is called as this identity's, perhaps another's")

    def list_pixel_digests(self, runs: Iterable[Run]) -> set[str]:
        """List the SHA-256 of the pixels of the runs' images, as far as they are on record."""
        return {str(one.get("pixels_sha256")) for run in runs for one in list_image_records(run)}

    def take_out(self) -> None:
        """Take the identity's runs out of the record as it is by now; one that is then empty is removed.

        Raises:
            OutputError: it cannot be written.
        """
        with hold_folder_lock(self.path.parent):
            runs = [run for run in read_runs(self.path) or [] if not self.has_identity(run)]
            if not runs:
                self.path.unlink()
                return
            whole = read_json(self.path, LARGEST_RECORDS)
            write_text(self.path, dump_json({**whole, "runs": runs}, indent=2) + "\n")


def list_image_records(run: Run) -> list[Mapping[str, object]]:
    """List what a run's record says of its image files; earlier versions had none."""
    record = run.get("run")
    images = record.get("images") if isinstance(record, dict) else None
    return [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []


def list_named_paths(run: Run) -> list[str]:
    """List the identities' files that a run names, as earlier versions recorded them."""
    names = run.get("identities")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def is_plain_file(path: Path) -> bool:
    """Return whether there is a regular file, and no link, at a path; no file has a name that is too long."""
    with suppress(OSError, ValueError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def is_mapping(value: object) -> bool:
    """Return whether a value of JSON is an object."""
    return isinstance(value, dict)


def is_batch_record(path: Path, digests: Iterable[str], *, by_name: bool) -> bool:
    """Return whether a file is a batch's record of an identity.

    Args:
        digests: SHA-256 of the identity.
        by_name: it is the one of the identity's file, which may not be learned yet.
    """
    with suppress(InvalidFileError, ValueError, RecursionError, OSError):
        record = read_json(path)
        return record.get("schema") == BATCH_SCHEMA and (by_name or record.get("identity") in set(digests))
    return False
