"""Training of the face detector: YuNet's outputs, so that OpenCV's `FaceDetectorYN` runs it."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.convolutions import block, trunk
from sefi.world.drawing import UNITS, draw, face_truth
from sefi.world.judging_data import pictures, roughened
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.onnx_export import write_onnx
from sefi.world.picture import Picture
from sefi.world.precision import autocast
from sefi.world.versions import FOURTH, WorldVersion

STRIDES = (8, 16, 32)
# Longest face side, in pixels, that a stride answers for. A coarser stride begins before the finer one ends: a face at
# a border between two was found by neither. The finer one does not go on longer, as it
# sees too little of a large face to tell its size.
RANGES = ((0.0, 36.0), (26.0, 96.0), (70.0, 10_000.0))
OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
STORED_SIDE = 384


@dataclass(frozen=True)
class DetectorRecipe:
    """Drawings seen at many sizes, so that near and far faces are found."""

    pictures: int = 3000
    steps: int = 2800
    batch: int = 24
    sides: tuple[int, ...] = (96, 128, 192, 256, 384, 512)
    learning_rate: float = 2e-3
    version: WorldVersion = FOURTH


class Detector(nn.Module):
    """BGR `[batch, 3, h, w]` in [0, 255], sides multiples of 32, to twelve outputs in YuNet's order and coding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = trunk((16, 32, 48))
        self.deeper = nn.ModuleList([nn.Identity(), down(48, 64), down(64, 64)])
        self.looks = nn.ModuleList([block(c, 48) for c in (48, 64, 64)])
        self.heads = nn.ModuleDict(
            {name: nn.ModuleList([nn.Conv2d(48, size, 1) for _ in STRIDES]) for name, size in OUTPUTS.items()}
        )

    def raw(self, image: Tensor) -> dict[str, list[Tensor]]:
        """For every output the strides' values `[batch, cells, size]`, scores as logits."""
        x, seen = self.stem(image / 127.5 - 1), list[Tensor]()
        for step, look in zip(self.deeper, self.looks, strict=True):
            x = step(x)
            seen.append(look(x))
        return {
            name: [head(s).permute(0, 2, 3, 1).flatten(1, 2) for head, s in zip(heads, seen, strict=True)]
            for name, heads in self.heads.items()
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """`cls_8 cls_16 cls_32 obj_8 ... kps_32`; scores in [0, 1]."""
        found = self.raw(image)
        return tuple(v.sigmoid() if name in ("cls", "obj") else v for name in OUTPUTS for v in found[name])


def down(inputs: int, outputs: int) -> nn.Sequential:
    """Half the side."""
    return nn.Sequential(block(inputs, outputs, 2), block(outputs, outputs))


def face_table(shown: list[Picture]) -> list[np.ndarray]:
    """Every picture's faces `[face, 14]`: centre x, y, width, height, five landmarks, as shares of the side."""
    tables = []
    for picture in shown:
        rows = []
        for subject in picture.subjects:
            told = face_truth(subject)
            left, top, width, height = told["box"]
            points = [v for point in told["landmarks"] for v in point]
            rows.append([left + width / 2, top + height / 2, width, height, *points])
        tables.append(np.array(rows, np.float32) / UNITS)
    return tables


def targets(faces: list[np.ndarray], side: int, level: int) -> tuple[Tensor, Tensor]:
    """What one stride should answer: `positive [batch, cells]` and `values [batch, cells, 14]` in YuNet's coding."""
    stride, cells = STRIDES[level], side // STRIDES[level]
    positive = np.zeros((len(faces), cells, cells), bool)
    values = np.zeros((len(faces), cells, cells, 14), np.float32)
    for i, table in enumerate(faces):
        for face in table * side:
            if not RANGES[level][0] <= max(face[2:4]) < RANGES[level][1]:
                continue
            column, row = (int(np.clip(v / stride - 0.5, 0, cells - 1) + 0.5) for v in face[:2])
            for r in range(max(row - 1, 0), min(row + 2, cells)):
                for c in range(max(column - 1, 0), min(column + 2, cells)):
                    corner = np.array([c, r], np.float32)
                    points = face[4:].reshape(5, 2) / stride - corner
                    coded = [face[:2] / stride - corner, np.log(face[2:4] / stride), points.ravel()]
                    positive[i, r, c], values[i, r, c] = True, np.concatenate(coded)
    return torch.from_numpy(positive).flatten(1), torch.from_numpy(values).flatten(1, 2)


def detector_loss(model: Detector, images: Tensor, faces: list[np.ndarray]) -> Tensor:
    """Cross entropy of both scores over all cells, absolute error of places where a face is."""
    with autocast("cpu"):
        found = {name: [v.float() for v in values] for name, values in model.raw(images).items()}
    side = images.shape[-1]
    scores, places, count = torch.zeros(()), torch.zeros(()), 0
    for level in range(len(STRIDES)):
        positive, values = targets(faces, side, level)
        for name in ("cls", "obj"):
            logits = found[name][level][..., 0]
            scores = scores + F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="sum")
        coded = torch.cat([found["bbox"][level], found["kps"][level]], dim=-1)
        places = places + F.smooth_l1_loss(coded[positive], values[positive], reduction="sum", beta=0.2)
        count += int(positive.sum())
    return (scores + places) / max(count, 1)


def train_detector(
    recipe: DetectorRecipe, seed: int, series: int, progress: Progress, keeping: Keeping = NOWHERE
) -> Detector:
    """A trained detector; `series` is the seed of the drawings."""
    torch.manual_seed(seed)
    shown = pictures(series, 0, recipe.pictures, recipe.version)
    images, faces = np.stack([draw(p, STORED_SIDE) for p in shown]), face_table(shown)
    model = Detector().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([seed, step])
        side = recipe.sides[step % len(recipe.sides)]
        chosen = random.permutation(len(images))[: max(6, recipe.batch * 128 // side)]
        resized = np.stack([cv2.resize(images[i], (side, side), interpolation=cv2.INTER_AREA) for i in chosen])
        bgr = torch.from_numpy(roughened(resized, random)[..., ::-1].copy()).permute(0, 3, 1, 2)
        return detector_loss(model, bgr, [faces[i] for i in chosen])

    lesson = Lesson("detector", (recipe, series), seed, recipe.steps, {"detector": model}, optimiser, rate, clip=5.0)
    run_lesson(lesson, loss_of, keeping, progress)
    return model.eval().to(memory_format=torch.contiguous_format)


def export_detector(model: Detector, path: Path) -> None:
    """Write ONNX with YuNet's names and a free picture size."""
    names = [f"{name}_{stride}" for name in OUTPUTS for stride in STRIDES]
    axes = {"input": {2: "height", 3: "width"}} | {name: {1: "cells"} for name in names}
    write_onnx(model, 160, path, "input", names, axes)
