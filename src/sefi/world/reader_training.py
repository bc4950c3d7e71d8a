"""Training of the reader: which attributes, action, scene and style a picture shows."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.convolutions import trunk
from sefi.world.judging_data import roughened
from sefi.world.picture import ACTIONS, ATTRIBUTES, SCENES, STYLES, Picture

CHOICES = {"action": ("", *ACTIONS), "scene": ("", *SCENES), "style": STYLES}
LABELS: dict[str, tuple[str, ...]] = {"attributes": ATTRIBUTES, **CHOICES}


@dataclass(frozen=True)
class ReaderRecipe:
    """Drawings at the model's own size."""

    pictures: int = 14_000
    steps: int = 1100
    batch: int = 96
    learning_rate: float = 2e-3


class Reader(nn.Module):
    """RGB `[batch, 3, 96, 96]` in [0, 255] to probabilities side by side, in the order of `LABELS`."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk((24, 48, 96, 128))
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(128 * 36, 256), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.tell = nn.Linear(256, sum(len(names) for names in LABELS.values()))

    def raw(self, image: Tensor) -> list[Tensor]:
        """Logits of every group."""
        return list(self.tell(self.mix(self.trunk(image / 127.5 - 1))).split([len(n) for n in LABELS.values()], dim=1))

    def forward(self, data: Tensor) -> Tensor:
        """Attributes each on its own, the other groups as shares that add up to 1."""
        attributes, *choices = self.raw(data)
        return torch.cat([attributes.sigmoid(), *(c.softmax(1) for c in choices)], dim=1)


def label(picture: Picture) -> tuple[list[float], list[int]]:
    """A picture's attributes (one person's; both people's together) and choices as numbers."""
    shown = {a for s in picture.subjects for a in s.attributes}
    values = (picture.subjects[0].action, picture.scene, picture.style)
    return [float(a in shown) for a in ATTRIBUTES], [
        names.index(v) for names, v in zip(CHOICES.values(), values, strict=True)
    ]


def train_reader(
    images: np.ndarray, shown: list[Picture], recipe: ReaderRecipe, seed: int, progress: Progress
) -> Reader:
    """A trained reader of drawings `[picture, 96, 96, 3]` and what they show."""
    torch.manual_seed(seed)
    labels = [label(p) for p in shown]
    attributes, choices = (torch.tensor([x[i] for x in labels]) for i in (0, 1))
    model = Reader().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, recipe.steps, pct_start=0.1)
    progress.start(recipe.steps, "reader")
    for step in range(recipe.steps):
        random = np.random.default_rng([seed, step])
        chosen = random.permutation(len(images))[: recipe.batch]
        batch = torch.from_numpy(roughened(images[chosen], random)).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            found, *logits = (group.float() for group in model.raw(batch))
        loss = F.binary_cross_entropy_with_logits(found, attributes[chosen]) * 4
        for group, values in zip(logits, choices[chosen].T, strict=True):
            loss = loss + F.cross_entropy(group, values)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        plan.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def reading_accuracy(model: Reader, images: np.ndarray, shown: list[Picture]) -> dict[str, float]:
    """Balanced accuracy of the attributes (mean over them) and accuracy of each choice, on other drawings."""
    batches = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).split(100)
    found = torch.cat([model(b.contiguous()) for b in batches])
    groups = found.split([len(n) for n in LABELS.values()], dim=1)
    labels = [label(p) for p in shown]
    truth = torch.tensor([x[0] for x in labels]).bool()
    said = groups[0] > 0.5
    rates = [
        (float(said[:, i][truth[:, i]].float().mean()) + float((~said[:, i])[~truth[:, i]].float().mean())) / 2
        for i in range(len(ATTRIBUTES))
    ]
    scores = {"attributes": float(np.mean(rates))} | {
        f"attribute: {a}": r for a, r in zip(ATTRIBUTES, rates, strict=True)
    }
    for k, (name, group) in enumerate(zip(CHOICES, groups[1:], strict=True)):
        scores[name] = float((group.argmax(1) == torch.tensor([x[1][k] for x in labels])).float().mean())
    return scores


def export_reader(model: Reader, path: Path, side: int = 96) -> None:
    """Write ONNX; the labels travel beside it."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, side, side),),
        path,
        input_names=["data"],
        output_names=["read"],
        opset_version=13,
        dynamo=False,
    )
