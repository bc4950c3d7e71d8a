"""Thresholds that belong to the embedded model's judges, found on drawings that nobody was trained on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sefi.metrics.encoders import ClipEncoder
from sefi.metrics.gated import separating_tau
from sefi.metrics.verification import threshold_at_far
from sefi.photo.enlarge import LOOKING_SIDE
from sefi.world.clip_training import CLIP
from sefi.world.drawing import draw
from sefi.world.judging_data import HELD_OUT_SEED, pictures
from sefi.world.looking import Judges
from sefi.world.model_scores import known_face, wishes
from sefi.world.picture import Picture
from sefi.world.subjects import portrait, subject
from sefi.world.versions import SHIPPED

FAR = 1e-3
# Test people are numbered from 0; these are nobody's.
STRANGERS = range(100_000, 100_200)
PICTURES = 600


def drawn_tau(folder: Path) -> float:
    """Prompt score that best separates drawings that show what a sentence asks for from drawings that do not.

    The sentences are always the same, one for every attribute, action, scene and style: tau belongs to a CLIP, not to
    a suite.

    Args:
        folder: of the judges.
    """
    encoder, shown = ClipEncoder(folder / CLIP), pictures(HELD_OUT_SEED, 5000, PICTURES, SHIPPED)
    asked = [wish for wish in wishes(SHIPPED) if len(wish.wanted) == 1]
    scores = encoder.texts([w.prompt.format("person") for w in asked]) @ encoder.images([draw(p) for p in shown]).T
    right, wrong = list[float](), list[float]()
    for row, wish in zip(scores, asked, strict=True):
        obeys = np.array([obeyed(picture, wish.wanted) for picture in shown])
        # As many wrong ones as right ones: the rest of the drawings would only say how rare a thing is.
        disobeying = np.flatnonzero(~obeys)[: obeys.sum()]
        right += row[obeys].tolist()
        wrong += row[disobeying].tolist()
    return separating_tau(np.array(right), np.array(wrong))


def obeyed(picture: Picture, wanted: Sequence[tuple[str, str]]) -> bool:
    """Whether a drawing shows one person alone, and everything that is wanted."""
    if len(picture.subjects) != 1 or picture.pets:
        return False
    person = picture.subjects[0]
    there = {("scene", picture.scene), ("style", picture.style), ("action", person.action)}
    there |= {("attribute", a) for a in person.attributes}
    return set(map(tuple, wanted)) <= there


def drawn_far_threshold(folder: Path) -> float:
    """Likeness that one pair of different people in a thousand reaches, over plain portraits."""
    judges = Judges(folder)
    faces = np.stack([known_face(judges, draw(portrait(subject(n), n), LOOKING_SIDE)) for n in STRANGERS])
    known = faces[np.abs(faces).sum(1) > 0]
    pairs = np.triu_indices(len(known), 1)
    return threshold_at_far((known @ known.T)[pairs], FAR)
