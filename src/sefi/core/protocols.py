"""The seams between rooms."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker process must reach its first line before torch is loaded
    import numpy as np
    from torch import Tensor

    from sefi.core.nouns import Face


class FaceDetector(Protocol):
    """Finds faces."""

    def __call__(self, rgb: "np.ndarray") -> "list[Face]":
        """Faces in a uint8 RGB image `[height, width, 3]`, best first."""
        ...


class FaceEncoder(Protocol):
    """Turns a face into an embedding."""

    def __call__(self, rgb: "np.ndarray", face: "Face") -> "np.ndarray":
        """Unit vector `[embedding]` for a face in a uint8 RGB image `[height, width, 3]`."""
        ...


class Progress(Protocol):
    """Is told how far a long computation is."""

    def start(self, total: int, label: str) -> None:
        """A computation of so many steps begins."""
        ...

    def advance(self, **numbers: float) -> None:
        """One step is done; numbers are worth showing."""
        ...

    def finish(self) -> None:
        """The computation is over."""
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
    """Tells nobody."""

    def start(self, total: int, label: str) -> None:
        """Ignored."""

    def advance(self, **numbers: float) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""

    def estimate(self, seconds: float | None) -> None:
        """Ignored."""

    def nested(self) -> Progress:
        """Return itself."""
        return self


class Conditioner(Protocol):
    """Turns prompts and a timestep into what the denoiser's cross-attention reads."""

    def stage(self, timestep: int) -> int:
        """Stage of a timestep; the context changes only between stages."""
        ...

    def context(self, prompts: list[str], timestep: int) -> "Tensor":
        """Key text and value text side by side, `[batch, word, 2 * width]`."""
        ...

    def null_context(self, count: int, negative_prompt: str) -> "Tensor":
        """The same for guidance, `[count, word, 2 * width]`."""
        ...
