"""Scores of the evaluators on drawings that neither they nor the model have seen, and their thresholds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sefi.evaluation.encoders import DETECTOR, FACE_LANDMARKS, RECOGNISER, ClipEncoder, LabelledNetwork, SFaceEncoder
from sefi.evaluation.metrics import find_separating_tau, find_threshold_at_far
from sefi.evaluation.second_recogniser import SECOND_RECOGNISER, SecondEncoder
from sefi.photo.detect import LOOKING_SIDE, Face, FaceEncoder, YuNetDetector
from tiny_portraits.drawing.content import SHIPPED, ImageContent, Subject, WorldVersion
from tiny_portraits.drawing.image import UNITS, describe_face, draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person
from tiny_portraits.evaluation.figures import Figure, ImageEvaluators, embed_face
from tiny_portraits.evaluation.model_scores import list_wishes
from tiny_portraits.text.captions import remove_names, write_caption
from tiny_portraits.training.clip import CLIP
from tiny_portraits.training.drawings import HELD_OUT_SEED, draw_face_crops, draw_head_crops, list_contents
from tiny_portraits.training.evaluators import HEAD_READER, SCENE_READER, draw_all
from tiny_portraits.training.readers import ATTRIBUTE_GROUP, label_heads, label_scenes, measure_accuracy
from tiny_portraits.training.recognisers import measure_verification

# Landmarks of a face that is aligned already.
ALIGNED = Face(0.0, 0.0, 112.0, 112.0, tuple((float(x), float(y)) for x, y in FACE_LANDMARKS), 1.0)
CHOICES = 32
FAR = 1e-3
# Test people are numbered from 0; these are nobody's.
STRANGERS = range(100_000, 100_200)
DRAWINGS = 600


def score_detector(folder: Path, count: int = 300, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return the recall at three image sizes."""
    detector, shown = YuNetDetector(folder / DETECTOR), list_contents(HELD_OUT_SEED, 0, count, version)
    figures: list[Figure] = []
    for side in (96, 256, 512):
        counts = [count_hits(detector(draw(p, side)), [get_face_box(s, side) for s in p.subjects]) for p in shown]
        right, faces, extra = (sum(column) for column in zip(*counts, strict=True))
        figures += [
            Figure(f"detector: recall at IoU 0.5, {side} pixels", right / faces, 0.99, faces),
            Figure(f"detector: false faces a picture, {side} pixels", extra / count, None, count),
        ]
    return figures


def get_face_box(subject: Subject, side: int) -> np.ndarray:
    """Return left, top, width and height of a drawn face in pixels."""
    return np.array(describe_face(subject)["box"]) * side / UNITS


def count_hits(faces: list[Face], boxes: list[np.ndarray]) -> tuple[int, int, int]:
    """Return how many boxes are found, how many there are, and how many faces found are none."""
    right = sum(any(measure_overlap(box, face) > 0.5 for face in faces) for box in boxes)
    return right, len(boxes), len(faces) - right


def measure_overlap(box: np.ndarray, face: Face) -> float:
    """Return the area of the common part over the area of both; box is (left, top, width, height)."""
    left, top = max(box[0], face.left), max(box[1], face.top)
    right, bottom = min(box[0] + box[2], face.left + face.width), min(box[1] + box[3], face.top + face.height)
    common = max(0.0, right - left) * max(0.0, bottom - top)
    return float(common / (box[2] * box[3] + face.width * face.height - common))


def score_recogniser(folder: Path, people: int = 250, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return the figures of the recogniser that evaluates, as `score_verification` does."""
    return score_verification(SFaceEncoder(folder / RECOGNISER), "recogniser", people, version)


def score_second_recogniser(folder: Path, people: int = 250, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return the figures of the recogniser that methods may learn with, of the same people."""
    encoder = SecondEncoder(folder / SECOND_RECOGNISER)
    return score_verification(encoder, "second recogniser", people, version)


def score_verification(encoder: FaceEncoder, label: str, people: int, version: WorldVersion) -> list[Figure]:
    """Return the true accepts at one false accept in a thousand, over pairs of images of unseen people.

    Of photos, as every recogniser is measured, and over all styles: 32 x 32 pixels of a mosaic hold few faces apart.
    """
    figures = list[Figure]()
    for style, named, target in (("photo", "photos", 0.95), ("", "all styles", None)):
        crops = draw_face_crops(people, 4, HELD_OUT_SEED, style, version)
        similarities = measure_verification(np.stack([encoder(face, ALIGNED) for face in crops.faces]), crops.person)
        figures += [
            Figure(f"{label}: TAR at FAR 1e-3, {named}", similarities["tar"], target, len(crops.person)),
            Figure(f"{label}: similarity, same person, {named}", similarities["same"], None, len(crops.person)),
            Figure(f"{label}: similarity, other person, {named}", similarities["other"], None, len(crops.person)),
        ]
    return figures


def score_scene_reader(folder: Path, count: int = 1000, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return the accuracy of action, scene and style."""
    shown = list_contents(HELD_OUT_SEED, 0, count, version)
    scores = measure_accuracy(read_images(folder / SCENE_READER, draw_all(shown)), label_scenes(shown))
    return [Figure(f"reader: {name}", value, 0.97, count) for name, value in scores.items()]


def score_head_reader(folder: Path, count: int = 1000, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return the balanced accuracy of the attributes."""
    heads, shown = draw_head_crops(count, HELD_OUT_SEED, version)
    labels, probabilities = label_heads(shown), read_images(folder / HEAD_READER, heads)
    scores = measure_accuracy(probabilities, labels)
    return [
        Figure(f"reader: {name}", value, 0.95 if name == ATTRIBUTE_GROUP else None, count)
        for name, value in scores.items()
    ]


def read_images(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return a labelled network's probabilities for many images: group to `[image, option]`."""
    network = LabelledNetwork(path)
    outputs = [network(image) for image in images]
    return {group: np.array([list(f[group].values()) for f in outputs]) for group in network.labels}


def score_clip_evaluator(folder: Path, count: int = 600, version: WorldVersion = SHIPPED) -> list[Figure]:
    """Return how many drawings find their own caption among 32, and the similarity to their own and to other captions.

    Captions that say the same in other words, or less, keep the share from 1.

    Args:
        folder: of the evaluators; CLIP lies in its folder `clip`.
    """
    encoder, shown = ClipEncoder(folder / CLIP), list_contents(HELD_OUT_SEED, 0, count, version)
    captions = [
        remove_names(write_caption(p, np.random.default_rng([HELD_OUT_SEED, 31, i])).text) for i, p in enumerate(shown)
    ]
    nearness = encoder.encode_images([draw(p) for p in shown]) @ encoder.encode_texts(captions).T
    matching = np.diag(nearness)
    others = np.stack([nearness[i, choose_other_captions(captions, i)] for i in range(count)])
    return [
        Figure(f"judge CLIP: own caption found among {CHOICES}", float((matching > others.max(1)).mean()), None, count),
        Figure("judge CLIP: similarity, own caption", float(matching.mean()), None, count),
        Figure("judge CLIP: similarity, other caption", float(others.mean()), None, count),
    ]


def choose_other_captions(captions: Sequence[str], number: int) -> np.ndarray:
    """Return the numbers of at most 31 captions that say something else."""
    different = np.flatnonzero(np.array(captions) != captions[number])
    return np.random.default_rng([HELD_OUT_SEED, 32, number]).permutation(different)[: CHOICES - 1]


def find_drawing_tau(folder: Path) -> float:
    """Return the prompt score that best separates drawings that show what is asked for from drawings that do not.

    The sentences are always the same, one for every attribute, action, scene and style: tau belongs to a CLIP, not to
    a suite.

    Args:
        folder: of the evaluators.
    """
    encoder, shown = ClipEncoder(folder / CLIP), list_contents(HELD_OUT_SEED, 5000, DRAWINGS)
    asked = [wish for wish in list_wishes() if len(wish.wanted) == 1]
    scores = (
        encoder.encode_texts([w.prompt.format("person") for w in asked])
        @ encoder.encode_images([draw(p) for p in shown]).T
    )
    right, wrong = list[float](), list[float]()
    for row, wish in zip(scores, asked, strict=True):
        follows = np.array([shows_wanted(content, wish.wanted) for content in shown])
        # As many wrong ones as right ones: the rest of the drawings would only say how rare a thing is.
        failing = np.flatnonzero(~follows)[: follows.sum()]
        right += row[follows].tolist()
        wrong += row[failing].tolist()
    return find_separating_tau(np.array(right), np.array(wrong))


def shows_wanted(content: ImageContent, wanted: Sequence[tuple[str, str]]) -> bool:
    """Return whether a drawing shows one person alone, and everything that is wanted."""
    if len(content.subjects) != 1 or content.pets:
        return False
    person = content.subjects[0]
    labels = {("scene", content.scene), ("style", content.style), ("action", person.action)}
    labels |= {("attribute", a) for a in person.attributes}
    return set(map(tuple, wanted)) <= labels


def find_drawing_far_threshold(folder: Path) -> float:
    """Return the likeness that one pair of different people in a thousand reaches, over plain portraits."""
    evaluators = ImageEvaluators(folder)
    faces = np.stack(
        [embed_face(evaluators, draw(make_portrait(make_test_person(n), n), LOOKING_SIDE)) for n in STRANGERS]
    )
    detected = faces[np.abs(faces).sum(1) > 0]
    pairs = np.triu_indices(len(detected), 1)
    return find_threshold_at_far((detected @ detected.T)[pairs], FAR)


SCORES: dict[str, Callable[..., list[Figure]]] = {
    "detector": score_detector,
    "recogniser": score_recogniser,
    "scene-reader": score_scene_reader,
    "head-reader": score_head_reader,
    "clip": score_clip_evaluator,
}
