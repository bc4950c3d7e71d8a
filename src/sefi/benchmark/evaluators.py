"""Evaluate an image with whichever evaluators there are; a missing one gives None, never 0."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file
from torch import Tensor

from sefi.backbone.weights import find_weights
from sefi.benchmark.records import EvaluatorInfo
from sefi.core.errors import BackboneError, ConfigError
from sefi.core.files import is_regular_file, write_file
from sefi.core.prompts import strip_weights
from sefi.core.reading import InvalidFileError, Limits, load_tensors, parse_object, read_layout, translate_file_errors
from sefi.core.text import dump_json
from sefi.diffusion.attention_maps import PromptAttention
from sefi.evaluation.encoders import ClipEncoder, DinoEncoder, ImageReader, SFaceEncoder
from sefi.evaluation.metrics import (
    blank_face,
    measure_margins,
    measure_mass_on_objects,
    measure_share_inside,
    measure_similarity,
)
from sefi.evaluation.second_recogniser import SecondEncoder
from sefi.photo.detect import Face, FaceEncoder, YuNetDetector, enlarge_image

LATER = ("dino", "second_recogniser")  # evaluators of which the first versions' records say nothing


@dataclass(frozen=True)
class EvaluatorFiles:
    """The files of the evaluators; None means that there is none.

    Attributes:
        detector: YuNet ONNX.
        recogniser: SFace ONNX.
        scene_reader: what the embedded model's own evaluators read from whole images; with `head_reader`.
        clip: folder of a `transformers.CLIPModel`.
        dino: folder of a `transformers.Dinov2Model`.
        second_recogniser: weights of the recogniser that methods may learn with; of the embedded model only.
    """

    detector: Path | None = None
    recogniser: Path | None = None
    scene_reader: Path | None = None
    head_reader: Path | None = None
    clip: Path | None = None
    dino: Path | None = None
    second_recogniser: Path | None = None

    def describe(self) -> dict[str, EvaluatorInfo | None]:
        """Return file and SHA-256 of each, for the record of a run; what older runs did not know only where it is."""
        files = {name: path for name, path in vars(self).items() if name not in LATER or path is not None}
        return {name: None if path is None else describe_file(path) for name, path in files.items()}


def describe_file(path: Path) -> EvaluatorInfo:
    """Return name and SHA-256 of a file, or of the weights that are loaded from a folder; empty where there are none.

    Of weights in several files it is that of all one after the other, in the order of their names.
    """
    files = list_loaded_files(path)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return EvaluatorInfo(file=path.name, sha256=digest.hexdigest() if files else "")


def list_loaded_files(path: Path) -> Sequence[Path]:
    """List the files that a network is loaded from: a file itself, or the weights in a folder; it may be none."""
    if is_regular_file(path):
        return [path]
    with suppress(BackboneError):
        return find_weights(path).files
    return []


@dataclass(frozen=True)
class Evaluation:
    """What the evaluators find in one image; None is not computed.

    Attributes:
        faces: surest first.
        embeddings: a unit vector per face.
        clip: unit vector of the image.
        background: the same with the surest face blanked.
        dino: DINOv2's unit vector of the image.
        second_embeddings: the second recogniser's unit vector per face.
    """

    faces: list[Face] | None
    embeddings: list[NDArray[np.float32]] | None
    clip: NDArray[np.float32] | None
    background: NDArray[np.float32] | None
    dino: NDArray[np.float32] | None = None
    second_embeddings: list[NDArray[np.float32]] | None = None


class Evaluators:
    """The evaluators of a run, opened once.

    Raises:
        BackboneError: a file that is named is missing or damaged.
    """

    def __init__(self, where: EvaluatorFiles) -> None:
        self.detector = None if where.detector is None else YuNetDetector(where.detector)
        self.recogniser = None if where.recogniser is None else SFaceEncoder(where.recogniser)
        both = where.scene_reader is not None and where.head_reader is not None
        self.reader = ImageReader(where.scene_reader, where.head_reader) if both else None  # pyright: ignore[reportArgumentType]
        self.clip = None if where.clip is None else ClipEncoder(where.clip)
        self.dino = None if where.dino is None else DinoEncoder(where.dino)
        self.second_recogniser = None if where.second_recogniser is None else SecondEncoder(where.second_recogniser)
        self.sentences: dict[str, NDArray[np.float32]] = {}

    def evaluate(self, rgb: NDArray[np.uint8]) -> Evaluation:
        """Evaluate an image `[height, width, 3]`."""
        large = enlarge_image(rgb)
        faces = None if self.detector is None else self.detector(large)
        embeddings, second = (embed_all(e, large, faces) for e in (self.recogniser, self.second_recogniser))
        dino = None if self.dino is None else self.dino(rgb)
        whole, background = None, None
        if self.clip is not None:
            blank = blank_face(rgb, compute_face_box(faces[0], large)) if faces else rgb
            if blank is None or faces is None:
                whole = self.clip.encode_images([rgb])[0]
            else:
                whole, background = self.clip.encode_images([rgb, blank])
        return Evaluation(faces, embeddings, whole, background, dino, second)

    def check(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Refuse what the readers cannot be asked.

        Raises:
            ConfigError: they do not know a kind or a label.
        """
        strange = [pair for pair in wanted if self.reader is not None and not self.reader.knows(*pair)]
        if strange:
            raise ConfigError(
                f"No evaluator recognises {strange[0][1]!r} as {strange[0][0]}.", "Correct `wanted` in the suite."
            )

    def find_shown(
        self, rgb: NDArray[np.uint8], evaluation: Evaluation, wanted: Sequence[tuple[str, str]]
    ) -> tuple[bool, ...] | None:
        """Return for each thing that is wanted whether it can be seen."""
        if self.reader is None or not wanted:
            return None
        reading = self.reader(enlarge_image(rgb), evaluation.faces[0] if evaluation.faces else None)
        return tuple(reading.shows(kind, label) for kind, label in wanted)

    def score_prompt(self, evaluation: Evaluation, text: str) -> float | None:
        """Return the raw CLIP cosine of image and sentence."""
        sentence = self.encode_sentence(text)
        return None if sentence is None or evaluation.clip is None else float(sentence @ evaluation.clip)

    def score_margin(self, evaluation: Evaluation, text: str, contrast: str) -> float | None:
        """Return how much nearer the image is to its sentence than to another one.

        The other one says what an image shows that does not follow its prompt.
        None where both sentences are the same: there is nothing to lead over.
        """
        wanted, other = self.encode_sentence(text), self.encode_sentence(contrast)
        if wanted is None or other is None or evaluation.clip is None or text == contrast:
            return None
        return float(measure_margins(evaluation.clip[None], wanted, other)[0])

    def find_cut_prompts(self, prompts: Iterable[str], class_word: str) -> list[str]:
        """Return the prompts of a suite that CLIP reads the beginning of; none without CLIP."""
        sentences = {prompt: make_sentence(prompt, class_word) for prompt in prompts}
        cut = set(self.clip.find_cut(sentences.values())) if self.clip is not None else set[str]()
        return [prompt for prompt, sentence in sentences.items() if sentence in cut]

    def encode_sentence(self, text: str) -> NDArray[np.float32] | None:
        """Return CLIP's unit vector of a sentence; each is encoded once, as a run needs the same few many times."""
        if self.clip is not None and text not in self.sentences:
            self.sentences[text] = self.clip.encode_texts([text])[0]
        return self.sentences.get(text)


def make_sentence(prompt: str, class_word: str) -> str:
    """Return the sentence that CLIP scores images by: a suite's prompt with the class word, without weights."""
    return strip_weights(prompt).replace("{}", class_word)


def embed_all(
    encoder: FaceEncoder | None, rgb: NDArray[np.uint8], faces: Sequence[Face] | None
) -> list[NDArray[np.float32]] | None:
    """Return a unit vector for each face of an image `[height, width, 3]`; None without a detector or recogniser."""
    if encoder is None or faces is None:
        return None
    return [np.asarray(encoder(rgb, face), np.float32) for face in faces]


def compute_face_box(face: Face, rgb: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a face as shares of the image."""
    height, width = rgb.shape[:2]
    right, bottom = face.left + face.width, face.top + face.height
    return face.left / width, face.top / height, right / width, bottom / height


def score_likeness(
    evaluation: Evaluation, subject_embeddings: Sequence[NDArray[np.float32] | None], *, second: bool = False
) -> tuple[float | None, float | None]:
    """Return the likeness of an image's faces to those who should be on it, and to the wrong ones of them.

    One person: the surest face against the one embedding; no face counts 0 (paper section 4.1). Two: the assignment
    of faces to people that is best in sum, the mean over the people; a person without a face counts 0. The second
    figure, for two people only, is the mean likeness of the assigned faces to the *other* person: identity leakage.

    Args:
        subject_embeddings: embedding of each subject; None where its own image has no face or there is no recogniser.
        second: they are the second recogniser's.
    """
    embeddings = evaluation.second_embeddings if second else evaluation.embeddings
    if embeddings is None or any(k is None for k in subject_embeddings):
        return None, None
    people = [k for k in subject_embeddings if k is not None]
    if len(people) == 1:
        return (measure_similarity(people[0], embeddings[0]) if embeddings else 0.0), None
    return assign_faces(embeddings, people[0], people[1])


def assign_faces(
    faces: Sequence[NDArray[np.float32]], first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[float, float | None]:
    """Return the mean likeness of two people to the faces that fit them best, and of those to the other person."""
    indices = range(len(faces))
    pairs = [(i, j) for i in indices for j in indices if i != j]
    if not pairs:
        likenesses = [max(measure_similarity(p, f) for p in (first, second)) for f in faces]
        return sum(likenesses) / 2, None
    table = np.array([[measure_similarity(p, f) for f in faces] for p in (first, second)])
    i, j = max(pairs, key=lambda ij: table[0, ij[0]] + table[1, ij[1]])
    return float(table[0, i] + table[1, j]) / 2, float(table[1, i] + table[0, j]) / 2


def round_embedding(values: NDArray[np.float32] | None, digits: int = 5) -> tuple[float, ...] | None:
    """Return an embedding, rounded, ready for a record; None if an entry is not finite."""
    return None if values is None or not np.isfinite(values).all() else tuple(round(float(v), digits) for v in values)


def drop_not_finite(score: float | None) -> float | None:
    """Return a score; None for one that is not finite, as from a network whose weights are damaged."""
    return None if score is None or not math.isfinite(score) else score


OBJECTS = ("action", "scene")  # what is next to a person; a smile or a hat lies on the face itself

Box = tuple[float, float, float, float]


class FocusScores(TypedDict):
    """The scores of attention, by the fields of a `Sample`."""

    focus: float | None
    on_objects: float | None
    focus_plain: float | None
    on_objects_plain: float | None


NO_FOCUS_SCORES = FocusScores(focus=None, on_objects=None, focus_plain=None, on_objects_plain=None)


def score_attention(
    attention: PromptAttention | None, wanted: Sequence[tuple[str, str]], evaluation: Evaluation, rgb: NDArray[np.uint8]
) -> FocusScores:
    """Return the share of the placeholder's attention inside the face, and of it on what other words draw.

    `_plain` is the same of the class word in the same image: without it the numbers have no zero. With two
    placeholders the shares are means. None where it is not known: no maps, no face, or no object is wanted.
    """
    if attention is None or not evaluation.faces:
        return NO_FOCUS_SCORES.copy()
    boxes = [compute_face_box(face, enlarge_image(rgb)) for face in evaluation.faces]
    labels = {label for kind, label in wanted if kind in OBJECTS}
    words = [i for i, word in enumerate(attention.words) if word.lower() in labels]
    focus, objects = measure_attention(attention.maps, attention.placeholders, words, boxes)
    plain, plain_objects = measure_attention(attention.reference_maps, attention.placeholders, words, boxes)
    return FocusScores(focus=focus, on_objects=objects, focus_plain=plain, on_objects_plain=plain_objects)


def measure_attention(
    maps: Tensor, placeholders: Sequence[int], words: Sequence[int], boxes: Sequence[Box]
) -> tuple[float | None, float | None]:
    """Return the share of the placeholders' attention inside the faces, and of it on what some words draw."""
    heat = maps.float().cpu().numpy()
    placeholder_maps = [heat[token_index] for token_index in placeholders]
    shares = [find_largest_share(one, boxes) for one in placeholder_maps]
    on_objects = [measure_mass_on_objects(one, heat[list(words)]) for one in placeholder_maps] if words else None
    objects = None if on_objects is None else float(np.mean(on_objects))
    return drop_not_finite(float(np.mean(shares))), drop_not_finite(objects)


def find_largest_share(heat: NDArray[np.float32], boxes: Sequence[Box]) -> float:
    """Return the share of one map inside the face that has most of it."""
    return max(float(measure_share_inside(heat, box)) for box in boxes)


KEY = "sefi-attention"
LIMITS = Limits(size=256 * 2**20, tensors=2, dtypes=frozenset({"F32"}))


class MapLabels(BaseModel):
    """The JSON text in the header of a file: a label for every token, and the positions of the identity's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...] = Field(min_length=1, max_length=512)
    placeholders: tuple[int, ...] = Field(max_length=512)


@dataclass(frozen=True)
class SavedMaps:
    """What `PromptAttention` holds, without the image.

    Attributes:
        words: one label per token.
        maps: `[word, height, width]` with the identity.
        reference: the same with the class word.
        placeholders: positions of the identity's words.
    """

    words: tuple[str, ...]
    maps: NDArray[np.float32]
    reference: NDArray[np.float32]
    placeholders: tuple[int, ...]


def write_maps(attention: PromptAttention, path: Path) -> None:
    """Write the maps beside the images, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "maps": attention.maps.float().cpu().contiguous().numpy(),
        "reference": attention.reference_maps.float().cpu().contiguous().numpy(),
    }
    about = {"words": list(attention.words), "placeholders": list(attention.placeholders)}
    write_file(path, lambda partial: save_file(tensors, partial, metadata={KEY: dump_json(about)}))


def read_maps(path: Path) -> SavedMaps:
    """Read what `write_maps` wrote.

    Raises:
        ConfigError: the file is damaged or something else.
    """
    remedy = "Remove it, and run the benchmark again."
    with translate_file_errors(path, ConfigError, "holds no attention maps", remedy):
        layout = read_layout(path, LIMITS)
        about = MapLabels.model_validate(parse_object(layout.metadata[KEY]))
        words, shape = len(about.words), layout.shapes["maps"]
        if set(layout.shapes) != {"maps", "reference"} or layout.shapes["reference"] != shape:
            raise InvalidFileError("the maps with and without the identity differ in shape")
        if len(shape) != 3 or shape[0] != words:
            raise InvalidFileError(f"maps of shape {shape} do not fit {words} words")
        if not all(0 <= token_index < words for token_index in about.placeholders):
            raise InvalidFileError("a placeholder is outside the sentence")
        tensors = load_tensors(path, "numpy")
        if not all(np.isfinite(maps).all() for maps in tensors.values()):
            raise InvalidFileError("a value is not finite")
        return SavedMaps(about.words, tensors["maps"], tensors["reference"], about.placeholders)
