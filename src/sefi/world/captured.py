"""Training steps as CUDA graphs: small networks keep a GPU waiting for Python unless a step is launched at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Steps before the capture run as usual: libraries choose their algorithms, Adam makes its state.
EAGER_STEPS = 3
# The loss is read from the GPU this often; every reading waits for all that has been launched.
READ_EVERY = 25


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


def new_adam(
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


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def move_weights(loss: Tensor, optimiser: torch.optim.Optimizer, clip: float | None) -> None:
    """Compute gradients, shorten them, and let the optimiser move the weights."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
    optimiser.step()


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
            move_weights(loss, self.optimiser, self.clip)
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
            move_weights(loss, self.optimiser, self.clip)
            self.value = loss.detach()
