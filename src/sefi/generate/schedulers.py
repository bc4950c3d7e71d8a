"""Sampler names to diffusers schedulers, each step at a timestep that the model was trained on."""
# diffusers annotates optional arguments as required.
# pyright: reportArgumentType=false

from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray

from sefi.backbone.bundle import Backbone
from sefi.backbone.schedule import noise_settings
from sefi.core.errors import ConfigError
from sefi.core.hints import SCHEDULER_ALIASES, suggest

Device = str | torch.device | None
Spacing = Literal["leading", "trailing"]

MOST_STAGES = 10  # of which every one is visited where there are as many steps: ours are 5, ProSpect's 10


class DPMScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ at the timesteps of `compute_sampling_timesteps`."""

    lowest_left_out = True

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_inference_steps: int, device: Device = None
    ) -> None:
        """Prepare so many steps."""
        super().set_timesteps(device=device, timesteps=_timesteps_for(self, num_inference_steps))


class EulerScheduler(EulerDiscreteScheduler):
    """Euler's method at the timesteps of `compute_sampling_timesteps`."""

    lowest_left_out = False

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_inference_steps: int, device: Device = None
    ) -> None:
        """Prepare so many steps."""
        super().set_timesteps(device=device, timesteps=_timesteps_for(self, num_inference_steps))


class UnevenDDIMScheduler(DPMScheduler):
    """DDIM whose steps differ in length.

    diffusers' DDIM takes every step to be `T // steps` long, whatever its timesteps are. DPM-Solver++ of first order is
    the same formula (Lu et al. 2022, section 4.1) and reads the length of each step from its timesteps.
    """

    lowest_left_out = False


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpm++": (DPMScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (EulerScheduler, {}),
}
UNEVEN_DDIM: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "sigma_min"}


def create_scheduler(backbone: Backbone, name: str, steps: int) -> Any:  # noqa: ANN401
    """Return a new scheduler of this name for this model; `set_timesteps(steps)` gives `compute_sampling_timesteps`.

    Of the model's own scheduler it takes the noise schedule and what the model predicts, and nothing else.

    Raises:
        ConfigError: there is no such scheduler, or the model has fewer timesteps than `steps`.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler {name!r}.", suggest(name, SCHEDULERS, SCHEDULER_ALIASES, "Choose"))
    check_steps(backbone, steps)
    settings = noise_settings(backbone.scheduler.config)
    spacing: Spacing = "trailing" if settings["rescale_betas_zero_snr"] else "leading"
    kind, own = choose_scheduler_class(name, steps, backbone.num_train_timesteps, spacing)
    return kind(**settings, timestep_spacing=spacing, steps_offset=1, **own)


def choose_scheduler_class(name: str, steps: int, total: int, spacing: Spacing) -> tuple[Any, dict[str, Any]]:
    """Return the class of a sampler for so many steps of `total` timesteps, and its own settings."""
    if name == "ddim" and not _is_even(steps, total, spacing):
        return UnevenDDIMScheduler, UNEVEN_DDIM
    return SCHEDULERS[name]


def check_steps(backbone: Backbone, steps: int) -> None:
    """Refuse more denoising steps than the model has timesteps.

    Raises:
        ConfigError: there are more.
    """
    total = backbone.num_train_timesteps
    if steps > total:
        raise ConfigError(
            f"{steps} denoising steps are more than the {total} timesteps of this model.",
            f"Use --steps {total} or fewer.",
        )


def compute_sampling_timesteps(
    steps: int, total: int, spacing: Spacing = "leading", *, lowest_left_out: bool = False
) -> NDArray[np.int64]:
    """Return the timesteps of a sampling run, `[steps]`, falling, each in [0, total).

    The first is at least `total - 1 - total / steps`, and every stage is visited where there are as many steps. Leading
    spacing is Stable Diffusion's: 50 steps of 1000 are 981, 961, ..., 1. diffusers rounds the distance between two
    steps down, which leaves the noisiest timesteps out where `steps` does not divide `total`; there the exact distance
    is taken. One step is at `total - 1`.

    Args:
        steps: from 1 to `total`.
        total: the number of training timesteps T.
        spacing: trailing begins at T - 1, as models with zero terminal SNR need it (Lin et al. 2024).
        lowest_left_out: with leading spacing, divide T into one more interval and leave the cleanest to the last
            step, as diffusers' DPM-Solver++ does.
    """
    if steps == 1:
        return np.array([total - 1])
    if spacing == "trailing":
        ends = np.arange(steps, 0, -1) * total
        return (2 * ends + steps) // (2 * steps) - 1  # rounded to the nearest
    intervals = steps + lowest_left_out
    places = np.arange(intervals - 1, intervals - 1 - steps, -1)
    exact = places * total // intervals
    candidates = (places * (total // intervals) + 1, exact + 1, exact)
    return next((found for found in candidates if _covers(found, total)), exact)


def _covers(timesteps: NDArray[np.int64], total: int) -> bool:
    """Whether timesteps fall from near T - 1, none twice, through every one of up to `MOST_STAGES` equal stages."""
    steps, first = len(timesteps), int(timesteps[0])
    near_the_end = (total - 1) * steps - total <= first * steps < total * steps
    stage_counts = range(1, min(steps, MOST_STAGES) + 1)
    every_stage = all(len(np.unique(count * timesteps // total)) == count for count in stage_counts)
    return near_the_end and every_stage and bool((np.diff(timesteps) < 0).all())


def _is_even(steps: int, total: int, spacing: Spacing) -> bool:
    """Whether diffusers' DDIM gives these timesteps and takes each step to the next of them."""
    timesteps = compute_sampling_timesteps(steps, total, spacing)
    offset = 1 if spacing == "leading" else total // steps - 1
    return np.array_equal(timesteps[::-1], np.arange(steps) * (total // steps) + offset)


def _timesteps_for(scheduler: Any, steps: int) -> list[int]:  # noqa: ANN401
    """The timesteps of a scheduler's own settings."""
    config = scheduler.config
    timesteps = compute_sampling_timesteps(
        steps, config["num_train_timesteps"], config["timestep_spacing"], lowest_left_out=scheduler.lowest_left_out
    )
    return timesteps.tolist()
