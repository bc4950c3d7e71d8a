"""Every family of models in every form: opened, learned, saved, loaded, generated and shown attention of.

The widths of the texts are the published ones, by which files are told apart; vocabularies and all else are tiny.
"""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import ImageChops
from tests.backbone.conftest import tiny_vae
from tests.conftest import POOLED, make_text_encoder
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

import sefi
from sefi.backbone import checkpoint
from sefi.backbone.bundle import Backbone, ModelParts
from sefi.backbone.checkpoint import CONFIGS, write_checkpoint
from sefi.backbone.open import open_backbone
from sefi.backbone.tokenizer import END
from sefi.core.config import Config, override
from sefi.core.errors import IdentityError
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import SCHEDULERS
from sefi.identity.file import Identity
from sefi.methods import PRESETS

FAMILIES = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}
FORMS = ("folder", "fp16 variant", "sharded", "single file")
CHANNELS, LATENT = 4, 10  # images of 40 pixels
PROMPT = "a photo of <ada> at the beach"
FEW = ("learn.steps=3", "learn.batch=2", "views.latent_pool=3", "generate.steps=5", "generate.guidance_scale=3")


def make_parts(family: str, tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer) -> ModelParts:
    """The real classes with random weights; blocks, projections and predictions as the family has them."""
    torch.manual_seed(17)
    widths, second = FAMILIES[family], {}
    if family == "sdxl":
        sizes = {"hidden_size": widths[1], "num_hidden_layers": 3, "num_attention_heads": 20, "projection_dim": POOLED}
        encoder = make_text_encoder(tokenizer_2, CLIPTextModelWithProjection, **sizes, hidden_act="gelu")
        second = {"tokenizer_2": tokenizer_2, "text_encoder_2": encoder}
    first = tokenizer_2 if family == "sd2" else tokenizer
    return ModelParts(
        tokenizer=first,
        text_encoder=make_text_encoder(first, hidden_size=widths[0], num_attention_heads=16),
        vae=tiny_vae(CHANNELS, sample_size=4 * LATENT),
        unet=make_unet(family, sum(widths)),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction" if family == "sd2" else "epsilon",
            steps_offset=1,
            clip_sample=False,
        ),
        family=family,
        **second,
    )


def make_unet(family: str, width: int) -> UNet2DConditionModel:
    reads, plain = "CrossAttn{}Block2D", "{}Block2D"
    kinds = (plain, reads) if family == "sdxl" else (reads, plain)
    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
        "transformer_layers_per_block": (1, 3),
    }
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(12, 20),
        layers_per_block=2,
        down_block_types=tuple(kind.format("Down") for kind in kinds),
        up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
        cross_attention_dim=width,
        attention_head_dim=8 if family == "sd1" else (2, 5),
        norm_num_groups=4,
        use_linear_projection=family != "sd1",
        **(conditions if family == "sdxl" else {}),
    )


def make_pipeline(parts: ModelParts) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The parts as diffusers saves them."""
    given = {name: getattr(parts, name) for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}
    if parts.family == "sdxl":
        return StableDiffusionXLPipeline(
            **given, text_encoder_2=parts.text_encoder_2, tokenizer_2=parts.tokenizer_2, add_watermarker=False
        )
    return StableDiffusionPipeline(**given, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def write_configs(parts: ModelParts, root: Path) -> Path:
    """The shipped configurations, the sizes replaced by the tiny ones."""
    folder = Path(shutil.copytree(CONFIGS / parts.family, root / parts.family))
    for name, network in parts.networks.items():
        config = network.config
        save = config.save_pretrained if name.startswith("text") else network.save_config
        save(folder / name)
    return root


@pytest.fixture(scope="module")
def write_model(
    tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Write a family's model in a form, once."""
    written: dict[tuple[str, str], Path] = {}

    def write(family: str, form: str) -> Path:
        if (family, form) not in written:
            parts = make_parts(family, tokenizer, tokenizer_2)
            place = tmp_path_factory.mktemp("model")
            if form == "single file":
                write_configs(parts, place / "configs")
                place /= "model.safetensors"
                write_checkpoint(parts, place)
            elif form == "fp16 variant":
                make_pipeline(parts).to(torch.float16).save_pretrained(place, variant="fp16")
            else:
                make_pipeline(parts).save_pretrained(place, **{"max_shard_size": "300KB"} if form == "sharded" else {})
            written[family, form] = place
        return written[family, form]

    return write


@pytest.fixture
def open_model(
    write_model: Callable[[str, str], Path],
    tokenizer: CLIPTokenizer,
    tokenizer_2: CLIPTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Backbone]:
    def open_as(family: str, form: str, **options: torch.dtype) -> Backbone:
        path = write_model(family, form)
        if form == "single file":
            monkeypatch.setattr(checkpoint, "CONFIGS", path.parent / "configs")
            monkeypatch.setattr(
                checkpoint, "create_clip_tokenizer", lambda pad=END: tokenizer if pad == END else tokenizer_2
            )
        return open_backbone(str(path), **options)

    return open_as


def make_config(*settings: str) -> Config:
    return override(PRESETS["default"], [*FEW, *settings])


@pytest.fixture
def identity_of(photo_file: Path, tmp_path: Path) -> Callable[[Backbone], Identity]:
    """Learn three steps, save and load."""

    def learn(backbone: Backbone) -> Identity:
        made = sefi.learn(photo_file, name="ada", backbone=backbone, config=make_config(), crop=False)
        made.save(tmp_path / "ada.safetensors")
        loaded = Identity.load(tmp_path / "ada.safetensors")
        assert loaded.header == made.header
        assert torch.equal(loaded.tokens, made.tokens)
        return loaded

    return learn


def use(backbone: Backbone, identity: Identity, sampler: str) -> None:
    """Generate and record attention."""
    config = make_config(f"generate.scheduler={sampler}")
    side = backbone.resolution
    (image,) = sefi.generate(PROMPT, [identity], backbone=backbone, config=config, seed=3)
    (plain,) = sefi.generate("a photo of person at the beach", backbone=backbone, config=config, seed=3)
    assert image.pixels.size == (side, side) == (4 * LATENT, 4 * LATENT)
    assert image.pixels.tobytes() != plain.pixels.tobytes()
    (again,) = sefi.generate(PROMPT, [identity], backbone=backbone, config=config, seed=3)
    assert image.pixels.tobytes() == again.pixels.tobytes()
    conditioner = IdentityConditioner(backbone, [identity])
    found = record_attention(backbone, conditioner, PROMPT, 3, config.generate, SilentProgress())
    difference = ImageChops.difference(found.image, image.pixels)
    assert max(high for _, high in difference.getextrema()) <= 1
    assert found.words[found.placeholders[0]] == "<ada>"
    torch.testing.assert_close(found.maps.sum(0), found.maps.sum(0).clamp(max=1 + 1e-5))
    assert (found.maps - found.reference_maps).abs().max() > 0


# Of the whole product; the others are slow together.
QUICK = {("sdxl", "folder", "ddim"), ("sdxl", "single file", "lcm"), ("sd2", "fp16 variant", "dpm++"),
         ("sd1", "sharded", "lcm")}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "form", "sampler"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(FAMILIES, FORMS, SCHEDULERS)
    ],
)
def test_learns_travels_generates_and_attends(
    open_model: Callable[..., Backbone],
    identity_of: Callable[[Backbone], Identity],
    family: str,
    form: str,
    sampler: str,
) -> None:
    backbone = open_model(family, form)
    use(backbone, identity_of(backbone), sampler)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_comes_back(
    open_model: Callable[..., Backbone],
    tokenizer: CLIPTokenizer,
    tokenizer_2: CLIPTokenizer,
    family: str,
    form: str,
) -> None:
    expected, found = make_parts(family, tokenizer, tokenizer_2), open_model(family, form)
    assert (found.family, found.resolution, found.dtype) == (family, 4 * LATENT, torch.float32)
    assert found.token_widths == FAMILIES[family]
    assert found.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert [len(one) for one in found.tokenizers] == [len(one) for one in expected.tokenizers]
    for name, network in expected.networks.items():
        weights = found.networks[name].state_dict()
        assert weights.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            stored = value.half().float() if form == "fp16 variant" else value
            assert torch.equal(weights[key], stored), (name, key)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identity_serves_every_form_of_its_model(
    open_model: Callable[..., Backbone], identity_of: Callable[[Backbone], Identity], family: str
) -> None:
    identity = identity_of(open_model(family, "folder"))
    for form in FORMS:
        assert not sefi.api.list_identity_remarks(open_model(family, form), [identity]), form
    other = "sd1" if family == "sdxl" else "sdxl"
    with pytest.raises(IdentityError, match="tokens of width"):
        IdentityConditioner(open_model(other, "folder"), [identity])
