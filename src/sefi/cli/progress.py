"""Progress with the time left: bars on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as ProgressBars,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from sefi.core.progress import Progress
from sefi.core.text import escape_controls

SECONDS_BETWEEN_LINES = 10.0
# Before this much of a piece of work is done, nothing is said of the time left. Its first step, which also warms up, is
# not counted.
STEPS_OF_EVIDENCE, SECONDS_OF_EVIDENCE = 4, 4.0


class Forecast:
    """When a piece of work will end: at the pace of its own steps, unless a better estimate is given.

    Args:
        total: Steps of it.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.first = self.last = time.monotonic()
        self.has_estimate, self.end = False, float("nan")

    def advance(self) -> None:
        """Count one step."""
        self.done, self.last = self.done + 1, time.monotonic()
        if self.done == 1:
            self.first = self.last

    def estimate(self, seconds: float | None) -> None:
        """Replace the estimate from steps, once and for all; None for too little evidence."""
        self.has_estimate, self.end = True, float("nan") if seconds is None else time.monotonic() + seconds

    def compute_left(self) -> float:
        """Return the seconds left, nan where they are not known."""
        if self.has_estimate:
            return self.end - time.monotonic()
        steps, seconds = self.done - 1, self.last - self.first
        if steps < STEPS_OF_EVIDENCE or seconds < SECONDS_OF_EVIDENCE:
            return float("nan")
        return self.last + seconds / steps * (self.total - self.done) - time.monotonic()


class TerminalProgress:
    """Shows each piece of work that is started; ends cleanly when left by an error.

    Use it as a context manager; it prints on stderr only.

    Args:
        parent: The progress inside whose steps this one's work is done; None for work on its own.
    """

    def __init__(self, parent: "TerminalProgress | None" = None) -> None:
        self._nested = parent is not None
        self._shown = parent._shown if parent else make_progress() if sys.stderr.isatty() else None  # noqa: SLF001
        self._log = LogLines()
        self._task: TaskID | None = None
        self._forecast = Forecast(0)

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
        """Begin a piece of work of `total` steps."""
        self._forecast = Forecast(total)
        if self._shown is None:
            self._log.start(label, self._forecast)
        else:
            self._task = self._shown.add_task(escape_controls(label), total=total, numbers="", forecast=self._forecast)

    def advance(self, **numbers: float) -> None:
        """Count one step; the numbers stand next to the bar."""
        self._forecast.advance()
        if self._shown is None:
            self._log.advance(numbers)
        elif self._task is not None:
            self._shown.update(self._task, advance=1, numbers=format_numbers(numbers))

    def estimate(self, seconds: float | None) -> None:
        """Show this time left instead of one from the pace of the steps; None shows none."""
        self._forecast.estimate(seconds)

    def nested(self) -> Progress:
        """Return the progress of work inside the steps of this one; on a terminal its bar goes when it is done."""
        return TerminalProgress(self)

    def finish(self) -> None:
        """End the piece of work, also when fewer steps were needed."""
        if self._shown is None:
            self._log.finish()
        elif self._task is not None:
            self._shown.stop_task(self._task)
            if self._nested:
                self._shown.remove_task(self._task)
            self._task = None


class LogLines:
    """Progress as plain lines, a few each minute, where nobody looks at a terminal."""

    def start(self, label: str, forecast: Forecast) -> None:
        """Begin a piece of work; its first line comes at once."""
        self.label, self.forecast = escape_controls(label), forecast
        self.began = self.printed = time.monotonic()
        self.print_line("")

    def advance(self, numbers: dict[str, float]) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES and self.forecast.done < self.forecast.total:
            self.printed = now
            left = format_time_left(self.forecast.compute_left())
            self.print_line(f" {self.format_count()}{', ' if left else ''}{left}  {format_numbers(numbers)}")

    def finish(self) -> None:
        """Say how long it took."""
        self.print_line(f" {self.format_count()}, done in {format_duration(time.monotonic() - self.began)}")

    def format_count(self) -> str:
        """Return the steps done of all steps."""
        return f"{self.forecast.done}/{self.forecast.total}"

    def print_line(self, text: str) -> None:
        """Print one line."""
        sys.stderr.write(f"{self.label}{text}".rstrip() + "\n")
        sys.stderr.flush()


class TimeLeftColumn(ProgressColumn):
    """The time left of a task by its forecast."""

    def render(self, task: Task) -> Text:
        """Return the time left as text, empty where it is not known."""
        return Text("" if task.finished else format_time_left(task.fields["forecast"].compute_left()))


def make_progress() -> ProgressBars:
    """Return a bar with count, time and time left."""
    return ProgressBars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        console=Console(stderr=True),
    )


def format_time_left(seconds: float) -> str:
    """Return the time left in words; nothing where it is not known, or already over.

    >>> format_time_left(66_918), format_time_left(float("nan"))
    ('about 18 h 35 min left', '')
    """
    return f"about {format_duration(seconds)} left" if seconds >= 0 else ""


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, from two minutes on in minutes, or hours and minutes.

    >>> [format_duration(seconds) for seconds in (41.6, 119.4, 150, 3570, 5400)]
    ['42 s', '119 s', '2 min', '1 h 0 min', '1 h 30 min']
    """
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def format_numbers(numbers: dict[str, float]) -> str:
    """Return named numbers in short.

    >>> format_numbers({"loss_denoise": 0.08415})
    'loss_denoise 0.0842'
    """
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
