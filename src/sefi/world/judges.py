"""COMPOSER: the judges, trained on other drawings than the model and exported for OpenCV."""

from pathlib import Path
from typing import Protocol

import numpy as np

from sefi.core.protocols import Progress
from sefi.metrics.align import CROP_SIDE
from sefi.metrics.faces import DETECTOR, RECOGNISER
from sefi.world.clip_training import make_clip
from sefi.world.detector_training import DetectorRecipe, export_detector, train_detector
from sefi.world.drawing import SIDE, draw
from sefi.world.judging_data import JUDGE_SEED, face_crops, head_crops, pictures
from sefi.world.lesson import Keeping
from sefi.world.picture import Picture
from sefi.world.reader_training import (
    Reader,
    ReaderRecipe,
    export_reader,
    head_labels,
    head_options,
    scene_labels,
    scene_options,
    train_reader,
)
from sefi.world.recogniser_training import RecogniserRecipe, export_recogniser, train_recogniser
from sefi.world.versions import FOURTH, WorldVersion

# Width of the readers' last hidden layer by version: most of a reader's weights lie before it, and the package has room
# for 70 MB.
MIXED = {4: 256, 5: 160}
# The fifth version has more to see: with the fourth's steps the scene reader knew the clothes of 70 % of the people.
SCENE_RECIPES = {4: ReaderRecipe(steps=700), 5: ReaderRecipe(pictures=24_000, steps=2400)}
HEAD_RECIPES = {4: ReaderRecipe(steps=2400), 5: ReaderRecipe(pictures=24_000, steps=4800)}
RECOGNISER_RECIPES = {4: RecogniserRecipe(), 5: RecogniserRecipe(people=6000, steps=3000)}
SCENE_READER, HEAD_READER = "scene_reader.onnx", "head_reader.onnx"


def make_detector(
    folder: Path, seed: int, progress: Progress, keeping: Keeping, version: WorldVersion = FOURTH
) -> None:
    """Write `face_detection.onnx`."""
    export_detector(
        train_detector(DetectorRecipe(version=version), seed, JUDGE_SEED, progress, keeping), folder / DETECTOR
    )


def make_recogniser(
    folder: Path, seed: int, progress: Progress, keeping: Keeping, version: WorldVersion = FOURTH
) -> None:
    """Write `face_recognition.onnx`."""
    recipe = RECOGNISER_RECIPES[version.number]
    crops = face_crops(recipe.people, recipe.pictures, JUDGE_SEED, version=version)
    model = train_recogniser(crops, recipe, seed, progress, keeping)
    export_recogniser(model, folder / RECOGNISER)


def make_scene_reader(
    folder: Path, seed: int, progress: Progress, keeping: Keeping, version: WorldVersion = FOURTH
) -> None:
    """Write `scene_reader.onnx` and its labels."""
    recipe, model = SCENE_RECIPES[version.number], Reader(scene_options(version), SIDE, MIXED[version.number])
    # The detector learned from the first pictures of this series.
    shown = pictures(JUDGE_SEED, 10_000, recipe.pictures, version)
    train_reader(model, drawn(shown), scene_labels(shown, version), recipe, seed, progress, keeping)
    export_reader(model, folder / SCENE_READER, SIDE)


def make_head_reader(
    folder: Path, seed: int, progress: Progress, keeping: Keeping, version: WorldVersion = FOURTH
) -> None:
    """Write `head_reader.onnx` and its labels."""
    recipe, model = HEAD_RECIPES[version.number], Reader(head_options(version), CROP_SIDE, MIXED[version.number])
    heads, shown = head_crops(recipe.pictures, JUDGE_SEED, version)
    train_reader(model, heads, head_labels(shown, version), recipe, seed, progress, keeping)
    export_reader(model, folder / HEAD_READER, CROP_SIDE)


class MakesJudge(Protocol):
    """Trains one judge on a version's drawings and writes it into a folder."""

    def __call__(
        self, folder: Path, seed: int, progress: Progress, keeping: Keeping, version: WorldVersion = FOURTH, /
    ) -> None:
        """Train and write."""
        ...


JUDGES: dict[str, MakesJudge] = {
    "detector": make_detector,
    "recogniser": make_recogniser,
    "scene-reader": make_scene_reader,
    "head-reader": make_head_reader,
    "clip": make_clip,
}


def drawn(shown: list[Picture]) -> np.ndarray:
    """Drawings uint8 `[picture, 96, 96, 3]`."""
    return np.stack([draw(p) for p in shown])
