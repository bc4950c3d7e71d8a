"""A picture to the embedding of its surest face."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sefi.core.protocols import FaceDetector, FaceEncoder
from sefi.metrics.encoders import SFaceEncoder
from sefi.photo.detect import YuNetDetector
from sefi.photo.enlarge import enlarged

DETECTOR, RECOGNISER = "face_detection.onnx", "face_recognition.onnx"  # their files in a folder of judges


@dataclass(frozen=True)
class SurestFace:
    """Detector and recogniser in one."""

    detect: FaceDetector
    encode: FaceEncoder

    @staticmethod
    def of(folder: Path) -> "SurestFace":
        """From a folder with `face_detection.onnx` and `face_recognition.onnx`.

        Raises:
            BackboneError: one of them is missing.
        """
        return SurestFace(YuNetDetector(folder / DETECTOR), SFaceEncoder(folder / RECOGNISER))

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Unit vector of the surest face of a picture `[height, width, 3]`; None without one."""
        large = enlarged(rgb)
        faces = self.detect(large)
        return np.asarray(self.encode(large, faces[0]), np.float32) if faces else None
