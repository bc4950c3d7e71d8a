"""Drawings to learn from: whole series made by all cores, and faces and heads for the evaluators."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.core.errors import FaceError
from sefi.core.process import count_usable_cores
from sefi.core.progress import Progress
from sefi.evaluation.encoders import FACE_LANDMARKS, HEAD_LANDMARKS, align_face
from sefi.evaluation.second_recogniser import load_second_recogniser
from sefi.methods.name_encoder import NamePairs, find_name_tokens, pair_heads_with_names
from sefi.photo.augment import crop_face
from sefi.photo.detect import FaceDetector
from sefi.photo.read import Photo
from sefi.training.loop import compute_cosine_rate, set_rate
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, describe_face, draw, locate_heads
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, get_content, make_portrait, make_scene_photo, sample_content
from tiny_portraits.drawing.traits import Person, sample_person
from tiny_portraits.text.words import list_characters

CHUNK = 100
# The centre of the first face and its five landmarks.
POINTS = 6
Result = TypeVar("Result")
# The model is trained on seed 1; what evaluators are trained and tested on must be new to it.
EVALUATOR_SEED, HELD_OUT_SEED = 2, 3


def convert_to_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 `[batch, height, width, 3]` to float32 `[batch, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class DrawingSeries:
    """The first drawings of a seed.

    Attributes:
        images: uint8 `[count, side, side, 3]`, memory-mapped.
        faces: float32 `[count, POINTS, 2]`, x and y of the first face's points in pixels.
    """

    images: np.ndarray
    faces: np.ndarray


def run_in_processes(
    job: Callable[[range], Result], count: int, progress: Progress, label: str, chunk: int = CHUNK
) -> list[Result]:
    """Return what a job returns for every range of `chunk` numbers below `count`, in order, a process for each core."""
    ranges = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    progress.start(len(ranges), label)
    results = list[Result]()
    # Whoever launches work on a GPU meanwhile goes first.
    with ProcessPoolExecutor(count_usable_cores(), initializer=os.nice, initargs=(10,)) as pool:
        for result in pool.map(job, ranges):
            results.append(result)
            progress.advance()
    progress.finish()
    return results


def draw_series(folder: Path, seed: int, count: int, version: WorldVersion, progress: Progress) -> DrawingSeries:
    """Return the first drawings of a seed; drawn unless the files are there."""
    names = f"drawings-{seed}-{count}.npy", f"faces-{seed}-{count}.npy"
    files = [folder / name for name in names]
    if not all(file.is_file() for file in files):
        partials = [file.with_suffix(".partial") for file in files]
        side = version.side
        open_memmap(partials[0], "w+", np.uint8, (count, side, side, 3))
        open_memmap(partials[1], "w+", np.float32, (count, POINTS, 2))
        run_in_processes(partial(draw_range, partials, seed, version), count, progress, "drawings")
        for written, file in zip(partials, files, strict=True):
            written.replace(file)
    return DrawingSeries(*(np.load(file, mmap_mode="r") for file in files))


def draw_range(files: list[Path], seed: int, version: WorldVersion, numbers: range) -> None:
    """Draw some numbers of a seed into the two memory-mapped files."""
    images, faces = (np.load(file, mmap_mode="r+") for file in files)
    for number in numbers:
        shown = get_content(seed, number, version)
        images[number] = draw(shown, version.side)
        x, y, _, landmarks = locate_heads(shown)[0]
        faces[number] = np.stack([[x, y], *landmarks]) * version.side / UNITS


class StoredCrops:
    """Batches of crops from drawings that lie on a GPU; torch's random stream of that device chooses them.

    Args:
        images: uint8 `[count, side, side, 3]`.
        faces: `[count, POINTS, 2]`, as in `DrawingSeries`.
        crop: side of the crops in pixels, a multiple of `cell`; 0 takes whole drawings.
        face_share: share of the crops that lie on a face.
    """

    def __init__(self, images: Tensor, faces: Tensor, batch: int, crop: int, cell: int, face_share: float) -> None:
        self.images, self.faces, self.batch = images, faces, batch
        self.crop, self.cell, self.face_share = crop or images.shape[1], cell, face_share

    def draw_corners(self, numbers: Tensor) -> Tensor:
        """Return top and left of a crop of each drawing, `[batch, 2]`, on the border of a latent cell."""
        device, count = self.images.device, len(numbers)
        side, room = self.images.shape[1], (self.images.shape[1] - self.crop) // self.cell
        near_centre = self.crop * 2 >= side
        point = torch.zeros(count, dtype=torch.long, device=device)
        if not near_centre:
            point = torch.randint(1, POINTS, (count,), device=device)
        middle = self.faces[numbers, point].flip(1)
        near = middle - self.crop / 2 + (torch.rand(count, 2, device=device) * 4 - 2) * self.cell
        on_face = (near / self.cell).round().clamp(0, room).long()
        anywhere = torch.randint(0, room + 1, (count, 2), device=device)
        faced = torch.rand(count, 1, device=device) < self.face_share
        return torch.where(faced, on_face, anywhere) * self.cell

    def __call__(self, _step: int) -> Tensor:
        """Return crops `[batch, 3, crop, crop]` in [-1, 1]."""
        numbers = torch.randint(len(self.images), (self.batch,), device=self.images.device)
        corners = self.draw_corners(numbers)
        along = torch.arange(self.crop, device=self.images.device)
        rows, columns = corners[:, :1] + along, corners[:, 1:] + along
        crops = self.images[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2).float() / 127.5 - 1


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


def draw_face_crops(people: int, images: int, seed: int, style: str = "", version: WorldVersion = SHIPPED) -> FaceCrops:
    """Draw so many images of so many people, in this or any style, and align them with slightly wrong landmarks."""
    faces, vectors = [], []
    for number in range(people):
        random = np.random.default_rng([seed, 11, number])
        person = sample_person(random)
        vectors.append(person.get_vector())
        faces += [draw_face_crop(person, random, style, version) for _ in range(images)]
    return FaceCrops(np.stack(faces), np.repeat(np.arange(people), images), np.stack(vectors))


def draw_face_crop(
    person: Person, random: np.random.Generator, style: str = "", version: WorldVersion = SHIPPED
) -> np.ndarray:
    """Draw one aligned face from a random image of this person."""
    content = sample_content(random, (person,), version=version)
    return crop_first_face(replace(content, style=style or content.style), FACE_LANDMARKS, random)


def crop_first_face(content: ImageContent, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw at random size and return the first person's face, aligned to `places` by slightly wrong landmarks."""
    side = int(random.choice((96, 96, 128, 192)))
    points = np.array(describe_face(content.subjects[0])["landmarks"]) * side / UNITS
    return align_face(draw(content, side), points + random.normal(0, 0.008 * side, points.shape), places)


def draw_head_crops(count: int, seed: int, version: WorldVersion = SHIPPED) -> tuple[np.ndarray, list[ImageContent]]:
    """Draw heads, uint8 RGB `[head, 112, 112, 3]`, of so many images; return them and the contents."""
    heads, shown = [], []
    for number in range(count):
        random = np.random.default_rng([seed, 12, number])
        shown.append(sample_content(random, shares=PEOPLE_ONLY, version=version))
        heads.append(crop_first_face(shown[-1], HEAD_LANDMARKS, random))
    return np.stack(heads), shown


PHOTO_SIDE = 256  # pixels of a drawing before the face is cut out
PAIRED_SEED, FIRST_PAIRED = 77_001, 700_000  # of people and their drawings that nothing else uses
PAIRED_PEOPLE = 12_000
MAP_INNER = 512


class TokenMap(nn.Module):
    """A person's vector to the direction of the token that the model would know them by.

    The token table has rows for the named characters only; they are a smooth function of the vector.
    """

    mean: Tensor
    scale: Tensor
    norm: Tensor

    def __init__(self, vectors: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("scale", vectors.std(0).clamp(min=1e-3))
        self.register_buffer("norm", rows.norm(dim=-1).mean())
        self.layers = nn.Sequential(
            nn.Linear(vectors.shape[1], MAP_INNER),
            nn.SiLU(),
            nn.Linear(MAP_INNER, MAP_INNER),
            nn.SiLU(),
            nn.Linear(MAP_INNER, rows.shape[1]),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Return rows `[person, width]` of the token table for vectors `[person, VECTOR_WIDTH]`."""
        return self.norm * F.normalize(self.layers((vectors - self.mean) / self.scale), dim=-1)


def fit_token_map(vectors: Tensor, rows: Tensor, steps: int = 4000, seed: int = 0) -> TokenMap:
    """Fit a map to the vectors `[person, VECTOR_WIDTH]` and the rows `[person, width]` of people who have names."""
    torch.manual_seed(seed)
    token_map = TokenMap(vectors, rows)
    optimiser = torch.optim.AdamW(token_map.parameters(), lr=2e-3, weight_decay=0.1)
    for step in range(steps):
        chosen = torch.randint(len(rows), (128,))
        loss = (token_map(vectors[chosen]) - rows[chosen]).pow(2).sum(-1).mean() / token_map.norm**2
        set_rate(optimiser, compute_cosine_rate(step, steps, 2e-3))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return token_map.requires_grad_(requires_grad=False)


def collect_vectors(people: Sequence[Person]) -> Tensor:
    """Return the vectors of people, `[person, VECTOR_WIDTH]`."""
    return torch.from_numpy(np.stack([one.get_vector() for one in people]).astype(np.float32))


def pair_drawings_with_names(
    backbone: Backbone, detector: FaceDetector, progress: Progress, count: int = PAIRED_PEOPLE, map_steps: int = 4000
) -> NamePairs:
    """Pair drawings of new people with the tokens that names of theirs would have: a plain portrait and one in a scene.

    They are cut out as photos to learn from are. Their tokens are those of `fit_token_map`, fitted to all named
    characters.

    Args:
        count: of people, the first ones.
        map_steps: of that fit.
    """
    characters = list_characters()
    rows = find_name_tokens(backbone, [one.name for one in characters], words=1)
    known = torch.cat([rows[one.name] for one in characters])
    token_map = fit_token_map(collect_vectors([one.person for one in characters]), known, map_steps)

    def cut_out() -> Iterator[tuple[int, Tensor, Tensor]]:
        for number in range(count):
            person = sample_person(np.random.default_rng([PAIRED_SEED, number]))
            row = token_map(collect_vectors([person]))
            for make in (make_portrait, make_scene_photo):
                rgb = draw(make(person, FIRST_PAIRED + number), PHOTO_SIDE)
                photo = Photo(convert_to_tensor(rgb[None])[0], "a drawing")
                # A face that is not found is left out, as those are that the cut-out square does not show.
                with suppress(FaceError):
                    yield number, crop_face(photo, detector, backbone.resolution), row
            progress.advance()

    progress.start(count, "drawing people")
    pairs = pair_heads_with_names(backbone, cut_out(), detector, load_second_recogniser())
    progress.finish()
    return pairs


def list_contents(seed: int, start: int, count: int, version: WorldVersion = SHIPPED) -> list[ImageContent]:
    """Return the contents of numbered images of a seed."""
    return [get_content(seed, i, version) for i in range(start, start + count)]


def roughen_images(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return float32 images in [0, 255] with a little blur, noise and colour shift, as if generated."""
    rough = images.astype(np.float32)
    for image in rough:
        if random.random() < 0.6:
            cv2.GaussianBlur(image, (0, 0), float(random.uniform(0.3, 1.3)), dst=image)
    gain = random.uniform(0.9, 1.1, (len(rough), 1, 1, 3)).astype(np.float32)
    noise = random.standard_normal(rough.shape, np.float32) * random.uniform(0, 7, (len(rough), 1, 1, 1)).astype(
        np.float32
    )
    return np.clip(rough * gain + noise, 0, 255)
