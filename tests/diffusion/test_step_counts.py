"""Images of every sampler at numbers of steps where the noise once went wrong, on a tiny model."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers import DDPMScheduler

from sefi.api import generate, generate_each
from sefi.core.config import Config, parse_config
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner

TOTAL = 41


def short(backbone, **changes):
    noise = {"beta_start": 0.00085, "beta_end": 0.15, "beta_schedule": "scaled_linear", "num_train_timesteps": TOTAL}
    return replace(backbone, scheduler=DDPMScheduler(**noise | changes))


def config(name, steps):
    return parse_config({"generate": {"scheduler": name, "steps": steps, "guidance_scale": 3.0}}, Config)


@pytest.mark.slow
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "lcm"])
def test_images_have_content(backbone, name, zero_snr):
    model = short(backbone, prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr)
    for steps in (1, 5, TOTAL - 1):
        pixels = np.asarray(generate("a photo of a dog", backbone=model, config=config(name, steps))[0].pixels)
        # What is not finite becomes black.
        assert pixels.std() > 1, (steps, zero_snr)


def test_too_many_steps_are_refused_before_any_work(backbone):
    model = short(backbone)
    with pytest.raises(ConfigError, match="42 denoising steps are more than the 41"):
        next(generate_each("a dog", backbone=model, config=config("ddim", TOTAL + 1)))
    conditioner = IdentityConditioner(model, [])
    with pytest.raises(ConfigError, match="42 denoising steps"):
        record_attention(model, conditioner, "a dog", 0, config("ddim", TOTAL + 1).generate, SilentProgress())


def test_as_many_steps_as_stable_diffusion_has_timesteps_are_a_setting():
    assert config("ddim", 1000).generate.steps == 1000
