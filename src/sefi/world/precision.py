"""Mixed precision where the hardware gains by it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def supports_bfloat16(device: torch.device | str) -> bool:
    """Return whether bfloat16 is faster than float32 on this device.

    A CPU without bfloat16 instructions emulates them: a step takes longer than in float32.
    """
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def autocast(device: torch.device | str) -> torch.autocast:
    """Return a context for a forward pass: bfloat16 where `supports_bfloat16`, else float32.

    Converted weights are not kept for the next use: a captured step could not see them change.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=supports_bfloat16(device), cache_enabled=kind != "cuda")


def run_in_bfloat16(network: nn.Module, *given: Tensor) -> Any:  # noqa: ANN401  whatever the network returns
    """Return what a network computes with its parameters in bfloat16; gradients reach the originals.

    Everything is computed in bfloat16, normalisations too, which autocast on a GPU leaves in float32.
    """
    halved = {name: value.bfloat16() for name, value in network.named_parameters()}
    with torch.autocast("cuda", enabled=False):
        return functional_call(network, halved, given)
