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

from sefi.core.progress import Progress
from sefi.evaluation.second_recogniser import ResidualTrunk
from tiny_portraits.drawing.content import ATTRIBUTES, SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, draw, locate_heads
from tiny_portraits.drawing.sampling import get_content
from tiny_portraits.drawing.traits import VECTOR_WIDTH
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training

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
        self.attributes = nn.Linear(widths[-1], len(ATTRIBUTES))

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features, fine to coarse."""
        return self.trunk(images)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the person's vector `[batch, VECTOR_WIDTH]` and logits of the version's attributes."""
        pooled = self.trunk(images)[-1].float().mean((2, 3))
        return self.person(pooled), self.attributes(pooled)


def draw_face_batch(
    recipe: FeatureRecipe, version: WorldVersion, seed: int, step: int
) -> tuple[Tensor, list[ImageContent]]:
    """Return crops around the first person's face, `[batch, 3, crop, crop]` in [-1, 1], and their images."""
    random, index = np.random.default_rng([seed, 41, step]), step * 2 * recipe.batch
    shown, crops = list[ImageContent](), list[np.ndarray]()
    while len(shown) < recipe.batch:
        content = get_content(FEATURE_SEED, index, version)
        index += 1
        if not content.subjects:
            continue
        x, y, _, _ = locate_heads(content)[0]
        corner = np.array([y, x]) * version.side / UNITS - recipe.crop / 2 + random.uniform(-10, 10, 2)
        top, left = np.clip(corner.round(), 0, version.side - recipe.crop).astype(int)
        crops.append(draw(content, version.side)[top : top + recipe.crop, left : left + recipe.crop])
        shown.append(content)
    return convert_to_tensor(np.stack(crops)), shown


def compute_reading_loss(network: FeatureNetwork, x: Tensor, shown: Sequence[ImageContent]) -> Tensor:
    """Return the error of the person's vector and of the attributes."""
    vectors = torch.from_numpy(np.stack([p.subjects[0].person.get_vector() for p in shown])).to(x.device)
    worn = torch.tensor([[float(a in p.subjects[0].attributes) for a in ATTRIBUTES] for p in shown]).to(x.device)
    person, attributes = network.read(x)
    return F.mse_loss(person, vectors) + F.binary_cross_entropy_with_logits(attributes, worn)


def train_features(
    recipe: FeatureRecipe,
    seed: int,
    progress: Progress,
    checkpointing: Checkpointing = NOWHERE,
    *,
    version: WorldVersion = SHIPPED,
    device: str = "cpu",
) -> FeatureNetwork:
    """Return a trained feature network."""
    torch.manual_seed(seed)
    network = FeatureNetwork().train().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.02)

    def compute_loss(step: int) -> Tensor:
        x, shown = draw_face_batch(recipe, version, seed, step)
        with choose_autocast(device):
            return compute_reading_loss(network, x.to(device, memory_format=torch.channels_last), shown)

    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)
    setup = TrainingSetup("features", recipe, seed, recipe.steps, {"features": network}, optimiser, rate, clip=1.0)
    run_training(setup, compute_loss, checkpointing, progress)
    return network.eval().to("cpu", memory_format=torch.contiguous_format)
