"""The embedded model's trainings in the library's loop: killed at any step and resumed, each goes on bit for bit."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sefi.core.errors import ConfigError, Interrupted, SefiError, delay_interrupts
from sefi.core.progress import Progress
from sefi.training.loop import LoopOptions, Trainer
from tiny_portraits.training.acceleration import CapturedSteps, SplitLoss

START_AGAIN = "Start again without --resume, or choose another --out."
GO_ON = "Run the same command again with --resume to go on from there."


@dataclass(frozen=True)
class Checkpointing:
    """Where a training keeps its state, whether it goes on from there, and how many seconds lie between two saves."""

    checkpoint: Path | None = None
    resume: bool = False
    every: float = 240.0


NOWHERE = Checkpointing()


@dataclass(frozen=True)
class TrainingSetup:
    """What learns and by which optimiser; a resumed training must have the same label, recipe, seed and steps.

    Attributes:
        recipe: everything the result depends on; compared by its `repr`.
        rate: learning rate of a step, a function of the step alone.
        clip: longest gradient, or None.
    """

    label: str
    recipe: object
    seed: int
    steps: int
    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    rate: Callable[[int], float]
    clip: float | None = None

    def get_training_key(self) -> dict[str, Any]:
        """Return what a checkpoint must have been made with."""
        return {"training": self.label, "seed": self.seed, "steps": self.steps, "recipe": repr(self.recipe)}


class OpenEndedSetup(TrainingSetup):
    """A training at a constant rate; it can be prolonged, because its checkpoint does not state the number of steps."""

    def get_training_key(self) -> dict[str, Any]:
        """Return what a checkpoint must have been made with."""
        return {"training": self.label, "seed": self.seed, "recipe": repr(self.recipe)}


class PartTask:
    """One part of the embedded model as the library's loop trains it; torch is seeded for every step.

    Args:
        compute: returns the loss of a step; whatever else is random must hang on the step alone.
    """

    def __init__(self, setup: TrainingSetup, compute: Callable[[int], Tensor]) -> None:
        self.weights: nn.Module = nn.ModuleDict(setup.modules)
        self.training_key = setup.get_training_key()
        self.seed, self.compute = setup.seed, compute

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step."""
        set_step_seed(self.seed, step)
        loss = self.compute(step)
        return loss, {"loss": float(loss.detach())}

    def after_step(self) -> None:
        """Do nothing: averages are updated before the next step."""


class CapturedTrainer(Trainer):
    """A trainer on a GPU: its steps are replays of one captured step."""

    def __init__(self, setup: TrainingSetup, loss: SplitLoss, options: LoopOptions) -> None:
        super().__init__(PartTask(setup, loss), setup.optimiser, options)
        self.setup, self.captured = setup, CapturedSteps(loss, setup.optimiser, setup.clip)

    def take_step(self, step: int) -> dict[str, float]:
        """Take a step; return its loss, or the last one that was read."""
        with delay_interrupts():
            set_step_seed(self.setup.seed, step)
            loss = self.captured.take(step, self.setup.rate(step))
            self.done = step + 1
        return {"loss": loss}


def run_training(
    setup: TrainingSetup, compute_loss: Callable[[int], Tensor], checkpointing: Checkpointing, progress: Progress
) -> None:
    """Train the modules, in place, to the last step; a training that had ended stays as it is.

    Args:
        compute_loss: returns the loss of a step; torch is seeded for each, and whatever else is random must hang on the
            step alone. On a GPU, a `SplitLoss` is captured as a CUDA graph.

    Raises:
        ConfigError: the checkpoint is damaged, or of another training; or the loss is no longer finite.
        Interrupted: the user stopped it; a checkpoint, if asked for, is saved.
    """
    trainer, checkpoint = build_trainer(setup, compute_loss, checkpointing.every), checkpointing.checkpoint
    if checkpoint is not None and checkpointing.resume:
        with replace_remedy(ConfigError, START_AGAIN):
            trainer.resume(checkpoint)
    elif checkpoint is not None:
        # Whatever an earlier training left there: the loop replaces checkpoints of its own format only.
        checkpoint.unlink(missing_ok=True)
    with replace_remedy(Interrupted, GO_ON), replace_remedy(ConfigError, "Lower the recipe's learning rate."):
        trainer.run(progress, checkpoint)


def build_trainer(setup: TrainingSetup, compute_loss: Callable[[int], Tensor], every: float = NOWHERE.every) -> Trainer:
    """Return the trainer of a part; on a GPU it captures the steps of a `SplitLoss`.

    Args:
        every: seconds between two checkpoints.
    """
    options = LoopOptions(setup.steps, setup.label, setup.clip, setup.rate, every, save_cost=0.0, save_last=True)
    device = setup.optimiser.param_groups[0]["params"][0].device
    if isinstance(compute_loss, SplitLoss) and device.type == "cuda":
        return CapturedTrainer(setup, compute_loss, options)
    return Trainer(PartTask(setup, compute_loss), setup.optimiser, options)


@contextmanager
def replace_remedy(kind: type[SefiError], remedy: str) -> Generator[None]:
    """Raise errors of a kind with what to do at this command line; the library's loop tells what to do at `learn`."""
    try:
        yield
    except kind as error:
        raise type(error)(error.problem, remedy) from None


def set_step_seed(seed: int, step: int) -> None:
    """Set the seed of torch for a step, so that a resumed training draws what the whole one draws."""
    torch.manual_seed(int(np.random.default_rng([seed, step]).integers(2**62)))


def compute_one_cycle_rate(step: int, steps: int, top: float, warm_share: float = 0.1) -> float:
    """Return a step's rate: half a cosine from top / 25 to the top, then half a cosine down; as torch's OneCycleLR.

    >>> [round(compute_one_cycle_rate(step, 20, 25.0), 4) for step in (0, 1, 10, 19)]
    [1.0, 25.0, 12.5, 0.0001]
    """
    peak, start = warm_share * steps - 1, top / 25
    if step < peak:
        return start + (top - start) * (1 - math.cos(math.pi * step / peak)) / 2
    end, share = start / 1e4, (step - peak) / (steps - 1 - peak)
    return end + (top - end) * (1 + math.cos(math.pi * share)) / 2
