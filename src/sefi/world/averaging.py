"""Exponential moving averages of a network's weights, of several lengths at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Averages(nn.Module):
    """Averages of a network's parameters, one for each decay; their state goes into the training's checkpoint.

    The first updates use a shorter average, so that the initial weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float]) -> None:
        super().__init__()
        self.decays = tuple(decays)
        self.names = [name for name, _ in network.named_parameters()]
        for number in range(len(self.decays)):
            for name, value in network.named_parameters():
                self.register_buffer(self.key(number, name), value.detach().clone())

    @staticmethod
    def key(number: int, name: str) -> str:
        """Return the buffer's name of one parameter in one average."""
        return f"{number}_{name.replace('.', '-')}"

    def average(self, number: int) -> dict[str, Tensor]:
        """Return one average's parameters by name."""
        return {name: self.get_buffer(self.key(number, name)) for name in self.names}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move every average towards the present weights.

        Args:
            step: updates so far.
        """
        present = [value.detach() for _, value in network.named_parameters()]
        for number, decay in enumerate(self.decays):
            share = 1 - min(decay, (step + 1) / (step + 10))
            # All tensors in one call: on a GPU it is one launch in place of hundreds.
            averaged = list(self.average(number).values())
            torch._foreach_lerp_(averaged, present, share)  # pyright: ignore[reportPrivateUsage]

    @torch.no_grad()
    def copy_to(self, network: nn.Module, number: int) -> None:
        """Write one average into a network of the same shape."""
        own = self.average(number)
        for name, parameter in network.named_parameters():
            parameter.copy_(own[name])
