"""How the judges do, as exported, on drawings that neither they nor the model have seen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sefi.core.nouns import Face
from sefi.metrics.align import FACE
from sefi.metrics.encoders import LabelledNetwork, SFaceEncoder
from sefi.metrics.faces import DETECTOR, RECOGNISER
from sefi.photo.detect import YuNetDetector
from sefi.world.clip_scores import score_clip_judge
from sefi.world.drawing import UNITS, draw, face_truth
from sefi.world.figure import Figure
from sefi.world.judges import HEAD_READER, SCENE_READER, drawn
from sefi.world.judging_data import HELD_OUT_SEED, face_crops, head_crops, pictures
from sefi.world.picture import Subject
from sefi.world.reader_training import ATTRIBUTE_GROUP, head_labels, reading_accuracy, scene_labels
from sefi.world.recogniser_training import verification
from sefi.world.versions import FOURTH, WorldVersion

# Landmarks of a face that is aligned already.
ALIGNED = Face(0.0, 0.0, 112.0, 112.0, tuple((float(x), float(y)) for x, y in FACE), 1.0)


def score_detector(folder: Path, count: int = 300, version: WorldVersion = FOURTH) -> list[Figure]:
    """Recall at three picture sizes."""
    detector, shown = YuNetDetector(folder / DETECTOR), pictures(HELD_OUT_SEED, 0, count, version)
    figures: list[Figure] = []
    for side in (96, 256, 512):
        found = [hits(detector(draw(p, side)), [face_box(s, side) for s in p.subjects]) for p in shown]
        right, faces, extra = (sum(column) for column in zip(*found, strict=True))
        figures += [
            Figure(f"detector: recall at IoU 0.5, {side} pixels", right / faces, 0.99, faces),
            Figure(f"detector: false faces a picture, {side} pixels", extra / count, None, count),
        ]
    return figures


def face_box(subject: Subject, side: int) -> np.ndarray:
    """Left, top, width and height of a drawn face in pixels."""
    return np.array(face_truth(subject)["box"]) * side / UNITS


def hits(found: list[Face], boxes: list[np.ndarray]) -> tuple[int, int, int]:
    """Boxes found, boxes there, and faces found that are none."""
    right = sum(any(overlap(box, face) > 0.5 for face in found) for box in boxes)
    return right, len(boxes), len(found) - right


def overlap(box: np.ndarray, face: Face) -> float:
    """Area of the common part over the area of both; box is (left, top, width, height)."""
    left, top = max(box[0], face.left), max(box[1], face.top)
    right, bottom = min(box[0] + box[2], face.left + face.width), min(box[1] + box[3], face.top + face.height)
    common = max(0.0, right - left) * max(0.0, bottom - top)
    return float(common / (box[2] * box[3] + face.width * face.height - common))


def score_recogniser(folder: Path, people: int = 250, version: WorldVersion = FOURTH) -> list[Figure]:
    """True accepts at one false accept in a thousand, over pairs of pictures of unseen people.

    Of photos, as every recogniser is measured, and over all styles: 32 x 32 pixels of a mosaic hold few faces apart.
    """
    encoder, figures = SFaceEncoder(folder / RECOGNISER), list[Figure]()
    for style, named, target in (("photo", "photos", 0.95), ("", "all styles", None)):
        crops = face_crops(people, 4, HELD_OUT_SEED, style, version)
        found = verification(np.stack([encoder(face, ALIGNED) for face in crops.faces]), crops.person)
        figures += [
            Figure(f"recogniser: TAR at FAR 1e-3, {named}", found["tar"], target, len(crops.person)),
            Figure(f"recogniser: similarity, same person, {named}", found["same"], None, len(crops.person)),
            Figure(f"recogniser: similarity, other person, {named}", found["other"], None, len(crops.person)),
        ]
    return figures


def score_scene_reader(folder: Path, count: int = 1000, version: WorldVersion = FOURTH) -> list[Figure]:
    """Accuracy of action, scene and style."""
    shown = pictures(HELD_OUT_SEED, 0, count, version)
    scores = reading_accuracy(readings(folder / SCENE_READER, drawn(shown)), scene_labels(shown, version))
    return [Figure(f"reader: {name}", value, 0.97, count) for name, value in scores.items()]


def score_head_reader(folder: Path, count: int = 1000, version: WorldVersion = FOURTH) -> list[Figure]:
    """Balanced accuracy of the attributes."""
    heads, shown = head_crops(count, HELD_OUT_SEED, version)
    labels, found = head_labels(shown, version), readings(folder / HEAD_READER, heads)
    scores = reading_accuracy(found, labels, version.attributes)
    return [
        Figure(f"reader: {name}", value, 0.95 if name == ATTRIBUTE_GROUP else None, count)
        for name, value in scores.items()
    ]


def readings(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """A labelled network's probabilities for many pictures: group to `[picture, option]`."""
    network = LabelledNetwork(path)
    found = [network(image) for image in images]
    return {group: np.array([list(f[group].values()) for f in found]) for group in network.labels}


SCORES: dict[str, Callable[..., list[Figure]]] = {
    "detector": score_detector,
    "recogniser": score_recogniser,
    "scene-reader": score_scene_reader,
    "head-reader": score_head_reader,
    "clip": score_clip_judge,
}
