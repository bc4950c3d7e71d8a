"""The seams between rooms."""

from typing import Protocol

import numpy as np
from torch import Tensor

from sefi.core.nouns import Face


class FaceDetector(Protocol):
    """Finds faces."""

    def __call__(self, rgb: np.ndarray) -> list[Face]:
        """Faces in a uint8 RGB image `[height, width, 3]`, best first."""
        ...


class FaceEncoder(Protocol):
    """Turns a face into an embedding."""

    def __call__(self, rgb: np.ndarray, face: Face) -> np.ndarray:
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


class SilentProgress:
    """Tells nobody."""

    def start(self, total: int, label: str) -> None:
        """Ignored."""

    def advance(self, **numbers: float) -> None:
        """Ignored."""

    def finish(self) -> None:
        """Ignored."""


class Conditioner(Protocol):
    """Turns prompts and a timestep into what the denoiser's cross-attention reads."""

    def stage(self, timestep: int) -> int:
        """Stage of a timestep; the context changes only between stages."""
        ...

    def context(self, prompts: list[str], timestep: int) -> Tensor:
        """Key text and value text side by side, `[batch, word, 2 * width]`."""
        ...

    def null_context(self, count: int, negative_prompt: str) -> Tensor:
        """The same for guidance, `[count, word, 2 * width]`."""
        ...
