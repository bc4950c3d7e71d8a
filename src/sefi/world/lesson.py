"""One loop for every training: killed at any step and resumed, it goes on bit for bit."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.core.errors import ConfigError
from sefi.core.files import write_file
from sefi.core.protocols import Progress
from sefi.core.reading import FLOATS, LimitError, Limits, file_errors, read_tensors
from sefi.world.captured import CapturedSteps, SplitLoss, move_weights, set_rate

LIMITS = Limits(dtypes=FLOATS | {"I64", "U8", "BOOL"})
MOST_STEPS = 10**9
START_AGAIN = "Start anew without --resume, or choose another --out."


@dataclass(frozen=True)
class Keeping:
    """Where a training keeps its state, whether it goes on from there, and how many seconds lie between two saves."""

    checkpoint: Path | None = None
    resume: bool = False
    every: float = 240.0


NOWHERE = Keeping()


@dataclass(frozen=True)
class Lesson:
    """What learns and by which optimiser; a resumed lesson must have the same label, recipe, seed and steps.

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

    def fingerprint(self) -> str:
        """What a checkpoint must have been made with."""
        return f"{self.label}, seed {self.seed}, {self.steps} steps, {self.recipe!r}"


class OpenEnded(Lesson):
    """A training at a constant rate; it can be prolonged, because its checkpoint does not state the number of steps."""

    def fingerprint(self) -> str:
        """Return what a checkpoint must have been made with."""
        return f"{self.label}, seed {self.seed}, {self.recipe!r}"


def one_cycle(step: int, steps: int, top: float, warm_share: float = 0.1) -> float:
    """Half a cosine from top / 25 up to the top, then half a cosine down to nearly nothing; as torch's OneCycleLR.

    >>> [round(one_cycle(step, 20, 25.0), 4) for step in (0, 1, 10, 19)]
    [1.0, 25.0, 12.5, 0.0001]
    """
    peak, start = warm_share * steps - 1, top / 25
    if step < peak:
        return start + (top - start) * (1 - math.cos(math.pi * step / peak)) / 2
    end, share = start / 1e4, (step - peak) / (steps - 1 - peak)
    return end + (top - end) * (1 + math.cos(math.pi * share)) / 2


def run_lesson(lesson: Lesson, loss_of: Callable[[int], Tensor], keeping: Keeping, progress: Progress) -> None:
    """Teach the modules, in place, to the last step; a lesson that had ended stays as it is.

    Args:
        loss_of: the loss of a step; torch is seeded for each, and whatever else is random must hang on the step alone.
            On a GPU, a `SplitLoss` is captured as a CUDA graph.

    Raises:
        ConfigError: the checkpoint is damaged, or of another lesson.
    """
    done = resumed(lesson, keeping)
    progress.start(lesson.steps - done, lesson.label)
    saved = time.monotonic()
    captured = new_captured_steps(lesson, loss_of)
    for step in range(done, lesson.steps):
        progress.advance(loss=take_step(lesson, loss_of, step, captured))
        last, due = step + 1 == lesson.steps, time.monotonic() - saved >= keeping.every
        if keeping.checkpoint and (last or due):
            tensors = {f"{n}.{k}": v for n, m in lesson.modules.items() for k, v in m.state_dict().items()}
            tensors |= moments(lesson.optimiser)
            save_checkpoint(tensors, keeping.checkpoint, lesson.fingerprint(), step + 1)
            saved = time.monotonic()
    progress.finish()


def new_captured_steps(lesson: Lesson, loss_of: Callable[[int], Tensor]) -> CapturedSteps | None:
    """Return what takes the steps on a GPU; None where they are taken one operation after the other."""
    if not isinstance(loss_of, SplitLoss) or learners(lesson.optimiser)[0].device.type != "cuda":
        return None
    return CapturedSteps(loss_of, lesson.optimiser, lesson.clip)


def take_step(
    lesson: Lesson, loss_of: Callable[[int], Tensor], step: int, captured: CapturedSteps | None = None
) -> float:
    """One step of the optimiser; returns the loss."""
    torch.manual_seed(int(np.random.default_rng([lesson.seed, step]).integers(2**62)))
    if captured is not None:
        return captured.take(step, lesson.rate(step))
    set_rate(lesson.optimiser, lesson.rate(step))
    loss = loss_of(step)
    move_weights(loss, lesson.optimiser, lesson.clip)
    return float(loss.detach())


def resumed(lesson: Lesson, keeping: Keeping) -> int:
    """Bring the modules and the optimiser to where the checkpoint left them; returns the steps done."""
    if keeping.checkpoint is None or not keeping.resume or not keeping.checkpoint.is_file():
        return 0
    step, tensors = load_checkpoint(keeping.checkpoint, lesson.fingerprint())
    with foreign_refused(keeping.checkpoint):
        for name, module in lesson.modules.items():
            module.load_state_dict(part(tensors, f"{name}."))
        restore_moments(lesson.optimiser, tensors)
    return step


def save_whole(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write beside the path first, so that a killed training leaves the old file or the whole new one."""
    write_file(path, lambda partial: save_file(tensors, partial, metadata=about))


def save_checkpoint(tensors: dict[str, Tensor], path: Path, fingerprint: str, step: int) -> None:
    """Tensors of any layout, the steps done and what they were made with, in one file."""
    apart = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    save_whole(apart, path, {"step": str(step), "recipe": fingerprint})


def load_checkpoint(path: Path, fingerprint: str) -> tuple[int, dict[str, Tensor]]:
    """The steps done, and the tensors.

    Raises:
        ConfigError: the file is damaged, above a limit, or made with another recipe.
    """
    with foreign_refused(path):
        about, tensors = read_tensors(path, LIMITS)
        if about["recipe"] != fingerprint:
            raise ConfigError(f"{path} was made with another recipe or seed.", START_AGAIN)
        step = int(about["step"])
        if not 0 <= step <= MOST_STEPS:
            raise LimitError(f"it states step {step}")
        return step, tensors


def foreign_refused(path: Path) -> AbstractContextManager[None]:
    """Whatever goes wrong in here goes wrong because the checkpoint is damaged or no checkpoint of this training."""
    return file_errors(path, ConfigError, "is damaged, or not a checkpoint of this training", START_AGAIN)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `save_whole` wrote.

    Raises:
        ConfigError: it is damaged or above a limit.
    """
    with file_errors(path, ConfigError, "holds no weights of a training", "Train the part again."):
        return read_tensors(path, LIMITS)[1]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def learners(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters that an optimiser moves, in the order of its state."""
    return [p for group in optimiser.param_groups for p in group["params"]]


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state, `adam.NUMBER.NAME`."""
    states = optimiser.state_dict()["state"]
    return {f"adam.{i}.{k}": v for i, state in states.items() for k, v in state.items()}


def restore_moments(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give Adam the state that `moments` returned."""
    parameters, states = learners(optimiser), dict[int, dict[str, Tensor]]()
    for name, value in part(tensors, "adam.").items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = laid_out_like(parameters[int(index)], value)
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory layout: torch's fused optimiser takes both element after element in memory.

    With a moment in another layout every weight is moved by another weight's moment, and nothing says so.
    """
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
