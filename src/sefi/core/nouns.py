"""Values that travel between rooms; all frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sefi.core.errors import IdentityError
from sefi.core.names import NAME

ORDER = "stage = floor(stages * t / T), t = 0 clean; slot 0 key, slot 1 value"
SCHEMA_VERSION = 2  # 1 had no `signature`
LARGEST_WIDTH = 8192  # of a token embedding; those of text-to-image models have 768 to 4,096
TABLE_DIMS = 4  # stage, key or value, vector, width


@dataclass(frozen=True, slots=True)
class Photo:
    """An upright photo.

    Attributes:
        pixels: RGB float32 `[3, height, width]` in [-1, 1], rows from the top.
        source: where it came from, for messages.
    """

    pixels: Tensor
    source: str


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face, in pixels of the image it was found in.

    Attributes:
        landmarks: viewer's left eye, right eye, nose tip, left and right mouth corner, each (x, y).
        score: detector's confidence in [0, 1].
    """

    left: float
    top: float
    width: float
    height: float
    landmarks: tuple[tuple[float, float], ...]
    score: float


class IdentityHeader(BaseModel):
    """What an identity file says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    name: str = Field(pattern=f"^{NAME}$")
    method: str = Field(min_length=1, max_length=64)
    stages: int = Field(ge=1, le=100)
    order: str = Field(default=ORDER, max_length=200)
    base_model: str = Field(max_length=200)
    signature: dict[str, str] = Field(default_factory=dict, max_length=10_000)
    width: int = Field(ge=1, le=LARGEST_WIDTH)
    class_word: str = Field(min_length=1, max_length=100)
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    library_versions: dict[str, str] = Field(default_factory=dict, max_length=64)
    consent: str | None = Field(default=None, max_length=10_000)
    metrics: dict[str, float] = Field(default_factory=dict, max_length=64)
    shards: tuple[str, ...] = Field(default=(), max_length=64)


@dataclass(frozen=True, slots=True)
class Identity:
    """What was learned: named tensors and a header."""

    tensors: dict[str, Tensor]
    header: IdentityHeader

    @property
    def name(self) -> str:
        """The placeholder's name, without angle brackets."""
        return self.header.name

    @property
    def method(self) -> str:
        """The method that learned it."""
        return self.header.method

    @property
    def tokens(self) -> Tensor:
        """Key and value token of every stage, `[stage, 2, width]`; of several tokens `[stage, 2, vector, width]`.

        Raises:
            IdentityError: the identity has none, as those of methods that change the model.
        """
        if "tokens" not in self.tensors:
            raise IdentityError(
                f"{self.name!r} was learned with {self.method} and has no tokens.",
                "Use a file that `sefi learn` wrote.",
            )
        return self.tensors["tokens"]

    @property
    def table(self) -> Tensor:
        """The tokens as `[stage, 2, vector, width]`, one or more vectors in the place of the placeholder."""
        return as_table(self.tokens)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one safetensors file, atomically; an earlier identity of the same name is replaced.

        Args:
            overwrite: also replace an identity of another name; anything else is never replaced.

        Raises:
            OutputError: another identity, a file of another kind or a device is there, or it cannot be written.
        """
        from sefi.identity.file import write_identity  # noqa: PLC0415

        write_identity(self, Path(path), overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> Identity:
        """Read a file that `save` wrote; `IdentityError` for anything else."""
        from sefi.identity.file import read_identity  # noqa: PLC0415

        return read_identity(Path(path))


def as_table(tokens: Tensor) -> Tensor:
    """Tokens `[..., 2, width]` as `[..., 2, vector, width]`; those that have several vectors are left as they are."""
    return tokens if tokens.ndim == TABLE_DIMS else tokens[:, :, None]


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One picture and what made it."""

    pixels: Image
    prompt: str
    seed: int
    index: int
