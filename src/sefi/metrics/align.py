"""Faces moved, turned and scaled so that their landmarks fall on fixed places."""

import cv2
import numpy as np
from numpy.typing import NDArray

CROP_SIDE = 112
# Where OpenCV's `FaceRecognizerSF.alignCrop` puts the five landmarks: a close crop, for telling people apart.
FACE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
# The same face at 0.62 of the size and lower: a crop with hair and hat, for telling what somebody wears and feels.
HEAD = (FACE - np.float32(56)) * np.float32(0.62) + np.array([56, 66], np.float32)


def aligned(image: NDArray[np.uint8], points: NDArray[np.floating], places: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A crop `[112, 112, 3]` of the image in which the landmarks `points [5, 2]` (pixels) lie on `places`."""
    matrix, _ = cv2.estimateAffinePartial2D(points.astype(np.float32), places, method=cv2.LMEDS)
    crop = cv2.warpAffine(
        image, matrix, (CROP_SIDE, CROP_SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(crop, np.uint8)
