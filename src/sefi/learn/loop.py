"""COMPOSER: steps of a lesson until it is learned, whatever the lesson moves."""

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
from sefi.learn.best import Best
from sefi.learn.checkpoint import load_run, save_run
from sefi.learn.uninterrupted import uninterrupted

SAVE_EVERY_SECONDS = 20.0
SAVE_COST = 20.0  # at least so many times as long is learned as saving took: all of Stable Diffusion is 12 GB

Tensors = dict[str, Tensor]
Probe = Callable[[Tensors], float]


class Lesson(Protocol):
    """What is learned: its weights, their loss, and what an identity keeps of them.

    Attributes:
        weights: every parameter that the optimiser moves, and nothing else that has a state.
        settings: what tells this lesson from every other; a checkpoint is refused where it differs.
    """

    weights: nn.Module
    settings: dict[str, Any]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and the numbers that are worth logging."""
        ...

    def settle(self) -> None:
        """Called after every update: limits, averages."""
        ...

    def kept(self) -> Tensors:
        """What an identity keeps, as generation uses it; copies, no gradient."""
        ...


def learned(
    lesson: Lesson,
    config: Config,
    progress: Progress,
    checkpoint: Path | None = None,
    probe: Probe | None = None,
) -> tuple[Tensors, dict[str, float]]:
    """Learn one lesson.

    Args:
        checkpoint: file to resume from and to save to; None keeps nothing.
        probe: scores what an identity would keep every `learn.probe_every` steps; then the best is returned, and
            learning stops early once `learn.patience` probes were no better.

    Returns:
        What an identity keeps, and the last step's numbers.

    Raises:
        Interrupted: the user stopped it; a checkpoint, if asked for, is kept.
        ConfigError: the loss is no longer finite.
    """
    run = LearningRun(lesson, config)
    start = run.resume(checkpoint)
    progress.start(config.learn.steps - start, "learning")
    numbers: dict[str, float] = {}
    keeper = Keeper(run, checkpoint)
    try:
        for step in range(start, config.learn.steps):
            run.look(probe)
            if run.best.settled:
                break
            numbers = run.advance(step)
            progress.advance(**numbers)
            keeper.keep()
        run.look(probe)
    except KeyboardInterrupt:
        raise run.stopped(checkpoint) from None
    progress.finish()
    return run.result(), numbers | run.told()


class Keeper:
    """Saves a run now and then.

    Args:
        checkpoint: where to; None saves nothing.
    """

    def __init__(self, run: "LearningRun", checkpoint: Path | None) -> None:
        self.run, self.checkpoint = run, checkpoint
        self.next = time.monotonic() + SAVE_EVERY_SECONDS

    def keep(self) -> None:
        """Save if it is time."""
        started = time.monotonic()
        if self.checkpoint is None or started < self.next:
            return
        self.run.save(self.checkpoint)
        ended = time.monotonic()
        self.next = ended + max(SAVE_EVERY_SECONDS, SAVE_COST * (ended - started))


class LearningRun:
    """A lesson and its optimiser.

    Attributes:
        done: steps whose update is in the weights; changes together with them.
        best: the best that a probe saw so far, where there is one.
    """

    def __init__(self, lesson: Lesson, config: Config) -> None:
        self.lesson, self.config = lesson, config
        self.done, self.best = 0, Best(config.learn.patience)
        chosen = config.learn
        # Without decay AdamW is Adam, to the bit.
        self.optimiser = torch.optim.AdamW(
            lesson.weights.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )

    def advance(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what is worth logging."""
        loss, numbers = self.lesson.loss(step)
        if not torch.isfinite(loss):
            raise ConfigError(f"The loss is not finite at step {step}.", "Lower learn.learning_rate.")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.learn.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.lesson.weights.parameters(), self.config.learn.gradient_clip)
        with uninterrupted():
            self.optimiser.step()
            self.lesson.settle()
            self.done = step + 1
        return numbers

    def result(self) -> Tensors:
        """The best that a probe saw, else the last.

        Raises:
            ConfigError: it holds numbers that are not finite; the last update may make them of a finite loss.
        """
        last = self.lesson.kept()
        chosen = last if self.best.kept is None else {k: v.to(last[k].device) for k, v in self.best.kept.items()}
        for name, tensor in chosen.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ConfigError(
                    f"What was learned is not finite ({name}) after step {self.done}.", "Lower learn.learning_rate."
                )
        return chosen

    def look(self, probe: Probe | None) -> None:
        """Ask the probe if it is time and that was not done before; after a kill it may still have to be."""
        every = self.config.learn.probe_every
        due = every > 0 and (self.done % every == 0 or self.done == self.config.learn.steps)
        if probe is not None and due and self.best.looked < self.done:
            self.best.offer(self.lesson.kept(), self.done, probe(self.lesson.kept()))

    def told(self) -> dict[str, float]:
        """Which step was best and how good it was, where a probe looked."""
        return {} if self.best.kept is None else {"best_step": self.best.step, "best_score": self.best.score}

    def resume(self, checkpoint: Path | None) -> int:
        """The step to go on with."""
        if checkpoint is not None and os.path.lexists(checkpoint):  # whatever is there, it would be replaced
            self.done, best = load_run(checkpoint, self.lesson.weights, self.optimiser, self.lesson.settings)
            self.best.restore(best)
        return self.done

    def save(self, checkpoint: Path) -> None:
        """Keep the run as it is after its last whole step."""
        save_run(checkpoint, self.lesson.weights, self.optimiser, self.done, self.lesson.settings, self.best.state())

    def stopped(self, checkpoint: Path | None) -> Interrupted:
        """Save after Ctrl-C and say what was kept."""
        steps = self.config.learn.steps
        if checkpoint is None:
            return Interrupted(f"Stopped at step {self.done} of {steps}; nothing was kept.", "Run the command again.")
        self.save(checkpoint)
        return Interrupted(
            f"Stopped at step {self.done} of {steps}; {checkpoint} keeps the run.",
            "Run the same command again to go on from there.",
        )
