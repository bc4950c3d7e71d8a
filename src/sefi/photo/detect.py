"""Upright RGB to faces, and the one face that is meant."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from sefi.core.errors import FaceError
from sefi.core.nouns import Face
from sefi.core.reading import file_errors, read_bytes
from sefi.photo.network_trial import try_network
from sefi.photo.opencv_log import errors_only

MIN_FACE_SIDE = 64.0
LARGEST_NETWORK = 64 * 2**20  # YuNet has 0.2 MB
# YuNet's network halves its input five times.
MULTIPLE = 32
# YuNet was trained on faces of 10 to 300 pixels: close faces are found in a small copy, far
# ones only in a larger, slower one, which is looked at when the small one shows none.
LONG_SIDES = (320, 640, 1280)
# Pictures smaller than this (the embedded model's) are enlarged to it: their faces are too few cells.
SHORTEST_LONG_SIDE = 192


class YuNetDetector:
    """Face detector: a YuNet-type ONNX network run by OpenCV's `FaceDetectorYN`.

    Threads may share one: OpenCV's object holds the input size, so they take turns.

    Args:
        onnx_path: network with YuNet's outputs (`cls_8` to `kps_32`); OpenCV Zoo has a
            permissively licensed one, the embedded model brings its own.
        min_score: faces the network is less sure of are dropped (0 to 1).

    Raises:
        FaceError: the file is missing or is not such a network.
    """

    def __init__(self, onnx_path: str | Path, *, min_score: float = 0.6) -> None:
        path = Path(onnx_path)
        if not path.is_file():
            raise FaceError(
                f"There is no face detector at {path}.",
                "Name a YuNet ONNX file, or learn without a crop (--no-crop).",
            )
        remedy = "Name a YuNet ONNX file, or use --no-crop."
        with file_errors(path, FaceError, "is not a YuNet-type face detector", remedy, (cv2.error,)), errors_only():
            data = read_bytes(path, LARGEST_NETWORK)
            try_network(path, data, "detector")
            content = np.frombuffer(data, np.uint8)
            nothing = np.zeros(0, np.uint8)
            self._network = cv2.FaceDetectorYN.create("onnx", content, nothing, (MULTIPLE, MULTIPLE), min_score)
        self._path, self._turn = path, threading.Lock()

    def __call__(self, rgb: NDArray[np.uint8]) -> list[Face]:
        """Faces in `[height, width, 3]`, the surest first, in pixels of `rgb`.

        Raises:
            FaceError: the file turns out not to be a YuNet-type network.
        """
        longest = max(rgb.shape[:2])
        if longest < SHORTEST_LONG_SIDE:
            return self._detect(rgb, SHORTEST_LONG_SIDE / longest)
        for side in LONG_SIDES:
            faces = self._detect(rgb, min(1.0, side / longest))
            if faces or side >= longest:
                return faces
        return []

    def _detect(self, rgb: NDArray[np.uint8], scale: float) -> list[Face]:
        height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
        small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        below, right = -height % MULTIPLE, -width % MULTIPLE
        padded = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT)
        try:
            with self._turn:
                self._network.setInputSize((width + right, height + below))
                found = self._network.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise _foreign_network(self._path) from error
        rows = cast(NDArray[np.float32] | None, found[1])
        if rows is None:
            return []
        # Both sides are rounded on their own, so each axis has its own scale.
        across, down = width / rgb.shape[1], height / rgb.shape[0]
        faces = [_face(row, across, down) for row in rows]
        return sorted(faces, key=lambda face: -face.score)


def choose_face(faces: Sequence[Face], number: int | None = None, *, min_side: float = MIN_FACE_SIDE) -> Face:
    """The face to learn.

    Args:
        faces: what the detector found.
        number: which one, counted from the left, 1 the first; None if there is but one.
        min_side: shortest allowed side of the face in source pixels.

    Raises:
        FaceError: none found, several and no number, no such number, or too small.
    """
    ordered = sorted(faces, key=lambda face: face.left)
    if not ordered:
        raise FaceError(
            "No face was found in the photo.",
            "Use a photo with one clear face, or take the whole picture (--no-crop).",
        )
    if number is None and len(ordered) > 1:
        raise FaceError(
            f"The photo shows {len(ordered)} faces: {_listed(ordered)}.",
            f"Choose one with --face 1 to --face {len(ordered)}, counted from the left.",
        )
    if number is not None and not 1 <= number <= len(ordered):
        raise FaceError(
            f"There is no face {number}: the photo shows {len(ordered)} ({_listed(ordered)}).",
            "Count from the left, starting at 1.",
        )
    face = ordered[(number or 1) - 1]
    _check_size(face, min_side)
    return face


def _check_size(face: Face, min_side: float) -> None:
    if min(face.width, face.height) < min_side:
        raise FaceError(
            f"The face is only {face.width:.0f} x {face.height:.0f} pixels; at least {min_side:.0f} are needed.",
            "Use a larger or closer photo.",
        )


def _listed(faces: Sequence[Face]) -> str:
    return ", ".join(
        f"{number} at x = {face.left + face.width / 2:.0f} ({face.width:.0f} pixels wide)"
        for number, face in enumerate(faces, start=1)
    )


def _face(row: NDArray[np.float32], across: float, down: float) -> Face:
    """One row of `FaceDetectorYN`: x, y, width, height, five points, score."""
    values = [float(value) for value in row]
    points = zip(values[4:14:2], values[5:14:2], strict=True)
    return Face(
        left=values[0] / across,
        top=values[1] / down,
        width=values[2] / across,
        height=values[3] / down,
        landmarks=tuple((x / across, y / down) for x, y in points),
        score=values[14],
    )


def _foreign_network(path: Path) -> FaceError:
    return FaceError(f"{path} is not a YuNet-type face detector.", "Name a YuNet ONNX file, or use --no-crop.")
