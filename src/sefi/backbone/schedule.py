"""The noise schedule: how a latent is noised and what the model should answer."""

import torch
from torch import Tensor

from sefi.core.errors import BackboneError

PREDICTION_TYPES = ("epsilon", "v_prediction")


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
