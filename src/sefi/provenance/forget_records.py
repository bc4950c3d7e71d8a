"""What records say of an identity: runs of `sefi generate` in `records.json`, and subjects of a benchmark's folder."""

import json
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sefi.core.errors import OutputError
from sefi.core.files import hold_folder_lock, take_lock, write_file, write_text
from sefi.core.reading import InvalidFileError, read_json
from sefi.core.text import dump_json
from sefi.provenance.leftovers import Trace
from sefi.provenance.metadata import DIGITS
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import read_named_identities

RECORDS, RUN_INFO, RUN_SAMPLES = "records.json", "run.json", "cells.jsonl"
LARGEST_RECORDS, LARGEST_SAMPLES = 16 << 20, 512 << 20  # bytes
PIXEL_DIGITS = 16  # of the SHA-256 of pixels, as a benchmark's records have it
RUN_FOLDERS = ("photos", "identities", "pictures", "attention")
OF_RUN = "of the same subject in this benchmark's folder"
CHANGED = "its record says that the identity made it, but it was changed since"
WITHOUT_HASH = "its record names it without a SHA-256, and the file says nothing of the identity"
REDRAWN = "may show the subject; `sefi bench report` writes it again"

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
    """

    path: Path
    identity: Path
    digests: frozenset[str]

    def list_ours(self) -> list[Run]:
        """List the runs with the identity."""
        return [run for run in read_runs(self.path) or [] if self.has_identity(run)]

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
        runs = read_runs(self.path) or []
        stated = [run["run"].get("identities") for run in runs if is_mapping(run.get("run"))]
        return any(isinstance(names, dict) and name in names for names in stated) or any(map(self.is_doubtful, runs))

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
        for path in self.list_files(run for run in read_runs(self.path) or [] if self.is_doubtful(run)):
            yield Trace(path, "its record names a file that is called as this identity's, perhaps another's")

    def list_pixel_digests(self, runs: Iterable[Run]) -> set[str]:
        """List the SHA-256 of the pixels of the runs' images, as far as they are on record."""
        return {str(one.get("pixels_sha256")) for run in runs for one in list_image_records(run)}

    def take_out(self) -> None:
        """Take the identity's runs out of the record; one that is then empty is removed.

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


# ------------------------------------------------------------------ benchmark runs


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is that of a benchmark run."""
    return bool(read_run_info(folder))


def read_run_info(folder: Path) -> Run:
    """Return what a benchmark's `run.json` says; nothing where it is no run that this package wrote.

    Raises:
        OutputError: the disk does not give it, and nobody knows whose images are beside it.
    """
    path = folder / RUN_INFO
    with suppress(InvalidFileError, ValueError, RecursionError), translate_unread(path):
        info = read_json(path, LARGEST_RECORDS)
        if is_mapping(info.get("suite")) and isinstance(info.get("subjects"), list):
            return info
    return {}


def list_groups(info: Run) -> list[str]:
    """List the groups of subjects of a run, `ada+bob` where two share an image."""
    return [group for group in info.get("subjects", []) if isinstance(group, str)]


def find_run_subjects(folder: Path, traced: Iterable[Path], name: str, pixels: frozenset[str]) -> list[str]:
    """Find the subjects of a benchmark run that an identity is of.

    Args:
        traced: files that are known to be of the identity.
        name: its name.
        pixels: SHA-256 of the pixels of images that it made.
    """
    info, found = read_run_info(folder), dict[str, None]()
    groups = list_groups(info)
    subjects = list(dict.fromkeys(one for group in groups for one in group.split("+")))
    here = [path for path in traced if path.parent.parent == folder]
    for path in here:
        if path.parent.name == "identities":
            found |= dict.fromkeys(one for one in subjects if path.name.startswith(f"{one}--"))
        if path.parent.name == "pictures":
            group = next((one for one in groups if path.name.startswith(f"{one}--")), "")
            found |= dict.fromkeys([name] if name in group.split("+") else filter(None, [group]))
    for listed in (info.get("folders") or {}).values():
        short = {one[:PIXEL_DIGITS] for one in pixels}
        found |= dict.fromkeys(one["subject"] for one in listed.get("images", []) if one.get("sha256") in short)
    return [one for one in found if one in subjects or one in groups]


def list_variants_of_subject(identity: Path) -> list[Path]:
    """List the other identities that a benchmark learned of the subject of one; none where it is in no benchmark."""
    subject, dashes, _ = identity.name.partition("--")
    if identity.parent.name != "identities" or not dashes or not is_run_folder(identity.parent.parent):
        return []
    others = list_plain_files(identity.parent)
    return [
        one for one in others if one != identity and re.fullmatch(rf"{re.escape(subject)}--.*\.safetensors", one.name)
    ]


def explain_namesake(folder: Path, name: str) -> str | None:
    """Return how to forget the subject of a name in a benchmark; None where there is none."""
    if name not in (one for group in list_groups(read_run_info(folder)) for one in group.split("+")):
        return None
    learned = next((one for one in list_plain_files(folder / "identities") if one.name.startswith(f"{name}--")), None)
    how = f"forget '{learned}' too" if learned else "remove the folder"
    return f"this benchmark has a subject of this name; if it is the same, {how}"


def list_run_traces(folder: Path, subject: str) -> Iterator[Trace]:
    """Yield what a benchmark's folder has of one subject, its records last."""
    groups = [one for one in list_groups(read_run_info(folder)) if subject in (one, *one.split("+"))]
    names = "|".join(map(re.escape, dict.fromkeys([subject, *groups])))
    # The file itself, a temporary one of it, and a further file of a large identity.
    own = re.compile(rf"\.?({names})(--.*|\.png|\.[0-9a-f]{{12}}\.partial.*)", re.DOTALL)
    for name in RUN_FOLDERS:
        for path in list_plain_files(folder / name):
            if own.fullmatch(path.name):
                yield Trace(path, OF_RUN)
            elif name == "attention" and path.suffix == ".png":
                yield Trace(path, REDRAWN)
    yield from (Trace(path, REDRAWN) for path in list_plain_files(folder / "report") if path.name[0] != ".")
    take_out = partial(take_subject_out, folder, subject)
    yield Trace(folder / RUN_SAMPLES, "its lines of the subject are taken out", take_out)
    yield Trace(folder / RUN_INFO, "the subject is taken out", take_out)


def list_plain_files(folder: Path) -> list[Path]:
    """List the regular files in a folder, no links and none below; none where there is no folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def take_subject_out(folder: Path, subject: str) -> None:
    """Take a subject out of a benchmark's records; groups that it is in go with it.

    Raises:
        OutputError: a run is at work in the folder, or a record cannot be written.
    """
    with (folder / ".lock").open("a") as lock:
        try:
            take_lock(lock.fileno(), wait=False)
        except BlockingIOError:
            raise OutputError("a benchmark is at work in this folder", "Wait for it.") from None
        info = read_run_info(folder)
        groups = [one for one in list_groups(info) if subject in (one, *one.split("+"))]
        write_other_lines(folder / RUN_SAMPLES, [subject, *groups])
        if groups:
            photos = {name: one for name, one in (info.get("photos") or {}).items() if name != subject}
            listed = {label: drop_subjects(one, groups) for label, one in (info.get("folders") or {}).items()}
            rest = [one for one in info["subjects"] if one not in groups]
            changed = {**info, "subjects": rest, "photos": photos, **({"folders": listed} if listed else {})}
            write_text(folder / RUN_INFO, dump_json(changed, indent=1) + "\n")


def drop_subjects(listed: Run, groups: Iterable[str]) -> Run:
    """Return what a run lists of another program's folder, without some subjects."""
    return {**listed, "images": [one for one in listed.get("images", []) if one.get("subject") not in groups]}


def write_other_lines(path: Path, groups: Iterable[str]) -> None:
    """Write a run's samples again without those of some groups; a line that was cut short goes if it names one."""
    if not path.is_file() or path.stat().st_size > LARGEST_SAMPLES:
        return
    groups = set(groups)

    def is_of_others(line: bytes) -> bool:
        with suppress(ValueError, RecursionError):
            values = json.loads(line)  # the types of these records are above this room
            return not (isinstance(values, dict) and values.get("subject") in groups)
        return not any(f'"{one}"'.encode() in line for one in groups)

    lines = path.read_bytes().split(b"\n")
    if len(rest := [line for line in lines if is_of_others(line)]) < len(lines):
        write_file(path, lambda partial: partial.write_bytes(b"\n".join(rest)))
