"""Training of the face recogniser: an embedding in which the same drawn person is near, others are far."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.metrics.align import CROP_SIDE
from sefi.world.convolutions import trunk
from sefi.world.judging_data import FaceCrops, roughened
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.onnx_export import write_onnx
from sefi.world.person import VECTOR_WIDTH
from sefi.world.precision import autocast

EMBEDDING = 128


@dataclass(frozen=True)
class RecogniserRecipe:
    """Pairs of pictures of many people; a margin makes the cosine stricter than it needs to be (CosFace)."""

    people: int = 4000
    pictures: int = 4
    steps: int = 1500
    pairs: int = 64
    learning_rate: float = 2e-3
    scale: float = 16.0
    margin: float = 0.2
    truth_weight: float = 1.0


class Recogniser(nn.Module):
    """RGB faces `[batch, 3, 112, 112]` in [0, 255] to embeddings `[batch, 128]`; SFace's input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk((24, 48, 96, 128))
        self.embed = nn.Linear(128 * (CROP_SIDE // 16) ** 2, EMBEDDING)

    def forward(self, data: Tensor) -> Tensor:
        """The embedding, not normalised."""
        return self.embed(self.trunk(data / 127.5 - 1).flatten(1))


def pair_loss(first: Tensor, second: Tensor, recipe: RecogniserRecipe) -> Tensor:
    """Each picture must find the same person's other picture among all others, with a margin."""
    cosine = F.normalize(first) @ F.normalize(second).T
    logits = recipe.scale * (cosine - recipe.margin * torch.eye(len(cosine)))
    target = torch.arange(len(cosine))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def draw_pairs(crops: FaceCrops, recipe: RecogniserRecipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Two crops of each of `pairs` people, `[2 * pairs, 3, 112, 112]`, and their vectors `[pairs, VECTOR_WIDTH]`."""
    random = np.random.default_rng([seed, step])
    people = random.permutation(len(crops.vectors))[: recipe.pairs]
    places = np.array([random.permutation(recipe.pictures)[:2] for _ in people])
    faces = crops.faces[(people[:, None] * recipe.pictures + places).T.ravel()]
    images = torch.from_numpy(roughened(faces, random)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(crops.vectors[people])


def train_recogniser(
    crops: FaceCrops, recipe: RecogniserRecipe, seed: int, progress: Progress, keeping: Keeping = NOWHERE
) -> Recogniser:
    """A trained recogniser; beside the pairs it learns to tell the true identity, which gets it going."""
    torch.manual_seed(seed)
    model, teller = Recogniser().to(memory_format=torch.channels_last), nn.Linear(EMBEDDING, VECTOR_WIDTH)
    parameters = [*model.parameters(), *teller.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02)
    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)

    def loss_of(step: int) -> Tensor:
        images, vectors = draw_pairs(crops, recipe, seed, step)
        # This layout is faster, and so is half precision where there are instructions for it; the loss stays in single.
        with autocast("cpu"):
            found = model(images).float()
        truth = F.mse_loss(teller(found), vectors.repeat(2, 1))
        return pair_loss(*found.chunk(2), recipe) + recipe.truth_weight * truth

    modules: dict[str, nn.Module] = {"recogniser": model, "teller": teller}
    run_lesson(Lesson("recogniser", recipe, seed, recipe.steps, modules, optimiser, rate), loss_of, keeping, progress)
    return model.eval().to(memory_format=torch.contiguous_format)


def true_accept_rate(same: np.ndarray, other: np.ndarray, false_accepts: float = 1e-3) -> float:
    """Share of same-person similarities above the value that only this share of others exceed."""
    return float((same > np.quantile(other, 1 - false_accepts)).mean())


def verification(found: np.ndarray, person: np.ndarray) -> dict[str, float]:
    """TAR at FAR 1e-3 and mean similarities over all pairs of unit embeddings `[crop, embedding]`."""
    cosine = found @ found.T
    upper = np.triu(np.ones_like(cosine, dtype=bool), 1)
    same = cosine[upper & (person[:, None] == person)]
    other = cosine[upper & (person[:, None] != person)]
    return {"tar": true_accept_rate(same, other), "same": float(same.mean()), "other": float(other.mean())}


def export_recogniser(model: Recogniser, path: Path) -> None:
    """Write ONNX with SFace's names, for OpenCV's `FaceRecognizerSF`."""
    write_onnx(model, CROP_SIDE, path, "data", ["fc1"])
