"""Training of the evaluators on other drawings than the model, and their export for OpenCV."""

from pathlib import Path
from typing import Protocol

import numpy as np

from sefi.core.progress import Progress
from sefi.evaluation.encoders import CROP_SIDE, DETECTOR, RECOGNISER
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import SIDE, draw
from tiny_portraits.training.clip import make_clip
from tiny_portraits.training.detector import DetectorRecipe, export_detector, train_detector
from tiny_portraits.training.drawings import EVALUATOR_SEED, draw_face_crops, draw_head_crops, list_contents
from tiny_portraits.training.loop import Checkpointing
from tiny_portraits.training.readers import (
    HEAD_LABELS,
    SCENE_LABELS,
    Reader,
    ReaderRecipe,
    export_reader,
    label_heads,
    label_scenes,
    train_reader,
)
from tiny_portraits.training.recognisers import RecogniserRecipe, export_recogniser, train_recogniser

# Width of the readers' last hidden layer: most of a reader's weights lie before it, and the package has room for 70 MB.
MIXED = 160
# With 700 steps the scene reader knew the clothes of 70 % of the people.
SCENE_RECIPE = ReaderRecipe(drawings=24_000, steps=2400)
HEAD_RECIPE = ReaderRecipe(drawings=24_000, steps=4800)
RECOGNISER_RECIPE = RecogniserRecipe(people=6000, steps=3000)
SCENE_READER, HEAD_READER = "scene_reader.onnx", "head_reader.onnx"


def make_detector(
    folder: Path, seed: int, progress: Progress, checkpointing: Checkpointing, version: WorldVersion = SHIPPED
) -> None:
    """Write `face_detection.onnx`."""
    export_detector(
        train_detector(DetectorRecipe(version=version), seed, EVALUATOR_SEED, progress, checkpointing),
        folder / DETECTOR,
    )


def make_recogniser(
    folder: Path, seed: int, progress: Progress, checkpointing: Checkpointing, version: WorldVersion = SHIPPED
) -> None:
    """Write `face_recognition.onnx`."""
    recipe = RECOGNISER_RECIPE
    crops = draw_face_crops(recipe.people, recipe.drawings, EVALUATOR_SEED, version=version)
    model = train_recogniser(crops, recipe, seed, progress, checkpointing)
    export_recogniser(model, folder / RECOGNISER)


def make_scene_reader(
    folder: Path, seed: int, progress: Progress, checkpointing: Checkpointing, version: WorldVersion = SHIPPED
) -> None:
    """Write `scene_reader.onnx` and its labels."""
    recipe, model = SCENE_RECIPE, Reader(SCENE_LABELS, SIDE, MIXED)
    # The detector learned from the first images of this series.
    shown = list_contents(EVALUATOR_SEED, 10_000, recipe.drawings, version)
    train_reader(model, draw_all(shown), label_scenes(shown), recipe, seed, progress, checkpointing)
    export_reader(model, folder / SCENE_READER, SIDE)


def make_head_reader(
    folder: Path, seed: int, progress: Progress, checkpointing: Checkpointing, version: WorldVersion = SHIPPED
) -> None:
    """Write `head_reader.onnx` and its labels."""
    recipe, model = HEAD_RECIPE, Reader(HEAD_LABELS, CROP_SIDE, MIXED)
    heads, shown = draw_head_crops(recipe.drawings, EVALUATOR_SEED, version)
    train_reader(model, heads, label_heads(shown), recipe, seed, progress, checkpointing)
    export_reader(model, folder / HEAD_READER, CROP_SIDE)


class MakesEvaluator(Protocol):
    """Trains one evaluator on a version's drawings and writes it into a folder."""

    def __call__(
        self,
        folder: Path,
        seed: int,
        progress: Progress,
        checkpointing: Checkpointing,
        version: WorldVersion = SHIPPED,
        /,
    ) -> None:
        """Train and write."""
        ...


EVALUATORS: dict[str, MakesEvaluator] = {
    "detector": make_detector,
    "recogniser": make_recogniser,
    "scene-reader": make_scene_reader,
    "head-reader": make_head_reader,
    "clip": make_clip,
}


def draw_all(shown: list[ImageContent]) -> np.ndarray:
    """Draw all contents, uint8 `[image, 96, 96, 3]`."""
    return np.stack([draw(p) for p in shown])
