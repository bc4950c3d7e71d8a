"""The best so far by a probe's score, and when to stop looking for better."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Best:
    """Keeps what had the highest score.

    Attributes:
        patience: probes without a better score after which learning is settled.
        score: the highest so far; any unit.
        step: steps that had been made then.
        worse: probes since then.
        looked: steps that had been made at the last probe.
        kept: tensors of then, by name; None before the first probe.
    """

    patience: int
    score: float = -math.inf
    step: int = 0
    worse: int = 0
    looked: int = 0
    kept: dict[str, Tensor] | None = None

    def offer(self, tensors: dict[str, Tensor], step: int, score: float) -> None:
        """Take these tensors if their score is higher than every one before; an equal one is no gain."""
        self.looked = step
        if score > self.score:
            self.kept = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            self.step, self.score, self.worse = step, score, 0
        else:
            self.worse += 1

    @property
    def settled(self) -> bool:
        """Whether there is nothing better to be expected."""
        return self.worse >= self.patience

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint; nothing before the first probe."""
        if self.kept is None:
            return {}
        numbers = torch.tensor([self.score, self.step, self.worse, self.looked], dtype=torch.float64)
        return {"numbers": numbers, **{f"kept.{name}": tensor for name, tensor in self.kept.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where a checkpoint left off."""
        if state:
            self.score, *steps = state["numbers"].tolist()
            self.step, self.worse, self.looked = map(int, steps)
            self.kept = {k.removeprefix("kept."): v for k, v in state.items() if k.startswith("kept.")}
