"""A trained judge to an ONNX file that OpenCV reads."""
# torch's exporter has unknown types.
# pyright: reportUnknownMemberType=false

import warnings
from pathlib import Path

import torch
from torch import nn


def write_onnx(
    model: nn.Module,
    side: int,
    path: Path,
    inputs: str,
    outputs: list[str],
    axes: dict[str, dict[int, str]] | None = None,
) -> None:
    """Write a network that takes one RGB picture `[1, 3, side, side]`.

    Args:
        axes: for every input and output that may change its size, the dimensions and their names.
    """
    with warnings.catch_warnings():
        # The new exporter writes operators that OpenCV's own reader does not know yet.
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, side, side),),
            path,
            input_names=[inputs],
            output_names=outputs,
            dynamic_axes=axes or {},
            opset_version=13,
            dynamo=False,
        )
