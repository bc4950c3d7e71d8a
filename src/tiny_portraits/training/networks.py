"""What the networks are built of, averages of their weights, and how they are written to files."""
# torch's exporter has unknown types.
# pyright: reportUnknownMemberType=false

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.core.files import write_file, write_text
from sefi.core.text import dump_json


def build_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution, a normalisation and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def build_trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Return stages of two blocks each, of which the first halves the side."""
    stages: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths[:-1]), widths, strict=True):
        stages.append(nn.Sequential(build_block(inputs, outputs, 2), build_block(outputs, outputs)))
    return nn.Sequential(*stages)


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
                self.register_buffer(self.get_key(number, name), value.detach().clone())

    @staticmethod
    def get_key(number: int, name: str) -> str:
        """Return the buffer's name of one parameter in one average."""
        return f"{number}_{name.replace('.', '-')}"

    def average(self, number: int) -> dict[str, Tensor]:
        """Return one average's parameters by name."""
        return {name: self.get_buffer(self.get_key(number, name)) for name in self.names}

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
        averaged = self.average(number)
        for name, parameter in network.named_parameters():
            parameter.copy_(averaged[name])


def write_onnx(
    model: nn.Module,
    side: int,
    path: Path,
    inputs: str,
    outputs: list[str],
    axes: dict[str, dict[int, str]] | None = None,
) -> None:
    """Write a network that takes one RGB image `[1, 3, side, side]`.

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


def save_tensors(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write beside the path first, so that a killed training leaves the old file or the whole new one."""
    write_file(path, lambda partial: save_file(tensors, partial, metadata=about))


def clean_configs(folder: Path) -> None:
    """Remove the training machine's paths from configurations, and let every part open in single precision.

    Half precision is for storage; left to themselves, transformers opens what was stored and diffusers does not.
    """
    for file in folder.rglob("*config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        if "dtype" in content:
            content["dtype"] = "float32"
        write_text(file, dump_json(content, indent=2, sort_keys=True) + "\n")
