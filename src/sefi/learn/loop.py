"""Train whatever a method learns: optimiser steps, checkpoints, the best of several, Ctrl-C."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sefi.core.config import Config
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.protocols import Progress
from sefi.learn.best import BestSoFar
from sefi.learn.checkpoint import load_run, save_run
from sefi.learn.uninterrupted import delay_interrupts

SAVE_EVERY_SECONDS = 20.0
SAVE_COST = 20.0  # train for so many times as long as saving took: all of Stable Diffusion is 12 GB

Tensors = dict[str, Tensor]
Probe = Callable[[Tensors], float]


class TrainingTask(Protocol):
    """What is trained: its weights, their loss, and the tensors of an identity that come of them.

    Attributes:
        weights: every parameter that the optimiser moves, and nothing else that has a state.
        settings: identify this task; a checkpoint with other settings is refused.
    """

    weights: nn.Module
    settings: dict[str, Any]

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, and the numbers that are worth logging."""
        ...

    def after_step(self) -> None:
        """Apply limits and averages after an update."""
        ...

    def get_identity_tensors(self) -> Tensors:
        """Return copies of the tensors of the identity, as generation uses them, without gradient."""
        ...


def train(
    task: TrainingTask,
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
        Interrupted: the user stopped it; a checkpoint, if asked for, is kept.
        ConfigError: the loss is no longer finite.
    """
    run = Trainer(task, config)
    start = run.resume(checkpoint)
    progress.start(config.learn.steps - start, "learning")
    numbers: dict[str, float] = {}
    saver = PeriodicSaver(run, checkpoint)
    try:
        for step in range(start, config.learn.steps):
            run.ask_probe(probe)
            if run.best.is_settled:
                break
            numbers = run.take_step(step)
            progress.advance(**numbers)
            saver.save_if_due()
        run.ask_probe(probe)
    except KeyboardInterrupt:
        raise run.save_stopped(checkpoint) from None
    progress.finish()
    return run.get_result(), numbers | run.describe_best()


class PeriodicSaver:
    """Save the training at intervals.

    Args:
        checkpoint: where to; None saves nothing.
    """

    def __init__(self, run: "Trainer", checkpoint: Path | None) -> None:
        self.run, self.checkpoint = run, checkpoint
        self.next = time.monotonic() + SAVE_EVERY_SECONDS

    def save_if_due(self) -> None:
        """Save if the interval has passed."""
        started = time.monotonic()
        if self.checkpoint is None or started < self.next:
            return
        self.run.save(self.checkpoint)
        ended = time.monotonic()
        self.next = ended + max(SAVE_EVERY_SECONDS, SAVE_COST * (ended - started))


class Trainer:
    """A task and its optimiser.

    Attributes:
        done: steps whose update is in the weights; changes together with them.
        best: the best identity so far by the probe, where there is one.
    """

    def __init__(self, task: TrainingTask, config: Config) -> None:
        self.task, self.config = task, config
        self.done, self.best = 0, BestSoFar(config.learn.patience)
        chosen = config.learn
        # Without decay AdamW is Adam, to the bit.
        self.optimiser = torch.optim.AdamW(
            task.weights.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )

    def take_step(self, step: int) -> dict[str, float]:
        """Take an optimiser step; return the numbers that are worth logging."""
        loss, numbers = self.task.compute_loss(step)
        if not torch.isfinite(loss):
            raise ConfigError(f"The loss is not finite at step {step}.", "Lower learn.learning_rate.")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.learn.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.task.weights.parameters(), self.config.learn.gradient_clip)
        with delay_interrupts():
            self.optimiser.step()
            self.task.after_step()
            self.done = step + 1
        return numbers

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

    def ask_probe(self, probe: Probe | None) -> None:
        """Score the identity if a score is due and not there yet; after a kill it may still be due."""
        every = self.config.learn.probe_every
        due = every > 0 and (self.done % every == 0 or self.done == self.config.learn.steps)
        if probe is not None and due and self.best.asked_at < self.done:
            tensors = self.task.get_identity_tensors()
            self.best.update(tensors, self.done, probe(tensors))

    def describe_best(self) -> dict[str, float]:
        """Return the best step and its score, where there is a probe."""
        return {} if self.best.tensors is None else {"best_step": self.best.step, "best_score": self.best.score}

    def resume(self, checkpoint: Path | None) -> int:
        """Restore a checkpoint if there is one; return the next step."""
        if checkpoint is not None and os.path.lexists(checkpoint):  # whatever is there, it would be replaced
            self.done, best = load_run(checkpoint, self.task.weights, self.optimiser, self.task.settings)
            self.best.restore(best)
        return self.done

    def save(self, checkpoint: Path) -> None:
        """Save the training as it is after its last whole step."""
        save_run(checkpoint, self.task.weights, self.optimiser, self.done, self.task.settings, self.best.get_state())

    def save_stopped(self, checkpoint: Path | None) -> Interrupted:
        """Save after Ctrl-C; return the error that says what was saved."""
        steps = self.config.learn.steps
        if checkpoint is None:
            return Interrupted(f"Stopped at step {self.done} of {steps}; nothing was kept.", "Run the command again.")
        self.save(checkpoint)
        return Interrupted(
            f"Stopped at step {self.done} of {steps}; {checkpoint} keeps the run.",
            "Run the same command again to go on from there.",
        )
