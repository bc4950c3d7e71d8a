"""Wall and CPU time of a training, in a log and in a JSON file that survives interruptions."""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.core.protocols import Progress

LINE_EVERY = 60.0  # seconds between two lines of the log


@dataclass
class TimedProgress:
    """Pass progress on, and write it down.

    Each run of each part adds one entry to `times.json`: part, start, steps, wall and CPU seconds. A run that is
    killed keeps the entry of its last line.

    Attributes:
        inner: shows the progress to the user.
        folder: of the training; gets `training.log` and `times.json`.
        part: name of the part that is trained.
    """

    inner: Progress
    folder: Path
    part: str
    label: str = ""
    steps: int = 0
    total: int = 0
    losses: list[float] = field(default_factory=list[float])
    begun: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    written: float = 0.0

    def start(self, total: int, label: str) -> None:
        """Begin a stretch of steps."""
        self.inner.start(total, label)
        self.label, self.steps, self.total, self.losses = label, 0, total, []
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self.wall, self.cpu, self.written = time.monotonic(), time.process_time(), time.monotonic()

    def advance(self, **numbers: float) -> None:
        """Count one step."""
        self.inner.advance(**numbers)
        self.steps += 1
        if "loss" in numbers:
            self.losses.append(numbers["loss"])
        if time.monotonic() - self.written > LINE_EVERY:
            self.write()

    def finish(self) -> None:
        """End the stretch."""
        self.inner.finish()
        if self.steps:
            self.write()

    def entry(self) -> dict[str, str | int | float]:
        """Return what `times.json` holds of this stretch."""
        return {
            "part": self.part,
            "label": self.label,
            "begun": self.begun,
            "steps": self.steps,
            "wall_seconds": round(time.monotonic() - self.wall, 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
        }

    def write(self) -> None:
        """Add a line to the log and bring `times.json` up to date."""
        entry = self.entry()
        mean = f", loss {sum(self.losses) / len(self.losses):.4f}" if self.losses else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = (
            f"{now} {self.label}: {self.steps} of {self.total} steps{mean}, "
            f"wall {entry['wall_seconds']} s, CPU {entry['cpu_seconds']} s\n"
        )
        with (self.folder / "training.log").open("a", encoding="utf-8") as log:
            log.write(line)
        write_entry(self.folder / "times.json", entry)
        self.losses, self.written = [], time.monotonic()


def read_times(path: Path) -> list[dict[str, str | int | float]]:
    """Return the entries of a `times.json`; none where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def write_entry(path: Path, entry: dict[str, str | int | float]) -> None:
    """Add an entry to a `times.json`, or replace the one with the same part, label and start."""
    same = ("part", "label", "begun")
    others = [e for e in read_times(path) if any(e[k] != entry[k] for k in same)]
    write_text(path, dump_json([*others, entry], indent=1) + "\n")
