"""The progress of long computations."""

from typing import Protocol


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
