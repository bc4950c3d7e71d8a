"""Nothing that is not finite is saved: images, identities, JSON."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sefi.api import generate, generate_each
from sefi.cli.app import app
from sefi.cli.generate import GenerateRun, generate_and_save
from sefi.core.config import Config, override, parse_config
from sefi.core.errors import ConfigError, GenerationError, IdentityError
from sefi.core.progress import SilentProgress
from sefi.core.text import dump_json
from sefi.diffusion.sampling import build_pipeline, decode_images
from sefi.identity.file import Identity, IdentityHeader
from sefi.training.loop import IdentityTrainer

QUICK = parse_config({"generate": {"steps": 2, "count": 3, "batch_size": 2}}, Config)
SOURCE = Path(__file__).parents[2]


def with_nan_in(backbone, part):
    broken = copy.deepcopy(getattr(backbone, part))
    with torch.no_grad():
        {"vae": lambda: broken.decoder.conv_in, "unet": lambda: broken.conv_in}[part]().weight.fill_(float("nan"))
    return replace(backbone, **{part: broken})


def identity_of(backbone, tokens):
    header = IdentityHeader(
        name="ada",
        method="sefi",
        stages=5,
        base_model=backbone.fingerprint,
        width=backbone.token_width,
        class_word="person",
    )
    return Identity({"tokens": tokens}, header)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_an_image_that_is_not_finite_is_named_and_not_saved(backbone, tmp_path, part):
    broken = with_nan_in(backbone, part)
    work = GenerateRun(["a photo of a dog"], [], broken, QUICK, 41)
    with pytest.raises(GenerationError, match=r"'a photo of a dog' with seed 41") as caught:
        generate_and_save(work, tmp_path, [], SilentProgress())
    assert ("VAE" in str(caught.value)) == (part == "vae")
    assert not list(tmp_path.iterdir())


def test_the_image_that_is_not_finite_is_named(backbone):
    made = build_pipeline(backbone, QUICK.generate)
    latents = torch.zeros(3, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    assert len(decode_images(made, latents, ["a", "b", "c"], [5, 6, 7], QUICK.generate)) == 3
    latents[1, 0, 0, 0] = float("inf")
    with pytest.raises(GenerationError, match="'b' with seed 6"):
        decode_images(made, latents, ["a", "b", "c"], [5, 6, 7], QUICK.generate)


@pytest.mark.parametrize(
    ("dtype", "guidance", "advice"),
    [(torch.float16, 7.5, "--dtype float32 or bfloat16"), (torch.float32, 60.0, "guidance scale of 60"),
     (torch.float32, 7.5, "lower learning rate")],
)  # fmt: skip
def test_the_likely_cause_is_named(backbone, dtype, guidance, advice):
    config = override(QUICK, [f"generate.guidance_scale={guidance}"]).generate
    parts = {name: copy.deepcopy(getattr(backbone, name)).to(dtype) for name in ("vae", "unet")}
    made = build_pipeline(replace(backbone, **parts), config)
    shape = (1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    with pytest.raises(GenerationError, match=advice):
        decode_images(made, torch.full(shape, float("nan"), dtype=dtype), ["a"], [0], config)


def test_images_are_those_of_the_pipeline_itself(backbone):
    from sefi.diffusion.sampling import decode_images as ours

    made = build_pipeline(backbone, QUICK.generate)
    latents = torch.randn(2, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    with torch.no_grad():
        decoded = made.vae.decode(latents / made.vae.config.scaling_factor).sample
    expected = made.image_processor.postprocess(decoded, output_type="pil")
    found = ours(made, latents, ["a", "b"], [0, 1], QUICK.generate)
    assert [one.tobytes() for one in found] == [one.tobytes() for one in expected]


@pytest.mark.parametrize("guidance", ["1e30", "101", "inf", "nan"])
def test_guidance_has_a_bound(guidance):
    with pytest.raises(ConfigError, match="guidance_scale"):
        override(Config(), [f"generate.guidance_scale={guidance}"])


def test_tokens_have_a_bound_of_the_model(backbone):
    row = backbone.text_encoder.get_input_embeddings().weight[backbone.tokenizer.convert_tokens_to_ids("person</w>")]
    usual = row.detach().expand(5, 2, -1).clone()
    far = identity_of(backbone, usual * 15_600)  # where the preset `paper` ends
    assert len(generate("a photo of <ada>", [far], backbone=backbone, config=QUICK)) == 3
    for factor in (51_000, 1e30):
        absurd = identity_of(backbone, usual * factor)
        with pytest.raises(IdentityError, match="token of norm"):
            next(generate_each("a photo of <ada>", [absurd], backbone=backbone, config=QUICK))


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_an_identity_of_absurd_tokens_is_refused_when_it_is_read(backbone, tmp_path, value):
    tokens = torch.zeros(5, 2, backbone.token_width)
    tokens[3, 1, 7] = value
    path = tmp_path / "ada.safetensors"
    identity_of(backbone, tokens).save(path)
    with pytest.raises(IdentityError):
        Identity.load(path)
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert shown.exit_code != 0
    assert "Infinity" not in shown.output
    assert "NaN" not in shown.output


def test_what_was_learned_must_be_finite():
    class Task:
        weights = torch.nn.Linear(3, 1)

        def get_identity_tensors(self):
            return {"tokens": torch.tensor([1.0, float("nan")])}

    with pytest.raises(ConfigError, match=r"not finite \(tokens\)"):
        IdentityTrainer(Task(), Config()).get_result()


def test_json_is_json():
    text = dump_json({"a": [1.5, float("inf")], "b": (float("nan"), {"c": -float("inf")})}, indent=1)
    assert json.loads(text) == {"a": [1.5, None], "b": [None, {"c": None}]}


def test_every_json_text_comes_from_one_function():
    files = [*(SOURCE / "src").rglob("*.py"), *(SOURCE / "experiments").rglob("*.py")]
    found = [path.name for path in files if "json.dump" in path.read_text(encoding="utf-8")]
    assert found == ["text.py"]
