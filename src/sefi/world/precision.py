"""Mixed precision where the hardware gains by it."""

import torch


def supports_bfloat16(device: torch.device | str) -> bool:
    """Return whether bfloat16 is faster than float32 on this device.

    A CPU without bfloat16 instructions emulates them: a step takes longer than in float32.
    """
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def autocast(device: torch.device | str) -> torch.autocast:
    """Return a context for a forward pass: bfloat16 where `supports_bfloat16`, else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=supports_bfloat16(device))
