"""The samplers: schedulers of diffusers for a model's noise, and the timesteps that they take."""
# diffusers annotates optional arguments of its schedulers as required.
# pyright: reportArgumentType=false

from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from numpy.typing import NDArray

from sefi.backbone.bundle import Backbone
from sefi.backbone.folder import Spacing, parse_noise_settings
from sefi.core.errors import ConfigError
from sefi.core.hints import SCHEDULER_ALIASES, suggest

Device = str | torch.device | None
STAGES_COVERED = 10  # up to so many stages each get a step where steps suffice: ours are 5, ProSpect's 10; no maximum


class ExactTimesteps:
    """Makes a scheduler of diffusers take the timesteps of `compute_sampling_timesteps`; stands before it as a base."""

    lowest_left_out = False
    config: Any

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Prepare so many steps."""
        timesteps = compute_sampling_timesteps(
            num_inference_steps,
            self.config["num_train_timesteps"],
            self.config["timestep_spacing"],
            lowest_left_out=self.lowest_left_out,
        )
        scheduler: Any = super()
        scheduler.set_timesteps(device=device, timesteps=timesteps.tolist())


class DPMScheduler(ExactTimesteps, DPMSolverMultistepScheduler):  # pyright: ignore[reportIncompatibleMethodOverride]
    """DPM-Solver++ at the timesteps of `compute_sampling_timesteps`."""

    lowest_left_out = True


class EulerScheduler(ExactTimesteps, EulerDiscreteScheduler):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Euler's method at the timesteps of `compute_sampling_timesteps`."""


class UnevenDDIMScheduler(DPMScheduler):
    """DDIM whose steps differ in length.

    diffusers' DDIM takes every step to be `T // steps` long, whatever its timesteps are. DPM-Solver++ of first order is
    the same formula (Lu et al. 2022, section 4.1) and reads the length of each step from its timesteps.
    """

    lowest_left_out = False


class KarrasScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ at noise levels spaced as Karras et al. 2022 do (equation 5), each at the nearest timestep.

    Many steps near one timestep repeat it: zero terminal SNR leaves a wide gap before T - 1.
    """

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_inference_steps: int, device: Device = None
    ) -> None:
        """Prepare so many steps."""
        super().set_timesteps(num_inference_steps, device)
        # diffusers looks the first timestep up by value, and takes the second place of one that occurs twice.
        self.set_begin_index(0)


class AncestralScheduler(EulerAncestralDiscreteScheduler):
    """Euler's method with new noise in every step, at the timesteps of `compute_sampling_timesteps`."""

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Prepare so many steps."""
        super().set_timesteps(num_inference_steps, device)
        config: Any = self.config
        timesteps = compute_sampling_timesteps(
            num_inference_steps, config["num_train_timesteps"], config["timestep_spacing"]
        )
        # diffusers' own takes no list of timesteps, so what it computed from its own is written over.
        alphas = self.alphas_cumprod.cpu().numpy()
        sigmas = np.append(((1 - alphas) / alphas)[timesteps] ** 0.5, 0.0)
        self.sigmas = torch.from_numpy(sigmas.astype(np.float32))
        self.timesteps = torch.from_numpy(timesteps.astype(np.float32)).to(device)


DISTILLED_STEPS = 50  # of latent consistency models (Luo et al. 2023, section 4.3)


class ConsistencyScheduler(LCMScheduler):
    """The sampler of latent consistency models, whose few steps add new noise; more steps than 50 are trailing ones."""

    def set_timesteps(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_inference_steps: int, device: Device = None
    ) -> None:
        """Prepare so many steps: evenly spaced ones of those that the model was distilled at, from T - 1 on."""
        config: Any = self.config
        total = int(config["num_train_timesteps"])
        distilled = min(total, max(num_inference_steps, DISTILLED_STEPS))
        grid = compute_sampling_timesteps(distilled, total, "trailing")
        chosen = grid[np.arange(num_inference_steps) * distilled // num_inference_steps]
        # All timesteps are allowed: those of other T than 1000 are no multiples that diffusers knows.
        super().set_timesteps(device=device, timesteps=chosen.tolist(), original_inference_steps=total)

    def get_scalings_for_boundary_condition_discrete(self, timestep: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """Return how much the sample and the prediction count at a timestep, in single precision.

        Timesteps are whole numbers: diffusers takes torch's default dtype, and float16 has no room for their squares.
        """
        return super().get_scalings_for_boundary_condition_discrete(torch.as_tensor(timestep).to(torch.float32))


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpm++": (DPMScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++_karras": (KarrasScheduler, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++_sde": (DPMScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (EulerScheduler, {}),
    "euler_a": (AncestralScheduler, {}),
    "lcm": (ConsistencyScheduler, {}),
}
UNEVEN_DDIM: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "sigma_min"}


def create_scheduler(backbone: Backbone, name: str, steps: int) -> Any:  # noqa: ANN401
    """Return a new scheduler of this name for this model; `set_timesteps(steps)` gives `compute_sampling_timesteps`.

    Those of `lcm` are among the timesteps that such models are distilled at, those of `dpm++_karras` as Karras spaces
    them. Of the model's own scheduler it takes the
    noise schedule, what the model predicts and whether it begins at T - 1 (trailing), and nothing else.

    Raises:
        ConfigError: there is no such scheduler, or the model has fewer timesteps than `steps`.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler {name!r}.", suggest(name, SCHEDULERS, SCHEDULER_ALIASES, "Choose"))
    check_steps(backbone, steps)
    settings = parse_noise_settings(backbone.scheduler.config)
    kind, own = choose_scheduler_class(name, steps, backbone.num_train_timesteps, settings["timestep_spacing"])
    return kind(**settings, steps_offset=1, **own)


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
            f"Use {total} steps or fewer.",
        )


def compute_sampling_timesteps(
    steps: int, total: int, spacing: Spacing = "leading", *, lowest_left_out: bool = False
) -> NDArray[np.int64]:
    """Return the timesteps of a sampling run, `[steps]`, falling, each in [0, total).

    The first is at least `total - 1 - total / steps`, and every stage is visited where there are as many steps, but for
    some numbers of steps of a total as small as 20. Leading
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
    """Return whether timesteps fall from near T - 1, none twice, through each of up to `STAGES_COVERED` stages."""
    steps, first = len(timesteps), int(timesteps[0])
    near_the_end = (total - 1) * steps - total <= first * steps < total * steps
    stage_counts = range(1, min(steps, STAGES_COVERED) + 1)
    every_stage = all(len(np.unique(count * timesteps // total)) == count for count in stage_counts)
    return near_the_end and every_stage and bool((np.diff(timesteps) < 0).all())


def _is_even(steps: int, total: int, spacing: Spacing) -> bool:
    """Return whether diffusers' DDIM gives these timesteps and takes each step to the next of them."""
    timesteps = compute_sampling_timesteps(steps, total, spacing)
    offset = 1 if spacing == "leading" else total // steps - 1
    return np.array_equal(timesteps[::-1], np.arange(steps) * (total // steps) + offset)
