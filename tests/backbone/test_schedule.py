"""The noise schedule agrees with diffusers and with itself."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, strategies as st

from sefi.backbone.bundle import add_noise, compute_clean, compute_target
from sefi.core.errors import BackboneError

SHAPE = (3, 2, 5, 7)
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod


def latents(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_noise_is_diffusers() -> None:
    t = torch.tensor([0, 499, 999])
    x0, noise = latents(1), latents(2)
    ours = add_noise(x0, noise, t, ALPHAS)
    torch.testing.assert_close(ours, SCHEDULER.add_noise(x0, noise, t))


def test_velocity_is_diffusers() -> None:
    t = torch.tensor([1, 500, 998])
    x0, noise = latents(3), latents(4)
    ours = compute_target(x0, noise, t, ALPHAS, "v_prediction")
    torch.testing.assert_close(ours, SCHEDULER.get_velocity(x0, noise, t))


def test_epsilon_is_the_noise() -> None:
    noise = latents(5)
    assert compute_target(latents(6), noise, torch.tensor([1, 2, 3]), ALPHAS, "epsilon") is noise


def test_other_predictions_are_refused() -> None:
    with pytest.raises(BackboneError, match="'sample'"):
        compute_target(latents(1), latents(2), torch.tensor([1, 2, 3]), ALPHAS, "sample")


@given(t=st.integers(0, 999), seed=st.integers(0, 1000))
def test_velocity_and_noisy_latent_give_the_clean_one(t: int, seed: int) -> None:
    steps = torch.full((3,), t)
    x0, noise = latents(seed), latents(seed + 1)
    noisy = add_noise(x0, noise, steps, ALPHAS)
    velocity = compute_target(x0, noise, steps, ALPHAS, "v_prediction")
    kept = ALPHAS[t]
    torch.testing.assert_close(kept.sqrt() * noisy - (1 - kept).sqrt() * velocity, x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@given(t=st.integers(0, 799), seed=st.integers(0, 1000))
def test_what_should_be_predicted_means_the_clean_latents(kind: str, t: int, seed: int) -> None:
    steps = torch.full((3,), t)
    x0, noise = latents(seed), latents(seed + 1)
    noisy = add_noise(x0, noise, steps, ALPHAS)
    predicted = compute_target(x0, noise, steps, ALPHAS, kind)
    torch.testing.assert_close(compute_clean(noisy, predicted, steps, ALPHAS, kind), x0, atol=1e-4, rtol=1e-4)


def test_half_precision_keeps_the_type_and_the_value() -> None:
    t = torch.tensor([0, 1, 2])  # 1 - a_t is 0.00085 at t = 0: lost if cast first
    x0, noise = latents(7), latents(8)
    half = add_noise(x0.bfloat16(), noise.bfloat16(), t, ALPHAS)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), add_noise(x0, noise, t, ALPHAS), atol=0.03, rtol=0.03)
