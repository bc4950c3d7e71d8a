"""Drawings for the judges: other seeds and other people than the model's, roughened like generated pictures."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from sefi.metrics.align import FACE, HEAD, aligned
from sefi.world.data import picture_at
from sefi.world.drawing import UNITS, draw, face_truth
from sefi.world.person import Person, random_person
from sefi.world.picture import Picture
from sefi.world.sampling import PEOPLE_ONLY, random_picture
from sefi.world.versions import FOURTH, WorldVersion

# The model is trained on seed 1; what judges are trained and tested on must be new to it.
JUDGE_SEED, HELD_OUT_SEED = 2, 3


@dataclass(frozen=True)
class FaceCrops:
    """Aligned faces.

    Attributes:
        faces: uint8 RGB `[crop, 112, 112, 3]`.
        person: number of the person on each crop, `[crop]`.
        vectors: identity vector of every person, `[person, VECTOR_WIDTH]`.
    """

    faces: np.ndarray
    person: np.ndarray
    vectors: np.ndarray


def face_crops(people: int, pictures: int, seed: int, style: str = "", version: WorldVersion = FOURTH) -> FaceCrops:
    """So many pictures of each of so many people, drawn in this or any style, aligned with slightly wrong landmarks."""
    faces, vectors = [], []
    for number in range(people):
        random = np.random.default_rng([seed, 11, number])
        person = random_person(random)
        vectors.append(person.vector())
        faces += [face_crop(person, random, style, version) for _ in range(pictures)]
    return FaceCrops(np.stack(faces), np.repeat(np.arange(people), pictures), np.stack(vectors))


def face_crop(
    person: Person, random: np.random.Generator, style: str = "", version: WorldVersion = FOURTH
) -> np.ndarray:
    """One aligned face from a random picture of this person."""
    picture = random_picture(random, (person,), version=version)
    return crop_of(replace(picture, style=style or picture.style), FACE, random)


def crop_of(picture: Picture, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The first person's face, from a drawing of random size and slightly wrong landmarks, aligned to `places`."""
    side = int(random.choice((96, 96, 128, 192)))
    points = np.array(face_truth(picture.subjects[0])["landmarks"]) * side / UNITS
    return aligned(draw(picture, side), points + random.normal(0, 0.008 * side, points.shape), places)


def head_crops(count: int, seed: int, version: WorldVersion = FOURTH) -> tuple[np.ndarray, list[Picture]]:
    """Heads uint8 RGB `[head, 112, 112, 3]` of so many pictures, and the pictures."""
    heads, shown = [], []
    for number in range(count):
        random = np.random.default_rng([seed, 12, number])
        shown.append(random_picture(random, shares=PEOPLE_ONLY, version=version))
        heads.append(crop_of(shown[-1], HEAD, random))
    return np.stack(heads), shown


def pictures(seed: int, start: int, count: int, version: WorldVersion = FOURTH) -> list[Picture]:
    """Numbered pictures of a seed."""
    return [picture_at(seed, i, version) for i in range(start, start + count)]


def roughened(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Float32 images `[batch, h, w, 3]` in [0, 255] with a little blur, noise and colour shift, as if generated."""
    rough = images.astype(np.float32)
    for image in rough:
        if random.random() < 0.6:
            cv2.GaussianBlur(image, (0, 0), float(random.uniform(0.3, 1.3)), dst=image)
    gain = random.uniform(0.9, 1.1, (len(rough), 1, 1, 3)).astype(np.float32)
    noise = random.standard_normal(rough.shape, np.float32) * random.uniform(0, 7, (len(rough), 1, 1, 1)).astype(
        np.float32
    )
    return np.clip(rough * gain + noise, 0, 255)
