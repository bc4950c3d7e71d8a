"""Generation from an image, inside a mask and along a ControlNet's image: the same as diffusers' own pipelines."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tests.conftest import make_schedule
from tests.diffusion.test_samplers import StageConditioner

from sefi.api import generate
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, GenerateSettings, parse_config
from sefi.core.errors import ConfigError, PhotoError, SefiError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import WordsConditioner
from sefi.diffusion.sampling import (
    ConditionedModel,
    build_pipeline,
    draw_initial_noise,
    get_latent_size,
    list_text_arguments,
    sample_batch,
    sample_images,
)
from sefi.diffusion.schedulers import create_scheduler
from sefi.diffusion.source_image import (
    SourceImages,
    check_image_arguments,
    crop_to_size,
    make_latent_mask,
    read_upright_image,
)
from sefi.identity.tokens import get_stage

WIDTH, HEIGHT, STEPS, SEEDS = 56, 40, 7, [11, 12, 13]
PROMPTS = ["a dog", "a photo of a person", "a cup"]


def make_image(width: int = WIDTH, height: int = HEIGHT, seed: int = 1) -> Image.Image:
    """Broad coloured bands: something that a VAE of random weights does not turn grey."""
    values = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def make_mask(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """White right of the middle."""
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).rectangle((width // 2, 0, width, height), fill=255)
    return mask


def make_settings(name: str = "ddim", **more: Any) -> GenerateSettings:
    values = {"scheduler": name, "steps": STEPS, "guidance_scale": 3.0, "width": WIDTH, "height": HEIGHT}
    return parse_config({"generate": values | more}, Config).generate


def give_four_channels(model: Backbone) -> Backbone:
    """The same with four latent channels, which diffusers' inpainting wants; random weights."""
    torch.manual_seed(23)
    unet = UNet2DConditionModel.from_config(dict(model.unet.config), in_channels=4, out_channels=4)
    vae = AutoencoderKL.from_config(dict(model.vae.config), latent_channels=4)
    return replace(model, unet=unet, vae=vae, signature=None)


def make_controlnet(model: Backbone, *embedding: int) -> ControlNetModel:
    """A ControlNet for the model's UNet that does something: its last layers are zero at first."""
    torch.manual_seed(29)
    made = ControlNetModel.from_unet(model.unet, conditioning_embedding_out_channels=embedding or (5, 7))
    for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(backbone: Backbone, sdxl: Backbone) -> dict[str, Backbone]:
    four, xl = give_four_channels(backbone), give_four_channels(sdxl)
    return {
        "sd1": four,
        "sd2": replace(four, scheduler=make_schedule("v_prediction")),
        "sdxl": xl,
        "three channels": backbone,
    }


STOCK = {
    ("image", False): StableDiffusionImg2ImgPipeline,
    ("image", True): StableDiffusionXLImg2ImgPipeline,
    ("mask", False): StableDiffusionInpaintPipeline,
    ("mask", True): StableDiffusionXLInpaintPipeline,
    ("control", False): StableDiffusionControlNetPipeline,
    ("control", True): StableDiffusionXLControlNetPipeline,
    ("control image", False): StableDiffusionControlNetImg2ImgPipeline,
    ("control image", True): StableDiffusionXLControlNetImg2ImgPipeline,
    ("control mask", False): StableDiffusionControlNetInpaintPipeline,
    ("control mask", True): StableDiffusionXLControlNetInpaintPipeline,
}


def run_stock(model: Backbone, kind: str, settings: GenerateSettings, source: SourceImages) -> list[Image.Image]:
    """What diffusers' pipeline of this kind gives with the model as it is, and plain text."""
    xl = model.family == "sdxl"
    parts: dict[str, Any] = {"vae": model.vae, "unet": model.unet, "text_encoder": None, "tokenizer": None}
    parts["scheduler"] = create_scheduler(model, settings.scheduler, settings.steps)
    parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False} if xl else {}
    parts |= {} if xl else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if source.controlnet is not None:
        parts["controlnet"] = source.controlnet
    pipeline: Any = STOCK[kind, xl](**parts)
    pipeline.set_progress_bar_config(disable=True)
    count, half = len(PROMPTS), model.token_width
    conditioner = WordsConditioner(model, {})
    text, null = conditioner.encode_prompts(PROMPTS, 0), conditioner.encode_negative(count)
    text, null = (replace(one, states=one.states[..., :half]) for one in (text, null))
    given: dict[str, Any] = {"image": list(source.start) * (count // len(source.start))} if source.start else {}
    if source.controlnet is not None:
        given["control_image" if source.start else "image"] = source.control
        given["controlnet_conditioning_scale"] = source.control_scale
    if source.mask is not None:
        given["mask_image"] = source.mask
        if kind == "mask":
            # Otherwise it encodes the masked image too, for UNets of nine channels: the samplers' noise would differ.
            given["masked_image_latents"] = torch.zeros(1, 4, *get_latent_size(model, settings))
    if source.start:
        given["strength"] = source.strength
    if source.mask is not None or not source.start:
        given |= {"width": WIDTH, "height": HEIGHT}
    if not source.start:
        given["latents"] = draw_initial_noise(model, SEEDS, get_latent_size(model, settings))
    return pipeline(
        **given,
        **list_text_arguments(text),
        **{f"negative_{name}": value for name, value in list_text_arguments(null).items()},
        generator=[create_generator(seed, "sampler") for seed in SEEDS],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
    ).images


def run_ours(model: Backbone, settings: GenerateSettings, source: SourceImages) -> list[Image.Image]:
    made = sample_images(model, WordsConditioner(model, {}), PROMPTS, SEEDS, settings, SilentProgress(), source)
    return [image.pixels for image in made]


def measure_difference(one: Image.Image, other: Image.Image, columns: slice = slice(None)) -> int:
    a, b = (np.asarray(image.convert("RGB")).astype(int)[:, columns] for image in (one, other))
    return int(np.abs(a - b).max())


FAMILIES = ("sd1", "sd2", "sdxl")
QUICK = {("sd1", "ddim"), ("sdxl", "dpm++_karras"), ("sd2", "euler_a")}
SAMPLERS = [
    pytest.param(family, name, marks=() if (family, name) in QUICK else pytest.mark.slow)
    for family in (*FAMILIES, "three channels")
    for name in ("ddim", "dpm++", "dpm++_karras", "dpm++_sde", "euler", "euler_a", "lcm")
]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("family", "name"), SAMPLERS)
@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_from_an_image_as_diffusers_does(models: dict[str, Backbone], family: str, name: str, strength: float) -> None:
    source = SourceImages((make_image(),), strength)
    ours = run_ours(models[family], make_settings(name), source)
    stock = run_stock(models[family], "image", make_settings(name), source)
    assert [image.size for image in ours] == [(WIDTH, HEIGHT)] * len(PROMPTS)
    assert max(map(measure_difference, ours, stock)) <= 1
    assert measure_difference(ours[0], ours[1]) > 5  # or the comparison says nothing


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("family", "name"), [case for case in SAMPLERS if case.values[0] != "three channels"])
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_inside_a_mask_as_diffusers_inpaints(
    models: dict[str, Backbone], family: str, name: str, strength: float
) -> None:
    source = SourceImages((make_image(),), strength, make_mask())
    ours = run_ours(models[family], make_settings(name), source)
    stock = run_stock(models[family], "mask", make_settings(name), source)
    for one, other in zip(ours, stock, strict=True):
        assert measure_difference(one, other, slice(WIDTH // 2, None)) <= 1
        assert measure_difference(one, source.start[0], slice(0, WIDTH // 2)) == 0
    assert measure_difference(ours[0], ours[1]) > 5


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["control", "control image", "control mask"])
def test_a_controlnet_as_diffusers_has_it(models: dict[str, Backbone], family: str, kind: str) -> None:
    model = models[family]
    start = () if kind == "control" else (make_image(),)
    source = SourceImages(
        start, 0.6, make_mask() if kind == "control mask" else None, make_image(seed=5), make_controlnet(model), 0.7
    )
    ours = run_ours(model, make_settings(), source)
    stock = run_stock(model, kind, make_settings(), source)
    repainted = slice(WIDTH // 2, None) if source.mask else slice(None)
    assert max(measure_difference(*pair, repainted) for pair in zip(ours, stock, strict=True)) <= 1
    without = run_ours(model, make_settings(), replace(source, control=None, controlnet=None))
    assert measure_difference(ours[0], without[0]) > 5


# ------------------------------------------------------------------ stages


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("strength", [0.2, 0.55, 1.0])
@pytest.mark.parametrize("name", ["ddim", "dpm++_karras", "euler_a", "lcm"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_step_reads_the_text_of_its_stage_in_both_networks(
    models: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch, family: str, name: str, strength: float
) -> None:
    model = models[family]
    conditioner = StageConditioner(model, {})
    plain = WordsConditioner(model, {}).encode_prompts(["a dog"], 0).states
    seen: list[tuple[str, int, int]] = []

    def watch(kind: type) -> None:
        forward = kind.forward

        def note(network, sample, timestep, encoder_hidden_states, **more):
            offset = (encoder_hidden_states[-1] - plain[0]).mean()
            seen.append((kind.__name__, int(timestep), round(float(offset))))
            return forward(network, sample, timestep, encoder_hidden_states, **more)

        monkeypatch.setattr(kind, "forward", note)

    watch(UNet2DConditionModel)
    watch(ControlNetModel)
    source = SourceImages((make_image(),), strength, make_mask(), make_image(seed=2), make_controlnet(model))
    settings = make_settings(name, steps=23)
    list(sample_images(model, conditioner, ["a dog"], [2], settings, SilentProgress(), source))
    assert len(seen) == 2 * int(23 * strength)
    assert {kind for kind, _, _ in seen} == {"UNet2DConditionModel", "ControlNetModel"}
    assert [stage for *_, stage in seen] == [get_stage(t, StageConditioner.stages, 1000) for _, t, _ in seen]


# ------------------------------------------------------------------ what stays as it was


@pytest.mark.parametrize("family", ["sd1", "sdxl", "three channels"])
def test_the_black_part_of_a_mask_keeps_its_pixels(models: dict[str, Backbone], family: str) -> None:
    start, mask = make_image(), make_mask()
    mask.paste(64, (0, 0, 8, HEIGHT))  # grey: a mixture, of which a quarter is new
    (image,) = generate(
        "a dog", backbone=models[family], config=Config(generate=make_settings()), seed=3, init_image=start, mask=mask
    )
    assert measure_difference(image.pixels, start, slice(8, WIDTH // 2)) == 0
    assert 0 < measure_difference(image.pixels, start, slice(0, 8)) <= 64
    assert measure_difference(image.pixels, start, slice(WIDTH // 2, None)) > 20


@given(width=st.integers(1, 9), height=st.integers(1, 9), seed=st.integers(0, 99), factor=st.sampled_from([1, 2, 8]))
def test_a_cell_is_repainted_where_its_first_pixel_is_light(width: int, height: int, seed: int, factor: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height * factor, width * factor), dtype=np.uint8)
    found = make_latent_mask(Image.fromarray(values), factor)[0, 0]
    assert found.tolist() == (values[::factor, ::factor] >= 128).astype(float).tolist()


@pytest.mark.slow
def test_each_image_has_its_own_noise_whatever_the_batch(models: dict[str, Backbone]) -> None:
    source = SourceImages((make_image(),), 0.7, make_mask())
    found = [run_ours(models["sd1"], make_settings("euler_a", batch_size=batch), source) for batch in (1, 2, 3)]
    for others in found[1:]:
        assert max(map(measure_difference, found[0], others)) <= 1


@pytest.mark.slow
def test_each_prompt_may_start_from_its_own_image(models: dict[str, Backbone]) -> None:
    starts = tuple(make_image(seed=seed) for seed in (1, 2, 3))
    settings = make_settings(batch_size=2)
    together = run_ours(models["sd1"], settings, SourceImages(starts, 0.4))
    for number, start in enumerate(starts):
        alone = run_ours(models["sd1"], settings, SourceImages((start,), 0.4))[number]
        assert measure_difference(together[number], alone) <= 1


class Stopped(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_in_the_model_or_the_controlnet(models: dict[str, Backbone], fails: bool) -> None:
    model = models["sdxl"]
    controlnet = make_controlnet(model)
    networks = (model.unet, model.vae, controlnet)
    before = [(hash_network(one), sorted(vars(one)), dict(one.config)) for one in networks]
    processors = [{name: type(one) for name, one in network.attn_processors.items()} for network in networks]
    source = SourceImages((make_image(),), 0.6, make_mask(), make_image(seed=3), controlnet)
    pipeline = build_pipeline(model, make_settings(), source=source)

    def stop() -> None:
        if fails:
            raise Stopped

    conditioned = ConditionedModel(model, WordsConditioner(model, {}))
    try:
        sample_batch(conditioned, pipeline, ["a dog"], [2], make_settings(), stop, source)
    except Stopped:
        assert fails
    assert [(hash_network(one), sorted(vars(one)), dict(one.config)) for one in networks] == before
    assert [{n: type(one) for n, one in network.attn_processors.items()} for network in networks] == processors


def hash_network(network: torch.nn.Module) -> tuple[str, str]:
    values = b"".join(value.float().numpy().tobytes() for value in network.state_dict().values())
    return hashlib.sha256(values).hexdigest(), str({value.dtype for value in network.state_dict().values()})


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", ["image", "mask", "control"])
def test_an_autoencoder_in_single_precision_stays_so_in_a_half_precision_model(
    models: dict[str, Backbone], kind: str
) -> None:
    """Diffusers' SDXL pipelines cast the autoencoder that they are given; this one belongs to other users as well."""
    wide = models["sdxl"]
    parts = {name: make_half(part) for name, part in wide.networks.items() if name != "vae"}
    model = replace(wide, **parts)
    assert model.vae.config["force_upcast"]
    dtypes: list[torch.dtype] = []
    note = model.vae.decoder.register_forward_pre_hook(lambda module, _: dtypes.append(module.conv_in.weight.dtype))
    source = SourceImages(
        (make_image(),),
        0.7,
        make_mask() if kind == "mask" else None,
        make_image(seed=2) if kind == "control" else None,
        make_half(make_controlnet(wide)) if kind == "control" else None,
    )
    try:
        run_ours(model, make_settings(), source)
    finally:
        note.remove()
    assert model.vae.dtype == torch.float32
    assert set(dtypes) == {torch.float32}


def make_half(part: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(part).to(torch.bfloat16)


# ------------------------------------------------------------------ reading and fitting


def test_an_image_is_turned_upright_and_its_file_left_alone(tmp_path: Path, models: dict[str, Backbone]) -> None:
    path, image = tmp_path / "turned.png", make_image(48, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(path, exif=exif)
    before = path.read_bytes()
    upright = read_upright_image(path)
    assert upright.size == (96, 48)
    assert measure_difference(upright, image.transpose(Image.Transpose.ROTATE_270)) == 0
    config = Config(generate=make_settings())
    (from_file,) = generate("a dog", backbone=models["sd1"], config=config, init_image=path)
    (from_image,) = generate("a dog", backbone=models["sd1"], config=config, init_image=upright)
    (from_array,) = generate("a dog", backbone=models["sd1"], config=config, init_image=np.asarray(upright))
    assert from_file.pixels.tobytes() == from_image.pixels.tobytes() == from_array.pixels.tobytes()
    assert path.read_bytes() == before


@given(values=st.integers(0, 10**6))
def test_reading_changes_no_pixel(values: int) -> None:
    pixels = np.random.default_rng(values).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(read_upright_image(pixels)), pixels)


@pytest.mark.parametrize(("size", "box"), [((96, 48), (24, 0, 72, 48)), ((48, 96), (0, 24, 48, 72))])
def test_the_middle_is_cut_to_the_proportions(size: tuple[int, int], box: tuple[int, ...]) -> None:
    image = make_image(*size)
    expected = image.crop(box).resize((24, 24), Image.Resampling.LANCZOS)
    assert measure_difference(crop_to_size(image, (24, 24)), expected) <= 3  # at the edges of the cut
    assert crop_to_size(image, size[::-1]) is image


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strength": 0.5}, "--strength has no effect without --init-image"),
    ({"mask": "m.png"}, "--mask has no effect without --init-image"),
    ({"control": "c.png"}, "--control has no effect without --controlnet"),
    ({"controlnet": "folder"}, "--controlnet has no effect without --control"),
    ({"control_scale": 0.5}, "--control-scale has no effect without --control"),
    ({"init_image": "i.png", "strength": 1.2}, "A strength of 1.2 is out of range"),
    ({"init_image": "i.png", "strength": -0.1}, "A strength of -0.1 is out of range"),
    ({"init_image": "i.png", "strength": float("nan")}, "A strength of nan is out of range"),
    ({"init_image": "i.png", "strength": 0}, "A strength of 0 leaves no step of 7"),
    ({"init_image": "i.png", "strength": 0.14}, "leaves no step of 7.*at least 0.143"),
    ({"control": "c.png", "controlnet": "folder", "control_scale": 3}, "A control scale of 3 is out of range"),
    ({"control": "c.png", "controlnet": "folder", "control_scale": float("inf")}, "A control scale of inf"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED)
def test_options_that_make_no_sense_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_image_arguments(arguments, STEPS)


@given(steps=st.integers(1, 1000))
def test_the_strength_that_an_error_names_is_enough(steps: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_image_arguments({"init_image": "i.png", "strength": 0.0}, steps)
    least = float(caught.value.remedy.split("at least ")[1].split(",")[0])
    check_image_arguments({"init_image": "i.png", "strength": least}, steps)


def refuse(model: Backbone, kind: type[SefiError], named: str, **images: Any) -> None:
    with pytest.raises(kind, match=named):
        generate("a dog", backbone=model, config=Config(generate=make_settings()), **images)


def test_images_that_cannot_be_used_are_named(models: dict[str, Backbone], tmp_path: Path) -> None:
    model, image = models["sd1"], make_image(64, 48)
    refuse(model, PhotoError, "There is no file", init_image=tmp_path / "none.png")
    refuse(model, PhotoError, "The mask has 48 x 64 pixels, and the image 64 x 48", init_image=image,
           mask=make_mask(48, 64))  # fmt: skip
    refuse(model, PhotoError, "black everywhere", init_image=image, mask=Image.new("L", (64, 48), 127))
    wide, left, speck = make_image(112, 40), np.zeros((40, 112), bool), np.zeros((HEIGHT, WIDTH), bool)
    left[:, :20], speck[1, 1] = True, True
    # Of the middle that is generated the left fifth is no part; one pixel is no cell.
    named = r"In an image of 56 x 40 the mask leaves nothing .* proportions of the image, 112 x 40, or .* 2 x 2 pixels"
    refuse(model, PhotoError, named, init_image=wide, mask=left)
    refuse(model, PhotoError, "is too small", init_image=make_image(), mask=speck)
    (tmp_path / "text.png").write_text("no image")
    refuse(model, PhotoError, "not an image of a known format", init_image=tmp_path / "text.png")


@pytest.mark.parametrize(("kind", "white", "grey"), [
    ("bool", True, None), ("uint8", 255, 100), ("int64", 255, 100), ("uint16", 255, 100), ("float16", 1, 100 / 255),
    ("float32", 1, 100 / 255), ("float64", 1, 100 / 255),
])  # fmt: skip
def test_a_mask_of_numbers_is_read_by_their_kind(kind: str, white: float, grey: float | None) -> None:
    values = np.zeros((32, 32), kind)
    values[:8], values[8:16] = white, 0 if grey is None else grey
    found = np.asarray(read_upright_image(values))
    assert [found[row, 0].tolist() for row in (0, 8, 16)] == [[255] * 3, [0 if grey is None else 100] * 3, [0] * 3]


@pytest.mark.parametrize("values", [
    np.full((32, 32), 256, np.uint16), np.full((32, 32), -1), np.full((32, 32), 255.0), np.full((32, 32), -0.1),
    np.full((32, 32), np.nan), np.full((32, 32), np.inf), np.ones((32, 32), complex), np.full((32, 32), "1"),
    np.full((32, 32), None), np.full((32, 32), np.datetime64("2026-01-01")),
])  # fmt: skip
def test_a_mask_of_other_numbers_is_refused(values: NDArray[Any]) -> None:
    with pytest.raises(PhotoError, match=r"is no grey image\. Give true and false, whole numbers from 0 to 255"):
        read_upright_image(values)


def test_a_mask_of_a_few_numbers_is_too_small() -> None:
    with pytest.raises(PhotoError, match="only 0 x 0 pixels"):
        read_upright_image(np.zeros((0, 0)))


def test_a_guidance_embedding_does_not_go_through_a_controlnet_from_an_image(models: dict[str, Backbone]) -> None:
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config(dict(models["sd1"].unet.config), time_cond_proj_dim=16)
    model = replace(models["sd1"], unet=unet, signature=None)
    controlnet, image = make_controlnet(models["sd1"]), make_image()
    refuse(model, ConfigError, "takes the guidance scale as an input", init_image=image, control=image,
           controlnet=controlnet)  # fmt: skip
    config = Config(generate=make_settings("lcm"))
    for images in ({"init_image": image}, {"control": image, "controlnet": controlnet}):
        (made,) = generate("a dog", backbone=model, config=config, **images)
        assert made.pixels.size == (WIDTH, HEIGHT)


def test_a_zero_snr_model_starts_from_an_image(models: dict[str, Backbone]) -> None:
    schedule = DDPMScheduler.from_config(make_schedule("v_prediction").config, rescale_betas_zero_snr=True)
    model = replace(models["sd1"], scheduler=schedule)
    for name in ("dpm++_karras", "euler_a"):
        images = run_ours(model, make_settings(name), SourceImages((make_image(),), 0.5))
        assert all(np.asarray(image).std() > 1 for image in images)
