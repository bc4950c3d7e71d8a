"""Attention losses and maps that the cross-attention layers record in a forward pass."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class AttentionRecorder:
    """Losses and maps of one forward pass, recorded by the attention processors.

    Attributes:
        keep_maps: record every layer's maps, not only the loss.
        keep_gradient: record them with their gradient, for losses on the maps themselves.
        losses: attention loss of each layer, each `[batch]`.
        maps: each layer's maps `[batch, head, word, height, width]`, by layer name.
        reference_maps: the same of the reference text.
    """

    keep_maps: bool = False
    keep_gradient: bool = False
    losses: list[Tensor] = field(default_factory=list[Tensor])
    maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    reference_maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def clear(self) -> None:
        """Remove everything that was recorded."""
        self.losses.clear()
        self.maps.clear()
        self.reference_maps.clear()

    def average_losses(self) -> Tensor:
        """Return the mean loss over layers, `[batch]`, and remove the losses."""
        total = sum(self.losses[1:], self.losses[0]) / len(self.losses)
        self.losses.clear()
        return total
