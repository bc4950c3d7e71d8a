"""The frozen model and the settings that a command line names."""

import time
from typing import TYPE_CHECKING

from sefi.cli.options import EMBEDDED
from sefi.cli.output import say
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.core.presets import preset_named

if TYPE_CHECKING:
    from sefi.backbone.bundle import Backbone

DTYPES = ("float32", "bfloat16", "float16")
DRAWN_ONLY = (
    "note: tiny-portraits only knows drawn people; for photographs name a Stable Diffusion model:\n"
    "  --model FOLDER | FILE.safetensors | OWNER/NAME --download"
)


def chosen_config(preset: str, settings: list[str]) -> Config:
    """A preset with single settings changed; later ones win.

    Raises:
        ConfigError: There is no such preset or setting, or a value does not fit.
    """
    return override(preset_named(preset), settings)


def drawing_config(preset: str, settings: list[str]) -> Config:
    """As `chosen_config`, for commands that draw: how a subject was learned stands in its identity.

    Raises:
        ConfigError: A setting of something else than drawing.
    """
    for setting in settings:
        if not setting.startswith("generate."):
            raise ConfigError(
                f"{setting.partition('=')[0]!r} is settled when a subject is learned.",
                "Give it to `sefi learn`; drawing knows the settings generate.* only.",
            )
    return chosen_config(preset, settings)


def preset_of(method: str | None, preset: str | None) -> str:
    """The preset to start from when a method, a preset, both or none are named.

    Raises:
        ConfigError: There is no such method, or the preset is another method's.
    """
    if method is None:
        return preset or "default"
    from sefi.methods import method_named

    method_named(method)
    chosen = preset or ("default" if method == "sefi" else method)
    if preset_named(chosen).method != method:
        raise ConfigError(
            f"The preset '{chosen}' belongs to the method {preset_named(chosen).method!r}.",
            f"Leave out --preset, or use --method {preset_named(chosen).method}.",
        )
    return chosen


def assigned(**values: object) -> list[str]:
    """Options that were given, as settings: `learn__steps=3` becomes `learn.steps=3`.

    >>> assigned(learn__steps=3, learn__class_word=None)
    ['learn.steps=3']
    """
    given = {name: value for name, value in values.items() if value is not None}
    return [f"{name.replace('__', '.')}={value}" for name, value in given.items()]


def opened(model: str, *, download: bool, device: str, dtype: str) -> "Backbone":
    """Open the model that a command works on, and say how long it took.

    Raises:
        BackboneError: It is not there or cannot be used.
        ConfigError: The number type is unknown.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"There is no number type '{dtype}'.", f"Use {', '.join(DTYPES)}.")
    say(f"opening {model} ...")
    started = time.monotonic()
    import torch

    from sefi.backbone.open import open_backbone

    backbone = open_backbone(
        model,
        allow_download=download,
        device=chosen_device() if device == "auto" else device,
        dtype=getattr(torch, dtype),
    )
    say(f"opened in {time.monotonic() - started:.1f} s ({backbone.device.type}, {dtype})")
    return backbone


def chosen_device() -> str:
    """CUDA where there is some, else Apple's GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def warn_of_photographs(model: str) -> None:
    """The embedded model cannot draw photographs, and a photograph cannot be told for sure."""
    if model == EMBEDDED:
        say(DRAWN_ONLY)
