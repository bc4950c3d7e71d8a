"""What every method in the table must do, on the embedded model: learn, keep, apply, and leave no trace."""

import copy
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.method.people import differing, state

import sefi
from sefi.attention.install import copy_with_key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.backbone.schedule import add_noise, target
from sefi.cli.opening import preset_of
from sefi.core.config import Config, override
from sefi.core.errors import IdentityError
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.core.protocols import SilentProgress
from sefi.core.streams import stream
from sefi.methods import METHODS
from sefi.photo.read import pixels_of
from sefi.world.composer_training import ComposerRecipe, train_composer

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
PORTRAIT = MODELS / "demo" / "portrait.png"
FEW = ["learn.steps=12", "learn.batch=2", "views.latent_pool=3", "tune.prior_images=1", "generate.steps=2"]
# So that a few steps tell: far above what the presets take.
RATES = {"dreambooth": 1e-4, "dreambooth-lora": 5e-3, "prospect": 2e-3}
TIMES = (100, 300, 500, 700, 900)


def settings(name: str) -> Config:
    preset = PRESETS[preset_of(name, None)]
    rate = [f"learn.learning_rate={RATES[name]}"] if name in RATES else []
    return override(preset, [*FEW, *rate])


@pytest.fixture(scope="module")
def composer(embedded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of FastComposer that learned next to nothing."""
    file = tmp_path_factory.mktemp("composer") / "composer.safetensors"
    recipe = ComposerRecipe(pictures=3, steps=3, batch=2)
    train_composer(embedded, recipe, 1, SilentProgress(), file)
    return file


@pytest.fixture(scope="module", params=METHODS)
def learnt(request: pytest.FixtureRequest, embedded: Backbone, composer: Path) -> tuple[Identity, list[str]]:
    before = state(embedded)
    config = settings(request.param)
    if request.param == "fastcomposer":
        config = override(config, [f"compose.weights={composer}"])
    made = sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=config, seed=1)
    return made, differing(before, state(embedded))


@torch.no_grad()
def error(backbone: Backbone, identity: Identity, prompt: str) -> float:
    """Mean squared denoising error of the portrait, the same noise whoever asks."""
    square = pixels_of(Image.open(PORTRAIT).convert("RGB").resize((backbone.resolution,) * 2))
    latents = backbone.encode_image(square[None])
    noise = torch.randn(latents.shape, generator=stream(5, "probe"))
    total = 0.0
    model = METHODS[identity.method].apply([identity], backbone)
    unet = copy_with_key_value_attention(model.backbone.unet, backbone.width)
    for t in map(torch.tensor, TIMES):
        noisy = add_noise(latents, noise, t[None], backbone.scheduler.alphas_cumprod)
        found = unet(noisy, t, model.conditioner.context([prompt], int(t))).sample
        wanted = target(latents, noise, t[None], backbone.scheduler.alphas_cumprod, backbone.prediction_type)
        total += float((found - wanted).pow(2).mean())
    return total


def test_learning_leaves_no_trace(learnt: tuple[Identity, list[str]]) -> None:
    assert learnt[1] == []


def test_the_loss_falls(learnt: tuple[Identity, list[str]], embedded: Backbone) -> None:
    made, _ = learnt
    if made.method == "fastcomposer":
        pytest.skip("it learns nothing of a subject")
    still = override(settings(made.method), ["learn.steps=1", "learn.learning_rate=1e-12", "tune.prior_images=0"])
    begun = sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=still, seed=1)
    before, after = (error(embedded, one, "a photo of <ada>") for one in (begun, made))
    assert after < before


def test_it_travels_through_its_file(learnt: tuple[Identity, list[str]], tmp_path) -> None:
    made, _ = learnt
    made.save(tmp_path / "ada.safetensors")
    again = Identity.load(tmp_path / "ada.safetensors")
    assert again.header == made.header
    assert again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in made.tensors.items())


def test_its_file_is_as_large_as_the_page_says(learnt: tuple[Identity, list[str]], tmp_path) -> None:
    made, _ = learnt
    made.save(tmp_path / "ada.safetensors")
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{made.method}`"))
    said = re.search(r"\| ([\d.]+) ([KM])B \|", row)
    assert said is not None
    size = float(said[1]) * {"K": 1e3, "M": 1e6}[said[2]]
    assert (tmp_path / "ada.safetensors").stat().st_size == pytest.approx(size, rel=0.15)


def test_it_draws_and_leaves_no_trace(learnt: tuple[Identity, list[str]], embedded: Backbone) -> None:
    made, _ = learnt
    before = state(embedded)
    shown, plain = (
        sefi.generate(f"a photo of {who} at the beach", some, backbone=embedded, config=settings("sefi"), seed=3)
        for who, some in (("<ada>", [made]), ("person", []))
    )
    assert shown[0].pixels.tobytes() != plain[0].pixels.tobytes()
    assert differing(before, state(embedded)) == []


def test_it_serves_the_same_model_in_half_precision(
    learnt: tuple[Identity, list[str]], embedded: Backbone, half: Backbone
) -> None:
    made, _ = learnt
    before = state(half)
    wide, narrow = (predicted(backbone, made.method, [made]) for backbone in (embedded, half))
    plain = predicted(half, "sefi", [])
    # What half precision costs is small beside what the subject changes.
    assert (narrow - wide).norm() < 0.5 * (narrow - plain).norm()
    assert differing(before, state(half)) == []


@torch.no_grad()
def predicted(backbone: Backbone, method: str, identities: list[Identity], strength: float = 1.0) -> torch.Tensor:
    """What the model takes from a little noise for a prompt with the subject, or with the class word."""
    noisy = torch.randn(1, 4, backbone.latent_size, backbone.latent_size, generator=stream(6, "half"))
    who = "<ada>" if identities else "person"
    model = METHODS[method].apply(identities, backbone, strength)
    context = model.conditioner.context([f"a photo of {who} at the beach"], 300).to(backbone.dtype)
    unet = copy_with_key_value_attention(model.backbone.unet, backbone.width)
    return unet(noisy.to(backbone.dtype), 300, context).sample.float()


def test_strength_zero_is_the_class_word(learnt: tuple[Identity, list[str]], embedded: Backbone) -> None:
    made, _ = learnt
    off, plain = predicted(embedded, made.method, [made], 0.0), predicted(embedded, "sefi", [])
    torch.testing.assert_close(off, plain)


def test_methods_do_not_share_a_prompt(learnt: tuple[Identity, list[str]], embedded: Backbone) -> None:
    made, _ = learnt
    other = copy.deepcopy(made.header).model_copy(update={"name": "bob", "method": "another"})
    with pytest.raises(IdentityError, match="do not fit together"):
        sefi.generate("a photo of <ada> and <bob>", [made, Identity(made.tensors, other)], backbone=embedded)
