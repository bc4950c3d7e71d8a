"""Temporary files of killed programs: by the names that this package gives them; and the walk over folders for them."""

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.core.files import is_folder, is_regular_file, take_lock
from sefi.core.own_files import TEMPORARY_MARK

# As `sefi.core.files.name_partial` and `sefi.cli.learn.name_checkpoint` name them.
TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{12}\.(?P<kind>unfinished|partial)(?P<suffix>\.[^.]+)?", re.DOTALL)
MOST_FILES = 200_000  # that are looked at below one folder
IDLE_SECONDS = 3600  # a temporary file that is younger may be of a process at work


@dataclass(frozen=True)
class Trace:
    """A file that holds a likeness, or a part of one.

    Attributes:
        reason: how it is known to be one.
        clear: takes the likeness out of a file that holds more; None removes the file.
        seen: the state of the file when it was listed, as `compute_file_state` gives it.
    """

    path: Path
    reason: str
    clear: Callable[[], object] | None = None
    seen: tuple[int, ...] | None = None


def compute_file_state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def find_regular_files(
    folders: Iterable[Path], most: int = MOST_FILES, unread: list[Path] | None = None
) -> Iterator[Path]:
    """Yield the regular files below folders, each once; no link is followed.

    Args:
        unread: gets the folders that cannot be read, or whose files nobody may look at.

    Raises:
        OutputError: there are more than `most`.
    """
    seen = set[Path]()

    def note(error: OSError) -> None:
        if unread is not None:
            unread.append(Path(os.fsdecode(error.filename)))

    for folder in folders:
        for parent, below, names in os.walk(os.path.realpath(folder), onerror=note, followlinks=False):
            below.sort()
            for path in list_regular_files(Path(parent), sorted(names), note):
                if path in seen:
                    continue
                seen.add(path)
                if len(seen) > most:
                    raise OutputError(f"There are over {most:,} files below '{folder}'.", "Name a smaller folder.")
                yield path


def list_regular_files(folder: Path, names: Iterable[str], note: Callable[[OSError], object]) -> list[Path]:
    """List the regular files of these names; no link is followed.

    Args:
        note: gets the error of a folder that may be listed and not entered, once.
    """
    found: list[Path] = []
    for path in (folder / name for name in names):
        try:
            if stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
        except PermissionError as error:
            note(PermissionError(error.errno, error.strerror, str(folder)))
            return found
        except OSError:  # it is gone by now
            continue
    return found


def find_leftovers_below(folder: Path, most: int = MOST_FILES, unread: list[Path] | None = None) -> Iterator[Path]:
    """Yield unfinished trainings and temporary files below a folder, by the names that this package gives them.

    Args:
        unread: gets the folders that cannot be read.

    Raises:
        OutputError: there are more than `most` files.
    """
    yield from (path for path in find_regular_files([folder], most, unread) if TEMPORARY.fullmatch(path.name))


@dataclass(frozen=True)
class Leftovers:
    """What killed programs of this package left.

    Attributes:
        paths: unfinished trainings and temporary files, and folders for temporary files that are left as a whole.
        unsearched: folders that cannot be read, or hold too many files to search them to their end.
    """

    paths: list[Path]
    unsearched: list[Trace]


def find_all_leftovers(places: Iterable[Path], most: int = MOST_FILES) -> Leftovers:
    """Find unfinished trainings and temporary files below some folders, in caches and in the temporary folder.

    Args:
        most: files below one folder, of which no more are searched.
    """
    whole, files = list_temporary_folders(), dict[Path, None]()
    unread, unsearched = list[Path](), dict[Path, str]()
    for folder in (*places, *list_caches()):
        try:
            for path in find_leftovers_below(folder, most, unread):
                files[path] = None
        except OutputError as error:
            unsearched[folder] = f"not searched to its end: {error.problem}"
    unsearched |= dict.fromkeys(unread, "this folder cannot be read")
    inside = [one for one in files if not any(folder in one.parents for folder in whole)]
    return Leftovers([*inside, *whole], [Trace(folder, reason) for folder, reason in unsearched.items()])


def list_own_caches() -> list[Path]:
    """List the folders in temporary and cache folders that this package fills."""
    return [*list_temporary_folders(), *list_caches()]


def list_caches() -> list[Path]:
    """List the folders in cache folders that this package fills: its own, and the hub's downloads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub")
    return [folder for folder in (cache / "sefi", hub) if is_folder(folder) and not folder.is_symlink()]


def list_temporary_folders() -> list[Path]:
    """List what killed programs of this package left in the system's folder for temporary files.

    Those folders hold an identity on its way to the hub, or links to a model's weights; a file in them says that they
    are ours, and its lock whether the process is alive. Those of other users are closed, and left alone.
    """
    # Where a link leads to it, as on macOS: a search below names files by their real places.
    found = sorted(Path(os.path.realpath(tempfile.gettempdir())).glob("sefi-*"))
    return [one for one in found if is_regular_file(one / TEMPORARY_MARK) and not one.is_symlink()]


def locate_output_lock(path: Path) -> Path | None:
    """Return the lock of the output that a leftover was to become, as `sefi.core.own_files` names it; None if unknown.

    >>> locate_output_lock(Path("a/.ada.0123456789ab.unfinished")).name
    '.ada.lock'
    """
    match = TEMPORARY.fullmatch(path.name)
    if match is not None and match["suffix"] == ".unfinished":  # `..ada.HASH.NUMBER.partial.unfinished`
        match = TEMPORARY.fullmatch(f"{match['stem']}.unfinished")
    return None if match is None else path.with_name(f".{match['stem']}.lock")


def is_lock_held(lock: Path) -> bool | None:
    """Return whether a process that is alive holds a lock file; None where there is none, or no locks are known."""
    try:
        handle = os.open(lock, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe is not waited for
    except OSError:
        return None
    try:
        take_lock(handle, wait=False)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def remove_leftovers(paths: Iterable[Path], now: float | None = None) -> tuple[list[Path], list[Trace]]:
    """Remove leftovers that no process holds; return what is gone, and what is not and why.

    Whether a process is alive says the lock of the output; where there is none, nobody must have written for an hour.

    Args:
        now: seconds since 1970; None takes the clock.
    """
    now = time.time() if now is None else now
    gone: list[Path] = []
    left: list[Trace] = []
    for path in paths:
        try:
            lock = path / TEMPORARY_MARK if is_folder(path) else locate_output_lock(path)
            held = None if lock is None else is_lock_held(lock)
            if held or (held is None and now - path.stat().st_mtime < IDLE_SECONDS):
                reason = "a process is at work" if held else "written within the last hour; a process may be at work"
                left.append(Trace(path, reason))
                continue
            if path.is_dir():
                shutil.rmtree(path)  # of links only the links
            else:
                path.unlink()
            gone.append(path)
        except OSError as error:
            left.append(Trace(path, error.strerror or str(error)))
    return gone, left
