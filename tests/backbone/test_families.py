"""Every family of models in every form: opened, learned, saved, loaded, generated and shown attention of.

The widths of the texts are the published ones, by which files are told apart; vocabularies and all else are tiny.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.backbone.conftest import tiny_vae
from tests.conftest import POOLED, make_text_encoder
from transformers import CLIPTextModelWithProjection, CLIPTokenizer
from typer.testing import CliRunner

import sefi
from sefi.backbone import checkpoint
from sefi.backbone.bundle import Backbone, ModelParts
from sefi.backbone.checkpoint import CONFIGS, write_checkpoint
from sefi.backbone.open import create_empty_stable_diffusion, open_backbone
from sefi.backbone.tokenizer import END
from sefi.cli.app import app
from sefi.core.config import Config, override
from sefi.core.errors import BackboneError, ConfigError, IdentityError
from sefi.core.progress import SilentProgress
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.schedulers import SCHEDULERS
from sefi.identity.file import LIMITS, MARK, Identity, IdentityHeader, read_identity_header
from sefi.methods import METHODS, PRESETS

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


@pytest.fixture(scope="module")
def opened() -> dict[tuple[object, ...], Backbone]:
    """The models that tests of this file opened: frozen, so that one opened model serves them all."""
    return {}


@pytest.fixture(scope="module")
def learned() -> dict[int, tuple[Backbone, Identity]]:
    """What was learned on a model; each test learns with the same seed and settings."""
    return {}


@pytest.fixture
def open_model(
    write_model: Callable[[str, str], Path],
    tokenizer: CLIPTokenizer,
    tokenizer_2: CLIPTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    opened: dict[tuple[object, ...], Backbone],
) -> Callable[..., Backbone]:
    """Open a family's model in a form, once."""

    def open_as(family: str, form: str, **options: torch.dtype) -> Backbone:
        path = write_model(family, form)
        if form == "single file":
            monkeypatch.setattr(checkpoint, "CONFIGS", path.parent / "configs")
            monkeypatch.setattr(
                checkpoint, "create_clip_tokenizer", lambda pad=END: tokenizer if pad == END else tokenizer_2
            )
        key = (family, form, *options.values())
        if key not in opened:
            opened[key] = open_backbone(str(path), **options)
        return opened[key]

    return open_as


def make_config(*settings: str) -> Config:
    return override(PRESETS["default"], [*FEW, *settings])


@pytest.fixture
def identity_of(
    photo_file: Path, tmp_path: Path, learned: dict[int, tuple[Backbone, Identity]]
) -> Callable[[Backbone], Identity]:
    """Learn three steps, once on a model; save and load."""

    def learn(backbone: Backbone) -> Identity:
        if id(backbone) not in learned:
            made = sefi.learn(photo_file, name="ada", backbone=backbone, config=make_config(), crop=False)
            learned[id(backbone)] = (backbone, made)
        made = learned[id(backbone)][1]
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


# Of those below; the others are slow together.
QUICK = {("sdxl", "folder", "ddim"), ("sdxl", "single file", "lcm"), ("sd2", "fp16 variant", "dpm++"),
         ("sd1", "sharded", "lcm")}  # fmt: skip
# Every family in every form and with every sampler. How a model lies on the disk matters until it is open: that its
# weights are the same in every form is tested below, so each sampler need not see each form.
TRIED = QUICK | {
    (family, FORMS[(i + j) % len(FORMS)], sampler)
    for i, family in enumerate(FAMILIES)
    for j, sampler in enumerate(SCHEDULERS)
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("family", "form", "sampler"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(FAMILIES, FORMS, SCHEDULERS)
        if case in TRIED
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


# As 512 x 384 is to a trained size of 512, and upright.
SHAPES = {"wide": (56, 24), "upright": (24, 40)}
QUICK_SHAPES = {("sdxl", "euler_a", "wide"), ("sd2", "dpm++_karras", "upright"), ("sd1", "ddim", "wide")}
SHAPED = ("ddim", "dpm++_karras", "euler_a", "lcm")
# Every pair of family, sampler and shape.
TRIED_SHAPES = QUICK_SHAPES | {
    (family, sampler, list(SHAPES)[(i + j) % 2])
    for i, family in enumerate(FAMILIES)
    for j, sampler in enumerate(SHAPED)
}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("family", "sampler", "shape"),
    [
        pytest.param(*case, marks=() if case in QUICK_SHAPES else pytest.mark.slow)
        for case in product(FAMILIES, SHAPED, SHAPES)
        if case in TRIED_SHAPES
    ],
)
def test_images_that_are_not_square(
    open_model: Callable[..., Backbone],
    identity_of: Callable[[Backbone], Identity],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    sampler: str,
    shape: str,
) -> None:
    backbone = open_model(family, "folder")
    identity, (width, height) = identity_of(backbone), SHAPES[shape]
    config = make_config(
        f"generate.scheduler={sampler}", f"generate.width={width}", f"generate.height={height}", "generate.count=2"
    )
    conditions: list[list[float]] = []
    forward = UNet2DConditionModel.forward

    def watch(unet, *inputs, **more):
        if more.get("added_cond_kwargs"):
            conditions.extend(more["added_cond_kwargs"]["time_ids"].tolist())
        return forward(unet, *inputs, **more)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watch)
    images = sefi.generate(PROMPT, [identity], backbone=backbone, config=config, seed=3)
    assert [image.pixels.size for image in images] == [(width, height)] * 2
    assert images[0].pixels.tobytes() != images[1].pixels.tobytes()
    # SDXL is told the size of the image, neither scaled nor cropped; for text and negative text.
    assert all(one == [height, width, 0, 0, height, width] for one in conditions)
    assert len(conditions) == (2 * 2 * 5 if family == "sdxl" else 0)
    found = record_attention(
        backbone, IdentityConditioner(backbone, [identity]), PROMPT, 3, config.generate, SilentProgress()
    )
    difference = ImageChops.difference(found.image, images[0].pixels)
    assert max(high for _, high in difference.getextrema()) <= 1
    assert found.maps.shape[1:] == (height // 8, width // 8)
    assert (found.maps - found.reference_maps).abs().max() > 0


@pytest.mark.slow_after(1)
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


@pytest.mark.slow
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


# ------------------------------------------------------------------ SDXL alone


@pytest.fixture
def sdxl_copy(write_model: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """An SDXL folder for a test to change; the large text encoders stay where they are."""
    return Path(shutil.copytree(write_model("sdxl", "folder"), tmp_path / "copy", copy_function=os.link))


def change_file(path: Path, **changes: object) -> None:
    """Change a JSON file of a copy that shares its files with the original."""
    values = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(values))


REFUSED = [
    ("unet/config.json", {"cross_attention_dim": 768}, "the text encoders' widths are 768 and 1280"),
    ("unet/config.json", {"projection_class_embeddings_input_dim": 5 * 8 + POOLED}, "6 sizes of 8"),
    ("unet/config.json", {"addition_embed_type": None}, "`addition_embed_type`"),
    ("unet/config.json", {"addition_embed_type": "text"}, "`addition_embed_type`"),
    ("unet/config.json", {"addition_time_embed_dim": 10**9}, "`addition_time_embed_dim`"),
    ("unet/config.json", {"class_embed_type": "timestep"}, "`class_embed_type`"),
    ("text_encoder_2/config.json", {"projection_dim": POOLED + 1}, "`projection_class_embeddings_input_dim`"),
    ("text_encoder_2/config.json", {"hidden_size": 10**9}, "`hidden_size`"),
    ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "as its text_encoder_2"),
    ("model_index.json", {"tokenizer_2": [None, None]}, "as its tokenizer_2"),
    ("model_index.json", {"text_encoder": [None, None]}, "is an SDXL refiner, which is not supported yet"),
    ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "SDXL inpainting model"),
]


@pytest.mark.parametrize(("file", "changes", "named"), REFUSED, ids=[f"{f}-{c}"[:70] for f, c, _ in REFUSED])
def test_sdxl_folders_that_do_not_fit_are_named(
    sdxl_copy: Path, file: str, changes: dict[str, object], named: str
) -> None:
    change_file(sdxl_copy / file, **changes)
    with pytest.raises(BackboneError) as caught:
        open_backbone(str(sdxl_copy))
    assert named in str(caught.value)


# Fields of SDXL's published UNet file that have no value, and some of its others.
PUBLISHED_FIELDS = dict.fromkeys(
    (
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "mid_block_only_cross_attention",
        "num_attention_heads",
        "num_class_embeds",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "timestep_post_act",
        "upcast_attention",
    )
) | {"addition_embed_type_num_heads": 64, "class_embeddings_concat": False, "only_cross_attention": False}


def test_the_fields_of_the_published_file_are_taken(sdxl_copy: Path) -> None:
    change_file(sdxl_copy / "unet" / "config.json", **PUBLISHED_FIELDS)
    change_file(sdxl_copy / "vae" / "config.json", latents_mean=None, latents_std=None, force_upcast=True)
    assert open_backbone(str(sdxl_copy)).family == "sdxl"


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_an_sdxl_folder_without_a_second_part_is_refused(sdxl_copy: Path, part: str) -> None:
    shutil.rmtree(sdxl_copy / part)
    with pytest.raises(BackboneError, match=part):
        open_backbone(str(sdxl_copy))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "pipeline", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLControlNetPipeline", "StableDiffusionXLPipeline"]
)
def test_other_pipelines_of_sdxls_parts_open(sdxl_copy: Path, pipeline: str) -> None:
    change_file(sdxl_copy / "model_index.json", _class_name=pipeline)
    assert open_backbone(str(sdxl_copy)).family == "sdxl"


def test_sdxls_hub_id_opens_with_its_second_encoder(
    write_model: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def find(_source: str, **options: list[str]) -> str:
        asked.append(options["ignore_patterns"])
        return str(write_model("sdxl", "folder"))

    monkeypatch.setattr("sefi.backbone.open.snapshot_download", find)
    assert open_backbone("someone/xl").family == "sdxl"
    assert len(asked) == 1
    assert "vae_1_0/*" in asked[0]


@pytest.mark.slow
def test_sdxls_autoencoder_stays_in_single_precision_in_a_float16_model(
    open_model: Callable[..., Backbone], identity_of: Callable[[Backbone], Identity]
) -> None:
    half, whole = open_model("sdxl", "folder", dtype=torch.float16), open_model("sdxl", "folder")
    assert {name: part.dtype for name, part in half.networks.items()} == {
        "text_encoder": torch.float16, "text_encoder_2": torch.float16, "unet": torch.float16, "vae": torch.float32,
    }  # fmt: skip
    assert open_model("sd1", "folder", dtype=torch.float16).vae.dtype == torch.float16
    assert open_model("sdxl", "folder", dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    pixels = torch.rand(1, 3, 40, 40) * 2 - 1
    latents = half.encode_image(pixels)
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents.float(), whole.encode_image(pixels), atol=1e-2, rtol=1e-2)
    identity = identity_of(whole)  # learned in single precision: float16 is refused
    (image,) = sefi.generate(PROMPT, [identity], backbone=half, config=make_config("generate.steps=2"))
    assert image.pixels.size == (40, 40)
    assert not sefi.api.list_identity_remarks(half, [identity])


def test_the_file_has_the_tokens_of_each_encoder(
    open_model: Callable[..., Backbone], identity_of: Callable[[Backbone], Identity], tmp_path: Path
) -> None:
    identity = identity_of(open_model("sdxl", "folder"))
    path = tmp_path / "ada.safetensors"
    stored = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items() if name != MARK} == {
        "tokens": (5, 2, 768), "tokens_2": (5, 2, 1280),
    }  # fmt: skip
    assert torch.equal(torch.cat([stored["tokens"], stored["tokens_2"]], dim=-1), identity.tokens)
    header = read_identity_header(path)
    assert (header.schema_version, header.width, header.widths) == (4, 2048, (768, 1280))
    assert set(header.signature) == {"tokenizer", "text_encoder", "text_encoder_2", "unet", "vae"}


def test_an_identity_of_one_encoder_states_no_widths(
    open_model: Callable[..., Backbone], identity_of: Callable[[Backbone], Identity], tmp_path: Path
) -> None:
    identity_of(open_model("sd1", "folder"))
    path = tmp_path / "ada.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sefi"])
    assert list(load_file(path)) == [MARK, "tokens"]
    assert header["schema_version"] == 4
    assert "widths" not in header


@pytest.mark.parametrize(
    ("widths", "shapes"),
    [
        ((3, 4), {"tokens": (5, 2, 3)}),
        ((3, 4), {"tokens": (5, 2, 3), "tokens_2": (5, 2, 5)}),
        ((3, 4), {"tokens": (5, 2, 3), "tokens_2": (5, 2, 2, 4)}),
        ((3, 4), {"tokens": (5, 2, 7)}),
        ((3, 5), {"tokens": (5, 2, 3), "tokens_2": (5, 2, 5)}),
        ((7, 0), {"tokens": (5, 2, 7), "tokens_2": (5, 2, 0)}),
        ((-1, 8), {"tokens": (5, 2, 3), "tokens_2": (5, 2, 4)}),
    ],
)
def test_tokens_at_odds_with_their_widths_are_refused(
    tmp_path: Path, widths: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> None:
    header = IdentityHeader(
        schema_version=3, name="ada", method="sefi", stages=5, base_model="sdxl:7:0", width=7, widths=widths,
        class_word="person",
    )  # fmt: skip
    path = tmp_path / "ada.safetensors"
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, path, {"sefi": header.model_dump_json()})
    with pytest.raises(IdentityError):
        Identity.load(path)


@pytest.mark.slow
def test_several_identities_share_a_prompt_in_any_strength(
    open_model: Callable[..., Backbone], identity_of: Callable[[Backbone], Identity]
) -> None:
    backbone = open_model("sdxl", "folder")
    ada = identity_of(backbone)
    bob = replace(ada, header=ada.header.model_copy(update={"name": "bob"}), tensors={"tokens": ada.tokens.flip(0)})
    images = {}
    for strength in (0, 0.5, 1):
        config = make_config(f"generate.identity_strength={strength}", "generate.steps=2")
        found = sefi.generate("a photo of <ada> and <bob>", [ada, bob], backbone=backbone, config=config)
        images[strength] = found[0].pixels.tobytes()
    assert len(set(images.values())) == 3
    plain = sefi.generate("a photo of person and person", backbone=backbone, config=make_config("generate.steps=2"))
    assert images[0] == plain[0].pixels.tobytes()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("marks", "prediction", "zero_snr"),
    [((), "epsilon", False), (("v_pred",), "v_prediction", False), (("v_pred", "ztsnr"), "v_prediction", True)],
)
def test_an_sdxl_file_says_what_it_was_trained_with(
    open_model: Callable[..., Backbone],
    write_model: Callable[[str, str], Path],
    tmp_path: Path,
    marks: tuple[str, ...],
    prediction: str,
    zero_snr: bool,
) -> None:
    open_model("sdxl", "single file")
    path = tmp_path / "marked.safetensors"
    save_file(load_file(write_model("sdxl", "single file")) | {mark: torch.zeros(0) for mark in marks}, path)
    found = checkpoint.read_checkpoint(path, torch.float32).scheduler.config
    assert (found["prediction_type"], found["rescale_betas_zero_snr"]) == (prediction, zero_snr)
    assert found["timestep_spacing"] == ("trailing" if zero_snr else "leading")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metadata", "side"),
    [
        ({}, 4 * LATENT),
        ({"prediction_type": "v"}, 4 * LATENT),
        ({"prediction_type": "epsilon"}, 4 * 64),
        ({"prediction_type": "epsilon", "resolution": "768x768"}, 768),
        ({"resolution": "512x512"}, 512),
        *(({"resolution": size}, 4 * LATENT) for size in ("512x768", "500x500", "9984x9984", "large", "")),
    ],
)
def test_a_file_says_the_size_that_it_was_trained_at(
    open_model: Callable[..., Backbone],
    write_model: Callable[[str, str], Path],
    tmp_path: Path,
    metadata: dict[str, str],
    side: int,
) -> None:
    """Without a size a 2.x model that predicts noise is one of 64 cells, the other is that of its configuration."""
    open_model("sd2", "single file")
    path = tmp_path / "stated.safetensors"
    tensors = load_file(write_model("sd2", "single file"))
    save_file(tensors, path, {f"modelspec.{name}": value for name, value in metadata.items()})
    found = checkpoint.read_checkpoint(path, torch.float32)
    assert found.trained_resolution == side
    assert found.scheduler.config["prediction_type"] == (
        "epsilon" if metadata.get("prediction_type") == "epsilon" else "v_prediction"
    )


PREFIXES = {"VAE": "first_stage_model.", "text encoder": "conditioner.embedders.0.",
            "second text encoder": "conditioner.embedders.1."}  # fmt: skip


@pytest.mark.parametrize("missing", ["VAE", "text encoder"])
def test_an_sdxl_file_without_a_part_says_which(
    open_model: Callable[..., Backbone], write_model: Callable[[str, str], Path], tmp_path: Path, missing: str
) -> None:
    open_model("sdxl", "single file")
    tensors = load_file(write_model("sdxl", "single file"))
    path = tmp_path / "part.safetensors"
    save_file({name: one for name, one in tensors.items() if not name.startswith(PREFIXES[missing])}, path)
    with pytest.raises(BackboneError, match=f"holds no {missing}"):
        checkpoint.read_checkpoint(path, torch.float32)


# ------------------------------------------------------------------ few steps


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_latent_consistency_models_need_few_steps(
    tokenizer: CLIPTokenizer,
    tokenizer_2: CLIPTokenizer,
    identity_of: Callable[[Backbone], Identity],
    tmp_path: Path,
    family: str,
) -> None:
    parts = make_parts(family, tokenizer, tokenizer_2)
    unet = UNet2DConditionModel.from_config(parts.unet.config, time_cond_proj_dim=7)
    make_pipeline(replace(parts, unet=unet)).save_pretrained(tmp_path / "lcm")
    backbone = open_backbone(str(tmp_path / "lcm"))
    assert backbone.embeds_guidance
    identity = identity_of(backbone)
    (remark,) = sefi.api.list_prompt_remarks(backbone, [PROMPT], make_config().generate, [identity])
    assert "made for the sampler lcm" in remark
    with_lcm = make_config("generate.scheduler=lcm").generate
    assert not sefi.api.list_prompt_remarks(backbone, [PROMPT], with_lcm, [identity])
    calls: list[tuple[int, ...]] = []
    hook = backbone.unet.time_embedding.register_forward_pre_hook(lambda _m, args: calls.append(tuple(args[0].shape)))
    images = []
    for batch in (1, 2):
        config = make_config("generate.scheduler=lcm", "generate.steps=4", f"generate.batch_size={batch}")
        prompts = [PROMPT, "a drawing of <ada>"]
        images.append(sefi.generate(prompts, [identity], backbone=backbone, config=config, seed=5))
    hook.remove()
    assert [shape[0] for shape in calls] == [1] * 8 + [2] * 4  # one pass a step: the guidance is an input
    for alone, together in zip(*images, strict=True):
        difference = ImageChops.difference(alone.pixels, together.pixels)
        assert max(high for _, high in difference.getextrema()) <= 1


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("family", "steps"),
    [("sd1", 4), ("sdxl", 1), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("sd1", 1), ("sdxl", 4)))],
)
def test_turbo_models_begin_at_the_last_timestep_without_guidance(
    open_model: Callable[..., Backbone],
    identity_of: Callable[[Backbone], Identity],
    write_model: Callable[[str, str], Path],
    tmp_path: Path,
    family: str,
    steps: int,
) -> None:
    folder = Path(shutil.copytree(write_model(family, "folder"), tmp_path / "turbo", copy_function=os.link))
    change_file(folder / "scheduler" / "scheduler_config.json", timestep_spacing="trailing")
    backbone = open_backbone(str(folder))
    identity = identity_of(backbone)
    seen: list[float] = []
    hook = backbone.unet.register_forward_pre_hook(
        lambda _m, args: seen.append((len(args[0]), int(args[1]))),
    )
    config = make_config("generate.scheduler=euler", f"generate.steps={steps}", "generate.guidance_scale=0")
    sefi.generate(PROMPT, [identity], backbone=backbone, config=config)
    hook.remove()
    assert seen == [(1, t) for t in ([999] if steps == 1 else [999, 749, 499, 249])]
    conditioner = IdentityConditioner(backbone, [identity])
    found = record_attention(backbone, conditioner, PROMPT, 0, config.generate, SilentProgress())
    assert found.maps.shape[0] == len(found.words)
    assert (found.maps - found.reference_maps).abs().max() > 0


# ------------------------------------------------------------------ published sizes


def test_sdxls_published_sizes() -> None:
    model = create_empty_stable_diffusion("sdxl")
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in model.networks.items()}
    assert counts == {
        "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": 2_567_463_684, "vae": 83_653_863,
    }  # fmt: skip
    assert (model.token_widths, model.token_width, model.text_length) == ((768, 1280), 2048, 77)
    assert (model.resolution, model.latent_size, model.latent_channels, model.latent_factor) == (1024, 128, 4, 8)
    assert [one.pad_token for one in model.tokenizers] == [END, "!"]
    cross = [name for name in model.unet.attn_processors if name.endswith("attn2.processor")]
    assert len(cross) == 70
    assert all(model.unet.get_submodule(n.removesuffix(".processor")).to_k.in_features == 2048 for n in cross)
    assert float(model.vae.config["scaling_factor"]) == 0.13025


@pytest.mark.parametrize(("family", "width", "side"), [("sd1", 768, 512), ("sd2", 1024, 768)])
def test_the_published_sizes_of_the_other_families(family: str, width: int, side: int) -> None:
    model = create_empty_stable_diffusion(family)
    assert (model.family, model.token_widths, model.resolution) == (family, (width,), side)


def test_sdxls_real_names_are_those_that_diffusers_converts() -> None:
    """The names that published files have, by which diffusers tells their kind."""
    from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, convert_ldm_unet_checkpoint

    model = create_empty_stable_diffusion("sdxl")
    written: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_file", lambda _path, write: write("x"))
        patch.setattr(checkpoint, "save_file", lambda tensors, _path: written.update(tensors))
        write_checkpoint(model, Path("x"))
    for kind in ("xl_base", "clip_sdxl", "open_clip_sdxl"):
        assert CHECKPOINT_KEY_NAMES[kind] in written
    assert written["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert written["conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
    converted = convert_ldm_unet_checkpoint(dict(written), dict(model.unet.config))
    expected = model.unet.state_dict()
    assert {name: one.shape for name, one in converted.items()} == {name: one.shape for name, one in expected.items()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("preset", ["dreambooth", "dreambooth-official"])
def test_dreambooth_of_sdxl_is_refused_at_once(preset: str) -> None:
    method, config = METHODS["dreambooth"], PRESETS[preset]
    with pytest.raises(ConfigError, match=r"GiB, and an identity has at most 8\.") as caught:
        method.check(create_empty_stable_diffusion("sdxl"), config, None)
    assert "dreambooth-lora" in str(caught.value)
    for family in ("sd1", "sd2"):
        method.check(create_empty_stable_diffusion(family), config, None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sefi", "textual-inversion", "prospect", "dreambooth-lora", "custom-diffusion"])
def test_the_other_methods_take_sdxls_real_size(method: str) -> None:
    config = PRESETS["default" if method == "sefi" else method]
    METHODS[method].check(create_empty_stable_diffusion("sdxl"), config, None)
    counts = METHODS[method].count_weights(create_empty_stable_diffusion("sdxl"), config)
    assert 0 < counts.trained * 4 < LIMITS.size
    if method == "sefi":  # docs/results/time-and-memory.md
        paper = METHODS[method].count_weights(create_empty_stable_diffusion("sdxl"), PRESETS["paper"])
        assert (paper.trained, paper.added) == (20_480, 209_768_448)


# ------------------------------------------------------------------ the command line


@pytest.mark.slow
def test_the_commands_work_on_sdxl(
    write_model: Callable[[str, str], Path], photo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, out = str(write_model("sdxl", "fp16 variant")), "ada.safetensors"
    few = [word for one in ("learn.steps=3", "learn.batch=2", "views.latent_pool=3") for word in ("--set", one)]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    consent = "by=Jane Doe; for=synthetic; scope=tests"
    run(
        "learn",
        str(photo_file),
        "--name",
        "ada",
        "--model",
        model,
        "--no-crop",
        *few,
        "--out",
        out,
        "--consent",
        consent,
    )
    shown = json.loads(run("inspect", out, "--json"))
    assert (shown["width"], shown["widths"], shown["tensors"]) == (2048, [768, 1280], {"tokens": [5, 2, 2048]})
    assert "text_encoder_2" in shown["signature"]
    use_it = ("-i", out, "--model", model, "--steps", "4")
    run("generate", PROMPT, *use_it, "--scheduler", "lcm", "--out", "images")
    assert (tmp_path / "images" / "grid.png").is_file()
    run("attend", PROMPT, *use_it, "--out", "attention.png")
    assert (tmp_path / "attention.png").is_file()
