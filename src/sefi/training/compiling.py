"""Compile the denoiser of a training, and use it where its gradients are those of the denoiser as it is."""

import logging
import subprocess
from collections.abc import Callable
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sefi.core.errors import REMARKS, ConfigError, is_out_of_memory
from sefi.diffusion.attention import UNet

# How far a gradient may be from that of the network as it is, as a share of its norm. The same sums in another order
# differ by 1e-5 in single precision (`python experiments/engine.py compile`). bfloat16 alone changes the gradient of
# the attention loss by up to 0.16, so that there only what is wrong altogether is found.
LIMIT, LIMIT_16_BIT = 1e-3, 0.3
# Of each network: whether its compiled form was right for inputs of this kind, in this process.
CHECKED: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = WeakKeyDictionary()
LOGGER = logging.getLogger(REMARKS)

Gradients = dict[str, Tensor]  # by the name of the loss


@runtime_checkable
class CompilableTask(Protocol):
    """A task that can compute its steps with a compiled denoiser."""

    def compile_denoiser(self) -> None:
        """Compile it; what is compiled is checked when a step first needs it."""
        ...

    def is_left_uncompiled(self) -> bool:
        """Return whether steps were computed without, as what was compiled has other gradients."""
        ...


def compile_task(task: object) -> None:
    """Let a task compute its steps with a compiled denoiser.

    Raises:
        ConfigError: the task cannot.
    """
    if not isinstance(task, CompilableTask):
        raise ConfigError(
            "This method changes the denoiser's weights, and is not compiled.", "Leave out learn.compile."
        )
    task.compile_denoiser()


def compile_unet(unet: UNet, backend: str | Callable[..., object] = "inductor") -> UNet:
    """Return a compiled form of a UNet, with CUDA graphs where it is on a CUDA device; the UNet is not changed.

    Nothing is compiled yet: that is done when it is called, for each size of its inputs apart, so that what runs for
    one does not depend on those that came before.

    Args:
        backend: of `torch.compile`.
    """
    mode = "reduce-overhead" if unet.device.type == "cuda" else "default"
    return torch.compile(unet, backend=backend, mode=mode, dynamic=False)  # pyright: ignore[reportReturnType]


def has_right_gradients(
    compute: Callable[[UNet], Gradients], plain: UNet, compiled: UNet, owner: nn.Module, inputs: tuple[object, ...]
) -> bool:
    """Return whether the gradients of a compiled UNet are those of the UNet itself; compared once for a kind of inputs.

    Where they are not, or torch cannot compile it, a remark says so. Where the UNet's own are not finite nothing can be
    said of such inputs yet.

    Args:
        compute: returns the gradient of each loss, computed with one of the two.
        owner: the network whose weights both have; what was found is known as long as it lives.
        inputs: sizes and whatever else decides what is compiled.
    """
    known = CHECKED.setdefault(owner, {})
    # Adapters that were put into the network change what is compiled.
    kind = (*inputs, plain.dtype, plain.device, sum(1 for _ in owner.modules()))
    if kind not in known:
        wanted = compute(plain)
        if not all(bool(gradient.isfinite().all()) for gradient in wanted.values()):
            return False
        reason = find_gradient_fault(compute, compiled, wanted, LIMIT if plain.dtype == torch.float32 else LIMIT_16_BIT)
        if reason is not None:
            LOGGER.warning("%s Learning goes on without compiling.", reason)
        known[kind] = reason is None
    return known[kind]


def find_gradient_fault(
    compute: Callable[[UNet], Gradients], compiled: UNet, wanted: Gradients, limit: float
) -> str | None:
    """Return in a sentence what is wrong with a compiled UNet; None where nothing is.

    Args:
        wanted: the right gradients.
        limit: how far others may be from them, as a share of their norm.
    """
    try:
        found = compute(compiled)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # also where there is no compiler
        if is_out_of_memory(error):
            raise
        return f"torch could not compile the denoiser: {shorten_message(error)}."
    for name, gradient in wanted.items():
        error = float((found[name].float() - gradient.float()).norm() / gradient.float().norm())
        if not error <= limit:  # also where it is not a number
            return (
                f"The compiled denoiser's gradient of the {name} is wrong by {error:.1%}, and {limit:.1%} are allowed."
            )
    return None


def shorten_message(error: BaseException) -> str:
    r"""Return the beginning of what torch says, which goes on for pages.

    >>> shorten_message(RuntimeError("backend='inductor' raised:\nno C++ compiler\n\nSet TORCHDYNAMO_VERBOSE=1"))
    "backend='inductor' raised: no C++ compiler"
    """
    beginning = str(error).strip().partition("\n\n")[0]
    return " ".join(beginning.split())[:200] or type(error).__name__
