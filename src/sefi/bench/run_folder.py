"""A run's folder: what was asked (`run.json`) and one line per image (`cells.jsonl`); only ever added to."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sefi.bench.records import Key, RunInfo, Sample, check_samples, parse_run_info, parse_sample
from sefi.core.errors import ConfigError, OutputError
from sefi.core.files import take_lock, write_text
from sefi.core.reading import LimitError, check_file, file_errors, read_text

LARGEST_INFO = 16 * 2**20
LARGEST_RECORD = 512 * 2**20  # an image has about 2 KB
LONGEST_LINE = 2**18
CHUNK = 2**20  # bytes that are read at once where lines are counted
REMOVE_LINE = "Remove that line, and let `sefi bench run` make the picture again."


class RunFolder:
    """Reads and adds to one run.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info_file, self.samples_file = path / "run.json", path / "cells.jsonl"
        self.pictures, self.photos, self.identities = (path / n for n in ("pictures", "photos", "identities"))
        self.attention, self.report = path / "attention", path / "report"

    def places(self) -> tuple[Path, ...]:
        """Return the folders that a run and its report write into."""
        return self.pictures, self.photos, self.identities, self.attention, self.report

    def begin(self, info: RunInfo) -> None:
        """Say what this run is, or check that it is the same as before.

        Raises:
            ConfigError: the folder holds another run.
            OutputError: the folder holds other files where a run would write.
        """
        self.check()
        for folder in (self.pictures, self.photos, self.identities):
            folder.mkdir(parents=True, exist_ok=True)
        if self.info_file.is_file():
            differing = self.read_info().list_differences(info)
            if differing:
                raise ConfigError(
                    f"{self.path} holds another run: {', '.join(differing)} differ.", "Choose another --out."
                )
            return
        write_text(self.info_file, info.to_json(indent=1) + "\n")

    def check(self) -> None:
        """Refuse a folder that is no run's and has files where a run writes its own.

        Raises:
            OutputError: it has.
        """
        if self.info_file.is_file():
            return
        for place in (*self.places(), self.samples_file):
            if place.is_file() or (place.is_dir() and any(place.iterdir())):
                raise OutputError(f"'{place}' exists and belongs to no run.", "Choose another --out.")

    def read_info(self) -> RunInfo:
        """Return what was asked.

        Raises:
            ConfigError: this is no run's folder, it is damaged, or of a newer version.
        """
        if not self.info_file.is_file():
            raise ConfigError(f"{self.path} is no benchmark run.", "Make one with `sefi bench run SUITE --out DIR`.")
        with file_errors(self.info_file, ConfigError, "is damaged", "Run the benchmark again with another --out."):
            return parse_run_info(read_text(self.info_file, LARGEST_INFO), self.path)

    def read_samples(self) -> list[Sample]:
        """Return every finished sample, once; a line that a kill cut short is not one.

        Raises:
            ConfigError: a whole line is no sample, or one of another run.
        """
        if not self.samples_file.is_file():
            return []
        with file_errors(self.samples_file, ConfigError, "cannot be read", "Make another run with `sefi bench run`."):
            check_file(self.samples_file, LARGEST_RECORD)
        first: dict[Key, Sample] = {}
        with file_errors(self.samples_file, ConfigError, "is damaged", REMOVE_LINE):
            for place, line in read_lines(self.samples_file):
                sample = parse_at(self.samples_file, place, line)
                if sample is not None:
                    first.setdefault(sample.key, sample)
        samples = list(first.values())
        if self.info_file.is_file():
            info = self.read_info()
            remedy = "Remove the lines of such pictures, and let `sefi bench run` make the rest."
            with file_errors(self.samples_file, ConfigError, "is damaged", remedy):
                check_samples(info, samples)
        return samples

    def size(self) -> int:
        """Return the length of the record in bytes."""
        return self.samples_file.stat().st_size if self.samples_file.is_file() else 0

    def read_samples_after(self, place: int) -> tuple[list[Sample], int]:
        """Return the samples recorded after a place in the record, in bytes, and the place after them; for progress.

        Args:
            place: 0, or what an earlier call returned: it is the beginning of a line.

        Raises:
            ConfigError: a whole line is no sample; the message has its number in the file.
        """
        samples: list[Sample] = []
        # The workers of the run go on adding: lines must not move under them.
        with file_errors(self.samples_file, ConfigError, "is damaged", f"Stop the run. {REMOVE_LINE}"):
            for start, line in read_lines(self.samples_file, place) if self.size() > place else ():
                if not line.endswith(b"\n") and len(line) <= LONGEST_LINE:
                    break  # half written
                sample = parse_at(self.samples_file, start, line)
                samples += [] if sample is None else [sample]
                place = start + len(line)
        return samples, place

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

    def add(self, sample: Sample) -> None:
        """Add one line in one write, so that the workers of a run may share the file.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self.samples_file.open("ab", buffering=0) as file:
                # A kill may have left half a line; this one must not be joined to it.
                ragged = file.tell() > 0 and not ends_with_newline(self.samples_file)
                file.write((b"\n" if ragged else b"") + sample.to_json().encode() + b"\n")
        except OSError as error:
            problem = f"{self.samples_file} cannot be written: {error.strerror}."
            raise OutputError(problem, "Free some space.") from error


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


def parse_at(path: Path, place: int, line: bytes) -> Sample | None:
    """Return the line that begins at a place of a file as a sample; None as in `parse_sample`.

    Raises:
        LimitError: it is too long, or whole and no sample; the message has its number in the file.
    """
    try:
        if len(line) > LONGEST_LINE:
            raise LimitError(f"it has more than {LONGEST_LINE:,} bytes")
        return parse_sample(line)
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
