"""The networks that metrics look through: ONNX files run by OpenCV."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sefi.core.errors import BackboneError
from sefi.core.nouns import Face
from sefi.metrics.align import HEAD, aligned
from sefi.photo.opencv_log import errors_only

SCENE_SIDE = 96


class SFaceEncoder:
    """Face recogniser: an SFace-type ONNX network run by OpenCV's `FaceRecognizerSF`.

    Args:
        onnx_path: OpenCV Zoo's SFace, or the embedded model's own recogniser.

    Raises:
        BackboneError: there is no such file.
    """

    def __init__(self, onnx_path: str | Path) -> None:
        file = str(existing(onnx_path))
        with errors_only():
            self._network = cv2.FaceRecognizerSF.create(file, "")

    def __call__(self, rgb: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
        """Unit vector `[embedding]` of a face in `[height, width, 3]`."""
        box = [face.left, face.top, face.width, face.height, *np.ravel(face.landmarks), face.score]
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        crop = self._network.alignCrop(bgr, np.array(box, np.float32))
        found = np.asarray(self._network.feature(crop), np.float32).ravel()
        return found / max(float(np.linalg.norm(found)), 1e-12)


@dataclass(frozen=True)
class Reading:
    """What a reader sees in a picture.

    Attributes:
        attributes: probability of each attribute.
        choices: for action, scene and style the probability of each option; "" means none.
    """

    attributes: dict[str, float]
    choices: dict[str, dict[str, float]]

    def best(self, kind: str) -> str:
        """The likeliest option of a choice."""
        options = self.choices[kind]
        return max(options, key=options.__getitem__)

    def shows(self, kind: str, wanted: str) -> bool:
        """Whether the picture shows an attribute (probability above a half) or a choice's option (likeliest)."""
        return self.attributes[wanted] > 0.5 if kind == "attribute" else self.best(kind) == wanted


class Reader:
    """Reads action, scene and style of a picture and the attributes of a head; labels lie beside the networks as JSON.

    Args:
        scene_path: network for whole pictures.
        head_path: network for aligned heads.

    Raises:
        BackboneError: a file is missing.
    """

    def __init__(self, scene_path: str | Path, head_path: str | Path) -> None:
        self._scene, self._head = LabelledNetwork(scene_path), LabelledNetwork(head_path)

    def __call__(self, rgb: NDArray[np.uint8], face: Face | None) -> Reading:
        """Read a picture `[height, width, 3]`; without a face no attribute is there."""
        small = cv2.resize(rgb, (SCENE_SIDE, SCENE_SIDE), interpolation=cv2.INTER_AREA)
        choices = self._scene(np.asarray(small, np.uint8))
        if face is None:
            return Reading(dict.fromkeys(self._head.labels["attributes"], 0.0), choices)
        head = aligned(rgb, np.array(face.landmarks), HEAD)
        return Reading(self._head(head)["attributes"], choices)


class LabelledNetwork:
    """An ONNX classifier whose outputs have names."""

    def __init__(self, path: str | Path) -> None:
        file = existing(path)
        self._network = cv2.dnn.readNetFromONNX(str(file))
        self.labels: dict[str, list[str]] = json.loads(existing(file.with_suffix(".json")).read_text(encoding="utf-8"))

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
        """Probabilities by group and label for an RGB image at the network's size."""
        self._network.setInput(np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1)[None]))
        values = [float(v) for v in np.asarray(self._network.forward()).ravel()]
        groups: dict[str, dict[str, float]] = {}
        for name, labels in self.labels.items():
            groups[name] = dict(zip(labels, values, strict=False))
            values = values[len(labels) :]
        return groups


def existing(path: str | Path) -> Path:
    """The path, if there is a file."""
    found = Path(path)
    if not found.is_file():
        raise BackboneError(
            f"There is no judge at {found}.", "Name an ONNX file, or use a model that brings its own judges."
        )
    return found
