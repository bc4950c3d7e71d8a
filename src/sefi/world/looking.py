"""Pictures seen by the judges: whose face, and what is shown."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sefi.core.nouns import Face
from sefi.metrics.encoders import Reader, Reading, SFaceEncoder
from sefi.photo.detect import YuNetDetector
from sefi.world.judges import DETECTOR, HEAD_READER, RECOGNISER, SCENE_READER

# The model's pictures are enlarged to this before a face is cut out of them.
LOOKING_SIDE = 192


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
        side = max(LOOKING_SIDE, len(rgb))
        large = np.asarray(cv2.resize(rgb, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
        faces = self.detect(large)
        first = faces[0] if faces else None
        return Sight(faces, None if first is None else self.encode(large, first), self.read(large, first))
