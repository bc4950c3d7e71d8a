"""What of a likeness is on disk, and its removal: the identity, its copies, unfinished trainings, images, records.

A file is listed only where it can be shown to be of the identity: it has its bytes, its name was made for it, it names
the identity's SHA-256, or a record of images says that the identity made it. No symbolic link is followed.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sefi.core.errors import IdentityError, OutputError
from sefi.core.files import FileKind, cut_to_bytes, fit_stem, read_content, write_text
from sefi.core.reading import InvalidFileError, read_json
from sefi.core.text import dump_json

RECORDS = "records.json"  # of `sefi generate`
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.(unfinished|partial(\.[^.]+)?)")
MOST_FILES = 200_000  # that are looked at
LARGEST_SEARCHED = 64 << 20  # bytes of a file that is searched for a SHA-256
LARGEST_RECORDS = 16 << 20
SEARCHED_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".html", ".json", ".safetensors", ".svg", ".pdf"})
DIGITS = 16  # of the SHA-256, as an image's text names it
IDLE_SECONDS = 3600  # a temporary file that is younger may be of a process at work


@dataclass(frozen=True)
class Trace:
    """A file that holds a likeness, or a part of one.

    Attributes:
        reason: how it is known to be one.
    """

    path: Path
    reason: str


def find_regular_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the regular files below folders, each once; no link is followed.

    Raises:
        OutputError: there are more than `MOST_FILES`.
    """
    seen = set[Path]()
    for folder in folders:
        for parent, below, names in os.walk(folder.resolve(), followlinks=False):
            below.sort()
            for path in (Path(parent, name) for name in sorted(names)):
                if path in seen or path.is_symlink() or not path.is_file():
                    continue
                seen.add(path)
                if len(seen) > MOST_FILES:
                    raise OutputError(f"There are over {MOST_FILES:,} files below '{folder}'.", "Name a smaller --in.")
                yield path


def list_traces(identity: Path, folders: Sequence[Path]) -> list[Trace]:
    """List what is known to hold the likeness of an identity's file, the identity itself last.

    The order lets a removal that is cut short be repeated: the file that shows what belongs to it goes last.

    Raises:
        IdentityError: the file is no identity.
        OutputError: it cannot be read, or there are too many files.
    """
    identity = identity.resolve()
    if not identity.is_file() or read_content(identity).kind is not FileKind.IDENTITY:
        raise IdentityError(f"'{identity}' is no identity.", "Name the file that `sefi learn` wrote.")
    with identity.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found: dict[Path, str] = {}
    for path in find_regular_files([identity.parent, *folders]):
        if path == identity:
            continue
        if path.name == RECORDS and (runs := read_runs(path)) is not None:
            ours = [run for run in runs if has_identity(run, path, identity)]
            found |= dict.fromkeys(list_run_images(ours, path.parent), "a record says that the identity made it")
            if ours:
                found[path] = "its runs with the identity are taken out"
        elif reason := explain_trace(path, identity, digest):
            found.setdefault(path, reason)
    return [*(Trace(path, reason) for path, reason in found.items()), Trace(identity, "the identity")]


def explain_trace(path: Path, identity: Path, digest: str) -> str | None:
    """Return how a file is known to be of an identity; None if it is not."""
    match = TEMPORARY.fullmatch(path.name)
    if match and path.parent == identity.parent:
        ending = path.name[path.name.rindex(match[1]) - 14 :]  # .123456789abc.unfinished
        stems = {
            fit_stem(identity, len(ending) + 1),
            cut_to_bytes(identity.stem, len(path.name.encode()) - len(ending) - 1),
        }
        if path.name in {f".{stem}{ending}" for stem in stems}:
            return "an unfinished training" if match[1] == "unfinished" else "a temporary file"
    shard = re.fullmatch(r"(.+)\.\d+\.[0-9a-f]{12}\.safetensors", path.name)
    with suppress(OSError):
        if shard and path.parent == identity.parent and shard[1] == identity.stem:
            return "a further file of the identity" if contains_bytes(identity, path.name.encode()) else None
        if path.stat().st_size == identity.stat().st_size and path.read_bytes() == identity.read_bytes():
            return "a copy of the identity"
        if path.suffix.lower() in SEARCHED_SUFFIXES and contains_bytes(path, digest[:DIGITS].encode()):
            return "it names the identity's SHA-256"
    return None


def contains_bytes(path: Path, text: bytes) -> bool:
    """Return whether a file has these bytes; those above `LARGEST_SEARCHED` are not read."""
    return path.stat().st_size <= LARGEST_SEARCHED and text in path.read_bytes()


def read_runs(path: Path) -> list[dict[str, object]] | None:
    """Return the runs in a record of images; None where it is none that `sefi generate` wrote."""
    with suppress(OSError, InvalidFileError, ValueError, RecursionError):
        runs = read_json(path, LARGEST_RECORDS).get("runs")
        if isinstance(runs, list) and all(isinstance(run, dict) for run in runs):
            return runs
    return None


def has_identity(run: dict[str, object], record: Path, identity: Path) -> bool:
    """Return whether a run was made with an identity: its path, typed here or in a folder above the record."""
    names = run.get("identities")
    bases = [Path.cwd(), *record.parents]
    return isinstance(names, list) and any(
        isinstance(name, str) and any((base / name).resolve() == identity for base in bases) for name in names
    )


def list_run_images(runs: Iterable[dict[str, object]], folder: Path) -> list[Path]:
    """List the images of runs that lie in the folder of their record."""
    names: list[object] = []
    for run in runs:
        images = run.get("images")
        names += [one.get("file") for one in images if isinstance(one, dict)] if isinstance(images, list) else []
        names.append(run.get("grid"))
    paths = [folder / Path(name).name for name in names if isinstance(name, str) and Path(name).suffix]
    return [path for path in dict.fromkeys(paths) if path.is_file() and not path.is_symlink()]


def remove_traces(traces: Sequence[Trace], identity: Path) -> tuple[list[Path], list[Trace]]:
    """Remove files; return those that are gone, and those that are not with the reason.

    The identity stays where anything else does, so that the command can be repeated.
    """
    gone: list[Path] = []
    left: list[Trace] = []
    for trace in traces:
        if left and trace.path == identity.resolve():
            left.append(Trace(trace.path, "stays until the rest is gone, which it shows the way to"))
            continue
        try:
            links = trace.path.stat().st_nlink
            if trace.path.name == RECORDS:
                take_runs_out(trace.path, identity.resolve())
            else:
                trace.path.unlink()
        except (OSError, OutputError) as error:
            left.append(Trace(trace.path, getattr(error, "strerror", None) or str(error)))
            continue
        gone.append(trace.path)
        if links > 1:
            left.append(Trace(trace.path, "removed, but the same file has another name (a hard link) somewhere"))
    return gone, left


def take_runs_out(record: Path, identity: Path) -> None:
    """Take an identity's runs out of a record of images; a record that is then empty is removed."""
    runs = [run for run in read_runs(record) or [] if not has_identity(run, record, identity)]
    if runs:
        write_text(record, dump_json({"schema_version": 1, "runs": runs}, indent=2) + "\n")
    else:
        record.unlink()


def list_leftovers(folders: Iterable[Path]) -> list[Path]:
    """List unfinished trainings and temporary files, by the names that this package gives them."""
    return [path for path in find_regular_files(folders) if TEMPORARY.fullmatch(path.name)]


def remove_leftovers(paths: Iterable[Path], now: float | None = None) -> tuple[list[Path], list[Trace]]:
    """Remove leftovers that no process has touched for an hour; return what is gone, and what is not and why.

    Args:
        now: seconds since 1970; None takes the clock.
    """
    now = time.time() if now is None else now
    gone: list[Path] = []
    left: list[Trace] = []
    for path in paths:
        try:
            if now - path.stat().st_mtime < IDLE_SECONDS:
                left.append(Trace(path, "written within the last hour; a process may be at work"))
                continue
            path.unlink()
            gone.append(path)
        except OSError as error:
            left.append(Trace(path, error.strerror or str(error)))
    return gone, left
