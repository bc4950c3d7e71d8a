"""The best identity so far by the probe's score, and when to stop training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class BestSoFar:
    """The tensors with the highest score.

    Attributes:
        patience: scores in a row that are no better, after which training stops.
        score: the highest so far; any unit.
        step: steps that had been made then.
        worse: scores since then.
        looked: steps that had been made at the last probe.
        kept: tensors of then, by name; None before the first probe.
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
    def is_settled(self) -> bool:
        """Whether training should stop."""
        return self.worse >= self.patience

    def get_state(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a checkpoint; nothing before the first score."""
        if self.tensors is None:
            return {}
        numbers = torch.tensor([self.score, self.step, self.worse, self.asked_at], dtype=torch.float64)
        return {"numbers": numbers, **{f"kept.{name}": tensor for name, tensor in self.tensors.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        if state:
            self.score, *steps = state["numbers"].tolist()
            self.step, self.worse, self.asked_at = map(int, steps)
            self.tensors = {k.removeprefix("kept."): v for k, v in state.items() if k.startswith("kept.")}
