"""A diffusers pipeline of the user's own: its parts as a model, its networks that read texts, its calls one by one."""

import functools
import inspect
import math
import threading
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DDPMScheduler
from torch import nn

from sefi.backbone.bundle import Backbone, ModelParts, compute_fingerprint
from sefi.backbone.folder import parse_noise_settings
from sefi.backbone.kinds import detect_family
from sefi.core.errors import BackboneError

ORIGINAL = "original_pipeline_class"
NEEDED = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_lock = threading.RLock()  # classes of pipelines are changed by one thread at a time


def view_pipeline(pipe: Any) -> Backbone:  # noqa: ANN401
    """Return the parts of a pipeline as a model, and leave them as they are: no gradient is stopped, no mode changed.

    Raises:
        BackboneError: it has no UNet, text encoders of another kind, or parts that are offloaded piece by piece.
    """
    missing = [name for name in NEEDED if getattr(pipe, name, None) is None]
    if missing:
        raise BackboneError(
            f"A {type(pipe).__name__} without {' and '.join(missing)} cannot take identities.",
            "Use a pipeline of Stable Diffusion 1.x, 2.x or XL with all its parts.",
        )
    second = getattr(pipe, "text_encoder_2", None)
    unet = get_uncompiled(pipe.unet)
    parts: dict[str, Any] = {
        "tokenizer": pipe.tokenizer, "text_encoder": copy_without_offloading(pipe.text_encoder), "vae": pipe.vae,
        "unet": unet,
        # Its noise is the model's, whatever sampler it is of.
        "scheduler": DDPMScheduler(**parse_noise_settings(pipe.scheduler.config)),
        "family": detect_family(read_text_width(unet)) if second is None else "sdxl",
        "tokenizer_2": None if second is None else pipe.tokenizer_2,
        "text_encoder_2": None if second is None else copy_without_offloading(second),
    }  # fmt: skip
    model = ModelParts(**parts)
    check_weights_present(model.networks)
    return Backbone(
        **parts,
        fingerprint=compute_fingerprint(model),
        resolution=model.trained_resolution,
        source=str(pipe.name_or_path),
        freezes=False,
    )


def get_uncompiled(module: nn.Module) -> nn.Module:
    """Return the network inside what `torch.compile` makes of it; any other network as it is."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def copy_without_offloading(module: nn.Module) -> nn.Module:
    """Return a text encoder without the hook of `enable_model_cpu_offload`, which moves it as a whole for each call.

    The pipeline's own keeps its hook; this one shares every weight with it.

    Raises:
        BackboneError: its inner modules have hooks of their own, which move or cast weights while it runs.
    """
    plain = copy(get_uncompiled(module))
    if "_hf_hook" in vars(plain):
        for name in ("_hf_hook", "_old_forward", "forward"):
            vars(plain).pop(name, None)
    if any("forward" in vars(part) for part in plain.modules()):
        raise BackboneError(
            f"The {type(plain).__name__} is offloaded or cast piece by piece, so its texts cannot be changed.",
            "Use enable_model_cpu_offload(), or offload and cast the UNet alone.",
        )
    return plain


def check_weights_present(networks: dict[str, nn.Module]) -> None:
    """Refuse networks whose weights are elsewhere between two calls, as `enable_sequential_cpu_offload` leaves them.

    Raises:
        BackboneError: weights of the named network are on the meta device.
    """
    for name, network in networks.items():
        if any(weight.is_meta for weight in network.parameters()):
            raise BackboneError(
                f"The weights of {name} are not in memory (sequential offloading).",
                "Use enable_model_cpu_offload() instead.",
            )


def read_text_width(module: Any) -> int:  # noqa: ANN401
    """Return how wide the text is that a UNet or ControlNet reads.

    Raises:
        BackboneError: it reads no text, or texts of several widths.
    """
    width = getattr(module, "config", {}).get("cross_attention_dim")
    if not isinstance(width, int):
        raise BackboneError(
            f"A {type(module).__name__} does not read a text of one width.",
            "Use a UNet and ControlNets of Stable Diffusion 1.x, 2.x or XL.",
        )
    return width


def list_denoisers(pipe: Any) -> list[nn.Module]:  # noqa: ANN401
    """List the networks of a pipeline that read its texts: the UNet and its ControlNets.

    Raises:
        BackboneError: a ControlNet reads texts of another width than the UNet.
    """
    control = getattr(pipe, "controlnet", None)
    nets = getattr(control, "nets", None)
    found = [pipe.unet, *([] if control is None else [control] if nets is None else nets)]
    denoisers = [get_uncompiled(module) for module in found]
    widths = [read_text_width(module) for module in denoisers]
    if len(set(widths)) > 1:
        raise BackboneError(
            f"The UNet and its ControlNets read texts of different widths: {', '.join(map(str, widths))}.",
            "Use ControlNets that were made for this model.",
        )
    return denoisers


def has_negative_argument(pipe: Any) -> bool:  # noqa: ANN401
    """Return whether a pipeline's call has an argument for encoded negative texts; latent consistency's has none."""
    return "negative_prompt_embeds" in inspect.signature(type(pipe).__call__).parameters


def is_negative_read(pipe: Any) -> bool:  # noqa: ANN401
    """Return whether a pipeline around a UNet that takes the guidance scale as an input reads negative texts.

    Most never do, and some with a ControlNet do at a scale above 1: each answers by its own rule.
    """
    asked = copy(pipe)
    vars(asked)["_guidance_scale"] = math.inf  # where a pipeline keeps the scale of its call
    return has_negative_argument(pipe) and bool(getattr(asked, "do_classifier_free_guidance", True))


def lock_calls(pipe: Any) -> None:  # noqa: ANN401
    """Make calls of a pipeline wait for each other, until `release_calls` was called as often.

    A diffusers pipeline keeps the state of a call in itself and in its scheduler, so calls of two threads would spoil
    each other. Pipelines with schedulers of their own run at the same time, also around one UNet.
    """
    with _lock:
        _users[pipe] = _users.get(pipe, 0) + 1
        if ORIGINAL not in vars(type(pipe)):
            pipe.__class__ = make_locked_class(type(pipe))


def release_calls(pipe: Any) -> None:  # noqa: ANN401
    """Give a pipeline its own class back when nobody needs that any more."""
    with _lock:
        _users[pipe] -= 1
        if not _users[pipe]:
            del _users[pipe]
            pipe.__class__ = vars(type(pipe))[ORIGINAL]


@functools.cache
def make_locked_class(kind: Any) -> type:  # noqa: ANN401
    """Make a pipeline class, named as the original, of which one call at a time uses a scheduler."""

    @functools.wraps(kind.__call__)  # diffusers reads the names of its arguments
    def run_alone(pipe: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with _lock:
            turn = _turns.setdefault(pipe.scheduler, threading.RLock())
        with turn:
            return kind.__call__(pipe, *args, **kwargs)

    more = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__call__": run_alone, ORIGINAL: kind}
    return type(kind.__name__, (kind,), more)


_turns: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a lock for each scheduler
_users: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
