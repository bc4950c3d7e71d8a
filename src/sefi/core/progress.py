"""The progress of long computations."""

from typing import Any, Protocol

from tqdm.auto import tqdm

from sefi.core.errors import ConfigError


class Progress(Protocol):
    """Shows how far a long computation is."""

    def start(self, total: int, label: str) -> None:
        """Start a computation of so many steps."""
        ...

    def advance(self, **numbers: float) -> None:
        """Count one finished step; numbers are worth showing."""
        ...

    def finish(self) -> None:
        """End the computation."""
        ...


class RunProgress(Progress, Protocol):
    """Progress of work whose steps take very different times, with other work inside a step."""

    def estimate(self, seconds: float | None) -> None:
        """Replace the estimate of the time left; None where there is too little evidence for one."""
        ...

    def nested(self) -> Progress:
        """Return the progress of one more line of work inside the steps of this one."""
        ...


class BarProgress:
    """Shows a bar with the time left, in a terminal or a notebook."""

    def __init__(self) -> None:
        self.bar: Any = None

    def start(self, total: int, label: str) -> None:
        """Show the bar."""
        self.finish()
        self.bar = tqdm(total=total, desc=label)

    def advance(self, **numbers: float) -> None:
        """Count one finished step, and show its numbers."""
        if numbers:
            self.bar.set_postfix(numbers, refresh=False)
        self.bar.update()

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def choose_progress(progress: Progress | bool | None) -> Progress:  # noqa: FBT001 - as every library spells it
    """Return the progress that is meant: True a bar, None or False nothing; `ConfigError` for what is none."""
    if isinstance(progress, bool) or progress is None:
        return BarProgress() if progress else SilentProgress()
    if not all(hasattr(progress, name) for name in ("start", "advance", "finish")):
        raise ConfigError(
            f"The progress is of the type {type(progress).__name__}, which cannot be used.",
            "Give True for a bar, or an object with start, advance and finish.",
        )
    return progress


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int, label: str) -> None:
        """Do nothing."""

    def advance(self, **numbers: float) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def estimate(self, seconds: float | None) -> None:
        """Do nothing."""

    def nested(self) -> Progress:
        """Return itself."""
        return self
