"""The noise of every sampler at every number of steps: the whole matrix, without a UNet."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from sefi.backbone.folder import parse_noise_settings
from sefi.core.errors import BackboneError, ConfigError
from sefi.diffusion.schedulers import (
    SCHEDULERS,
    UNEVEN_DDIM,
    UnevenDDIMScheduler,
    choose_scheduler_class,
    create_scheduler,
)

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DETERMINISTIC = ["ddim", "dpm++", "euler"]
EVERY_TIMESTEP = [*DETERMINISTIC, "dpm++_sde", "euler_a"]  # those that take `compute_sampling_timesteps`
KINDS = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
MANY = [pytest.param(steps, marks=pytest.mark.slow) for steps in (499, 601, 998, 999, 1000)]
USUAL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def with_noise(backbone, total, prediction="epsilon", zero_snr=False, **others):
    config = NOISE | {
        "num_train_timesteps": total,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
    }
    return replace(backbone, scheduler=DDPMScheduler(**config | others))


def all_timesteps(model, name):
    """The timesteps of every number of steps; a scheduler of each class is made once."""
    total, made = model.num_train_timesteps, {}
    spacing = "trailing" if model.scheduler.config["rescale_betas_zero_snr"] else "leading"
    for steps in range(1, total + 1):
        kind, _ = choose_scheduler_class(name, steps, total, spacing)
        if kind not in made:
            made[kind] = create_scheduler(model, name, steps)
        made[kind].set_timesteps(steps)
        yield steps, made[kind].timesteps.double().numpy()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("prediction", "zero_snr"), KINDS)
@pytest.mark.parametrize("total", [1000, 100, 97])
@pytest.mark.parametrize("name", EVERY_TIMESTEP)
def test_every_number_of_steps_obeys_the_rule(backbone, name, total, prediction, zero_snr):
    for steps, found in all_timesteps(with_noise(backbone, total, prediction, zero_snr), name):
        where = (name, total, steps)
        assert len(found) == steps, where
        assert np.array_equal(found, np.round(found)), where
        assert found[-1] >= 0, where
        assert found[0] <= total - 1, where
        assert (np.diff(found) < 0).all(), where
        assert found[0] >= total - 1 - total / steps, where
        if steps == 1 or zero_snr:
            assert found[0] == total - 1, where
        for stages in (5, 10, 7):
            if steps >= stages:
                assert len(np.unique(stages * found.astype(int) // total)) == stages, (*where, stages)


@pytest.mark.parametrize("total", [1000, 100, 97])
def test_the_consistency_sampler_takes_the_timesteps_it_was_distilled_at(backbone, total):
    model, grid = with_noise(backbone, total), set(range(19, 1000, 20))
    for steps, found in all_timesteps(model, "lcm"):
        where = (total, steps)
        assert len(found) == steps, where
        assert found[0] == total - 1, where
        assert found[-1] >= 0, where
        assert (np.diff(found) < 0).all(), where
        assert total != 1000 or steps > 50 or grid.issuperset(found.astype(int)), where
        for stages in (5, 10):
            if steps >= stages:
                assert len(np.unique(stages * found.astype(int) // total)) == stages, (*where, stages)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 25, 50])
def test_the_consistency_sampler_is_diffusers(backbone, steps):
    made, stock = create_scheduler(with_noise(backbone, 1000), "lcm", steps), LCMScheduler(**NOISE)
    for one in (made, stock):
        one.set_timesteps(steps)
    assert made.timesteps.tolist() == stock.timesteps.tolist()


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("stated", "steps", "first"), [("trailing", 1, 999), ("trailing", 4, 999), ("leading", 4, 751)]
)
def test_a_turbo_model_begins_at_the_last_timestep(backbone, name, stated, steps, first):
    settings = parse_noise_settings(NOISE | {"timestep_spacing": stated})
    made = create_scheduler(replace(backbone, scheduler=DDPMScheduler(**settings)), name, steps)
    made.set_timesteps(steps)
    begins_last, left_out = name in ("lcm", "dpm++_karras"), name in ("dpm++", "dpm++_sde") and stated == "leading"
    assert made.timesteps[0] == (999 if begins_last else 801 if left_out else first)
    assert len(made.timesteps) == steps


def before(name, steps):
    """The timesteps of plain diffusers with leading spacing and an offset of one, as they always were."""
    kind = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}[name]
    made = kind(**USUAL, timestep_spacing="leading")
    made.set_timesteps(steps)
    return made.timesteps.tolist()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_was_right_stays_as_it_was(backbone, name):
    model, kept = with_noise(backbone, 1000), []
    for steps in range(2, 1001):
        old = before(name, steps)
        right = 999 - 1000 / steps <= old[0] <= 999 and len(set(old)) == steps
        if right and (steps < 5 or len({5 * int(t) // 1000 for t in old}) == 5):
            made = create_scheduler(model, name, steps)
            made.set_timesteps(steps)
            assert made.timesteps.tolist() == old, (name, steps)
            kept.append(steps)
    assert {"ddim": {10, 20, 25, 50, 100, 200}, "dpm++": {9, 19, 24, 49}, "euler": {10, 25, 50}}[name] <= set(kept)


def test_fifty_and_twenty_five_steps_are_stable_diffusions(backbone):
    for steps, ratio in ((50, 20), (25, 40)):
        made = create_scheduler(with_noise(backbone, 1000), "ddim", steps)
        assert type(made) is DDIMScheduler  # the very formula of before, so the same bits
        made.set_timesteps(steps)
        assert made.timesteps.tolist() == list(range(1000 - ratio + 1, 0, -ratio))
        assert np.bincount(made.timesteps.numpy() * 5 // 1000).tolist() == [steps // 5] * 5


@pytest.mark.parametrize(("prediction", "zero_snr"), KINDS)
@pytest.mark.parametrize("steps", [1, 2, 5, 7, 50, 251, *MANY])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_perfect_model_gives_back_the_image(backbone, name, steps, prediction, zero_snr):
    """With the true noise predicted, each step must end at the noise of the next timestep, the last at the image."""
    made = create_scheduler(with_noise(backbone, 1000, prediction, zero_snr), name, steps)
    made.set_timesteps(steps)
    image, noise = torch.tensor([[0.75]], dtype=torch.float64), torch.tensor([[-1.25]], dtype=torch.float64)
    alphas = made.alphas_cumprod.double()
    x = noisy(image, noise, alphas[int(made.timesteps[0])], made)
    for k, t in enumerate(made.timesteps):
        made.scale_model_input(x, t)
        alpha = alphas[int(t)]
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * image
        x = made.step(noise if prediction == "epsilon" else velocity, t, x).prev_sample
        if k + 1 < steps:
            expected = noisy(image, noise, alphas[int(made.timesteps[k + 1])], made)
            assert torch.allclose(x, expected, rtol=2e-3, atol=2e-3), (k, int(t))
    # DDIM ends at the noise of timestep 0.
    last = alphas[0] if name == "ddim" else torch.ones(())
    assert torch.allclose(x, last.sqrt() * image + (1 - last).sqrt() * noise, atol=2e-3)


def noisy(image, noise, alpha, made):
    if isinstance(made, EulerDiscreteScheduler):  # in units of the image, not of unit variance
        return image + ((1 - alpha) / alpha).sqrt() * noise
    return alpha.sqrt() * image + (1 - alpha).sqrt() * noise


def test_ddim_of_uneven_steps_is_ddim(backbone):
    """Where diffusers' DDIM is right, the scheduler for uneven steps gives the same."""
    even = create_scheduler(with_noise(backbone, 1000), "ddim", 25)
    uneven = UnevenDDIMScheduler(**parse_noise_settings(even.config), **UNEVEN_DDIM)
    random = torch.Generator().manual_seed(5)
    x = y = torch.randn(3, 7, generator=random)
    for made in (even, uneven):
        made.set_timesteps(25)
    for t in even.timesteps:
        answer = torch.randn(3, 7, generator=random)
        x, y = even.step(answer, t, x).prev_sample, uneven.step(answer, t, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


LEAKS = {
    "use_karras_sigmas": True,
    "thresholding": True,
    "timestep_spacing": "linspace",
    "steps_offset": 3,
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 3,
    "final_sigmas_type": "sigma_min",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "interpolation_type": "log_linear",
    "timestep_type": "continuous",
    "use_beta_sigmas": True,
    "euler_at_final": True,
    "lower_order_final": False,
    "variance_type": "learned",
}


@pytest.mark.parametrize("option", LEAKS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_option_of_the_models_sampler_comes_through(backbone, name, option):
    settings = parse_noise_settings(USUAL | {"prediction_type": "v_prediction", option: LEAKS[option]})
    plain = parse_noise_settings(NOISE | {"prediction_type": "v_prediction"})
    assert settings == plain
    clean = with_noise(backbone, 1000, "v_prediction")
    # A backbone that was put together by hand may still carry the option in its scheduler.
    dirty = with_noise(backbone, 1000, "v_prediction")
    dirty.scheduler.register_to_config(**{option: LEAKS[option]})
    assert dict(create_scheduler(dirty, name, 50).config) == dict(create_scheduler(clean, name, 50).config)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_models_own_noise_comes_through(backbone, name):
    betas = torch.linspace(0.001, 0.3, 13).tolist()
    made = create_scheduler(with_noise(backbone, 13, "v_prediction", trained_betas=betas), name, 13)
    assert made.betas.tolist() == pytest.approx(betas)
    assert made.config.prediction_type == "v_prediction"
    for model in (with_noise(backbone, 1000), with_noise(backbone, 1000, "v_prediction", zero_snr=True)):
        ours = create_scheduler(model, name, 50)
        assert torch.equal(ours.alphas_cumprod[:-1], model.scheduler.alphas_cumprod[:-1])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("total", [1, 2, 97])
def test_more_steps_than_timesteps_are_refused(backbone, name, total):
    model = with_noise(backbone, total)
    assert create_scheduler(model, name, total) is not None
    with pytest.raises(ConfigError, match=f"{total + 1} denoising steps are more than the {total} timesteps"):
        create_scheduler(model, name, total + 1)


def test_an_unknown_name_is_refused(backbone):
    with pytest.raises(ConfigError, match="'heun'"):
        create_scheduler(backbone, "heun", 5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"beta_end": "much"}, "beta_end"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas must be 1000 numbers"),
        ({"num_train_timesteps": 2, "trained_betas": [0.1, 7.0]}, "trained_betas must be 2 numbers"),
        ({"prediction_type": None}, "prediction_type"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
    ],
)
def test_a_noise_schedule_that_cannot_be_is_refused(changes, named):
    with pytest.raises(BackboneError, match=named):
        parse_noise_settings(NOISE | changes)
