"""What records of images, `records.json`, say of an identity: the runs of `sefi generate` with it, and their files."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sefi.core.errors import OutputError
from sefi.core.files import hold_folder_lock, is_plain_file, write_text
from sefi.core.prompts import find_placeholders
from sefi.core.reading import LARGEST_RECORDS, InvalidFileError, read_json
from sefi.core.text import dump_json
from sefi.provenance.leftovers import Trace
from sefi.provenance.metadata import DIGITS
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import read_named_identities

# What `sefi batch` knows of an identity: `records/ada.json` in the folder of `ada.safetensors`.
BATCH_RECORDS, BATCH_SCHEMA = "records", "sefi-batch-item/1"
SAYS_WHOSE = "It says whose images are in its folder."
TOO_LARGE = "too large to be read: it may name the identity and its images"
SHARED = "it names somebody else too, and the record of its folder is too large to say whom it shows"
ON_RECORD = "a record says that the identity made it"
CHANGED = "its record says that the identity made it, but it was changed since"
WITHOUT_HASH = "its record names it without a SHA-256, and the file says nothing of the identity"
CHANGED_OTHERS = "it names the identity's SHA-256, its record says that it shows somebody else; it was changed since"
STARTED_FROM_IMAGE = "it was made from an image by a command that had the identity; nobody knows whom that image shows"

Run = dict[str, Any]


@contextmanager
def translate_unread(path: Path, content: str) -> Generator[None]:
    """Raise `OutputError` for a record that is there and cannot be read; pass over one that is not there.

    Args:
        content: what it says, one sentence for the message.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        problem = f"'{path}' cannot be read: {error.strerror}. {content}"
        raise OutputError(problem, "Make it readable, or move it away and look at what is left yourself.") from error


def read_runs(path: Path) -> list[Run] | None:
    """Return the runs in a record of images; None where it is none that `sefi generate` wrote.

    Raises:
        OutputError: the disk does not give it, and nobody knows whose images are in its folder.
    """
    with suppress(InvalidFileError, ValueError, RecursionError), translate_unread(path, SAYS_WHOSE):
        record = read_json(path, LARGEST_RECORDS)
        runs = [record] if "images" in record else record.get("runs")  # at first a file had one run alone
        if isinstance(runs, list) and all(isinstance(run, dict) for run in runs):
            return runs
    return None


def is_too_large(path: Path) -> bool:
    """Return whether a record of images is larger than what is read; earlier versions wrote such ones."""
    with suppress(OSError):
        return path.stat().st_size > LARGEST_RECORDS
    return False


@dataclass(frozen=True)
class RunsOnRecord:
    """The runs in one record of images, and which of them an identity made.

    Attributes:
        path: the record.
        identity: the identity's file.
        digests: SHA-256 of it.
        runs: what the record lists.
        is_of_tokens: says of a method whether its identities are applied by their tokens alone: then an image shows
            nobody but those whom its prompt names. Of any other method, and where nobody says it, each image of a run
            shows all identities.
    """

    path: Path
    identity: Path
    digests: frozenset[str]
    runs: Sequence[Run]
    is_of_tokens: Callable[[str], bool] | None = None

    def list_ours(self) -> list[Run]:
        """List the runs with the identity."""
        return [run for run in self.runs if self.has_identity(run)]

    def find_names(self, run: Run) -> set[str]:
        """Return the names that a run's prompts had for the identity."""
        named = read_identities(run)
        return {name for name, digest in named.items() if str(digest) in self.digests}

    def split_entries(self, run: Run) -> tuple[list[Mapping[str, object]], list[Mapping[str, object]]]:
        """Split what a run with the identity says of its images: of those that show it, and of those that do not.

        The prompts of the second do not name it.
        """
        entries, record = list_entries(run), run.get("run")
        settings = record.get("settings") if isinstance(record, dict) else None
        method = settings.get("method") if isinstance(settings, dict) else None
        if self.is_of_tokens is None or not isinstance(method, str) or not self.is_of_tokens(method):
            return entries, []
        names, own, others = self.find_names(run), list[Mapping[str, object]](), list[Mapping[str, object]]()
        for entry in entries:
            text = entry.get("prompt")
            is_other = isinstance(text, str) and names.isdisjoint(find_placeholders(text))
            (others if is_other else own).append(entry)
        return own, others

    def find_others(self, run: Run) -> set[str]:
        """Return the names of a run's image files that do not show the identity."""
        own, others = self.split_entries(run)
        return {get_file_name(entry) for entry in others} - {get_file_name(entry) for entry in own} - {""}

    def has_identity(self, run: Run) -> bool:
        """Return whether a run was made with the identity.

        By its SHA-256; earlier versions recorded a path, which shows the identity only if it leads from the record's
        own folder to it: what it was typed in is not on record.
        """
        if is_mapping(run.get("run")):
            return bool(self.find_names(run))
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
            files = [*list_entries(run), {"file": run.get("grid")}, *list_image_records(run)]
            for name, sha256 in ((get_file_name(one), one.get("sha256")) for one in files):
                path = self.path.parent / name
                if name and is_plain_file(path):
                    found.setdefault(path, set()).update([sha256] if isinstance(sha256, str) else [])
        return found

    def list_files_by_owner(self, runs: Iterable[Run], *, others: bool = False) -> dict[Path, set[str]]:
        """List the files of runs with the identity that show it, or those that do not, as `list_files`."""
        found: dict[Path, set[str]] = {}
        for run in runs:
            names = self.find_others(run)
            for path, hashes in self.list_files([run]).items():
                if (path.name in names) == others:
                    found.setdefault(path, set()).update(hashes)
        return found

    def is_proven(self, path: Path, hashes: Iterable[str]) -> bool:
        """Return whether a file is still what a run made, or says in its own words that it is of the identity."""
        named = {digest[:DIGITS] for digest in self.digests}
        with suppress(OSError, OutputError):
            return compute_file_digest(path) in set(hashes) or bool(named & read_named_identities(path))
        return False

    def list_images(self, runs: Iterable[Run]) -> tuple[list[Trace], list[Trace]]:
        """List the images of the identity that are still those that the runs made, and those that nothing shows to be.

        Each file is read once.
        """
        proven, unproven = list[Trace](), list[Trace]()
        for path, hashes in self.list_files_by_owner(runs).items():
            if self.is_proven(path, hashes):
                proven.append(Trace(path, ON_RECORD))
            else:
                unproven.append(Trace(path, CHANGED if hashes else WITHOUT_HASH))
        return proven, unproven

    def list_doubts(self, runs: Iterable[Run]) -> Iterator[Trace]:
        """Yield images of others that were made from an image, and files of runs that may have been the identity's."""
        for run in filter(has_source_image, runs):
            for path in (self.path.parent / name for name in sorted(self.find_others(run))):
                if is_plain_file(path):
                    yield Trace(path, STARTED_FROM_IMAGE)
        for path in self.list_files(filter(self.is_doubtful, self.runs)):
            yield Trace(path, "its record names a file that is called as this identity's, perhaps another's")

    def list_pixel_digests(self, runs: Iterable[Run]) -> set[str]:
        """List the SHA-256 of the pixels of the runs' images that show the identity, as far as they are on record."""
        others = [(run, self.find_others(run)) for run in runs]
        listed = [one for run, names in others for one in list_image_records(run) if get_file_name(one) not in names]
        return {str(one.get("pixels_sha256")) for one in listed}

    def take_out(self) -> None:
        """Take the identity out of the record as it is by now; one without runs is then removed.

        Raises:
            OutputError: it cannot be written, or is none that can be read by now.
        """
        with hold_folder_lock(self.path.parent):
            if (present := read_runs(self.path)) is None:
                raise OutputError("It was changed since it was listed.", "Repeat the command.")
            runs = [run for run in map(self.drop_identity, present) if run is not None]
            if not runs:
                self.path.unlink()
                return
            whole = read_json(self.path, LARGEST_RECORDS)
            changed = runs[0] if "images" in whole else {**whole, "runs": runs}  # at first a file had one run alone
            write_text(self.path, dump_json(changed, indent=2) + "\n")

    def drop_identity(self, run: Run) -> Run | None:
        """Return a run without the identity and its images; None where no image of somebody else is left.

        The image of all images shows the identity too, and is no longer there.
        """
        if not self.has_identity(run):
            return run
        _, entries = self.split_entries(run)
        if not entries:
            return None
        names, gone = {get_file_name(entry) for entry in entries}, self.find_names(run)
        named, typed = read_identities(run), list_named_paths(run)
        record = {
            **run["run"],
            "identities": {name: digest for name, digest in named.items() if name not in gone},
            "images": [one for one in list_image_records(run) if get_file_name(one) in names],
        }
        # The files are listed in the order of the names; where that is not so, nobody knows which is the identity's.
        pairs = zip(named, typed, strict=True) if len(named) == len(typed) else ()
        files = [file for name, file in pairs if name not in gone]
        return {**run, "images": entries, "grid": None, "identities": files, "run": record}


def list_entries(run: Run) -> list[Mapping[str, object]]:
    """List what a run says of its images: file, prompt and seed."""
    images = run.get("images")
    return [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []


def get_file_name(entry: Mapping[str, object]) -> str:
    """Return the last part of the file's name that a record says something of; nothing where it names none."""
    name = entry.get("file")
    return Path(name).name if isinstance(name, str) and Path(name).suffix else ""


def read_identities(run: Run) -> Mapping[str, object]:
    """Return the SHA-256 of each identity of a run, by its name in prompts; earlier versions had none."""
    record = run.get("run")
    named = record.get("identities") if isinstance(record, dict) else None
    return named if isinstance(named, dict) else {}


def has_source_image(run: Run) -> bool:
    """Return whether a run's images were made from an image."""
    inputs = run.get("inputs")
    return isinstance(inputs, dict) and inputs.get("init_image") is not None


def list_image_records(run: Run) -> list[Mapping[str, object]]:
    """List what a run's record says of its image files; earlier versions had none."""
    record = run.get("run")
    images = record.get("images") if isinstance(record, dict) else None
    return [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []


def list_named_paths(run: Run) -> list[str]:
    """List the identities' files that a run names, as earlier versions recorded them."""
    names = run.get("identities")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


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
