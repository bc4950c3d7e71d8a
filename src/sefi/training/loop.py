"""The loop of every training: steps, progress, the best step so far, checkpoints and interrupts."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sefi.core.config import Config
from sefi.core.errors import (
    LESS_MEMORY,
    REMARKS,
    ConfigError,
    Interrupted,
    OutputError,
    delay_interrupts,
    is_out_of_memory,
    make_interrupted,
    make_memory_error,
    release_memory,
    shorten_reason,
)
from sefi.core.progress import Progress
from sefi.identity.file import Tensors
from sefi.training.checkpoint import STRIKES, Recovery, collect_state, load_training, restore_state, save_training
from sefi.training.compiling import CompilableTask, compile_task
from sefi.training.probe import BestSoFar

SAVE_EVERY_SECONDS = 20.0
GOOD_EVERY = 25  # steps between two copies of a good state
LARGEST_COPY = 64 << 20  # bytes of weights of which such copies are made
SPARE_BYTES = 1 << 20  # for headers, and for what the file system needs itself
GO_ON_WITH_SPACE = "Free some space and run the same command again: it goes on from where it was last saved."
LOGGER = logging.getLogger(REMARKS)
SAVE_COST = 20.0  # train for so many times as long as saving took: all of Stable Diffusion is 12 GB

Probe = Callable[[Tensors], float]
Numbers = Mapping[str, float | Tensor]  # worth logging; scalars of a device are read after the backward pass


class Task(Protocol):
    """What the loop trains: weights and their loss. `IdentityTask` is the one whose result is an identity.

    Attributes:
        weights: what a checkpoint holds; every parameter that the optimiser moves is in it.
        training_key: identifies the training by settings, seed, model and photo; a checkpoint with another is refused.
    """

    weights: nn.Module
    training_key: dict[str, Any]

    def compute_loss(self, step: int) -> tuple[Tensor, Numbers]:
        """Return the loss of a step, and the numbers that are worth logging."""
        ...

    def after_step(self) -> None:
        """Apply limits and averages after an update."""
        ...


LossPart = tuple[float, Tensor, Numbers]  # share of the samples, their loss, and its numbers


@runtime_checkable
class DivisibleTask(Task, Protocol):
    """A task whose samples of a step can be gone through in parts, where there is no memory for all at once."""

    def count_samples(self) -> int:
        """Return how many samples a step has."""
        ...

    def compute_loss_parts(self, step: int, parts: int) -> Iterator[LossPart]:
        """Yield the loss of each part of a step's samples; the shares add up to 1, the losses times them to the loss.

        Everything random is as in `compute_loss`. Each loss is of a graph of its own, which the one who takes it may
        free before the next is computed.
        """
        ...


@runtime_checkable
class PreparedTask(Task, Protocol):
    """A task that makes something long before its first step, such as images of the class."""

    def prepare(self, progress: Progress) -> None:
        """Make it; `Trainer.run` asks once, after space was looked at."""
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
    parts: int = 1,
) -> tuple[Tensors, dict[str, float]]:
    """Train a task and return the tensors of the identity and the last step's numbers.

    Args:
        checkpoint: file to resume from and to save to; None saves nothing.
        probe: scores the identity every `learn.probe_every` steps; then the best one is returned, and training stops
            early once `learn.patience` scores were no better.
        parts: in which the samples of a step are taken, where the task can be divided; a resumed training may have
            more.

    Raises:
        Interrupted: the user stopped it; a checkpoint, if asked for, is saved.
        ConfigError: the loss or a gradient was not finite three times, and nothing was learned before.
    """
    trainer = IdentityTrainer(task, config, probe)
    trainer.resume(checkpoint)
    trainer.recovery.parts = max(parts, trainer.recovery.parts)
    numbers = trainer.run(progress, checkpoint)
    return trainer.get_result(), numbers | trainer.describe_best() | trainer.describe_recovery()


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
        recovery: what it did to go on where a loss was not finite or memory was short; it is saved with the training.
    """

    def __init__(self, task: Task, optimiser: torch.optim.Optimizer, options: LoopOptions, patience: int = 0) -> None:
        self.task, self.optimiser, self.options = task, optimiser, options
        self.done, self.best, self.numbers = 0, BestSoFar(patience), dict[str, float]()
        self.recovery, self.first_rate = Recovery(), float(optimiser.param_groups[0]["lr"])
        self.is_large = sum(value.nbytes for value in task.weights.state_dict().values()) > LARGEST_COPY

    def run(self, progress: Progress, checkpoint: Path | None) -> dict[str, float]:
        """Take the steps that are left and return the last one's numbers.

        Raises:
            Interrupted: the user stopped it; the step is finished and a checkpoint, if asked for, is saved.
            KeyboardInterrupt: the user asked twice; the last checkpoint stands.
            ConfigError: the loss or a gradient was not finite three times, or there is no memory for one sample.
            OutputError: there is no space for the checkpoint; the last one stands.
        """
        if checkpoint is not None and not self.is_finished():
            self.check_space(checkpoint)
        if isinstance(self.task, PreparedTask) and not self.is_finished():
            self.task.prepare(progress)
        progress.start(self.options.steps - self.done, self.options.label)
        saver, arrived = PeriodicSaver(self, checkpoint), list[int]()
        try:
            self.score_if_due()
            while not self.is_finished():
                with delay_interrupts(second_stops=True) as arrived:
                    self.numbers = self.take_step(self.done)
                    progress.advance(**self.numbers)
                    saver.save_if_due()
                self.score_if_due()
        except KeyboardInterrupt as stop:
            if len(arrived) > 1:  # who asks twice does not wait for the last save either
                raise
            raise self.save_stopped(checkpoint, stop) from None
        progress.finish()
        self.check_strikes()
        return self.numbers

    def score_if_due(self) -> None:
        """Do nothing: nothing is scored here."""

    def is_finished(self) -> bool:
        """Return whether all steps are taken, or too many were not finite."""
        return self.done >= self.options.steps or len(self.recovery.strikes) >= STRIKES

    def take_step(self, step: int) -> dict[str, float]:
        """Take an optimiser step; return the numbers that are worth logging.

        Where the loss or a gradient is not finite, the last good state is restored instead, this step's samples are
        passed over, and the rate is halved.
        """
        self.set_step_rate(step)
        return self.apply_step(step, self.compute_step(step))

    def apply_step(self, step: int, numbers: dict[str, float] | None) -> dict[str, float]:
        """Update the weights by the gradients of a step; return what `take_step` does.

        Args:
            numbers: as `compute_step` returns them.
        """
        with delay_interrupts():
            if numbers is None:
                self.restore_good_state(step)
                return self.numbers
            self.note_good_state(step)
            self.optimiser.step()
            self.task.after_step()
            self.done = step + 1
        return numbers

    def set_step_rate(self, step: int) -> None:
        """Set the rate of a step: half as high after every step that was not finite."""
        share = 0.5 ** len(self.recovery.strikes)
        if self.options.rate is not None:
            set_rate(self.optimiser, self.options.rate(step) * share)
        elif self.recovery.strikes:
            set_rate(self.optimiser, self.first_rate * share)

    def compute_step(self, step: int) -> dict[str, float] | None:
        """Compute the gradients of a step; return its numbers, or None where loss or gradients are not finite.

        Where there is no memory for it, the step's samples are split into more and more parts, whose gradients are
        added; so it stays for the steps after it, also after a resume.
        """
        while True:
            try:
                return self.add_gradients(step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = shorten_reason(error)
            # Outside of the handler: what the failed try held is free by now.
            self.split_further(reason)

    def add_gradients(self, step: int) -> dict[str, float] | None:
        """Add up the gradients of all parts of a step; return as `compute_step` does."""
        self.optimiser.zero_grad(set_to_none=True)
        parts: list[LossPart] = []
        for share, loss, numbers in self.compute_parts(step):
            (loss * share).backward()
            parts.append((share, loss.detach(), numbers))
        return summarise_step(parts, read_numbers(self.clip_and_list(parts)))

    def clip_and_list(self, parts: Sequence[LossPart]) -> list[float | Tensor]:
        """Shorten the gradients of a step; return what is to be read of it: their norm, the losses, the numbers."""
        norm = clip_gradients(self.optimiser, self.options.gradient_clip)
        return [norm, *(loss for _, loss, _ in parts), *(value for *_, numbers in parts for value in numbers.values())]

    def compute_parts(self, step: int) -> Iterator[LossPart]:
        """Yield the loss of a step, or the losses of its parts."""
        if self.recovery.parts > 1 and isinstance(self.task, DivisibleTask):
            yield from self.task.compute_loss_parts(step, self.recovery.parts)
        else:
            yield 1.0, *self.task.compute_loss(step)

    def split_further(self, reason: str) -> None:
        """Split the samples of a step into twice as many parts.

        Args:
            reason: how a library said that there is no memory.

        Raises:
            ConfigError: there is one sample in a part already, or the task cannot be split.
        """
        self.optimiser.zero_grad(set_to_none=True)
        release_memory(reason)
        samples = self.task.count_samples() if isinstance(self.task, DivisibleTask) else 1
        if self.recovery.parts >= samples:
            problem = f"There is not enough memory to learn from one sample at a time ({reason})."
            raise make_memory_error(ConfigError, problem, LESS_MEMORY)
        self.recovery.parts = min(2 * self.recovery.parts, samples)
        LOGGER.warning("there is not enough memory: a step is now taken in %d parts", self.recovery.parts)

    def note_good_state(self, step: int) -> None:
        """Keep a copy of the state before a step whose loss and gradients are finite, every `GOOD_EVERY` steps.

        Of weights that are too large for a copy in memory only the step is noted: to them the state before the step
        that is not finite is the good one.
        """
        recovery = self.recovery
        if self.is_large:
            recovery.good_step = step
        elif not recovery.good or step >= recovery.good_step + GOOD_EVERY:
            state = collect_state(self.task.weights, self.optimiser)
            recovery.good_step, recovery.good = step, {name: value.detach().clone() for name, value in state.items()}

    def restore_good_state(self, step: int) -> None:
        """Restore the last good state after a step that was not finite."""
        recovery = self.recovery
        if recovery.good:
            restore_state(recovery.good, self.task.weights, self.optimiser)
        recovery.strikes.append(step)
        self.done = step + 1
        LOGGER.warning(
            "the loss or a gradient is not finite at step %d: back to step %d at half the rate",
            step,
            recovery.good_step,
        )

    def check_strikes(self) -> None:
        """Refuse a training that ended because its loss was not finite too often.

        Raises:
            ConfigError: names the steps.
        """
        strikes = self.recovery.strikes
        if len(strikes) >= STRIKES:
            steps = ", ".join(map(str, strikes))
            raise ConfigError(f"The loss or a gradient is not finite at steps {steps}.", "Lower learn.learning_rate.")

    def resume(self, checkpoint: Path | None) -> int:
        """Restore a checkpoint if there is one; return the next step."""
        if checkpoint is not None and os.path.lexists(checkpoint):  # whatever is there, it would be replaced
            self.done, best, self.numbers, self.recovery = load_training(
                checkpoint, self.task.weights, self.optimiser, self.task.training_key
            )
            self.best.restore(best)
        return self.done

    def check_space(self, checkpoint: Path) -> None:
        """Refuse a folder in which there is no space for what a training writes, before it begins.

        A checkpoint has weights, moments, a copy of both and the best so far; while one is written the last one is
        still there, and so is the result at the end. One that is there already takes no more space.

        Raises:
            OutputError: says how much there is and how much is needed.
        """
        weights = sum(value.nbytes for value in self.task.weights.state_dict().values())
        moments = 2 * sum(p.nbytes for group in self.optimiser.param_groups for p in group["params"])
        state = (weights + moments) * (1 if self.is_large else 2) + weights
        with suppress(OSError):  # what cannot be measured may be enough
            there = checkpoint.stat().st_size if checkpoint.exists() else 0
            needed = 2 * state + weights + SPARE_BYTES - min(there, state)
            folder = checkpoint.parent
            free = shutil.disk_usage(folder).free
            if free < needed:
                problem = (
                    f"There are {free / 2**20:.1f} MiB free in '{folder}', and learning needs {needed / 2**20:.1f}."
                )
                raise OutputError(problem, GO_ON_WITH_SPACE)

    def save(self, checkpoint: Path) -> None:
        """Save the training as it is after its last whole step.

        Raises:
            OutputError: it cannot be written; the checkpoint before it stands.
        """
        about = (self.done, self.task.training_key, self.best.get_state())
        try:
            save_training(
                checkpoint, self.task.weights, self.optimiser, *about, numbers=self.numbers, recovery=self.recovery
            )
        except OutputError as error:
            raise OutputError(error.problem, GO_ON_WITH_SPACE if checkpoint.exists() else error.remedy) from error

    def save_stopped(self, checkpoint: Path | None, stop: KeyboardInterrupt) -> Interrupted:
        """Save after Ctrl-C or SIGTERM; return the error that says what was saved."""
        stopped = f"Stopped at step {self.done} of {self.options.steps}"
        if checkpoint is None:
            return make_interrupted(stop, f"{stopped}; nothing was saved.", "Run the command again.")
        self.save(checkpoint)
        problem = f"{stopped}; the training is saved in {checkpoint}."
        return make_interrupted(stop, problem, "Run the same command again to go on from there.")


class IdentityTrainer(Trainer):
    """The trainer of an identity: it may stop at the best one by a probe, and returns the identity's tensors."""

    task: IdentityTask

    def __init__(self, task: IdentityTask, config: Config, probe: Probe | None = None) -> None:
        learn, self.probe = config.learn, probe
        if learn.compile:
            compile_task(task)
        # Without decay AdamW is Adam, to the bit. One pass over all weights pays for the module, which has many; a few
        # rows of tokens, and the weights of a model, keep the bits that they have in earlier versions.
        optimiser = torch.optim.AdamW(
            task.weights.parameters(),
            lr=learn.learning_rate,
            weight_decay=learn.weight_decay,
            fused=True if learn.expansion == "module" or any(p.is_cuda for p in task.weights.parameters()) else None,
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
            score = score_tensors(self.probe, tensors)
            with delay_interrupts():
                if score is None:
                    self.best.asked_at = self.done
                else:
                    self.best.update(tensors, self.done, score)

    def check_strikes(self) -> None:
        """Let a training that ended early have its result, if it had learned anything; see `Trainer`."""
        if not self.optimiser.state and self.best.tensors is None:
            super().check_strikes()

    def describe_recovery(self) -> dict[str, float]:
        """Return what the training did to go on; nothing where nothing went wrong.

        `strikes` is how many steps were not finite, `ended_at` the step of the state that is the result where there
        were too many, and `parts` the parts of a step's samples where there was no memory for all at once.
        `not_compiled` is 1 where `learn.compile` had no effect on some steps.
        """
        strikes, parts = self.recovery.strikes, self.recovery.parts
        numbers: dict[str, float] = {"strikes": len(strikes)} if strikes else {}
        numbers |= {"ended_at": self.recovery.good_step} if len(strikes) >= STRIKES else {}
        numbers |= {"parts": parts} if parts > 1 else {}
        refused = isinstance(self.task, CompilableTask) and self.task.is_left_uncompiled()
        return numbers | ({"not_compiled": 1} if refused else {})

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


def score_tensors(probe: Probe, tensors: Tensors) -> float | None:
    """Return the score of an identity; None where its numbers are not finite, which the next step finds too."""
    if all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()):
        return probe(tensors)
    return None


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
        clip_gradients(optimiser, clip)


def read_numbers(numbers: Sequence[float | Tensor]) -> list[float]:
    """Read numbers, those of a device in one go, once all is queued: each that is read alone waits for the device.

    Args:
        numbers: one of them at least is a scalar of a device.
    """
    scalars = [one for one in numbers if isinstance(one, Tensor)]
    read = iter(torch.stack([one.detach().to(scalars[0].device, torch.float32) for one in scalars]).tolist())
    return [next(read) if isinstance(one, Tensor) else one for one in numbers]


def summarise_step(parts: Sequence[LossPart], read: Sequence[float]) -> dict[str, float] | None:
    """Return the numbers of a step over its parts, or None where a loss or the gradients are not finite.

    Args:
        read: what `Trainer.clip_and_list` lists, read.
    """
    if not all(map(math.isfinite, read[: 1 + len(parts)])):
        return None
    totals: dict[str, float] = {}
    named = [(name, share) for share, _, numbers in parts for name in numbers]
    for (name, share), value in zip(named, read[1 + len(parts) :], strict=True):
        totals[name] = totals.get(name, 0.0) + share * value
    return totals


def clip_gradients(optimiser: torch.optim.Optimizer, clip: float | None) -> Tensor:
    """Return the norm of all gradients, a scalar; those that are longer than `clip` together are shortened to it."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if clip is not None:
        return nn.utils.clip_grad_norm_(parameters, clip)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def list_recovery_remarks(metrics: Mapping[str, float]) -> list[str]:
    """List remarks on what a training did to go on, by the numbers of its identity."""
    remarks: list[str] = []
    if strikes := metrics.get("strikes"):
        remark = f"the loss or a gradient was not finite at {strikes:.0f} steps, and each halved the learning rate"
        if "ended_at" in metrics:
            remark += f"; learning ended early, with the state of step {metrics['ended_at']:.0f} or the best before it"
        remarks.append(remark)
    if parts := metrics.get("parts"):
        remarks.append(f"there was not enough memory for all samples of a step: it was taken in {parts:.0f} parts")
    if metrics.get("not_compiled"):
        remarks.append(
            "learn.compile had no effect: torch could not compile the denoiser, or its gradients were others"
        )
    if metrics.get("not_compared"):
        remarks.append("learn.person_steps had no effect: none of the images to compare shows exactly one face")
    return remarks
