"""Samplers with noise levels of their own, or with new noise in every step, against diffusers' own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)
from tests.diffusion.test_timesteps import NOISE, USUAL, with_noise

from sefi.backbone.bundle import Backbone, TextEncoding
from sefi.core.config import Config, parse_config
from sefi.core.progress import SilentProgress
from sefi.diffusion.conditioning import WordsConditioner
from sefi.diffusion.sampling import sample_images
from sefi.diffusion.schedulers import SCHEDULERS, create_scheduler
from sefi.identity.tokens import get_stage

STOCK = {
    "dpm++_karras": lambda: DPMSolverMultistepScheduler(**USUAL, use_karras_sigmas=True),
    "dpm++_sde": lambda: DPMSolverMultistepScheduler(
        **USUAL, algorithm_type="sde-dpmsolver++", timestep_spacing="leading"
    ),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**USUAL, timestep_spacing="leading"),
}


def run(scheduler, steps: int) -> torch.Tensor:
    """Latents after a run with answers that depend on the timestep."""
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    for t in scheduler.timesteps:
        answer = (scheduler.scale_model_input(x, t) * 0.3 + float(t) / 1000).sin()
        x = scheduler.step(answer, t, x, generator=generators).prev_sample
    return x


@pytest.mark.parametrize(
    ("name", "steps"), [("dpm++_karras", 20), ("dpm++_karras", 17), ("dpm++_sde", 19), ("euler_a", 25)]
)
def test_where_diffusers_is_right_the_result_is_its_own(backbone: Backbone, name: str, steps: int) -> None:
    ours, stock = create_scheduler(with_noise(backbone, 1000), name, steps), STOCK[name]()
    torch.testing.assert_close(run(ours, steps), run(stock, steps), rtol=1e-4, atol=1e-4)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()


def test_karras_steps_are_those_that_exports_are_written_for(backbone: Backbone) -> None:
    """The counts of steps above each boundary of five stages that other programs' DPM++ 2M Karras has."""
    made = create_scheduler(with_noise(backbone, 1000), "dpm++_karras", 20)
    for steps, counts in ((20, (5, 8, 10, 12)), (17, (4, 7, 9, 11)), (25, (6, 10, 13, 16))):
        made.set_timesteps(steps)
        assert tuple(int((made.timesteps >= edge).sum()) for edge in (800, 600, 400, 200)) == counts


@pytest.mark.parametrize("total", [1000, 97])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5, 13, 61, 97])
def test_karras_steps_fall_and_begin_at_the_end(backbone: Backbone, total: int, zero_snr: bool, steps: int) -> None:
    made = create_scheduler(with_noise(backbone, total, "v_prediction", zero_snr), "dpm++_karras", steps)
    made.set_timesteps(steps)
    found = made.timesteps.numpy()
    assert len(found) == steps
    assert found[0] == total - 1
    assert found[-1] >= 0
    assert (np.diff(found) <= 0).all()
    x = torch.ones(1, 1, 2, 2)
    for number, t in enumerate(made.timesteps):  # none is left out, though some occur twice
        x = made.step(x * 0, t, x).prev_sample
        assert made.step_index == number + 1


class StageConditioner(WordsConditioner):
    """Notes for which timesteps a text was asked, and gives one that differs between the stages."""

    stages = 7

    def get_context_key(self, timestep: int) -> int:
        return get_stage(timestep, self.stages, self.backbone.num_train_timesteps)

    def encode_prompts(self, prompts: list[str], timestep: int) -> TextEncoding:
        encoding = super().encode_prompts(prompts, timestep)
        return replace(encoding, states=encoding.states + self.get_context_key(timestep))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++", "dpm++_karras", "dpm++_sde", "euler", "euler_a", "lcm"])
def test_each_step_reads_the_text_of_its_own_stage(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, name: str, zero_snr: bool
) -> None:
    noise = NOISE | {"rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    model = replace(backbone, scheduler=DDPMScheduler(**noise))
    conditioner = StageConditioner(model, {})
    plain = WordsConditioner(model, {}).encode_prompts(["a dog"], 0).states
    seen: list[tuple[float, int]] = []
    forward = type(model.unet).forward

    def watch(unet, sample, timestep, encoder_hidden_states, **more):
        offset = (encoder_hidden_states[-1] - plain[0]).mean()
        seen.append((float(timestep), round(float(offset))))
        return forward(unet, sample, timestep, encoder_hidden_states, **more)

    monkeypatch.setattr(type(model.unet), "forward", watch)
    settings = parse_config({"generate": {"scheduler": name, "steps": 23, "guidance_scale": 3}}, Config).generate
    (image,) = sample_images(model, conditioner, ["a dog"], [2], settings, SilentProgress())
    assert np.asarray(image.pixels).std() > 1
    assert len(seen) == 23
    assert [stage for _, stage in seen] == [get_stage(int(t), 7, 1000) for t, _ in seen]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["euler_a", "dpm++_sde", "lcm"])
def test_each_image_has_its_own_noise_whatever_the_batch(backbone: Backbone, name: str) -> None:
    conditioner, found = WordsConditioner(backbone, {}), []
    for batch in (1, 3):
        settings = parse_config({"generate": {"scheduler": name, "steps": 5, "batch_size": batch}}, Config).generate
        images = sample_images(backbone, conditioner, ["a dog"] * 5, [3, 4, 5, 6, 7], settings, SilentProgress())
        found.append([np.asarray(image.pixels).astype(int) for image in images])
    for one, other in zip(*found, strict=True):
        assert np.abs(one - other).max() <= 1
    assert np.abs(found[0][0] - found[0][1]).max() > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_default_dtype_changes_no_image(backbone: Backbone, name: str) -> None:
    settings = parse_config({"generate": {"scheduler": name, "steps": 5}}, Config).generate

    def draw() -> np.ndarray:
        (image,) = sample_images(backbone, WordsConditioner(backbone, {}), ["a dog"], [3], settings, SilentProgress())
        return np.asarray(image.pixels)

    expected = draw()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            found = draw()
        finally:
            torch.set_default_dtype(torch.float32)
        assert (found == expected).all(), dtype
