"""How much memory a stretch of work held at most; None where the system does not tell."""

import ctypes
import gc
from pathlib import Path

import torch

from sefi.backbone.bundle import Backbone

SELF = Path("/proc/self")
RESET_PEAK = "5"  # proc(5): sets the peak resident size to the present one


def forget_peak(backbone: Backbone) -> None:
    """Begin anew: later peaks are of what comes from here on.

    What earlier work freed but the C library kept for itself would count again; it is given back first, where that
    can be asked for (glibc).
    """
    gc.collect()
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    elif (SELF / "clear_refs").exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            (SELF / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return


def peak_megabytes(backbone: Backbone) -> float | None:
    """The most that was held since `forget_peak`: on the accelerator where there is one, else resident (Linux)."""
    if backbone.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backbone.device) / 2**20
    try:
        lines = (SELF / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) / 1024
