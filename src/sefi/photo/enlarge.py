"""Small pictures made large enough for a face detector."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Detectors and aligned crops are made for faces of some 50 pixels and more.
LOOKING_SIDE = 192


def enlarged(rgb: NDArray[np.uint8], side: int = LOOKING_SIDE) -> NDArray[np.uint8]:
    """The picture `[height, width, 3]`, its shorter side at least `side` pixels; larger ones are left as they are."""
    height, width = rgb.shape[:2]
    factor = side / min(height, width)
    if factor <= 1:
        return rgb
    size = (round(width * factor), round(height * factor))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), np.uint8)
