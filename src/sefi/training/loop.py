"""The loop of every training: steps, progress, the best step so far, checkpoints and interrupts."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sefi.core.config import Config
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.progress import Progress
from sefi.identity.file import Tensors
from sefi.training.checkpoint import load_training, save_training

SAVE_EVERY_SECONDS = 20.0
SAVE_COST = 20.0  # train for so many times as long as saving took: all of Stable Diffusion is 12 GB

Probe = Callable[[Tensors], float]


@dataclass
class BestSoFar:
    """The tensors with the highest score.

    Attributes:
        patience: scores in a row that are no better, after which training stops.
        score: the highest so far; any unit.
        step: steps that had been made then.
        worse: scores since then.
        asked_at: steps that had been made at the last probe.
        tensors: those of that step, by name; None before the first probe.
    """

    patience: int
    score: float = -math.inf
    step: int = 0
    worse: int = 0
    asked_at: int = 0
    tensors: dict[str, Tensor] | None = None

    def update(self, tensors: dict[str, Tensor], step: int, score: float) -> None:
        """Keep these tensors if their score is higher than every one before; an equal one is no gain."""
        self.asked_at = step
        if score > self.score:
            self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            self.step, self.score, self.worse = step, score, 0
        else:
            self.worse += 1

    @property
    def should_stop(self) -> bool:
        """Whether training should stop."""
        return self.worse >= self.patience

    def get_state(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a checkpoint; nothing before the first score."""
        if self.tensors is None:
            return {}
        numbers = torch.tensor([self.score, self.step, self.worse, self.asked_at], dtype=torch.float64)
        # The names are those of older checkpoints.
        return {"numbers": numbers, **{f"kept.{name}": tensor for name, tensor in self.tensors.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        if state:
            self.score, *steps = state["numbers"].tolist()
            self.step, self.worse, self.asked_at = map(int, steps)
            self.tensors = {k.removeprefix("kept."): v for k, v in state.items() if k.startswith("kept.")}


@contextmanager
def delay_interrupts() -> Generator[None]:
    """Delay an interrupt that arrives within the block, and raise it once on leaving.

    Python delivers signals to the main thread only, so other threads need no guard and get none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        # None: a handler that was not set from Python; it cannot be put back, the default is the closest.
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)


class Task(Protocol):
    """What the loop trains: weights and their loss. `IdentityTask` is the one whose result is an identity.

    Attributes:
        weights: what a checkpoint holds; every parameter that the optimiser moves is in it.
        training_key: identifies the training by settings, seed, model and photo; a checkpoint with another is refused.
    """

    weights: nn.Module
    training_key: dict[str, Any]

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, and the numbers that are worth logging."""
        ...

    def after_step(self) -> None:
        """Apply limits and averages after an update."""
        ...


class IdentityTask(Task, Protocol):
    """A task that makes an identity: `TokenTask` one of tokens, `WeightTask` one with weights of the model.

    The optimiser moves all of its weights, which have no other state.
    """

    def get_identity_tensors(self) -> Tensors:
        """Return copies of the tensors of the identity, as generation uses them, without gradient."""
        ...


@dataclass(frozen=True)
class LoopOptions:
    """How many steps a training takes, and how it takes and saves them.

    Attributes:
        label: what the progress calls it.
        gradient_clip: largest norm of the gradient; None leaves it.
        rate: returns the learning rate of a step; None leaves the optimiser's.
        save_every: least seconds between two checkpoints.
        save_cost: train for so many times as long as saving took.
        save_last: save after the last step too.
    """

    steps: int
    label: str
    gradient_clip: float | None = None
    rate: Callable[[int], float] | None = None
    save_every: float = SAVE_EVERY_SECONDS
    save_cost: float = SAVE_COST
    save_last: bool = False


def train(
    task: IdentityTask,
    config: Config,
    progress: Progress,
    checkpoint: Path | None = None,
    probe: Probe | None = None,
) -> tuple[Tensors, dict[str, float]]:
    """Train a task and return the tensors of the identity and the last step's numbers.

    Args:
        checkpoint: file to resume from and to save to; None saves nothing.
        probe: scores the identity every `learn.probe_every` steps; then the best one is returned, and training stops
            early once `learn.patience` scores were no better.

    Raises:
        Interrupted: the user stopped it; a checkpoint, if asked for, is saved.
        ConfigError: the loss is no longer finite.
    """
    trainer = IdentityTrainer(task, config, probe)
    trainer.resume(checkpoint)
    numbers = trainer.run(progress, checkpoint)
    return trainer.get_result(), numbers | trainer.describe_best()


class PeriodicSaver:
    """Save a training at intervals.

    Args:
        checkpoint: where to; None saves nothing.
    """

    def __init__(self, trainer: "Trainer", checkpoint: Path | None) -> None:
        self.trainer, self.options, self.checkpoint = trainer, trainer.options, checkpoint
        self.next = time.monotonic() + self.options.save_every

    def save_if_due(self) -> None:
        """Save if the interval has passed, or after the last step where that is asked for."""
        started = time.monotonic()
        last = self.options.save_last and self.trainer.done == self.options.steps
        if self.checkpoint is None or (started < self.next and not last):
            return
        self.trainer.save(self.checkpoint)
        ended = time.monotonic()
        self.next = ended + max(self.options.save_every, self.options.save_cost * (ended - started))


class Trainer:
    """A task and its optimiser.

    Attributes:
        done: steps whose update is in the weights; changes together with them.
        best: the best identity so far, where a probe scores them; it is saved with the training.
        numbers: of the last step that was taken, also before a kill.
    """

    def __init__(self, task: Task, optimiser: torch.optim.Optimizer, options: LoopOptions, patience: int = 0) -> None:
        self.task, self.optimiser, self.options = task, optimiser, options
        self.done, self.best, self.numbers = 0, BestSoFar(patience), dict[str, float]()

    def run(self, progress: Progress, checkpoint: Path | None) -> dict[str, float]:
        """Take the steps that are left and return the last one's numbers.

        Raises:
            Interrupted: the user stopped it; a checkpoint, if asked for, is saved.
            ConfigError: the loss is no longer finite.
        """
        progress.start(self.options.steps - self.done, self.options.label)
        saver = PeriodicSaver(self, checkpoint)
        try:
            self.score_if_due()
            while not self.is_finished():
                self.numbers = self.take_step(self.done)
                progress.advance(**self.numbers)
                saver.save_if_due()
                self.score_if_due()
        except KeyboardInterrupt:
            raise self.save_stopped(checkpoint) from None
        progress.finish()
        return self.numbers

    def score_if_due(self) -> None:
        """Do nothing: nothing is scored here."""

    def is_finished(self) -> bool:
        """Return whether all steps are taken."""
        return self.done >= self.options.steps

    def take_step(self, step: int) -> dict[str, float]:
        """Take an optimiser step; return the numbers that are worth logging."""
        if self.options.rate is not None:
            set_rate(self.optimiser, self.options.rate(step))
        loss, numbers = self.task.compute_loss(step)
        if not torch.isfinite(loss):
            raise ConfigError(f"The loss is not finite at step {step}.", "Lower learn.learning_rate.")
        compute_gradients(loss, self.optimiser, self.options.gradient_clip)
        with delay_interrupts():
            self.optimiser.step()
            self.task.after_step()
            self.done = step + 1
        return numbers

    def resume(self, checkpoint: Path | None) -> int:
        """Restore a checkpoint if there is one; return the next step."""
        if checkpoint is not None and os.path.lexists(checkpoint):  # whatever is there, it would be replaced
            self.done, best, self.numbers = load_training(
                checkpoint, self.task.weights, self.optimiser, self.task.training_key
            )
            self.best.restore(best)
        return self.done

    def save(self, checkpoint: Path) -> None:
        """Save the training as it is after its last whole step."""
        about = (self.done, self.task.training_key, self.best.get_state(), self.numbers)
        save_training(checkpoint, self.task.weights, self.optimiser, *about)

    def save_stopped(self, checkpoint: Path | None) -> Interrupted:
        """Save after Ctrl-C; return the error that says what was saved."""
        steps = self.options.steps
        if checkpoint is None:
            return Interrupted(f"Stopped at step {self.done} of {steps}; nothing was saved.", "Run the command again.")
        self.save(checkpoint)
        return Interrupted(
            f"Stopped at step {self.done} of {steps}; the training is saved in {checkpoint}.",
            "Run the same command again to go on from there.",
        )


class IdentityTrainer(Trainer):
    """The trainer of an identity: it may stop at the best one by a probe, and returns the identity's tensors."""

    task: IdentityTask

    def __init__(self, task: IdentityTask, config: Config, probe: Probe | None = None) -> None:
        learn, self.probe = config.learn, probe
        # Without decay AdamW is Adam, to the bit.
        optimiser = torch.optim.AdamW(
            task.weights.parameters(), lr=learn.learning_rate, weight_decay=learn.weight_decay
        )
        rate = None
        if learn.rate_schedule == "cosine":
            rate = partial(compute_cosine_rate, steps=learn.steps, first=learn.learning_rate)
        loop_options = LoopOptions(learn.steps, "learning", learn.gradient_clip, rate)
        super().__init__(task, optimiser, loop_options, learn.patience)
        self.probe_every = learn.probe_every

    def is_finished(self) -> bool:
        """Return whether all steps are taken or the scores have ceased to rise."""
        return self.best.should_stop or super().is_finished()

    def score_if_due(self) -> None:
        """Score the identity if a score is due and not there yet; after a kill it may still be due."""
        every = self.probe_every
        due = every > 0 and (self.done % every == 0 or self.done == self.options.steps)
        if self.probe is not None and due and self.best.asked_at < self.done:
            tensors = self.task.get_identity_tensors()
            self.best.update(tensors, self.done, self.probe(tensors))

    def get_result(self) -> Tensors:
        """Return the best identity by the probe, or the last one without a probe.

        Raises:
            ConfigError: it holds numbers that are not finite; the last update may make them of a finite loss.
        """
        last = self.task.get_identity_tensors()
        chosen = last if self.best.tensors is None else {k: v.to(last[k].device) for k, v in self.best.tensors.items()}
        for name, tensor in chosen.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ConfigError(
                    f"What was learned is not finite ({name}) after step {self.done}.", "Lower learn.learning_rate."
                )
        return chosen

    def describe_best(self) -> dict[str, float]:
        """Return the best step and its score, where there is a probe."""
        return {} if self.best.tensors is None else {"best_step": self.best.step, "best_score": self.best.score}


def compute_cosine_rate(step: int, steps: int, first: float) -> float:
    """Return the learning rate of a step: half a cosine from `first` to 0 (SGDR without restarts; Loshchilov 2017).

    >>> [round(compute_cosine_rate(step, 4, 1.0), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return first * (1 + math.cos(math.pi * step / steps)) / 2


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def compute_gradients(loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None) -> None:
    """Compute the gradients of an optimiser's parameters, and shorten them to the norm `clip`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
