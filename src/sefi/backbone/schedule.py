"""The noise schedule: how a latent is noised and what the model should answer."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from sefi.core.errors import BackboneError, first_fault

PREDICTION_TYPES = ("epsilon", "v_prediction")


class NoiseSettings(BaseModel):
    """What is read of a model's scheduler file: the noise that it was trained with. The sampler's options are ours."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    @model_validator(mode="after")
    def check_noise(self) -> Self:
        """One beta in (0, 1] for each timestep; at zero signal, noise alone does not tell the image."""
        betas = self.trained_betas
        if betas is not None and (len(betas) != self.num_train_timesteps or not all(0 < beta <= 1 for beta in betas)):
            raise ValueError(f"trained_betas must be {self.num_train_timesteps} numbers in (0, 1]")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs v_prediction: a model that predicts noise says nothing at zero signal"
            )
        return self


def noise_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked noise settings of a scheduler's configuration, as diffusers' schedulers take them.

    Raises:
        BackboneError: one is out of range or of another kind; the message names it.
    """
    try:
        found = NoiseSettings.model_validate(dict(config)).model_dump()
    except ValidationError as error:
        raise BackboneError(
            f"This model's noise schedule cannot be used: {first_fault(error)}.",
            "Correct scheduler/scheduler_config.json, or use a Stable Diffusion 1.x or 2.x model.",
        ) from None
    betas = found["trained_betas"]
    return found | {"trained_betas": None if betas is None else list(betas)}


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy latent `sqrt(a_t) x0 + sqrt(1 - a_t) noise` (Ho et al. 2020, eq. 4).

    Args:
        x0: clean latents `[batch, ...]`.
        noise: standard normal, shaped as `x0`.
        t: timesteps `[batch]`, whole numbers from 0 (clean) to T - 1.
        alphas_cumprod: `[T]`, the product of (1 - beta) up to each timestep.
    """
    signal, disturbance = _amplitudes(x0, t, alphas_cumprod)
    return signal * x0 + disturbance * noise


def target(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the model should predict, shaped as `x0`.

    `epsilon` is the noise itself (Ho et al. 2020, eq. 14); `v_prediction` is
    `sqrt(a_t) noise - sqrt(1 - a_t) x0` (Salimans and Ho 2022, appendix D).

    Raises:
        BackboneError: the prediction type is another one.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, disturbance = _amplitudes(x0, t, alphas_cumprod)
        return signal * noise - disturbance * x0
    raise BackboneError(
        f"This model predicts '{prediction_type}', which is not supported.",
        f"Use a model that predicts one of: {', '.join(PREDICTION_TYPES)}.",
    )


def _amplitudes(x0: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """`sqrt(a_t)` and `sqrt(1 - a_t)`, shaped to multiply `x0`."""
    # Square roots before the cast: in half precision 1 - a_t loses its digits near t = 0.
    kept = alphas_cumprod.to(x0.device, torch.float32)[t.to(x0.device)]
    kept = kept.reshape(-1, *[1] * (x0.ndim - 1))
    return kept.sqrt().to(x0.dtype), (1 - kept).sqrt().to(x0.dtype)
