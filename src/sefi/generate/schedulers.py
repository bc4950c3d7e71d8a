"""Sampler names to diffusers schedulers on the model's own noise schedule."""

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from sefi.backbone.bundle import Backbone
from sefi.core.errors import ConfigError
from sefi.core.hints import SCHEDULER_ALIASES, suggest

# Stable Diffusion's DDIM: t = 981, 961, ..., 1 for 50 steps, ten in each of five stages.
OFFSETS = {"steps_offset": 1, "timestep_spacing": "leading"}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {**OFFSETS, "clip_sample": False, "set_alpha_to_one": False}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **OFFSETS}),
    "euler": (EulerDiscreteScheduler, OFFSETS),
}


def scheduler(backbone: Backbone, name: str) -> Any:  # noqa: ANN401
    """A new scheduler of this name for this model."""
    if name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler {name!r}.", suggest(name, SCHEDULERS, SCHEDULER_ALIASES, "Choose"))
    kind, settings = SCHEDULERS[name]
    # Samplers without this setting would carry the noise schedule's value along, and diffusers warns of it.
    config = {k: v for k, v in backbone.scheduler.config.items() if k != "clip_sample"}
    return kind.from_config(config, **settings)
