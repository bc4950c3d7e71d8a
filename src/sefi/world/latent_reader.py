"""Training of the latent reader: who and what latents show, for the denoiser's auxiliary losses; it is no evaluator."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.data import MODEL_SEED, picture_at
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.person import VECTOR_WIDTH
from sefi.world.picture import Picture
from sefi.world.precision import autocast
from sefi.world.reader_training import UNSEEN, scene_labels, scene_options
from sefi.world.residual import ResidualTrunk
from sefi.world.versions import FIFTH, WorldVersion

PERSON, ATTRIBUTES = "person", "attributes"


@dataclass(frozen=True)
class LatentReaderRecipe:
    """Latents with a little noise, as predicted clean latents have errors.

    Attributes:
        noise: greatest standard deviation of the noise; latents have about 1.
    """

    steps: int = 3000
    batch: int = 64
    learning_rate: float = 1.5e-3
    noise: float = 0.4


class LatentReader(nn.Module):
    """Latents `[batch, channels, side, side]` to the first person's vector, attributes and the picture's labels."""

    def __init__(self, version: WorldVersion = FIFTH, widths: tuple[int, int, int] = (64, 96, 128)) -> None:
        super().__init__()
        self.version, self.width, options = version, widths[-1], scene_options(version)
        self.trunk = ResidualTrunk(version.channels, widths, (1, 2, 2))
        sizes = {PERSON: VECTOR_WIDTH, ATTRIBUTES: len(version.attributes)}
        sizes |= {name: len(labels) for name, labels in options.items()}
        cells = (version.latent_side // 4) ** 2
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * cells, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in sizes.items()})

    def features(self, latents: Tensor) -> Tensor:
        """Return the coarsest features `[batch, widths[-1], side / 4, side / 4]`."""
        return self.trunk(latents)[-1]

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the person's vector, logits of the attributes and of every group of labels."""
        mixed = self.mix(self.features(latents)).float()
        return {name: head(mixed) for name, head in self.heads.items()}


@dataclass(frozen=True)
class LatentLabels:
    """What there is to read: vectors `[batch, VECTOR_WIDTH]` and which of them count, attributes, numbers of labels."""

    vectors: Tensor
    alone: Tensor
    attributes: Tensor
    choices: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "LatentLabels":
        """Return the same on another device."""
        choices = {name: values.to(device) for name, values in self.choices.items()}
        return LatentLabels(self.vectors.to(device), self.alone.to(device), self.attributes.to(device), choices)


def label_pictures(shown: Sequence[Picture], version: WorldVersion) -> LatentLabels:
    """Return the labels of pictures; the person counts where there is one alone."""
    empty = np.zeros(VECTOR_WIDTH, np.float32)
    alone = [len(p.subjects) == 1 for p in shown]
    vectors = np.stack([p.subjects[0].person.vector() if one else empty for p, one in zip(shown, alone, strict=True)])
    worn = [{a for s in (*p.subjects, *p.pets) for a in s.attributes} for p in shown]
    flags = torch.tensor([[float(a in those) for a in version.attributes] for those in worn])
    choices = scene_labels(shown, version)
    return LatentLabels(torch.from_numpy(vectors), torch.tensor(alone, dtype=torch.float32), flags, choices)


def reading_errors(found: dict[str, Tensor], labels: LatentLabels) -> Tensor:
    """Return the error of every picture `[batch]`: the person's vector counts twice, each group of labels once."""
    person = (found[PERSON] - labels.vectors).pow(2).mean(1) * labels.alone
    flags = F.binary_cross_entropy_with_logits(found[ATTRIBUTES], labels.attributes, reduction="none").mean(1)
    total = 2 * person + flags * 4
    for name, wanted in labels.choices.items():
        total = total + F.cross_entropy(found[name], wanted, ignore_index=UNSEEN, reduction="none")
    return total


def train_latent_reader(
    latents: np.ndarray,
    recipe: LatentReaderRecipe,
    seed: int,
    progress: Progress,
    keeping: Keeping = NOWHERE,
    *,
    version: WorldVersion = FIFTH,
    device: str = "cpu",
) -> LatentReader:
    """Return a reader trained on the latents of the model's series, `[count, channels, side, side]`."""
    torch.manual_seed(seed)
    reader = LatentReader(version).train().to(device)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=recipe.learning_rate, weight_decay=0.05)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([seed, 51, step])
        chosen = np.sort(random.permutation(len(latents))[: recipe.batch])
        labels = label_pictures([picture_at(MODEL_SEED, int(i), version) for i in chosen], version).to(device)
        clean = torch.from_numpy(latents[chosen]).float()
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32))
        level = torch.from_numpy(random.uniform(0, recipe.noise, (len(chosen), 1, 1, 1)).astype(np.float32))
        with autocast(device):
            found = reader((clean + level * noise).to(device))
        return reading_errors(found, labels).mean()

    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)
    lesson = Lesson("latent reader", recipe, seed, recipe.steps, {"reader": reader}, optimiser, rate, clip=1.0)
    run_lesson(lesson, loss_of, keeping, progress)
    return reader.eval().requires_grad_(requires_grad=False).to("cpu")
