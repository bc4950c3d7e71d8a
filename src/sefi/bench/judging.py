"""COMPOSER: a picture to its scores, by whichever judges there are; a missing judge gives None, never 0."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sefi.bench.records import EvaluatorInfo
from sefi.core.errors import ConfigError
from sefi.core.nouns import Face
from sefi.metrics.encoders import ClipEncoder, Reader, SFaceEncoder
from sefi.metrics.leakage import without_face
from sefi.metrics.margin import margin
from sefi.metrics.similarity import similarity
from sefi.photo.detect import YuNetDetector
from sefi.photo.enlarge import enlarged


@dataclass(frozen=True)
class JudgeFiles:
    """Where the judges lie; None means that there is none.

    Attributes:
        detector: YuNet ONNX.
        recogniser: SFace ONNX.
        scene_reader: what the embedded model's own judges read from whole pictures; with `head_reader`.
        clip: folder of a `transformers.CLIPModel`.
    """

    detector: Path | None = None
    recogniser: Path | None = None
    scene_reader: Path | None = None
    head_reader: Path | None = None
    clip: Path | None = None

    def told(self) -> dict[str, EvaluatorInfo | None]:
        """File and SHA-256 of each, for the record of a run."""
        return {name: None if path is None else told_file(path) for name, path in vars(self).items()}


def told_file(path: Path) -> EvaluatorInfo:
    """Name and SHA-256 of a file, or of the weights in a folder."""
    weights = next(iter(sorted(path.glob("*.safetensors"))), None) if path.is_dir() else path
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights is not None and weights.is_file() else ""
    return EvaluatorInfo(file=path.name, sha256=digest)


@dataclass(frozen=True)
class Seen:
    """What the judges make of one picture; None is not computed.

    Attributes:
        faces: surest first.
        embeddings: a unit vector per face.
        clip: unit vector of the picture.
        background: the same with the surest face blanked.
    """

    faces: list[Face] | None
    embeddings: list[NDArray[np.float32]] | None
    clip: NDArray[np.float32] | None
    background: NDArray[np.float32] | None


class Judging:
    """The judges of a run, opened once.

    Raises:
        BackboneError: a file that is named is missing or damaged.
    """

    def __init__(self, where: JudgeFiles) -> None:
        self.detect = None if where.detector is None else YuNetDetector(where.detector)
        self.encode = None if where.recogniser is None else SFaceEncoder(where.recogniser)
        both = where.scene_reader is not None and where.head_reader is not None
        self.read = Reader(where.scene_reader, where.head_reader) if both else None  # pyright: ignore[reportArgumentType]
        self.clip = None if where.clip is None else ClipEncoder(where.clip)
        self.sentences: dict[str, NDArray[np.float32]] = {}

    def see(self, rgb: NDArray[np.uint8]) -> Seen:
        """Look at a picture `[height, width, 3]`."""
        large = enlarged(rgb)
        faces = None if self.detect is None else self.detect(large)
        embeddings = None
        if faces is not None and self.encode is not None:
            embeddings = [np.asarray(self.encode(large, face)) for face in faces]
        if self.clip is None:
            return Seen(faces, embeddings, None, None)
        blank = without_face(rgb, box_of(faces[0], large)) if faces else rgb
        if blank is None or faces is None:
            return Seen(faces, embeddings, self.clip.images([rgb])[0], None)
        whole, background = self.clip.images([rgb, blank])
        return Seen(faces, embeddings, whole, background)

    def check(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Refuse what the readers cannot be asked.

        Raises:
            ConfigError: they do not know a kind or a label.
        """
        strange = [pair for pair in wanted if self.read is not None and not self.read.knows(*pair)]
        if strange:
            raise ConfigError(f"The readers know no {strange[0][0]} {strange[0][1]!r}.", "Mend `wanted` in the suite.")

    def shown(self, rgb: NDArray[np.uint8], seen: Seen, wanted: Sequence[tuple[str, str]]) -> tuple[bool, ...] | None:
        """Whether each thing that is wanted can be seen."""
        if self.read is None or not wanted:
            return None
        reading = self.read(enlarged(rgb), seen.faces[0] if seen.faces else None)
        return tuple(reading.shows(kind, label) for kind, label in wanted)

    def prompt_score(self, seen: Seen, text: str) -> float | None:
        """Raw CLIP cosine of picture and sentence."""
        sentence = self.sentence(text)
        return None if sentence is None or seen.clip is None else float(sentence @ seen.clip)

    def margin(self, seen: Seen, text: str, contrast: str) -> float | None:
        """How much nearer the picture is to its sentence than to another one, which a disobedient picture shows.

        None where both sentences are the same: there is nothing to lead over.
        """
        wanted, other = self.sentence(text), self.sentence(contrast)
        if wanted is None or other is None or seen.clip is None or text == contrast:
            return None
        return float(margin(seen.clip[None], wanted, other)[0])

    def sentence(self, text: str) -> NDArray[np.float32] | None:
        """CLIP's unit vector of a sentence; each is encoded once, as a run asks for the same few with every picture."""
        if self.clip is not None and text not in self.sentences:
            self.sentences[text] = self.clip.texts([text])[0]
        return self.sentences.get(text)


def box_of(face: Face, rgb: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a face as shares of the picture."""
    height, width = rgb.shape[:2]
    right, bottom = face.left + face.width, face.top + face.height
    return face.left / width, face.top / height, right / width, bottom / height


def likeness(seen: Seen, known: Sequence[NDArray[np.float32] | None]) -> tuple[float | None, float | None]:
    """Likeness of a picture's faces to those who should be on it, and to the wrong ones of them.

    One person: the surest face against the one embedding; no face counts 0 (paper section 4.1). Two: the assignment
    of faces to people that is best in sum, the mean over the people; a person without a face counts 0. The second
    figure, for two people only, is the mean likeness of the assigned faces to the *other* person: identity leakage.

    Args:
        known: embedding of each subject; None where its own picture has no face or there is no recogniser.
    """
    if seen.embeddings is None or any(k is None for k in known):
        return None, None
    people = [k for k in known if k is not None]
    if len(people) == 1:
        return (similarity(people[0], seen.embeddings[0]) if seen.embeddings else 0.0), None
    return assigned(seen.embeddings, people[0], people[1])


def assigned(
    faces: Sequence[NDArray[np.float32]], first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[float, float | None]:
    """Mean likeness of two people to the faces that suit them best, and of those faces to the other person."""
    places = range(len(faces))
    pairs = [(i, j) for i in places for j in places if i != j]
    if not pairs:
        own = [max(similarity(p, f) for p in (first, second)) for f in faces]
        return sum(own) / 2, None
    table = np.array([[similarity(p, f) for f in faces] for p in (first, second)])
    i, j = max(pairs, key=lambda ij: table[0, ij[0]] + table[1, ij[1]])
    return float(table[0, i] + table[1, j]) / 2, float(table[1, i] + table[0, j]) / 2


def plain_numbers(values: NDArray[np.float32] | None, digits: int = 5) -> tuple[float, ...] | None:
    """Return an embedding, rounded, ready for a record; None if an entry is not finite."""
    return None if values is None or not np.isfinite(values).all() else tuple(round(float(v), digits) for v in values)


def finite_or_none(score: float | None) -> float | None:
    """Return a score; None for one that is not finite, as from a network whose weights are damaged."""
    return None if score is None or not math.isfinite(score) else score
