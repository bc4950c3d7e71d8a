"""The networks that metrics look through: ONNX files run by OpenCV, and CLIP."""

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from sefi.backbone.files import guarded, read_json
from sefi.backbone.part_configs import read_clip_config
from sefi.backbone.part_weights import load_part
from sefi.backbone.quiet import quiet_libraries
from sefi.backbone.tokenizer_files import read_tokenizer
from sefi.core.errors import BackboneError
from sefi.core.json_text import dump_json
from sefi.core.nouns import Face
from sefi.core.reading import LimitError, file_errors, read_bytes, read_json as read_object
from sefi.metrics.align import HEAD, aligned
from sefi.photo.network_trial import try_network
from sefi.photo.opencv_log import errors_only

LARGEST_NETWORK = 512 * 2**20  # SFace has 39 MB
MOST_LABELS = 4096
LABELS = TypeAdapter(dict[str, list[str]])
SCENE_SIDE = 96
CLIP_BATCH = 32
CLIP_REMEDY = "Copy or download the CLIP model again, as safetensors with its preprocessor_config.json."
CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
PREPROCESSING = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip
LARGEST_SIDE = 1024


class SFaceEncoder:
    """Face recogniser: an SFace-type ONNX network run by OpenCV's `FaceRecognizerSF`.

    Args:
        onnx_path: OpenCV Zoo's SFace, or the embedded model's own recogniser.

    Raises:
        BackboneError: there is no such file, it is larger than 512 MB or no such network.
    """

    def __init__(self, onnx_path: str | Path) -> None:
        self._path = existing(onnx_path)
        content = network_bytes(self._path, "recogniser")
        with encoder_errors(onnx_path), errors_only():
            self._network = cv2.FaceRecognizerSF.create("onnx", content, np.zeros(0, np.uint8))
        self._turn = threading.Lock()  # OpenCV's networks hold their input

    def __call__(self, rgb: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
        """Unit vector `[embedding]` of a face in `[height, width, 3]`."""
        box = [face.left, face.top, face.width, face.height, *np.ravel(face.landmarks), face.score]
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        with encoder_errors(self._path):
            crop = self._network.alignCrop(bgr, np.array(box, np.float32))
            with self._turn:
                found = np.array(self._network.feature(crop), np.float32).ravel()
        return found / max(float(np.linalg.norm(found)), 1e-12)


@dataclass(frozen=True)
class Reading:
    """What a reader sees in a picture.

    Attributes:
        attributes: probability of each attribute and of each yes-or-no trait.
        choices: for action, scene, style ... the probability of each option; "" means none. Those of a head
            (skin, hair ...) are missing without a face.
    """

    attributes: dict[str, float]
    choices: dict[str, dict[str, float]]
    face: bool = True

    def best(self, kind: str) -> str:
        """The likeliest option of a choice."""
        options = self.choices[kind]
        return max(options, key=options.__getitem__)

    def shows(self, kind: str, wanted: str) -> bool:
        """Whether the picture shows what is wanted.

        Args:
            kind: `attribute` (probability above a half), `without` (a half or less) or a choice (likeliest option).
                Without a face no trait of it is shown, nor its absence.
        """
        if kind in ("attribute", "without"):
            return self.face and (self.attributes[wanted] > 0.5) == (kind == "attribute")
        return kind in self.choices and self.best(kind) == wanted


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
        with encoder_errors(head_path):
            if "attributes" not in self._head.labels:
                raise LimitError("its labels have no group 'attributes'")

    def knows(self, kind: str, label: str) -> bool:
        """Whether this can be asked of a `Reading`."""
        if kind in ("attribute", "without"):
            return label in self._head.labels["attributes"]
        return label in (self._scene.labels | self._head.labels).get(kind, [])

    def __call__(self, rgb: NDArray[np.uint8], face: Face | None) -> Reading:
        """Read a picture `[height, width, 3]`; without a face no attribute is there."""
        small = cv2.resize(rgb, (SCENE_SIDE, SCENE_SIDE), interpolation=cv2.INTER_AREA)
        choices = self._scene(np.asarray(small, np.uint8))
        if face is None:
            return Reading(dict.fromkeys(self._head.labels["attributes"], 0.0), choices, face=False)
        head = aligned(rgb, np.array(face.landmarks), HEAD)
        seen = self._head(head)
        return Reading(seen.pop("attributes"), choices | seen)


class LabelledNetwork:
    """An ONNX classifier whose outputs have names."""

    def __init__(self, path: str | Path) -> None:
        file = self._path = existing(path)
        content = network_bytes(file, "classifier")
        with encoder_errors(file), errors_only():
            self._network = cv2.dnn.readNetFromONNX(content)
        self._turn = threading.Lock()
        self.labels = read_labels(existing(file.with_suffix(".json")))

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
        """Probabilities by group and label for an RGB image at the network's size."""
        with encoder_errors(self._path), self._turn:
            self._network.setInput(np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1)[None]))
            values = [float(v) for v in np.asarray(self._network.forward()).ravel()]
            if len(values) != sum(map(len, self.labels.values())):
                raise LimitError(f"it has {len(values)} outputs for {sum(map(len, self.labels.values()))} labels")
        groups: dict[str, dict[str, float]] = {}
        for name, labels in self.labels.items():
            groups[name] = dict(zip(labels, values, strict=False))
            values = values[len(labels) :]
        return groups


class ClipEncoder:
    """Image and text towers of a `transformers.CLIPModel`, side by side, on the CPU.

    Args:
        folder: model, tokenizer and image preprocessing as transformers saves them: OpenAI's CLIP, or the embedded
            model's own. Only safetensors are opened, and nothing is downloaded.

    Raises:
        BackboneError: there is no such folder, or it holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        where = Path(folder)
        if not (where / "config.json").is_file():
            raise BackboneError(
                f"There is no CLIP at {where}.", "Name the folder of a CLIP model, or use a model that brings its own."
            )
        read = partial(read_clip, where)
        self._model, self._tokenizer, self._preprocess = guarded(where, read, CLIP_REMEDY, kind="CLIP")
        self.width = int(self._model.config.projection_dim)

    def images(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Unit vectors `[picture, width]` of RGB pictures `[height, width, 3]` of any sizes."""
        return self._units(self._image_features, pictures)

    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[prompt, width]`; what is longer than the model reads is cut off."""
        return self._units(self._text_features, prompts)

    def _image_features(self, pictures: list[NDArray[np.uint8]]) -> Tensor:
        pixels = self._preprocess(pictures, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        return self._model.get_image_features(pixels).pooler_output

    def _text_features(self, prompts: list[str]) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return self._model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output

    @torch.no_grad()
    def _units(self, features: Callable[[list[Any]], Tensor], things: Sequence[Any]) -> NDArray[np.float32]:
        starts = range(0, len(things), CLIP_BATCH)
        found = [features(list(things[start : start + CLIP_BATCH])).float().numpy() for start in starts]
        vectors = np.concatenate([np.zeros((0, self.width), np.float32), *found])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def read_clip(folder: Path) -> tuple[Any, CLIPTokenizer, Callable[..., Any]]:
    """Return `CLIPModel` in single precision, tokenizer and image preprocessing; no other code, no network.

    Raises:
        BackboneError: a file is missing, damaged or out of bounds, as in the folder of a text encoder alone.
    """
    config = read_clip_config(folder / "config.json")
    with quiet_libraries():
        # The implementation is named: the library must never take it from a file.
        model = load_part(CLIPModel, folder, config.arguments(), torch.float32, attn_implementation="sdpa")
        tokenizer = read_tokenizer(folder, config.text_config.vocab_size)
        with tempfile.TemporaryDirectory(prefix="sefi-") as clean:
            settings = read_preprocessing(folder / "preprocessor_config.json")
            (Path(clean) / "preprocessor_config.json").write_text(dump_json(settings), encoding="utf-8")
            preprocess = cast(Any, AutoImageProcessor).from_pretrained(clean, local_files_only=True)
    return model.eval(), tokenizer, preprocess


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Return what CLIP's image processor knows of a `preprocessor_config.json`.

    Raises:
        BackboneError: no such file, or a size out of range.
    """
    values = read_json(path)
    kind = values.get("image_processor_type", values.get("feature_extractor_type"))
    if kind not in CLIP_PROCESSORS:
        raise BackboneError(f"{path} describes a {str(kind)[:60]!r}, not CLIP's image preprocessing.", CLIP_REMEDY)
    sizes = [values.get(name) for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in (size.values() if isinstance(size, dict) else [size])]
    if any(side is not None and (type(side) is not int or not 0 < side <= LARGEST_SIDE) for side in sides):
        raise BackboneError(f"{path}: `size` and `crop_size` must be from 1 to {LARGEST_SIDE} pixels.", CLIP_REMEDY)
    return {"image_processor_type": "CLIPImageProcessor"} | {n: values[n] for n in PREPROCESSING if n in values}


def encoder_errors(path: str | Path) -> AbstractContextManager[None]:
    """Raise `BackboneError` for whatever goes wrong while a network or its labels are read."""
    remedy = "Name an ONNX file of the right kind, or use a model that brings its own."
    return file_errors(path, BackboneError, "is no network of this kind", remedy, (cv2.error,))


def network_bytes(path: Path, kind: Literal["recogniser", "classifier"]) -> NDArray[np.uint8]:
    """Return the content of an ONNX file that OpenCV can open without a crash, `[byte]`.

    Raises:
        BackboneError: it is no regular file, larger than 512 MB, or crashes OpenCV.
    """
    with encoder_errors(path):
        content = read_bytes(path, LARGEST_NETWORK)
        try_network(path, content, kind)
        return np.frombuffer(content, np.uint8)


def read_labels(path: Path) -> dict[str, list[str]]:
    """Return the names of a classifier's outputs by group.

    Raises:
        BackboneError: the file is no JSON object of lists of texts, or has more than 4,096 texts in all.
    """
    with encoder_errors(path):
        labels = LABELS.validate_python(read_object(path))
        if sum(map(len, labels.values())) > MOST_LABELS:
            raise LimitError(f"it has more than {MOST_LABELS:,} labels")
        return labels


def existing(path: str | Path) -> Path:
    """The path, if there is a file."""
    found = Path(path)
    if not found.is_file():
        raise BackboneError(
            f"There is no judge at {found}.", "Name an ONNX file, or use a model that brings its own judges."
        )
    return found
