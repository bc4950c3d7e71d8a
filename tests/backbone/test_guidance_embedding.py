"""Latent consistency UNets take the guidance scale as an input: to learn, to generate and for attention maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

import sefi
from sefi.api import list_prompt_remarks
from sefi.backbone.bundle import LEARNING_GUIDANCE, Backbone, TextEncoding
from sefi.backbone.open import open_backbone
from sefi.cli.app import app
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import sample_images
from sefi.identity.file import Identity
from sefi.methods import PRESETS

SIZES = [5, 8]  # odd sizes are padded
PROMPT = "a photo of <ada> at the beach"


@pytest.fixture(params=SIZES)
def lcm(learnable: Callable[..., Path], request: pytest.FixtureRequest) -> Backbone:
    return open_backbone(str(learnable(unet={"time_cond_proj_dim": request.param})))


@pytest.mark.slow_after(1)
def test_learns_saves_generates_and_attends(lcm: Backbone, photo_file: Path, few_steps: Config, tmp_path: Path) -> None:
    identity = sefi.learn(photo_file, name="ada", backbone=lcm, config=few_steps, crop=False)
    identity.save(tmp_path / "ada.safetensors")
    loaded = Identity.load(tmp_path / "ada.safetensors")
    images = {}
    for scale in (1, 3, 9):
        config = override(few_steps, [f"generate.guidance_scale={scale}"])
        images[scale] = sefi.generate(PROMPT, [loaded], backbone=lcm, config=config)[0].pixels
    assert images[1].size == (lcm.resolution, lcm.resolution)
    assert len({image.tobytes() for image in images.values()}) == 3
    attention = record_attention(
        lcm, IdentityConditioner(lcm, [loaded]), PROMPT, 0, few_steps.generate, SilentProgress()
    )
    assert attention.maps.shape[0] == len(attention.words)
    assert torch.isfinite(attention.maps).all()


@pytest.mark.slow_after(1)
def test_a_method_that_tunes_weights_learns(lcm: Backbone, photo_file: Path, few_steps: Config) -> None:
    few = ["learn.steps=1", "learn.batch=1", "views.latent_pool=2", "tune.prior_images=1", "generate.steps=2"]
    config = override(PRESETS["dreambooth"], few)
    identity = sefi.learn(photo_file, name="ada", backbone=lcm, config=config, crop=False)
    assert sefi.generate(PROMPT, [identity], backbone=lcm, config=config)[0].pixels.size == (lcm.resolution,) * 2


def test_the_scale_is_embedded_as_the_pipeline_embeds_it(lcm: Backbone) -> None:
    seen: list[torch.Tensor] = []
    hook = lcm.unet.time_embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[1]))
    latents = torch.zeros(2, lcm.latent_channels, lcm.latent_size, lcm.latent_size)
    predicted = lcm.predict(
        latents, torch.tensor([0, 999]), TextEncoding(torch.zeros(2, lcm.text_length, lcm.token_width))
    )
    hook.remove()
    assert predicted.shape == latents.shape
    size = lcm.unet.config["time_cond_proj_dim"]
    weight = torch.tensor([LEARNING_GUIDANCE - 1] * 2)
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(None, weight, embedding_dim=size)
    assert torch.allclose(seen[0], expected, atol=2e-3)  # sines of arguments up to 6500 in single precision


def test_other_unets_get_no_guidance(learnable: Callable[..., Path]) -> None:
    backbone = open_backbone(str(learnable()))
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([400])
    context = torch.randn(1, backbone.text_length, backbone.token_width)
    assert not backbone.embeds_guidance
    assert torch.equal(backbone.predict(latents, t, TextEncoding(context)), backbone.unet(latents, t, context).sample)


@pytest.mark.slow_after(1)
def test_a_negative_prompt_which_it_does_not_read_is_refused(
    lcm: Backbone, few_steps: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = override(few_steps, ["generate.negative_prompt=beach"])
    with pytest.raises(ConfigError, match="A negative prompt has no effect on this model"):
        sefi.generate("a photo", backbone=lcm, config=config)
    with pytest.raises(ConfigError, match="A negative prompt has no effect on this model"):
        record_attention(lcm, IdentityConditioner(lcm, []), "a photo", 0, config.generate, SilentProgress())
    for command in (["generate", "a photo", "--negative-prompt", "beach"],
                    ["attend", "a photo", "--set", "generate.negative_prompt=beach"]):  # fmt: skip
        result = CliRunner().invoke(app, [*command, "--model", str(lcm.source)])
        assert result.exit_code == 2, result.output
        assert "A negative prompt has no effect on this model" in " ".join(result.output.split())
    assert not list(tmp_path.glob("pictures/*"))


def test_its_length_changes_no_image(lcm: Backbone, few_steps: Config) -> None:
    conditioner = IdentityConditioner(lcm, [])

    def draw(negative: str) -> bytes:
        settings = override(few_steps, [f"generate.negative_prompt={negative}"]).generate
        (image,) = sample_images(lcm, conditioner, ["a photo of a person"], [3], settings, SilentProgress())
        return image.pixels.tobytes()

    assert draw("beach " * 3 * lcm.text_length) == draw("")


def test_a_scale_below_1_is_not_said_to_be_1(lcm: Backbone, backbone: Backbone, few_steps: Config) -> None:
    settings = override(few_steps, ["generate.guidance_scale=0.5", "generate.scheduler=lcm"]).generate
    assert not any("without guidance" in remark for remark in list_prompt_remarks(lcm, ["a photo"], settings))
    assert any("without guidance" in remark for remark in list_prompt_remarks(backbone, ["a photo"], settings))
