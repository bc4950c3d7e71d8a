"""The networks that metrics look through: ONNX files run by OpenCV."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sefi.core.errors import BackboneError
from sefi.core.nouns import Face


class SFaceEncoder:
    """Face recogniser: an SFace-type ONNX network run by OpenCV's `FaceRecognizerSF`.

    Args:
        onnx_path: OpenCV Zoo's SFace, or the embedded model's own recogniser.

    Raises:
        BackboneError: there is no such file.
    """

    def __init__(self, onnx_path: str | Path) -> None:
        self._network = cv2.FaceRecognizerSF.create(str(existing(onnx_path)), "")

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
    """Reads attributes, action, scene and style; the labels lie beside the network as JSON.

    Raises:
        BackboneError: there is no such file.
    """

    def __init__(self, onnx_path: str | Path) -> None:
        path = existing(onnx_path)
        self._network = cv2.dnn.readNetFromONNX(str(path))
        self._labels: dict[str, list[str]] = json.loads(existing(path.with_suffix(".json")).read_text(encoding="utf-8"))

    def __call__(self, rgb: NDArray[np.uint8], side: int = 96) -> Reading:
        """Read a picture `[height, width, 3]`; it is resized to the network's side."""
        small = rgb if rgb.shape[:2] == (side, side) else cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
        self._network.setInput(np.ascontiguousarray(small.astype(np.float32).transpose(2, 0, 1)[None]))
        values = [float(v) for v in np.asarray(self._network.forward()).ravel()]
        groups: dict[str, dict[str, float]] = {}
        for name, labels in self._labels.items():
            groups[name] = dict(zip(labels, values, strict=False))
            values = values[len(labels) :]
        attributes = groups.pop("attributes")
        return Reading(attributes, groups)


def existing(path: str | Path) -> Path:
    """The path, if there is a file."""
    found = Path(path)
    if not found.is_file():
        raise BackboneError(
            f"There is no judge at {found}.", "Name an ONNX file, or use a model that brings its own judges."
        )
    return found
