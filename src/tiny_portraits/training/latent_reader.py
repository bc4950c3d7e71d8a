"""Training of the latent reader: who and what latents show, for the denoiser's auxiliary losses; it is no evaluator."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.progress import Progress
from sefi.evaluation.second_recogniser import ResidualTrunk
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, describe_face
from tiny_portraits.drawing.sampling import MODEL_SEED, get_content
from tiny_portraits.drawing.traits import VECTOR_WIDTH
from tiny_portraits.training.acceleration import SplitLoss, build_adam, choose_autocast
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.readers import SCENE_LABELS, UNSEEN, label_scenes

PERSON, ATTRIBUTES = "person", "attributes"
# The person's share of the error: each of the other groups counts once.
PERSON_WEIGHT = 8.0
# A face is read from a square around its box, so much larger (for the hair), sampled at so many places each way.
FACE_MARGIN, FACE_SAMPLES = 1.8, 16
MIXED_WIDTH = 256
# The tensors of `LatentLabels` that are no choices.
PLAIN_LABELS = ("vectors", "boxes", "present", "attributes")


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
    """Latents `[batch, channels, side, side]` to the first person's vector, attributes and the image's labels.

    The person is read from the latents around the true face: from the whole, where a face may lie anywhere, 43 numbers
    were not learned from 50,000 drawings.
    """

    def __init__(
        self, version: WorldVersion = SHIPPED, widths: tuple[int, int, int] = (64, 96, 128),
        face_widths: tuple[int, int, int] = (96, 160, 224),
    ) -> None:  # fmt: skip
        super().__init__()
        self.version, self.width = version, widths[-1]
        self.trunk = ResidualTrunk(version.channels, widths, (1, 2, 2))
        sizes = {ATTRIBUTES: len(version.attributes), **{name: len(labels) for name, labels in SCENE_LABELS.items()}}
        self.mix = build_cell_mix(widths[-1], version.latent_side // 4)
        self.heads = nn.ModuleDict({name: nn.Linear(MIXED_WIDTH, size) for name, size in sizes.items()})
        self.face_trunk = ResidualTrunk(version.channels, face_widths, (1, 2, 2))
        self.face_mix = build_cell_mix(face_widths[-1], FACE_SAMPLES // 4)
        self.face_head = nn.Linear(MIXED_WIDTH, VECTOR_WIDTH)

    def compute_features(self, latents: Tensor) -> Tensor:
        """Return the coarsest features `[batch, widths[-1], side / 4, side / 4]`."""
        return self.trunk(latents)[-1]

    def forward(self, latents: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the person's vector, logits of the attributes and of every group of labels.

        Args:
            boxes: of the first person's face, `[batch, 4]`: left, top, width, height as shares of the side.
        """
        mixed = self.mix(self.compute_features(latents)).float()
        face = self.face_mix(self.face_trunk(crop_faces(latents, boxes))[-1]).float()
        return {PERSON: self.face_head(face), **{name: head(mixed) for name, head in self.heads.items()}}


def build_cell_mix(channels: int, side: int) -> nn.Sequential:
    """Return layers from all cells `[batch, channels, side, side]` to `[batch, MIXED_WIDTH]`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, MIXED_WIDTH), nn.SiLU())


def crop_faces(latents: Tensor, boxes: Tensor) -> Tensor:
    """Return the latents around faces, `[batch, channels, FACE_SAMPLES, FACE_SAMPLES]`; zeros beyond the border.

    Args:
        boxes: `[batch, 4]`: left, top, width, height as shares of the side; an empty one gives one place many times.
    """
    centres = (boxes[:, :2] + boxes[:, 2:] / 2) * 2 - 1
    share = boxes[:, 2:].amax(1) * FACE_MARGIN
    turned = torch.stack([torch.stack([share, share * 0], 1), torch.stack([share * 0, share], 1)], 1)
    shape = [len(latents), latents.shape[1], FACE_SAMPLES, FACE_SAMPLES]
    places = F.affine_grid(torch.cat([turned, centres[:, :, None]], 2), shape, align_corners=False)
    return F.grid_sample(latents.float(), places, align_corners=False)


@dataclass(frozen=True)
class LatentLabels:
    """What there is to read.

    Attributes:
        vectors: of the first person, `[batch, VECTOR_WIDTH]`; zeros where there is none.
        boxes: of this person's face, `[batch, 4]`: left, top, width, height as shares of the side.
        present: 1 where there is a person, else 0, `[batch]`.
        attributes: 1 for those that somebody has, `[batch, attribute]`.
        choices: the number of the label in every group, `[batch]`.
    """

    vectors: Tensor
    boxes: Tensor
    present: Tensor
    attributes: Tensor
    choices: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "LatentLabels":
        """Return the same on another device."""
        return LatentLabels.select_from({name: values.to(device) for name, values in self.get_tensors().items()})

    def get_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, choices with the prefix `choice.`."""
        plain = {name: getattr(self, name) for name in PLAIN_LABELS}
        return plain | {f"choice.{name}": values for name, values in self.choices.items()}

    @staticmethod
    def select_from(tensors: dict[str, Tensor]) -> "LatentLabels":
        """Return the labels among tensors that `get_tensors` has named."""
        choices = {
            name.removeprefix("choice."): values for name, values in tensors.items() if name.startswith("choice.")
        }
        return LatentLabels(**{name: tensors[name] for name in PLAIN_LABELS}, choices=choices)

    def take(self, numbers: Tensor) -> "LatentLabels":
        """Return the labels of some of the images."""
        return LatentLabels.select_from({name: values[numbers] for name, values in self.get_tensors().items()})


def label_contents(shown: Sequence[ImageContent], version: WorldVersion) -> LatentLabels:
    """Return the labels of images."""
    vectors, boxes = np.zeros((len(shown), VECTOR_WIDTH), np.float32), np.zeros((len(shown), 4), np.float32)
    for number, content in enumerate(shown):
        if content.subjects:
            first = content.subjects[0]
            vectors[number] = first.person.get_vector()
            boxes[number] = np.array(describe_face(first)["box"]) / UNITS
    present = torch.tensor([float(len(p.subjects) > 0) for p in shown])
    worn = [{a for s in (*p.subjects, *p.pets) for a in s.attributes} for p in shown]
    flags = torch.tensor([[float(a in those) for a in version.attributes] for those in worn])
    choices = label_scenes(shown)
    return LatentLabels(torch.from_numpy(vectors), torch.from_numpy(boxes), present, flags, choices)


def compute_reading_errors(found: dict[str, Tensor], labels: LatentLabels) -> Tensor:
    """Return the error of every image `[batch]`: the person's vector, attributes, and each group of labels once."""
    person = (found[PERSON] - labels.vectors).pow(2).mean(1) * labels.present
    flags = F.binary_cross_entropy_with_logits(found[ATTRIBUTES], labels.attributes, reduction="none").mean(1)
    total = PERSON_WEIGHT * person + flags * 4
    for name, wanted in labels.choices.items():
        total = total + F.cross_entropy(found[name], wanted, ignore_index=UNSEEN, reduction="none")
    return total


# A step's number and random stream to clean latents and labels, both on the training's device.
LatentSource = Callable[[int, np.random.Generator], tuple[Tensor, LatentLabels]]


def read_latents(latents: np.ndarray, recipe: LatentReaderRecipe, version: WorldVersion, device: str) -> LatentSource:
    """Return a source of the model's series whose images are labelled for the step that needs them."""

    def take_latents(_step: int, random: np.random.Generator) -> tuple[Tensor, LatentLabels]:
        chosen = np.sort(random.permutation(len(latents))[: recipe.batch])
        labels = label_contents([get_content(MODEL_SEED, int(i), version) for i in chosen], version)
        return torch.from_numpy(latents[chosen]).float().to(device), labels.to(device)

    return take_latents


def store_latents(latents: np.ndarray, labels: LatentLabels, recipe: LatentReaderRecipe, device: str) -> LatentSource:
    """Return a source that keeps latents and labels of the whole series on a GPU."""
    stored, placed = torch.from_numpy(np.array(latents)).to(device), labels.to(device)

    def take_latents(_step: int, _random: np.random.Generator) -> tuple[Tensor, LatentLabels]:
        chosen = torch.randint(len(stored), (recipe.batch,), device=stored.device)
        return stored[chosen].float(), placed.take(chosen)

    return take_latents


def train_latent_reader(
    source: LatentSource,
    recipe: LatentReaderRecipe,
    seed: int,
    progress: Progress,
    checkpointing: Checkpointing = NOWHERE,
    *,
    version: WorldVersion = SHIPPED,
    device: str = "cpu",
) -> LatentReader:
    """Return a reader trained on latents `[batch, channels, side, side]` and what they show."""
    torch.manual_seed(seed)
    reader = LatentReader(version).train().to(device)
    optimiser = build_adam(reader.parameters(), recipe.learning_rate, betas=(0.9, 0.999), weight_decay=0.05)

    def make_inputs(step: int) -> dict[str, Tensor]:
        clean, labels = source(step, np.random.default_rng([seed, 51, step]))
        level = torch.rand((len(clean), 1, 1, 1), device=clean.device) * recipe.noise
        return {"latents": clean + level * torch.randn_like(clean), **labels.get_tensors()}

    def compute(inputs: dict[str, Tensor]) -> Tensor:
        with choose_autocast(device):
            readings = reader(inputs["latents"], inputs["boxes"])
        return compute_reading_errors(readings, LatentLabels.select_from(inputs)).mean()

    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)
    setup = TrainingSetup("latent reader", recipe, seed, recipe.steps, {"reader": reader}, optimiser, rate, clip=1.0)
    run_training(setup, SplitLoss(make_inputs, compute), checkpointing, progress)
    return reader.eval().requires_grad_(requires_grad=False).to("cpu")
