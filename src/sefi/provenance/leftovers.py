"""Temporary files of killed programs: by the names that this package gives them; and the walk over folders for them."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sefi.core.errors import OutputError

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
    """

    path: Path
    reason: str
    clear: Callable[[], object] | None = None


def find_regular_files(folders: Iterable[Path], most: int = MOST_FILES) -> Iterator[Path]:
    """Yield the regular files below folders, each once; no link is followed.

    Raises:
        OutputError: there are more than `most`.
    """
    seen = set[Path]()
    for folder in folders:
        for parent, below, names in os.walk(folder.resolve(), followlinks=False):
            below.sort()
            for path in (Path(parent, name) for name in sorted(names)):
                if path in seen or path.is_symlink() or not path.is_file():
                    continue
                seen.add(path)
                if len(seen) > most:
                    raise OutputError(f"There are over {most:,} files below '{folder}'.", "Name a smaller folder.")
                yield path


def list_leftovers(folders: Iterable[Path], most: int = MOST_FILES) -> list[Path]:
    """List unfinished trainings and temporary files, by the names that this package gives them.

    Raises:
        OutputError: there are more than `most` files.
    """
    return [path for path in find_regular_files(folders, most) if TEMPORARY.fullmatch(path.name)]


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
