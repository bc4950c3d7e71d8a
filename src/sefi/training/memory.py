"""Fit a training into a limit of memory: in how many parts a step's samples are taken, and what is computed twice."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sefi.core.errors import ConfigError
from sefi.training.loop import DivisibleTask, Task

# Of what the graph of a sample holds, by what a process held at Stable Diffusion 1.4's size on a CPU with one sample
# and with three (`python experiments/memory_limit.py`).
GRADIENTS = 1.45  # for each sample: with the gradients of its activations
OPERATION = 1.1  # once: what the largest operation needs in between
BLOCK = 0.25  # for each sample, of what is computed again on the way back: the largest block
STATES = 4  # copies of what is trained: weights, gradients and two moments
REMEDY = "Allow more memory, or open the model with --dtype bfloat16."


@runtime_checkable
class RecomputingTask(DivisibleTask, Protocol):
    """A task whose activations need not be held from the forward to the backward pass."""

    def set_recomputing(self, *, enabled: bool) -> bool:
        """Say whether activations are computed again on the way back; return whether the task can do that."""
        ...


@dataclass(frozen=True)
class MemoryPlan:
    """How a training stays within a limit.

    Attributes:
        parts: in which a step's samples are taken.
        recompute: whether activations are computed again on the way back (gradient checkpointing): a third more time.
        bytes_needed: what is expected at the most; measured on one sample, with some room.
    """

    parts: int
    recompute: bool
    bytes_needed: int


def plan_memory(task: Task, model: Iterable[nn.Module], limit: int) -> MemoryPlan:
    """Choose the fewest parts with which a step stays within a limit; activations are computed twice only if they must.

    One sample of the first step is computed, forward, to see what its graph holds. The model's weights count, and what
    is trained four times. Other programs, the libraries and images are not counted. The task is left as the plan says.

    Args:
        model: the networks that are on the device while it is learned.
        limit: bytes.

    Raises:
        ConfigError: one sample does not fit, and how much it needs; or the task's samples cannot be taken in parts.
    """
    if not isinstance(task, DivisibleTask):
        raise ConfigError("This method cannot be held to a limit of memory.", "Leave out --memory.")
    weights = collect_storages(tensor for part in model for tensor in (*part.parameters(), *part.buffers()))
    fixed = sum(weights.values()) + STATES * sum(collect_storages(task.weights.parameters()).values())
    samples, sample = task.count_samples(), measure_sample(task, weights)
    fixed += round(OPERATION * sample)
    if fixed + GRADIENTS * sample <= limit:
        return create_plan(fixed, samples, GRADIENTS * sample, limit, recompute=False)
    if isinstance(task, RecomputingTask) and task.set_recomputing(enabled=True):
        sample = BLOCK * sample + measure_sample(task, weights)
        if fixed + GRADIENTS * sample <= limit:
            return create_plan(fixed, samples, GRADIENTS * sample, limit, recompute=True)
        task.set_recomputing(enabled=False)
    needed = fixed + GRADIENTS * sample
    raise ConfigError(
        f"Learning needs {needed / 1e9:.1f} GB with one sample at a time, and {limit / 1e9:.1f} GB are allowed.", REMEDY
    )


def create_plan(fixed: int, samples: int, sample: float, limit: int, *, recompute: bool) -> MemoryPlan:
    """Return the plan with the fewest parts.

    Args:
        fixed: bytes that are needed for any number of samples, and `sample` for each.
    """
    fitting = min(samples, int((limit - fixed) // sample))
    parts = math.ceil(samples / fitting)
    largest = math.ceil(samples / parts)
    return MemoryPlan(parts, recompute, math.ceil(fixed + largest * sample))


def measure_sample(task: DivisibleTask, weights: Collection[int] = ()) -> int:
    """Return the bytes that the graph of one sample's loss holds for the backward pass, without weights.

    Args:
        weights: addresses of the storages of the model's weights, which a graph holds as they are or transposed.
    """
    held, known = dict[int, int](), {*weights, *collect_storages(task.weights.parameters())}

    def note(tensor: Tensor) -> Tensor:
        held.update(collect_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        part = next(iter(task.compute_loss_parts(0, task.count_samples())))
        del part
    return sum(size for address, size in held.items() if address not in known)


def collect_storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of the storages of tensors by their address; what several share is there once."""
    storages = (one.untyped_storage() for one in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
