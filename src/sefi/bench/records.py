"""A run's folder: what was asked (`run.json`) and one line per picture (`cells.jsonl`); only ever added to."""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sefi.bench.schema import CellRecord, RunRecord, check_cells
from sefi.core.errors import ConfigError, OutputError
from sefi.core.files import take_lock, write_text
from sefi.core.json_text import dump_json
from sefi.core.reading import LimitError, check_file, file_errors, parse_object, read_json, reason_of

SCHEMA = 1
LARGEST_ABOUT = 16 * 2**20
LARGEST_CELLS = 512 * 2**20  # a picture has about 2 KB
LONGEST_LINE = 2**18
CHUNK = 2**20  # bytes that are read at once where lines are counted
REMOVE_LINE = "Remove that line, and let `sefi bench run` make the picture again."
Cell = dict[str, Any]
Key = tuple[str, str, int, int]


class RunFolder:
    """Reads and adds to one run.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about_file, self.cells_file = path / "run.json", path / "cells.jsonl"
        self.pictures, self.photos, self.identities = (path / n for n in ("pictures", "photos", "identities"))
        self.attention, self.report = path / "attention", path / "report"

    def places(self) -> tuple[Path, ...]:
        """Return the folders that a run and its report write into."""
        return self.pictures, self.photos, self.identities, self.attention, self.report

    def begin(self, about: dict[str, Any]) -> None:
        """Say what this run is, or check that it is the same as before.

        Raises:
            ConfigError: the folder holds another run.
            OutputError: the folder holds other files where a run would write.
        """
        self.check()
        for folder in (self.pictures, self.photos, self.identities):
            folder.mkdir(parents=True, exist_ok=True)
        if self.about_file.is_file():
            differing = different(self.about(), json.loads(dump_json(about)))
            if differing:
                raise ConfigError(
                    f"{self.path} holds another run: {', '.join(differing)} differ.", "Choose another --out."
                )
            return
        write_text(self.about_file, dump_json(about, indent=1) + "\n")

    def check(self) -> None:
        """Refuse a folder that is no run's and has files where a run writes its own.

        Raises:
            OutputError: it has.
        """
        if self.about_file.is_file():
            return
        for place in (*self.places(), self.cells_file):
            if place.is_file() or (place.is_dir() and any(place.iterdir())):
                raise OutputError(f"'{place}' exists and belongs to no run.", "Choose another --out.")

    def about(self) -> dict[str, Any]:
        """What was asked.

        Raises:
            ConfigError: this is no run's folder, or of a newer version.
        """
        if not self.about_file.is_file():
            raise ConfigError(f"{self.path} is no benchmark run.", "Make one with `sefi bench run SUITE --out DIR`.")
        with file_errors(self.about_file, ConfigError, "is damaged", "Run the benchmark again with another --out."):
            about = read_json(self.about_file, LARGEST_ABOUT)
            schema = about.get("schema", 0)
            if isinstance(schema, int) and schema > SCHEMA:
                raise ConfigError(f"{self.path} was written by a newer sefi.", "Update sefi.")
            RunRecord.model_validate(about)
        return about

    def cells(self) -> list[Cell]:
        """Every finished picture, once; a line that a kill cut short is not one.

        Raises:
            ConfigError: a whole line is no record of a picture, or one of another run.
        """
        if not self.cells_file.is_file():
            return []
        with file_errors(self.cells_file, ConfigError, "cannot be read", "Make another run with `sefi bench run`."):
            check_file(self.cells_file, LARGEST_CELLS)
        first: dict[Key, Cell] = {}
        with file_errors(self.cells_file, ConfigError, "is damaged", REMOVE_LINE):
            for place, line in read_lines(self.cells_file):
                cell = parse_at(self.cells_file, place, line)
                if cell is not None:
                    first.setdefault(key_of(cell), cell)
        if self.about_file.is_file():
            about, remedy = self.about(), "Remove the lines of such pictures, and let `sefi bench run` make the rest."
            with file_errors(self.cells_file, ConfigError, "is damaged", remedy):
                check_cells(about, list(first.values()))
        return list(first.values())

    def size(self) -> int:
        """Return the length of the record in bytes."""
        return self.cells_file.stat().st_size if self.cells_file.is_file() else 0

    def cells_after(self, place: int) -> tuple[list[Cell], int]:
        """Return the cells recorded after a place in the record, in bytes, and the place after them; for progress.

        Args:
            place: 0, or what an earlier call returned: it is the beginning of a line.

        Raises:
            ConfigError: a whole line is no record of a picture; the message has its number in the file.
        """
        cells: list[Cell] = []
        # The workers of the run go on adding: lines must not move under them.
        with file_errors(self.cells_file, ConfigError, "is damaged", f"Stop the run. {REMOVE_LINE}"):
            for start, line in read_lines(self.cells_file, place) if self.size() > place else ():
                if not line.endswith(b"\n") and len(line) <= LONGEST_LINE:
                    break  # half written
                cell = parse_at(self.cells_file, start, line)
                cells += [] if cell is None else [cell]
                place = start + len(line)
        return cells, place

    @contextmanager
    def alone(self) -> Generator[int]:
        """Only one run at a time works in a folder; where the system has no such locks, nothing is checked.

        Yields:
            The file descriptor of the lock: a process that inherits it holds the lock too.

        Raises:
            ConfigError: another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:  # what is there already stays
            try:
                take_lock(file.fileno(), wait=False)
            except BlockingIOError:
                raise ConfigError(
                    f"Another run is at work in {self.path}.", "Wait for it, or choose another --out."
                ) from None
            except OSError:  # a file system without locks
                pass
            yield file.fileno()

    def add(self, cell: Cell) -> None:
        """Add one line in one write, so that the workers of a run may share the file.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self.cells_file.open("ab", buffering=0) as file:
                # A kill may have left half a line; this one must not be joined to it.
                ragged = file.tell() > 0 and not ends_with_newline(self.cells_file)
                file.write((b"\n" if ragged else b"") + dump_json(cell).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{self.cells_file} cannot be written: {error.strerror}.", "Free some space.") from error


def ends_with_newline(path: Path) -> bool:
    """Whether a file that is not empty ends a line."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_lines(path: Path, place: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield every line with the place where it begins, in bytes; what is too long for a line comes cut."""
    with path.open("rb") as file:
        file.seek(place)
        while line := file.readline(LONGEST_LINE + 1):
            yield place, line
            place += len(line)


def parse_at(path: Path, place: int, line: bytes) -> Cell | None:
    """Return the line that begins at a place of a file as the record of a picture; None as in `parse_line`.

    Raises:
        LimitError: it is too long, or whole and no record of a picture; the message has its number in the file.
    """
    try:
        if len(line) > LONGEST_LINE:
            raise LimitError(f"it has more than {LONGEST_LINE:,} bytes")
        return parse_line(line)
    except LimitError as error:
        raise LimitError(f"line {count_lines(path, place) + 1}: {error}") from error


def count_lines(path: Path, place: int) -> int:
    """Return how many lines end before a place, in bytes."""
    lines = 0
    with path.open("rb") as file:
        while place > 0 and (part := file.read(min(place, CHUNK))):
            lines += part.count(b"\n")
            place -= len(part)
    return lines


def parse_line(line: bytes) -> Cell | None:
    """Return a line as the record of a picture; None if it is no whole JSON object, as after a kill.

    Raises:
        LimitError: it is whole and no record of a picture.
    """
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return None
    try:
        cell = parse_object(line.decode("utf-8"))
        CellRecord.model_validate(cell)
    except ValueError as error:
        raise LimitError(reason_of(error)) from error
    return cell


def key_of(cell: Cell) -> Key:
    """Which cell a record belongs to: subject, way, prompt, seed."""
    return cell["subject"], cell["way"], cell["prompt"], cell["seed"]


def different(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of what two descriptions of a run do not agree on; versions of libraries may differ."""
    names = (before.keys() | now.keys()) - {"versions"}
    return sorted(name for name in names if before.get(name) != now.get(name))
