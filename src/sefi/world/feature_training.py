"""Training of the feature network: features of drawings for the autoencoder's perceptual loss; it is no evaluator."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.data import picture_at
from sefi.world.drawing import UNITS, draw, heads
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.person import VECTOR_WIDTH
from sefi.world.picture import Picture
from sefi.world.precision import autocast
from sefi.world.residual import ResidualTrunk
from sefi.world.vae_training import to_tensor
from sefi.world.versions import FIFTH, WorldVersion

# A series of drawings of its own: neither the model's nor the evaluators'.
FEATURE_SEED = 6


@dataclass(frozen=True)
class FeatureRecipe:
    """Crops around faces, with small shifts; the network reads who it is and which attributes they have."""

    steps: int = 900
    batch: int = 32
    crop: int = 96
    learning_rate: float = 1.5e-3


class FeatureNetwork(nn.Module):
    """Images `[batch, 3, side, side]` in [-1, 1] to features at a half, a quarter, an eighth and a sixteenth."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 112)) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(3, widths)
        self.person = nn.Linear(widths[-1], VECTOR_WIDTH)
        self.attributes = nn.Linear(widths[-1], len(FIFTH.attributes))

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features, fine to coarse."""
        return self.trunk(images)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the person's vector `[batch, VECTOR_WIDTH]` and logits of the version's attributes."""
        pooled = self.trunk(images)[-1].float().mean((2, 3))
        return self.person(pooled), self.attributes(pooled)


def face_batch(recipe: FeatureRecipe, version: WorldVersion, seed: int, step: int) -> tuple[Tensor, list[Picture]]:
    """Return crops around the first person's face, `[batch, 3, crop, crop]` in [-1, 1], and their pictures."""
    random, index = np.random.default_rng([seed, 41, step]), step * 2 * recipe.batch
    shown, crops = list[Picture](), list[np.ndarray]()
    while len(shown) < recipe.batch:
        picture = picture_at(FEATURE_SEED, index, version)
        index += 1
        if not picture.subjects:
            continue
        x, y, _, _ = heads(picture)[0]
        corner = np.array([y, x]) * version.side / UNITS - recipe.crop / 2 + random.uniform(-10, 10, 2)
        top, left = np.clip(corner.round(), 0, version.side - recipe.crop).astype(int)
        crops.append(draw(picture, version.side)[top : top + recipe.crop, left : left + recipe.crop])
        shown.append(picture)
    return to_tensor(np.stack(crops)), shown


def reading_loss(network: FeatureNetwork, x: Tensor, shown: Sequence[Picture]) -> Tensor:
    """Return the error of the person's vector and of the attributes."""
    vectors = torch.from_numpy(np.stack([p.subjects[0].person.vector() for p in shown])).to(x.device)
    worn = torch.tensor([[float(a in p.subjects[0].attributes) for a in FIFTH.attributes] for p in shown]).to(x.device)
    person, attributes = network.read(x)
    return F.mse_loss(person, vectors) + F.binary_cross_entropy_with_logits(attributes, worn)


def train_features(
    recipe: FeatureRecipe,
    seed: int,
    progress: Progress,
    keeping: Keeping = NOWHERE,
    *,
    version: WorldVersion = FIFTH,
    device: str = "cpu",
) -> FeatureNetwork:
    """Return a trained feature network."""
    torch.manual_seed(seed)
    network = FeatureNetwork().train().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.02)

    def loss_of(step: int) -> Tensor:
        x, shown = face_batch(recipe, version, seed, step)
        with autocast(device):
            return reading_loss(network, x.to(device, memory_format=torch.channels_last), shown)

    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)
    lesson = Lesson("features", recipe, seed, recipe.steps, {"features": network}, optimiser, rate, clip=1.0)
    run_lesson(lesson, loss_of, keeping, progress)
    return network.eval().to("cpu", memory_format=torch.contiguous_format)
