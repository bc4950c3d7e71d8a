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

from sefi.core.progress import Progress
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, describe_face, draw
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import list_contents, roughen_images
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.networks import build_block, build_trunk, write_onnx

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

    drawings: int = 3000
    steps: int = 2800
    batch: int = 24
    sides: tuple[int, ...] = (96, 128, 192, 256, 384, 512)
    learning_rate: float = 2e-3
    version: WorldVersion = SHIPPED


class Detector(nn.Module):
    """BGR `[batch, 3, h, w]` in [0, 255], sides multiples of 32, to twelve outputs in YuNet's order and coding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = build_trunk((16, 32, 48))
        self.deeper = nn.ModuleList([nn.Identity(), build_halving(48, 64), build_halving(64, 64)])
        self.looks = nn.ModuleList([build_block(c, 48) for c in (48, 64, 64)])
        self.heads = nn.ModuleDict(
            {name: nn.ModuleList([nn.Conv2d(48, size, 1) for _ in STRIDES]) for name, size in OUTPUTS.items()}
        )

    def compute_logits(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Return for every output the strides' values `[batch, cells, size]`, scores as logits."""
        x, seen = self.stem(image / 127.5 - 1), list[Tensor]()
        for step, look in zip(self.deeper, self.looks, strict=True):
            x = step(x)
            seen.append(look(x))
        return {
            name: [head(s).permute(0, 2, 3, 1).flatten(1, 2) for head, s in zip(heads, seen, strict=True)]
            for name, heads in self.heads.items()
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return `cls_8 cls_16 cls_32 obj_8 ... kps_32`; scores in [0, 1]."""
        logits = self.compute_logits(image)
        return tuple(v.sigmoid() if name in ("cls", "obj") else v for name in OUTPUTS for v in logits[name])


def build_halving(inputs: int, outputs: int) -> nn.Sequential:
    """Return two blocks, of which the first halves the side."""
    return nn.Sequential(build_block(inputs, outputs, 2), build_block(outputs, outputs))


def make_face_tables(shown: list[ImageContent]) -> list[np.ndarray]:
    """Return every image's faces `[face, 14]`: centre x, y, width, height, five landmarks, as shares of the side."""
    tables = []
    for content in shown:
        rows = []
        for subject in content.subjects:
            face = describe_face(subject)
            left, top, width, height = face["box"]
            points = [v for point in face["landmarks"] for v in point]
            rows.append([left + width / 2, top + height / 2, width, height, *points])
        tables.append(np.array(rows, np.float32) / UNITS)
    return tables


def make_targets(faces: list[np.ndarray], side: int, level: int) -> tuple[Tensor, Tensor]:
    """Return a stride's right outputs: `positive [batch, cells]` and `values [batch, cells, 14]` in YuNet's coding."""
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


def compute_detector_loss(model: Detector, images: Tensor, faces: list[np.ndarray]) -> Tensor:
    """Return the cross entropy of both scores over all cells, absolute error of places where a face is."""
    with choose_autocast("cpu"):
        outputs = {name: [v.float() for v in values] for name, values in model.compute_logits(images).items()}
    side = images.shape[-1]
    scores, places, count = torch.zeros(()), torch.zeros(()), 0
    for level in range(len(STRIDES)):
        positive, values = make_targets(faces, side, level)
        for name in ("cls", "obj"):
            logits = outputs[name][level][..., 0]
            scores = scores + F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="sum")
        coded = torch.cat([outputs["bbox"][level], outputs["kps"][level]], dim=-1)
        places = places + F.smooth_l1_loss(coded[positive], values[positive], reduction="sum", beta=0.2)
        count += int(positive.sum())
    return (scores + places) / max(count, 1)


def train_detector(
    recipe: DetectorRecipe, seed: int, series: int, progress: Progress, checkpointing: Checkpointing = NOWHERE
) -> Detector:
    """Return a trained detector; `series` is the seed of the drawings."""
    torch.manual_seed(seed)
    shown = list_contents(series, 0, recipe.drawings, recipe.version)
    images, faces = np.stack([draw(p, STORED_SIDE) for p in shown]), make_face_tables(shown)
    model = Detector().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)

    def compute_loss(step: int) -> Tensor:
        random = np.random.default_rng([seed, step])
        side = recipe.sides[step % len(recipe.sides)]
        chosen = random.permutation(len(images))[: max(6, recipe.batch * 128 // side)]
        resized = np.stack([cv2.resize(images[i], (side, side), interpolation=cv2.INTER_AREA) for i in chosen])
        bgr = torch.from_numpy(roughen_images(resized, random)[..., ::-1].copy()).permute(0, 3, 1, 2)
        return compute_detector_loss(model, bgr, [faces[i] for i in chosen])

    setup = TrainingSetup(
        "detector", (recipe, series), seed, recipe.steps, {"detector": model}, optimiser, rate, clip=5.0
    )
    run_training(setup, compute_loss, checkpointing, progress)
    return model.eval().to(memory_format=torch.contiguous_format)


def export_detector(model: Detector, path: Path) -> None:
    """Write ONNX with YuNet's names and a free image size."""
    names = [f"{name}_{stride}" for name in OUTPUTS for stride in STRIDES]
    axes = {"input": {2: "height", 3: "width"}} | {name: {1: "cells"} for name in names}
    write_onnx(model, 160, path, "input", names, axes)
