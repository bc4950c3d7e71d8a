"""What cross-attention layers write down while they run."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Tape:
    """Filled by the processors of one forward pass; emptied by whoever reads it.

    Attributes:
        keep_maps: keep every layer's maps (for pictures), not only the loss.
        keep_gradient: keep them with their gradient, for losses on the maps themselves.
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
        """Forget everything."""
        self.losses.clear()
        self.maps.clear()
        self.reference_maps.clear()

    def loss(self) -> Tensor:
        """Mean over layers, `[batch]`; clears the tape's losses."""
        total = sum(self.losses[1:], self.losses[0]) / len(self.losses)
        self.losses.clear()
        return total
