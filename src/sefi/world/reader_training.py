"""Training of the readers: what a picture shows (action, scene, style), and what its heads show (attributes)."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.convolutions import trunk
from sefi.world.judging_data import roughened
from sefi.world.onnx_export import write_onnx
from sefi.world.picture import ACTIONS, ATTRIBUTES, SCENES, STYLES, Picture

ATTRIBUTE_GROUP = "attributes"
SCENE_LABELS: dict[str, tuple[str, ...]] = {"action": ("", *ACTIONS), "scene": ("", *SCENES), "style": STYLES}
HEAD_LABELS: dict[str, tuple[str, ...]] = {ATTRIBUTE_GROUP: ATTRIBUTES}
Labels = dict[str, Tensor]


@dataclass(frozen=True)
class ReaderRecipe:
    """Drawings at the model's own size, or aligned heads."""

    pictures: int = 14_000
    steps: int = 1100
    batch: int = 96
    learning_rate: float = 2e-3


class Reader(nn.Module):
    """RGB `[batch, 3, side, side]` in [0, 255] to probabilities side by side, in the order of the labels."""

    def __init__(self, labels: dict[str, tuple[str, ...]], side: int) -> None:
        super().__init__()
        self.labels = labels
        self.trunk = trunk((24, 48, 96, 128))
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(128 * (side // 16) ** 2, 256), nn.ReLU(), nn.Dropout(0.3))
        self.tell = nn.Linear(256, sum(len(names) for names in labels.values()))

    def raw(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of every group."""
        logits = self.tell(self.mix(self.trunk(image / 127.5 - 1)))
        return dict(zip(self.labels, logits.split([len(n) for n in self.labels.values()], dim=1), strict=True))

    def forward(self, data: Tensor) -> Tensor:
        """Attributes each on its own, every other group as shares that add up to 1."""
        found = self.raw(data)
        return torch.cat([g.sigmoid() if n == ATTRIBUTE_GROUP else g.softmax(1) for n, g in found.items()], dim=1)


def scene_labels(shown: Sequence[Picture]) -> Labels:
    """Action of the first person, scene and style of every picture, as numbers."""
    values = [(p.subjects[0].action, p.scene, p.style) for p in shown]
    return {
        name: torch.tensor([options.index(v[k]) for v in values])
        for k, (name, options) in enumerate(SCENE_LABELS.items())
    }


def head_labels(attributes: list[tuple[str, ...]]) -> Labels:
    """Which attributes every head has, `[head, attribute]`."""
    return {ATTRIBUTE_GROUP: torch.tensor([[float(a in shown) for a in ATTRIBUTES] for shown in attributes])}


def reader_loss(found: dict[str, Tensor], labels: Labels) -> Tensor:
    """Cross entropy of every group, attributes each on its own."""
    total = torch.zeros(())
    for name, logits in found.items():
        if name == ATTRIBUTE_GROUP:
            total = total + F.binary_cross_entropy_with_logits(logits.float(), labels[name])
        else:
            total = total + F.cross_entropy(logits.float(), labels[name])
    return total


def train_reader(
    model: Reader, images: np.ndarray, labels: Labels, recipe: ReaderRecipe, seed: int, progress: Progress
) -> Reader:
    """A reader trained on images `[picture, side, side, 3]` and what they show."""
    torch.manual_seed(seed)
    model = model.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1)
    progress.start(recipe.steps, "reader")
    for step in range(recipe.steps):
        random = np.random.default_rng([seed, step])
        chosen = random.permutation(len(images))[: recipe.batch]
        batch = torch.from_numpy(roughened(images[chosen], random)).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.raw(batch)
        loss = reader_loss(found, {name: values[chosen] for name, values in labels.items()})
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        plan.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return model.eval().to(memory_format=torch.contiguous_format)


def reading_accuracy(found: dict[str, np.ndarray], labels: Labels) -> dict[str, float]:
    """Balanced accuracy of every attribute and their mean, accuracy of each other group.

    Args:
        found: probabilities of every group, `[picture, option]`.
    """
    scores: dict[str, float] = {}
    for name, group in found.items():
        truth = labels[name].numpy()
        if name == ATTRIBUTE_GROUP:
            right = (group > 0.5) == truth.astype(bool)
            for i, attribute in enumerate(ATTRIBUTES):
                there = truth[:, i].astype(bool)
                scores[attribute] = float((right[there, i].mean() + right[~there, i].mean()) / 2)
            scores[name] = float(np.mean(list(scores.values())))
        else:
            scores[name] = float((group.argmax(1) == truth).mean())
    return scores


def export_reader(model: Reader, path: Path, side: int) -> None:
    """Write ONNX, and the labels beside it as JSON."""
    write_onnx(model, side, path, "data", ["read"])
    path.with_suffix(".json").write_text(json.dumps(model.labels, indent=1) + "\n", encoding="utf-8")
