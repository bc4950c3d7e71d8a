"""A plain convolutional trunk that the three judges share in kind, not in weights."""

from torch import nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, normalisation, rectifier."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Every stage halves the side and then looks once more."""
    stages: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths[:-1]), widths, strict=True):
        stages.append(nn.Sequential(block(inputs, outputs, 2), block(outputs, outputs)))
    return nn.Sequential(*stages)
