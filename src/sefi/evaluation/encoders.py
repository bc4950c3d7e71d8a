"""The networks that evaluate images: face recogniser, attribute readers and CLIP, each refused with a reason."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Model

from sefi.backbone.files import quiet_libraries, read_model_json, read_or_refuse
from sefi.backbone.open import MODELS
from sefi.backbone.part_configs import read_clip_config, read_dino_config
from sefi.backbone.tokenizer import read_tokenizer
from sefi.backbone.weights import load_part
from sefi.core.errors import BackboneError, FaceError
from sefi.core.files import is_regular_file
from sefi.core.own_files import make_temporary_folder
from sefi.core.reading import (
    InvalidFileError,
    describe_fault,
    read_bytes,
    read_json as read_object,
    translate_file_errors,
)
from sefi.core.text import dump_json
from sefi.photo.detect import (
    PHOTOGRAPH_DETECTOR,
    Face,
    FaceBox,
    FaceDetector,
    FaceEncoder,
    YuNetDetector,
    choose_overlapping,
    enlarge_image,
    quiet_opencv,
    try_network,
)
from sefi.provenance.run_record import compute_file_digest

MAX_EVALUATOR_BYTES = 512 * 2**20  # SFace has 39 MB
MOST_LABELS = 4096
LABELS = TypeAdapter(dict[str, list[str]])
SCENE_SIDE = 96
CLIP_BATCH = 32
CLIP_REMEDY = "Copy or download the CLIP model again, as safetensors with its preprocessor_config.json."
DINO_REMEDY = "Copy or download the DINOv2 model again, as safetensors with its preprocessor_config.json."
DINO_PROCESSORS = ("BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil")
CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
PREPROCESSING = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip
LARGEST_SIDE = 1024
EMBEDDED_EVALUATORS = MODELS / "evaluators"  # the networks that come with the package, for the embedded model's images


class SFaceEncoder:
    """Face recogniser: an SFace-type ONNX network run by OpenCV's `FaceRecognizerSF`.

    Args:
        onnx_path: OpenCV Zoo's SFace, or the embedded model's own recogniser.

    Raises:
        BackboneError: there is no such file, it is larger than 512 MB or no such network.
    """

    def __init__(self, onnx_path: str | Path) -> None:
        self._path = require_network(onnx_path)
        content = read_network(self._path, "recogniser")
        with translate_errors(onnx_path), quiet_opencv():
            self._network = cv2.FaceRecognizerSF.create("onnx", content, np.zeros(0, np.uint8))
        self._turn = threading.Lock()  # OpenCV's networks hold their input

    def __call__(self, rgb: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
        """Return the unit vector `[embedding]` of a face in `[height, width, 3]`."""
        box = [face.left, face.top, face.width, face.height, *np.ravel(face.landmarks), face.score]
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        with translate_errors(self._path):
            crop = self._network.alignCrop(bgr, np.array(box, np.float32))
            with self._turn:
                embedding = np.array(self._network.feature(crop), np.float32).ravel()
        return embedding / max(float(np.linalg.norm(embedding)), 1e-12)


@dataclass(frozen=True)
class Reading:
    """What a reader sees in an image.

    Attributes:
        attributes: probability of each attribute and of each yes-or-no trait.
        choices: for action, scene, style ... the probability of each option; "" means none. Those of a head
            (skin, hair ...) are missing without a face.
    """

    attributes: dict[str, float]
    choices: dict[str, dict[str, float]]
    face: bool = True

    def find_best(self, kind: str) -> str:
        """Return the likeliest option of a choice."""
        options = self.choices[kind]
        return max(options, key=options.__getitem__)

    def shows(self, kind: str, wanted: str) -> bool:
        """Return whether the image shows what is wanted.

        Args:
            kind: `attribute` (probability above a half), `without` (a half or less) or a choice (likeliest option).
                Without a face no trait of it is shown, nor its absence.
        """
        if kind in ("attribute", "without"):
            return self.face and (self.attributes[wanted] > 0.5) == (kind == "attribute")
        return kind in self.choices and self.find_best(kind) == wanted


class ImageReader:
    """Reads action, scene and style of an image and the attributes of a head; labels lie beside the networks as JSON.

    Args:
        scene_path: network for whole images.
        head_path: network for aligned heads.

    Raises:
        BackboneError: a file is missing.
    """

    def __init__(self, scene_path: str | Path, head_path: str | Path) -> None:
        self._scene, self._head = LabelledNetwork(scene_path), LabelledNetwork(head_path)
        with translate_errors(head_path):
            if "attributes" not in self._head.labels:
                raise InvalidFileError("its labels have no group 'attributes'")

    def knows(self, kind: str, label: str) -> bool:
        """Return whether this can be asked of a `Reading`."""
        if kind in ("attribute", "without"):
            return label in self._head.labels["attributes"]
        return label in (self._scene.labels | self._head.labels).get(kind, [])

    def __call__(self, rgb: NDArray[np.uint8], face: Face | None) -> Reading:
        """Read an image `[height, width, 3]`; without a face no attribute is there."""
        small = cv2.resize(rgb, (SCENE_SIDE, SCENE_SIDE), interpolation=cv2.INTER_AREA)
        choices = self._scene(np.asarray(small, np.uint8))
        if face is None:
            return Reading(dict.fromkeys(self._head.labels["attributes"], 0.0), choices, face=False)
        head = align_face(rgb, np.array(face.landmarks), HEAD_LANDMARKS)
        head_choices = self._head(head)
        return Reading(head_choices.pop("attributes"), choices | head_choices)


class LabelledNetwork:
    """An ONNX classifier whose outputs have names."""

    def __init__(self, path: str | Path) -> None:
        file = self._path = require_network(path)
        content = read_network(file, "classifier")
        with translate_errors(file), quiet_opencv():
            self._network = cv2.dnn.readNetFromONNX(content)
        self._turn = threading.Lock()
        self.labels = read_labels(require_network(file.with_suffix(".json")))

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
        """Return probabilities by group and label for an RGB image at the network's size."""
        with translate_errors(self._path), self._turn:
            self._network.setInput(np.ascontiguousarray(image.astype(np.float32).transpose(2, 0, 1)[None]))
            values = [float(v) for v in np.asarray(self._network.forward()).ravel()]
            if len(values) != sum(map(len, self.labels.values())):
                raise InvalidFileError(f"it has {len(values)} outputs for {sum(map(len, self.labels.values()))} labels")
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
        if not is_regular_file(where / "config.json"):
            raise BackboneError(
                f"There is no CLIP at {where}.", "Name the folder of a CLIP model, or use a model that brings its own."
            )
        read = partial(read_clip, where)
        self._model, self._tokenizer, self._preprocess = read_or_refuse(where, read, CLIP_REMEDY, kind="CLIP")
        self.width = int(self._model.config.projection_dim)

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return unit vectors `[image, width]` of RGB images `[height, width, 3]` of any sizes."""
        return self._encode(self._compute_image_features, images)

    def encode_texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors `[prompt, width]`; what is longer than the model reads is cut off."""
        return self._encode(self._compute_text_features, prompts)

    def find_cut(self, prompts: Iterable[str]) -> list[str]:
        """Return the prompts of which the model reads the beginning, in their order.

        They are longer than it reads, or have a character without a token: where this is the token that
        ends a text, as in the embedded model's CLIP, the model reads as far as there.
        """
        whole = ((prompt, self._tokenizer(prompt, truncation=False, verbose=False)["input_ids"]) for prompt in prompts)
        end = self._tokenizer.eos_token_id
        return [prompt for prompt, tokens in whole if len(tokens) > self.text_length or end in tokens[:-1]]

    @property
    def text_length(self) -> int:
        """Tokens of a text that the model reads, start and end included."""
        return int(self._model.config.text_config.max_position_embeddings)

    def _compute_image_features(self, images: list[NDArray[np.uint8]]) -> Tensor:
        pixels = self._preprocess(images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        return self._model.get_image_features(pixels).pooler_output

    def _compute_text_features(self, prompts: list[str]) -> Tensor:
        length = self.text_length
        words = self._tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return self._model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output

    @torch.no_grad()
    def _encode(self, features: Callable[[list[Any]], Tensor], things: Sequence[Any]) -> NDArray[np.float32]:
        starts = range(0, len(things), CLIP_BATCH)
        batches = [features(list(things[start : start + CLIP_BATCH])).float().numpy() for start in starts]
        vectors = np.concatenate([np.zeros((0, self.width), np.float32), *batches])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def read_clip(folder: Path) -> tuple[Any, CLIPTokenizer, Callable[..., Any]]:
    """Return `CLIPModel` in single precision, tokenizer and image preprocessing; no other code, no network.

    Raises:
        BackboneError: a file is missing, damaged or out of bounds, as in the folder of a text encoder alone.
    """
    config = read_clip_config(folder / "config.json")
    with quiet_libraries():
        # The implementation is named: the library must never take it from a file.
        model = load_part(CLIPModel, folder, config.list_arguments(), torch.float32, attn_implementation="sdpa")
        tokenizer = read_tokenizer(folder, config.text_config.vocab_size)
        preprocess = build_preprocessing(folder, "CLIP", CLIP_PROCESSORS, CLIP_REMEDY)
    return model.eval(), tokenizer, preprocess


class DinoEncoder:
    """A `transformers.Dinov2Model` on the CPU, for how alike two whole images are.

    Args:
        folder: model and image preprocessing as transformers saves them. Only safetensors are opened, and nothing is
            downloaded.

    Raises:
        BackboneError: there is no such folder, or it holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        where = Path(folder)
        if not is_regular_file(where / "config.json"):
            raise BackboneError(f"There is no DINOv2 at {where}.", "Name the folder of a DINOv2 model.")
        self._model, self._preprocess = read_or_refuse(where, partial(read_dino, where), DINO_REMEDY, kind="DINOv2")

    @torch.no_grad()
    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the unit vector `[width]` of the class token of an RGB image `[height, width, 3]` of any size."""
        pixels = self._preprocess([rgb], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        vector = self._model(pixels).pooler_output[0].float().numpy()
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


def read_dino(folder: Path) -> tuple[Any, Callable[..., Any]]:
    """Return `Dinov2Model` in single precision and image preprocessing; no other code, no network.

    Raises:
        BackboneError: a file is missing, damaged or out of bounds.
    """
    config = read_dino_config(folder / "config.json")
    with quiet_libraries():
        # The implementation is named: the library must never take it from a file.
        model = load_part(Dinov2Model, folder, config.list_arguments(), torch.float32, attn_implementation="sdpa")
        return model.eval(), build_preprocessing(folder, "DINOv2", DINO_PROCESSORS, DINO_REMEDY)


def build_preprocessing(folder: Path, network: str, kinds: Sequence[str], remedy: str) -> Callable[..., Any]:
    """Build the image processor of a folder from what is read of its settings.

    Args:
        network: whose it is, for messages.
        kinds: what the folder may call it; the first is built.
    """
    with make_temporary_folder() as clean:
        settings = read_preprocessing(folder / "preprocessor_config.json", network, kinds, remedy)
        (clean / "preprocessor_config.json").write_text(dump_json(settings), encoding="utf-8")
        return cast(Any, AutoImageProcessor).from_pretrained(clean, local_files_only=True)


def read_preprocessing(path: Path, network: str, kinds: Sequence[str], remedy: str) -> dict[str, Any]:
    """Return what an image processor knows of a `preprocessor_config.json`.

    Raises:
        BackboneError: no such file, one of another kind, or a size out of range.
    """
    values = read_model_json(path)
    kind = values.get("image_processor_type", values.get("feature_extractor_type"))
    if kind not in kinds:
        raise BackboneError(f"{path} describes a {str(kind)[:60]!r}, not {network}'s image preprocessing.", remedy)
    sizes = [values.get(name) for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in (size.values() if isinstance(size, dict) else [size])]
    if any(side is not None and (type(side) is not int or not 0 < side <= LARGEST_SIDE) for side in sides):
        raise BackboneError(f"{path}: `size` and `crop_size` must be from 1 to {LARGEST_SIDE} pixels.", remedy)
    return {"image_processor_type": kinds[0]} | {n: values[n] for n in PREPROCESSING if n in values}


def translate_errors(path: str | Path) -> AbstractContextManager[None]:
    """Raise `BackboneError` for whatever goes wrong while a network or its labels are read."""
    remedy = "Name an ONNX file of the right kind, or use a model that brings its own."
    return translate_file_errors(path, BackboneError, "is no network of this kind", remedy, (cv2.error,))


def read_network(path: Path, kind: Literal["recogniser", "classifier"]) -> NDArray[np.uint8]:
    """Return the content of an ONNX file that OpenCV can open without a crash, `[byte]`.

    Raises:
        BackboneError: it is no regular file, larger than 512 MB, or crashes OpenCV.
    """
    with translate_errors(path):
        content = read_bytes(path, MAX_EVALUATOR_BYTES)
        try_network(path, content, kind)
        return np.frombuffer(content, np.uint8)


def read_labels(path: Path) -> dict[str, list[str]]:
    """Return the names of a classifier's outputs by group.

    Raises:
        BackboneError: the file is no JSON object of lists of texts, or has more than 4,096 texts in all.
    """
    with translate_errors(path):
        labels = LABELS.validate_python(read_object(path))
        if sum(map(len, labels.values())) > MOST_LABELS:
            raise InvalidFileError(f"it has more than {MOST_LABELS:,} labels")
        return labels


def require_network(path: str | Path) -> Path:
    """Return the path of a network; `BackboneError` if there is no such file."""
    file = Path(path)
    if not is_regular_file(file):
        raise BackboneError(
            f"There is no network at {file}.", "Name an ONNX file, or use a model that brings its own evaluators."
        )
    return file


CROP_SIDE = 112
# Where OpenCV's `FaceRecognizerSF.alignCrop` puts the five landmarks: a close crop, for telling people apart.
FACE_LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
# The same face at 0.62 of the size and lower: a crop with hair and hat, for telling what somebody wears and feels.
HEAD_LANDMARKS = (FACE_LANDMARKS - np.float32(56)) * np.float32(0.62) + np.array([56, 66], np.float32)


def align_face(
    image: NDArray[np.uint8], points: NDArray[np.floating], places: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return the crop `[112, 112, 3]` in which the landmarks `points [5, 2]` (pixels) of the image lie on `places`.

    Raises:
        FaceError: as `compute_alignment`.
    """
    crop = cv2.warpAffine(
        image,
        compute_alignment(points, places),
        (CROP_SIDE, CROP_SIDE),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(crop, np.uint8)


def compute_alignment(points: NDArray[np.floating], places: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the similarity transform `[2, 3]` that brings the landmarks `points [5, 2]` nearest to `places`.

    Raises:
        FaceError: the landmarks lie in one point, or one is not finite.
    """
    found: tuple[Any, Any] = cv2.estimateAffinePartial2D(points.astype(np.float32), places, method=cv2.LMEDS)
    matrix = found[0]
    # Against what its types say, OpenCV gives None, or a matrix of zeros or nan, where there is no such transform.
    if matrix is None or not abs(np.linalg.det(matrix[:, :2])) > 0:
        raise FaceError("The landmarks of a face lie in one point.", "Use a photo in which the face is larger.")
    return np.asarray(matrix, np.float64)


DETECTOR, RECOGNISER = "face_detection.onnx", "face_recognition.onnx"  # their files in a folder of evaluators
# OpenCV's SFace (Apache-2.0), 39 MB on the hub; its SHA-256 is that of OpenCV Zoo's copy.
SFACE_REPOSITORY, SFACE_FILE = "opencv/face_recognition_sface", "face_recognition_sface_2021dec.onnx"
SFACE_SHA256 = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"


def find_sface(*, allow_download: bool = False) -> Path | None:
    """Return where OpenCV's face recogniser SFace is in the hub's local cache; None if it is not there.

    Args:
        allow_download: fetch it where it is missing.

    Raises:
        BackboneError: it cannot be downloaded, or the file is another than the one that is known.
    """
    # Not by `local_files_only`, for which the hub's library asks its server which program calls.
    cached = try_to_load_from_cache(SFACE_REPOSITORY, SFACE_FILE)
    if not (isinstance(cached, str) or allow_download):
        return None
    try:
        path = Path(cached if isinstance(cached, str) else hf_hub_download(SFACE_REPOSITORY, SFACE_FILE))
    except (HfHubHTTPError, OSError) as error:  # without a connection it is an OSError
        raise BackboneError(
            f"The face recogniser {SFACE_REPOSITORY} could not be downloaded: {describe_fault(error)}.",
            "Check your connection, or name a folder with the networks: --evaluators, in `sefi bench` --recogniser.",
        ) from error
    check_sface(path)
    return path


def check_sface(path: Path) -> None:
    """Refuse a file that is not OpenCV's SFace of 2021.

    Raises:
        BackboneError: its SHA-256 is another, or it cannot be read.
    """
    with translate_errors(path):
        digest = hashlib.sha256(read_bytes(path, MAX_EVALUATOR_BYTES)).hexdigest()
    if digest != SFACE_SHA256:
        raise BackboneError(
            f"{path} is not the face recogniser that is known here (its SHA-256 begins with {digest[:16]}).",
            "Delete it and download it again.",
        )


def find_face_networks(folder: Path | None) -> tuple[Path, Path] | None:
    """Return the detector and the recogniser of a folder of evaluators, or those for photographs without a folder.

    None: there is no folder, and SFace is not in the local cache.
    """
    if folder is not None:
        return folder / DETECTOR, folder / RECOGNISER
    recogniser = find_sface()
    return None if recogniser is None else (PHOTOGRAPH_DETECTOR, recogniser)


def hash_face_networks(folder: Path | None) -> str:
    """Return the SHA-256 of the networks of `find_face_networks`, one after the other; empty where there are none.

    Raises:
        BackboneError: one cannot be read.
    """
    networks = find_face_networks(folder) or ()
    remedy = "Name a folder of networks with --evaluators."
    with translate_file_errors("A network of faces", BackboneError, "cannot be read", remedy):
        return "".join(compute_file_digest(path) for path in networks)


@dataclass(frozen=True)
class SurestFace:
    """Detector and recogniser in one."""

    detect: FaceDetector
    encode: FaceEncoder

    @staticmethod
    def load(folder: Path | None) -> "SurestFace":
        """Load both from a folder with `face_detection.onnx` and `face_recognition.onnx`; None: YuNet and SFace.

        Raises:
            BackboneError: one of them is missing.
        """
        networks = find_face_networks(folder)
        if networks is None:
            raise BackboneError("There is no face recogniser.", "Download it with --download, or name --evaluators.")
        return SurestFace(YuNetDetector(networks[0]), SFaceEncoder(networks[1]))

    def __call__(self, rgb: NDArray[np.uint8], place: FaceBox | None = None) -> NDArray[np.float32] | None:
        """Return the unit vector of the surest face of an image `[height, width, 3]`; None without one.

        Args:
            place: where the face is to be found, if it is known, in a square image: the one that overlaps it most is
                taken, and the surest only where none does.
        """
        large = enlarge_image(rgb)
        faces = self.detect(large)
        if not faces:
            return None
        side = len(large)
        boxes = [(one.left / side, one.top / side, one.width / side, one.height / side) for one in faces]
        number = None if place is None else choose_overlapping(boxes, place, 0.0)
        return np.asarray(self.encode(large, faces[number or 0]), np.float32)
