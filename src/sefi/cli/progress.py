"""Progress with the time left: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress:
    """Shows each stretch of work that it is told of; ends cleanly when left by an error.

    Use it as a context manager; it speaks on stderr only.
    """

    def __init__(self) -> None:
        self._shown = make_progress() if sys.stderr.isatty() else None
        self._log = LogLines()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._shown is not None:
            self._shown.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown.stop()

    def start(self, total: int, label: str) -> None:
        """Begin a stretch of `total` steps."""
        if self._shown is None:
            self._log.start(total, label)
        else:
            self._task = self._shown.add_task(label, total=total, numbers="")

    def advance(self, **numbers: float) -> None:
        """One step is done; the numbers stand beside the bar."""
        if self._shown is None:
            self._log.advance(numbers)
        elif self._task is not None:
            self._shown.update(self._task, advance=1, numbers=told(numbers))

    def finish(self) -> None:
        """The stretch is over, also when fewer steps were needed."""
        if self._shown is None:
            self._log.finish()
        elif self._task is not None:
            self._shown.stop_task(self._task)
            self._task = None


class LogLines:
    """Progress as plain lines, a few each minute, where nobody looks at a terminal."""

    def start(self, total: int, label: str) -> None:
        """Begin a stretch; its first line comes at once."""
        self.total, self.label, self.done = total, label, 0
        self.began = self.spoke = time.monotonic()
        self.line("")

    def advance(self, numbers: dict[str, float]) -> None:
        """Count one step; speak if the last line is old enough."""
        self.done += 1
        now = time.monotonic()
        if now - self.spoke >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self.spoke = now
            left = (now - self.began) / self.done * (self.total - self.done)
            self.line(f" {self.done}/{self.total}, {left:.0f} s left  {told(numbers)}")

    def finish(self) -> None:
        """Say how long it took."""
        self.line(f" {self.done}/{self.total}, done in {time.monotonic() - self.began:.0f} s")

    def line(self, text: str) -> None:
        """Print one line."""
        sys.stderr.write(f"{self.label}{text}".rstrip() + "\n")
        sys.stderr.flush()


def make_progress() -> Progress:
    """A bar with count, time and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        console=Console(stderr=True),
    )


def told(numbers: dict[str, float]) -> str:
    """Named numbers in short.

    >>> told({"loss_denoise": 0.08415})
    'loss_denoise 0.0842'
    """
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
