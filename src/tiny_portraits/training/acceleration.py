"""Faster training where the hardware gains by it: bfloat16, and steps captured as CUDA graphs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sefi.training.loop import compute_gradients, set_rate

# Steps before the capture run as usual: libraries choose their algorithms, Adam makes its state.
EAGER_STEPS = 3
# The loss is read from the GPU this often; every reading waits for all that has been launched.
READ_EVERY = 25


def supports_bfloat16(device: torch.device | str) -> bool:
    """Return whether bfloat16 is faster than float32 on this device.

    A CPU without bfloat16 instructions emulates them: a step takes longer than in float32.
    """
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def choose_autocast(device: torch.device | str) -> torch.autocast:
    """Return a context for a forward pass: bfloat16 where `supports_bfloat16`, else float32.

    Converted weights are not kept for the next use: a captured step could not see them change.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=supports_bfloat16(device), cache_enabled=kind != "cuda")


def run_in_bfloat16(network: nn.Module, *given: Tensor) -> Any:  # noqa: ANN401  whatever the network returns
    """Return what a network computes with its parameters in bfloat16; gradients reach the originals.

    Everything is computed in bfloat16, normalisations too, which autocast on a GPU leaves in float32.
    """
    halved = {name: value.bfloat16() for name, value in network.named_parameters()}
    with torch.autocast("cuda", enabled=False):
        return functional_call(network, halved, given)


@dataclass(frozen=True)
class SplitLoss:
    """A loss in two halves, of which the second can be captured.

    Attributes:
        inputs: returns the tensors of a step, in every step the same names and shapes, on the training's device.
        compute: returns the loss of these tensors; it depends on them and on the networks alone.
    """

    inputs: Callable[[int], dict[str, Tensor]]
    compute: Callable[[dict[str, Tensor]], Tensor]

    def __call__(self, step: int) -> Tensor:
        """Return the loss of a step."""
        return self.compute(self.inputs(step))


def build_adam(
    parameters: Iterable[nn.Parameter],
    rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """Return AdamW; on a GPU it is fused, and its rate is a tensor, so that a captured step reads the present one."""
    learning = list(parameters)
    device = learning[0].device
    if device.type != "cuda":
        return torch.optim.AdamW(learning, lr=rate, betas=betas, weight_decay=weight_decay)
    placed = torch.tensor(rate, device=device)
    return torch.optim.AdamW(
        learning, lr=placed, betas=betas, weight_decay=weight_decay, fused=True, capturable=True
    )  # fmt: skip


class CapturedSteps:
    """Take the steps of a training on a GPU: the first as usual, the others as replays of one captured step."""

    def __init__(self, loss: SplitLoss, optimiser: torch.optim.Optimizer, clip: float | None) -> None:
        self.loss, self.optimiser, self.clip = loss, optimiser, clip
        self.taken, self.read = 0, 0.0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs = dict[str, Tensor]()
        self.value = torch.zeros(())

    def take(self, step: int, rate: float) -> float:
        """Take one step; return the loss, or the last one that was read."""
        set_rate(self.optimiser, rate)
        inputs = self.loss.inputs(step)
        if self.taken < EAGER_STEPS:
            self.take_eagerly(inputs)
        else:
            if self.graph is None:
                self.capture(inputs)
            for name, value in inputs.items():
                self.inputs[name].copy_(value)
            assert self.graph is not None
            self.graph.replay()
        if self.taken % READ_EVERY == 0:
            self.read = float(self.value)
        self.taken += 1
        return self.read

    def take_eagerly(self, inputs: dict[str, Tensor]) -> None:
        """Take a step outside the graph, on the stream that will capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.loss.compute(inputs)
            compute_gradients(loss, self.optimiser, self.clip)
            self.optimiser.step()
            self.value = loss.detach()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, inputs: dict[str, Tensor]) -> None:
        """Capture a step that reads copies of these inputs; nothing is computed yet."""
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.optimiser.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=self.stream):
            loss = self.loss.compute(self.inputs)
            compute_gradients(loss, self.optimiser, self.clip)
            self.optimiser.step()
            self.value = loss.detach()
