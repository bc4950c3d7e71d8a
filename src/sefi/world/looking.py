"""Pictures seen by the judges: whose face, and what is shown."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sefi.core.nouns import Face
from sefi.metrics.encoders import Reader, Reading, SFaceEncoder
from sefi.metrics.faces import DETECTOR, RECOGNISER
from sefi.photo.detect import YuNetDetector
from sefi.photo.enlarge import enlarged
from sefi.world.judges import HEAD_READER, SCENE_READER


@dataclass(frozen=True)
class Sight:
    """What the judges see in one picture.

    Attributes:
        faces: the surest first.
        embedding: unit vector of the surest face, None without one.
    """

    faces: list[Face]
    embedding: np.ndarray | None
    reading: Reading


class Judges:
    """The embedded model's detector, recogniser and readers, from one folder."""

    def __init__(self, folder: Path) -> None:
        self.detect = YuNetDetector(folder / DETECTOR)
        self.encode = SFaceEncoder(folder / RECOGNISER)
        self.read = Reader(folder / SCENE_READER, folder / HEAD_READER)

    def __call__(self, rgb: np.ndarray) -> Sight:
        """Look at a square picture, uint8 `[side, side, 3]`."""
        large = enlarged(rgb)
        faces = self.detect(large)
        first = faces[0] if faces else None
        return Sight(faces, None if first is None else self.encode(large, first), self.read(large, first))
