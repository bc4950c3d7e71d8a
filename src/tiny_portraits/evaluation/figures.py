"""A figure of the model card, and what it is measured with: evaluators and generated images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateSettings
from sefi.core.progress import Progress
from sefi.evaluation.encoders import DETECTOR, RECOGNISER, ImageReader, Reading, SFaceEncoder
from sefi.photo.detect import Face, YuNetDetector, enlarge_image
from tiny_portraits.evaluation.grids import draw_prompts
from tiny_portraits.training.evaluators import HEAD_READER, SCENE_READER
from tiny_portraits.training.recognisers import EMBEDDING


@dataclass(frozen=True)
class Figure:
    """One number of the model card.

    Attributes:
        value: higher is better where there is a target.
        target: least value wanted; None where the figure only informs.
        n: images, faces or people it was measured on.
    """

    name: str
    value: float
    target: float | None
    n: int

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        return None if self.target is None else self.value >= self.target

    def make_record(self) -> dict[str, Any]:
        """Return the figure, ready for JSON."""
        return {"name": self.name, "value": round(self.value, 4), "target": self.target, "met": self.met, "n": self.n}


@dataclass(frozen=True)
class Observation:
    """What the evaluators see in one image.

    Attributes:
        faces: the surest first.
        embedding: unit vector of the surest face, None without one.
    """

    faces: list[Face]
    embedding: np.ndarray | None
    reading: Reading


class ImageEvaluators:
    """The embedded model's detector, recogniser and readers, from one folder."""

    def __init__(self, folder: Path) -> None:
        self.detect = YuNetDetector(folder / DETECTOR)
        self.encode = SFaceEncoder(folder / RECOGNISER)
        self.read = ImageReader(folder / SCENE_READER, folder / HEAD_READER)

    def __call__(self, rgb: np.ndarray) -> Observation:
        """Return what is seen in a square image, uint8 `[side, side, 3]`."""
        large = enlarge_image(rgb)
        faces = self.detect(large)
        first = faces[0] if faces else None
        return Observation(faces, None if first is None else self.encode(large, first), self.read(large, first))


def observe_generated(
    backbone: Backbone,
    evaluators: ImageEvaluators,
    prompts: Sequence[str],
    settings: GenerateSettings,
    progress: Progress,
) -> list[Observation]:
    """Generate one image of every prompt and return what the evaluators see in it; the n-th has seed n."""
    return [evaluators(image) for image in generate_arrays(backbone, prompts, settings, progress)]


def generate_arrays(
    backbone: Backbone, prompts: Sequence[str], settings: GenerateSettings, progress: Progress
) -> list[np.ndarray]:
    """Generate one image of every prompt, uint8 RGB; the n-th has seed n."""
    return [np.asarray(image) for image in draw_prompts(backbone, prompts, 0, settings, progress)]


def embed_face(evaluators: ImageEvaluators, rgb: np.ndarray) -> np.ndarray:
    """Return the embedding of a drawing's face; zeros where none is found."""
    embedding = evaluators(rgb).embedding
    return np.zeros(EMBEDDING, np.float32) if embedding is None else embedding
