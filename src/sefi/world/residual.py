"""A residual trunk with group normalisation: another architecture than the evaluators' plain one."""

from torch import Tensor, nn

CHANNELS_A_GROUP = 8


class ResidualStage(nn.Module):
    """Halve the side (stride 2), then add one residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        groups = outputs // CHANNELS_A_GROUP
        self.enter = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(groups, outputs), nn.SiLU()
        )
        self.inner = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        self.last = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs, height / stride, width / stride]`."""
        x = self.enter(x)
        return self.last(x + self.inner(x))


class ResidualTrunk(nn.Module):
    """Stages of growing width; every one but those of stride 1 halves the side.

    Args:
        widths: channels of each stage, multiples of 8.
        strides: 1 or 2 for each stage; None halves in every stage.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        super().__init__()
        steps = strides or (2,) * len(widths)
        pairs = zip((inputs, *widths[:-1]), widths, steps, strict=True)
        self.stages = nn.ModuleList(ResidualStage(before, after, stride) for before, after, stride in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, first to last."""
        found = list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found
