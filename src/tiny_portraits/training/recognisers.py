"""Training of the face recogniser that evaluates, and of another one for methods to learn with."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.progress import Progress
from sefi.evaluation.encoders import CROP_SIDE
from sefi.evaluation.second_recogniser import EMBEDDING, SecondRecogniser
from tiny_portraits.drawing.traits import VECTOR_WIDTH
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import FaceCrops, roughen_images
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.networks import build_trunk, save_tensors, write_onnx

# People of its own; the model's, the evaluators', the held-out and the test people have the seeds 1 to 4.
SECOND_SEED = 7


@dataclass(frozen=True)
class RecogniserRecipe:
    """Pairs of images of many people; a margin makes the cosine stricter than it needs to be (CosFace)."""

    people: int = 4000
    drawings: int = 4
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
        self.trunk = build_trunk((24, 48, 96, 128))
        self.embed = nn.Linear(128 * (CROP_SIDE // 16) ** 2, EMBEDDING)

    def forward(self, data: Tensor) -> Tensor:
        """Return the embedding, not normalised."""
        return self.embed(self.trunk(data / 127.5 - 1).flatten(1))


def compute_pair_loss(first: Tensor, second: Tensor, recipe: RecogniserRecipe) -> Tensor:
    """Return the loss of finding each person's other image among all others, with a margin."""
    cosine = F.normalize(first) @ F.normalize(second).T
    logits = recipe.scale * (cosine - recipe.margin * torch.eye(len(cosine)))
    target = torch.arange(len(cosine))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def draw_pairs(crops: FaceCrops, recipe: RecogniserRecipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return two crops of each of `pairs` people, `[2 * pairs, 3, 112, 112]`, and the people's vectors."""
    random = np.random.default_rng([seed, step])
    people = random.permutation(len(crops.vectors))[: recipe.pairs]
    places = np.array([random.permutation(recipe.drawings)[:2] for _ in people])
    faces = crops.faces[(people[:, None] * recipe.drawings + places).T.ravel()]
    images = torch.from_numpy(roughen_images(faces, random)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(crops.vectors[people])


def train_recogniser(
    crops: FaceCrops, recipe: RecogniserRecipe, seed: int, progress: Progress, checkpointing: Checkpointing = NOWHERE
) -> Recogniser:
    """Return a trained recogniser; beside the pairs it learns the true identity, which gets it going."""
    torch.manual_seed(seed)
    model, identity_head = Recogniser().to(memory_format=torch.channels_last), nn.Linear(EMBEDDING, VECTOR_WIDTH)
    parameters = [*model.parameters(), *identity_head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02)
    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)

    def compute_loss(step: int) -> Tensor:
        images, vectors = draw_pairs(crops, recipe, seed, step)
        # This layout is faster, and so is half precision where there are instructions for it; the loss stays in single.
        with choose_autocast("cpu"):
            embeddings = model(images).float()
        truth = F.mse_loss(identity_head(embeddings), vectors.repeat(2, 1))
        return compute_pair_loss(*embeddings.chunk(2), recipe) + recipe.truth_weight * truth

    modules: dict[str, nn.Module] = {"recogniser": model, "teller": identity_head}
    run_training(
        TrainingSetup("recogniser", recipe, seed, recipe.steps, modules, optimiser, rate),
        compute_loss,
        checkpointing,
        progress,
    )
    return model.eval().to(memory_format=torch.contiguous_format)


def compute_true_accept_rate(same: np.ndarray, other: np.ndarray, false_accepts: float = 1e-3) -> float:
    """Return the share of same-person similarities above the value that only this share of others exceed."""
    return float((same > np.quantile(other, 1 - false_accepts)).mean())


def measure_verification(found: np.ndarray, person: np.ndarray) -> dict[str, float]:
    """Return TAR at FAR 1e-3 and mean similarities over all pairs of unit embeddings `[crop, embedding]`."""
    cosine = found @ found.T
    upper = np.triu(np.ones_like(cosine, dtype=bool), 1)
    same = cosine[upper & (person[:, None] == person)]
    other = cosine[upper & (person[:, None] != person)]
    return {"tar": compute_true_accept_rate(same, other), "same": float(same.mean()), "other": float(other.mean())}


def export_recogniser(model: Recogniser, path: Path) -> None:
    """Write ONNX with SFace's names, for OpenCV's `FaceRecognizerSF`."""
    write_onnx(model, CROP_SIDE, path, "data", ["fc1"])


@dataclass(frozen=True)
class SecondRecipe(RecogniserRecipe):
    """As the evaluator's, with fewer people and steps."""

    people: int = 3000
    steps: int = 1500
    pairs: int = 48
    learning_rate: float = 1.5e-3


def train_second_recogniser(
    crops: FaceCrops, recipe: SecondRecipe, seed: int, progress: Progress, checkpointing: Checkpointing = NOWHERE
) -> SecondRecogniser:
    """Return a trained recogniser; beside the pairs it learns to read the true identity, which gets it going."""
    torch.manual_seed(seed + SECOND_SEED)
    model, reader = SecondRecogniser().to(memory_format=torch.channels_last), nn.Linear(EMBEDDING, VECTOR_WIDTH)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *reader.parameters()], lr=recipe.learning_rate, weight_decay=0.02
    )

    def compute_loss(step: int) -> Tensor:
        images, vectors = draw_pairs(crops, recipe, seed + SECOND_SEED, step)
        with choose_autocast("cpu"):
            embeddings = model(images).float()
        truth = F.mse_loss(reader(embeddings), vectors.repeat(2, 1))
        return compute_pair_loss(*embeddings.chunk(2), recipe) + recipe.truth_weight * truth

    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)
    modules: dict[str, nn.Module] = {"recogniser": model, "reader": reader}
    setup = TrainingSetup("second recogniser", recipe, seed, recipe.steps, modules, optimiser, rate, clip=1.0)
    run_training(setup, compute_loss, checkpointing, progress)
    return model.eval().to(memory_format=torch.contiguous_format)


def export_second_recogniser(model: SecondRecogniser, path: Path) -> None:
    """Write the weights in half precision; no ONNX, as methods need gradients through them."""
    save_tensors({name: tensor.half() for name, tensor in model.state_dict().items()}, path)
