"""Numbered random pictures, drawn once into a memory-mapped file that training reads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from sefi.core.files import write_file
from sefi.core.protocols import Progress
from sefi.world.drawing import SIDE, draw
from sefi.world.picture import Picture
from sefi.world.sampling import random_picture
from sefi.world.versions import FIFTH, FOURTH, WorldVersion

CHUNK = 500
# The series that the model is trained on; judges have series of their own.
MODEL_SEED = 1


def picture_at(seed: int, index: int, version: WorldVersion = FOURTH) -> Picture:
    """The index-th picture of a seed's endless series."""
    return random_picture(np.random.default_rng([seed, index]), version=version)


def drawings(path: Path, seed: int, count: int, progress: Progress, workers: int = 2) -> np.ndarray:
    """The first `count` drawings of a seed, uint8 `[count, 96, 96, 3]`, read-only; drawn unless the file is there."""

    def fill(images: np.ndarray) -> None:
        starts = range(0, count, CHUNK)
        progress.start(len(starts), "drawing")
        with ProcessPoolExecutor(workers) as pool:
            jobs = [(seed, start, min(start + CHUNK, count)) for start in starts]
            for (_, start, end), drawn in zip(jobs, pool.map(draw_range, jobs), strict=True):
                images[start:end] = drawn
                progress.advance()
        progress.finish()

    return kept(path, (count, SIDE, SIDE, 3), np.uint8, fill)


def kept(path: Path, shape: tuple[int, ...], dtype: type, fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The array of a file, memory-mapped, read-only; unless the file is there, `fill` makes it, whole or not at all."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(partial: Path) -> None:
            made = open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
            fill(made)
            made.flush()

        write_file(path, write)
    return np.load(path, mmap_mode="r")


def draw_range(job: tuple[int, int, int]) -> np.ndarray:
    """Pictures start to end of a seed, drawn; job is (seed, start, end)."""
    seed, start, end = job
    return np.stack([draw(picture_at(seed, i)) for i in range(start, end)])


def draw_numbers(numbers: Iterable[int], seed: int = MODEL_SEED, version: WorldVersion = FIFTH) -> np.ndarray:
    """Return the numbered drawings of a seed, uint8 `[count, side, side, 3]`."""
    return np.stack([draw(picture_at(seed, number, version), version.side) for number in numbers])
