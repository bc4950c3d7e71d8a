"""Mixed precision where the hardware gains by it."""

import torch
from torch import Tensor, nn


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


def halve_weights(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return a network's parameters in bfloat16, for `torch.func.functional_call`; gradients reach the originals.

    Autocast on a GPU computes normalisations in float32, which takes twice the time of these small networks.
    """
    return {f"{prefix}{name}": value.bfloat16() for name, value in network.named_parameters()}
