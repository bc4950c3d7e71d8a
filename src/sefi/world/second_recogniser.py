"""A second face recogniser for methods to learn with; the evaluator has another architecture, seed and people."""
# torch's own annotations lack `Module.to(memory_format=...)`.
# pyright: reportCallIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.core.protocols import Progress
from sefi.world.judging_data import FaceCrops
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.person import VECTOR_WIDTH
from sefi.world.precision import autocast
from sefi.world.recogniser_training import EMBEDDING, RecogniserRecipe, draw_pairs, pair_loss
from sefi.world.residual import ResidualTrunk

# Weights, not ONNX: methods need gradients through it.
SECOND_RECOGNISER = "second_recogniser.safetensors"
# People of its own; the model's, the evaluators', the held-out and the test people have the seeds 1 to 4.
SECOND_SEED = 7


@dataclass(frozen=True)
class SecondRecipe(RecogniserRecipe):
    """As the evaluator's, with fewer people and steps."""

    people: int = 3000
    steps: int = 1500
    pairs: int = 48
    learning_rate: float = 1.5e-3


class SecondRecogniser(nn.Module):
    """RGB faces `[batch, 3, 112, 112]` in [0, 255] to embeddings `[batch, 128]`, as the evaluator's input and output.

    Residual stages with group normalisation and a pooled head, where the evaluator has plain convolutions with batch
    normalisation and a head for every place.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 128, 160)) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(3, widths)
        self.embed = nn.Linear(widths[-1] * 16, EMBEDDING)

    def forward(self, data: Tensor) -> Tensor:
        """Return the embedding, not normalised."""
        # 112 pixels, halved five times and rounded up, are 4 cells a side.
        return self.embed(self.trunk(data / 127.5 - 1)[-1].flatten(1))


def train_second_recogniser(
    crops: FaceCrops, recipe: SecondRecipe, seed: int, progress: Progress, keeping: Keeping = NOWHERE
) -> SecondRecogniser:
    """Return a trained recogniser; beside the pairs it learns to read the true identity, which gets it going."""
    torch.manual_seed(seed + SECOND_SEED)
    model, reader = SecondRecogniser().to(memory_format=torch.channels_last), nn.Linear(EMBEDDING, VECTOR_WIDTH)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *reader.parameters()], lr=recipe.learning_rate, weight_decay=0.02
    )

    def loss_of(step: int) -> Tensor:
        images, vectors = draw_pairs(crops, recipe, seed + SECOND_SEED, step)
        with autocast("cpu"):
            found = model(images).float()
        truth = F.mse_loss(reader(found), vectors.repeat(2, 1))
        return pair_loss(*found.chunk(2), recipe) + recipe.truth_weight * truth

    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)
    modules: dict[str, nn.Module] = {"recogniser": model, "reader": reader}
    lesson = Lesson("second recogniser", recipe, seed, recipe.steps, modules, optimiser, rate, clip=1.0)
    run_lesson(lesson, loss_of, keeping, progress)
    return model.eval().to(memory_format=torch.contiguous_format)
