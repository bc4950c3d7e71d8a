"""Numbered drawings and where their faces are, drawn by several processes into memory-mapped files."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from sefi.core.protocols import Progress
from sefi.core.threads import count_usable_cores
from sefi.world.data import picture_at
from sefi.world.drawing import UNITS, draw, heads
from sefi.world.versions import WorldVersion

CHUNK = 100
# The centre of the first face and its five landmarks.
POINTS = 6


@dataclass(frozen=True)
class DrawnSeries:
    """The first drawings of a seed.

    Attributes:
        images: uint8 `[count, side, side, 3]`, memory-mapped.
        faces: float32 `[count, POINTS, 2]`, x and y of the first face's points in pixels.
    """

    images: np.ndarray
    faces: np.ndarray


Result = TypeVar("Result")


def run_in_processes(
    job: Callable[[range], Result], count: int, progress: Progress, label: str, chunk: int = CHUNK
) -> list[Result]:
    """Return what a job returns for every range of `chunk` numbers below `count`, in order, a process for each core."""
    ranges = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    progress.start(len(ranges), label)
    found = list[Result]()
    # Whoever launches work on a GPU meanwhile goes first.
    with ProcessPoolExecutor(count_usable_cores(), initializer=os.nice, initargs=(10,)) as pool:
        for result in pool.map(job, ranges):
            found.append(result)
            progress.advance()
    progress.finish()
    return found


def draw_series(folder: Path, seed: int, count: int, version: WorldVersion, progress: Progress) -> DrawnSeries:
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
    return DrawnSeries(*(np.load(file, mmap_mode="r") for file in files))


def draw_range(files: list[Path], seed: int, version: WorldVersion, numbers: range) -> None:
    """Draw some numbers of a seed into the two memory-mapped files."""
    images, faces = (np.load(file, mmap_mode="r+") for file in files)
    for number in numbers:
        shown = picture_at(seed, number, version)
        images[number] = draw(shown, version.side)
        x, y, _, landmarks = heads(shown)[0]
        faces[number] = np.stack([[x, y], *landmarks]) * version.side / UNITS


class StoredCrops:
    """Batches of crops from drawings that lie on a GPU; torch's random stream of that device chooses them.

    Args:
        images: uint8 `[count, side, side, 3]`.
        faces: `[count, POINTS, 2]`, as in `DrawnSeries`.
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
        found = self.images[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
        return found.permute(0, 3, 1, 2).float() / 127.5 - 1
