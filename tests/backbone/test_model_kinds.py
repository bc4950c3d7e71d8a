"""Folders and files of every kind: what opens learns and draws, all else is refused with the field at fault."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sefi
from sefi.backbone.open import open_backbone
from sefi.core.config import Config, override
from sefi.core.errors import BackboneError

PROMPT = "a photo of <ada> at the beach"
UNET = "diffusion_pytorch_model"


@pytest.fixture
def copy(learnable_copy: Path) -> Path:
    """A model folder that a test may change, and learn with."""
    return learnable_copy


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def refusal(source: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        open_backbone(str(source))
    return str(caught.value)


def use(folder: Path, photo: Path, few_steps: Config) -> int:
    """Learn one step, generate one image; return the image's side."""
    backbone = open_backbone(str(folder))
    config = override(few_steps, ["learn.steps=1", "generate.steps=2"])
    identity = sefi.learn(photo, name="ada", backbone=backbone, config=config, crop=False)
    image = sefi.generate(PROMPT, [identity], backbone=backbone, config=config)[0].pixels
    assert image.size == (backbone.resolution, backbone.resolution)
    assert image.getextrema() != ((0, 0),) * 3
    return backbone.resolution


# Each field of a UNet changed: the classes build these, so the weights fit, and they learn and draw.
BUILT: dict[str, dict] = {
    "plain": {},
    "sample_size_list": {"sample_size": [8, 8]},
    "sample_size_null": {"sample_size": None},
    "sample_size_odd": {"sample_size": 10},
    "attention_head_dim_list": {"attention_head_dim": [2, 4]},
    "layers_list": {"layers_per_block": [1, 2]},
    "transformers_list": {"transformer_layers_per_block": [1, 2]},
    "linear_projection": {"use_linear_projection": True},
    "upcast": {"upcast_attention": True},
    "kernels": {"conv_in_kernel": 5, "conv_out_kernel": 1},
    "no_mid_block": {"mid_block_type": None},
    "plain_mid_block": {"mid_block_type": "UNetMidBlock2D"},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True},
    "time_embedding": {"time_embedding_dim": 20, "time_embedding_act_fn": "gelu", "timestep_post_act": "mish"},
    "guidance_embedding": {"time_cond_proj_dim": 6},
    "odd_padding": {"downsample_padding": 0},
    "activation": {"act_fn": "relu", "center_input_sample": True, "flip_sin_to_cos": False, "freq_shift": 1},
    "one_block": {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "text_in_mid_block_and_way_up": {"down_block_types": ("DownBlock2D", "DownBlock2D")},
}
BUILT_VAE: dict[str, dict] = {
    "attention_blocks": {
        "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    },
    "no_mid_attention": {"mid_block_add_attention": False},
    "no_quant_conv": {"use_quant_conv": False, "use_post_quant_conv": False},
    "neutral_statistics": {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
}


# The rest of the matrix takes a third of a second each.
QUICK = ("sample_size_null", "attention_head_dim_list", "no_mid_block", "attention_blocks")


def rows(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", rows(BUILT))
def test_unets_that_open_learn_and_generate(
    learnable: Callable[..., Path], photo_file: Path, few_steps: Config, name: str
) -> None:
    side = 40 if name == "sample_size_odd" else 32
    assert use(learnable(unet=BUILT[name]), photo_file, few_steps) == side


@pytest.mark.parametrize("name", rows(BUILT_VAE))
def test_vaes_that_open_learn_and_generate(
    learnable: Callable[..., Path], photo_file: Path, few_steps: Config, name: str
) -> None:
    assert use(learnable(vae=BUILT_VAE[name]), photo_file, few_steps) == 32


@pytest.mark.parametrize(
    "changes",
    [{"sample_size": [64, 64]}, {"sample_size": None}, {"scaling_factor": None}, {"shift_factor": 0.0}],
    ids=str,
)
def test_vae_fields_that_change_nothing(copy: Path, photo_file: Path, few_steps: Config, changes: dict) -> None:
    edit(copy / "vae" / "config.json", **changes)
    assert use(copy, photo_file, few_steps) == 32


def test_without_a_stated_scale_stable_diffusions_is_taken(copy: Path) -> None:
    path = copy / "vae" / "config.json"
    for change in (lambda values: values | {"scaling_factor": None}, lambda values: without(values, "scaling_factor")):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        backbone = open_backbone(str(copy))
        pixels = torch.rand(1, 3, 32, 32)
        mean = backbone.vae.encode(pixels).latent_dist.mode()
        assert torch.allclose(backbone.encode_image(pixels), mean * 0.18215)


def without(values: dict, name: str) -> dict:
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("unet", "vae", "latent"),
    [(None, 512, 128), (None, [48, 48], 12), (None, None, 64), (None, 30, 64), ([12, 12], 512, 12), (10, None, 10)],
)
def test_the_trained_size(copy: Path, unet: object, vae: object, latent: int) -> None:
    edit(copy / "unet" / "config.json", sample_size=unet)
    edit(copy / "vae" / "config.json", sample_size=vae)
    backbone = open_backbone(str(copy))
    assert (backbone.latent_size, backbone.resolution) == (latent, 4 * latent)


# Values that would crash later, be passed over in silence or take all memory; each with its field.
REFUSED: list[tuple[str, dict]] = [
    ("unet", {"class_embed_type": "timestep"}),
    ("unet", {"class_embed_type": "identity"}),
    ("unet", {"num_class_embeds": 7}),
    ("unet", {"projection_class_embeddings_input_dim": 5}),
    ("unet", {"class_embeddings_concat": True}),
    ("unet", {"addition_embed_type": "text_time"}),
    ("unet", {"addition_embed_type": "text"}),
    ("unet", {"addition_time_embed_dim": 256}),
    ("unet", {"encoder_hid_dim": 24}),
    ("unet", {"encoder_hid_dim_type": "text_proj"}),
    ("unet", {"only_cross_attention": True}),
    ("unet", {"only_cross_attention": [False, True]}),
    ("unet", {"mid_block_only_cross_attention": True}),
    ("unet", {"dual_cross_attention": True}),
    ("unet", {"cross_attention_norm": "group_norm"}),
    ("unet", {"num_attention_heads": 2}),
    ("unet", {"attention_type": "gated"}),
    ("unet", {"time_embedding_type": "fourier"}),
    ("unet", {"reverse_transformer_layers_per_block": [[1], [1]]}),
    ("unet", {"sample_size": [8, 12]}),
    ("unet", {"sample_size": [8]}),
    ("unet", {"sample_size": 7}),
    ("unet", {"sample_size": 0}),
    ("unet", {"sample_size": 10**9}),
    ("unet", {"sample_size": "8"}),
    ("unet", {"sample_size": True}),
    ("unet", {"in_channels": 9}),
    ("unet", {"in_channels": 10**9}),
    ("unet", {"out_channels": 8}),
    ("unet", {"conv_in_kernel": 4}),
    ("unet", {"conv_out_kernel": 10**6}),
    ("unet", {"downsample_padding": 2}),
    ("unet", {"block_out_channels": [10**9, 10**9]}),
    ("unet", {"block_out_channels": [8, 16, 16]}),
    ("unet", {"block_out_channels": [8] * 10**5}),
    ("unet", {"block_out_channels": 8}),
    ("unet", {"block_out_channels": [9, 16]}),
    ("unet", {"block_out_channels": None}),
    ("unet", {"layers_per_block": 10**6}),
    ("unet", {"layers_per_block": [1]}),
    ("unet", {"transformer_layers_per_block": 10**6}),
    ("unet", {"attention_head_dim": 10**9}),
    ("unet", {"attention_head_dim": [2]}),
    ("unet", {"attention_head_dim": 0}),
    ("unet", {"attention_head_dim": {"a": 1}}),
    ("unet", {"cross_attention_dim": 32}),
    ("unet", {"cross_attention_dim": [24, 24]}),
    ("unet", {"cross_attention_dim": 10**12}),
    ("unet", {"time_cond_proj_dim": 2}),
    ("unet", {"time_cond_proj_dim": 10**12}),
    ("unet", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}),
    ("unet", {"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]}),
    ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}),
    ("unet", {"act_fn": "__import__"}),
    ("unet", {"norm_num_groups": None}),
    ("unet", {"norm_num_groups": 3}),
    ("unet", {"norm_eps": -1.0}),
    ("unet", {"mid_block_scale_factor": 0}),
    ("unet", {"resnet_out_scale_factor": 0.0}),
    ("unet", {"freq_shift": 4}),
    ("unet", {"_class_name": "UNetMotionModel"}),
    ("unet", {"_class_name": "UNet2DModel"}),
    ("vae", {"latent_channels": 16}),
    ("vae", {"latent_channels": 10**12}),
    ("vae", {"in_channels": 4}),
    ("vae", {"block_out_channels": [10**9] * 3}),
    ("vae", {"layers_per_block": 10**6}),
    ("vae", {"scaling_factor": 0}),
    ("vae", {"scaling_factor": -0.5}),
    ("vae", {"scaling_factor": "0.5"}),
    ("vae", {"shift_factor": 0.1}),
    ("vae", {"latents_mean": [0.0, 0.0, 0.0, 0.1]}),
    ("vae", {"latents_std": [1.0, 1.0, 1.0, 2.0]}),
    ("vae", {"down_block_types": ["DownEncoderBlock2D"]}),
    ("vae", {"norm_num_groups": 5}),
    ("vae", {"_class_name": "AutoencoderTiny"}),
    ("vae", {"_class_name": "AutoencoderKLFlux2"}),
    ("text_encoder", {"vocab_size": 10**12}),
    ("text_encoder", {"hidden_size": 10**9}),
    ("text_encoder", {"hidden_size": 25}),
    ("text_encoder", {"num_hidden_layers": 10**6}),
    ("text_encoder", {"num_attention_heads": 5}),
    ("text_encoder", {"max_position_embeddings": 10**9}),
    ("text_encoder", {"hidden_act": "os.system"}),
    ("text_encoder", {"model_type": "t5"}),
]


@pytest.mark.parametrize(("part", "change"), REFUSED, ids=[f"{p}-{c}"[:60] for p, c in REFUSED])
def test_fields_that_are_refused(copy: Path, part: str, change: dict) -> None:
    edit(copy / part / "config.json", **change)
    message = refusal(copy)
    field = next(iter(change))
    named = {"latent_channels": "in_channels"}.get(field, field) if change == {"latent_channels": 16} else field
    if change == {"cross_attention_dim": 32} or field == "hidden_size":
        assert "cross_attention_dim" in message or "hidden_size" in message or "num_attention_heads" in message
    elif field == "block_out_channels" and change[field] == [8, 16, 16]:
        assert "entries for 3 blocks" in message
    elif change[field] == [9, 16]:
        assert "norm_num_groups" in message
    else:
        assert f"`{named}`" in message


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("variant", ["bf16", "fp16", "non_ema"])
def test_folders_with_one_variant_only(copy: Path, photo_file: Path, few_steps: Config, variant: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant, torch.float32)
    for path in [*copy.glob("*/*.safetensors")]:
        values = {name: value.to(dtype) for name, value in load_file(path).items()}
        save_file(values, path.with_name(f"{path.stem}.{variant}.safetensors"), {"format": "pt"})
        path.unlink()
    assert open_backbone(str(copy)).dtype == torch.float32
    assert use(copy, photo_file, few_steps) == 32


def test_the_plain_file_comes_first(copy: Path) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    before = load_file(path)
    for variant in ("fp16", "non_ema", "bf16"):
        save_file({n: v * 0 for n, v in before.items()}, path.with_name(f"{UNET}.{variant}.safetensors"))
    weights = open_backbone(str(copy)).unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_stray_files_of_macos_are_passed_over(copy: Path, photo_file: Path, few_steps: Config) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for name in (f"{UNET}.safetensors", f"{UNET}.fp16.safetensors", "model.safetensors"):
            (copy / part / f"._{name}").write_bytes(b"\0\5\x16\7" * 40)
    assert use(copy, photo_file, few_steps) == 32
    (copy / "unet" / f"{UNET}.safetensors").unlink()
    assert "holds no weights" in refusal(copy)


def test_weights_under_a_foreign_name(copy: Path) -> None:
    (copy / "unet" / f"{UNET}.safetensors").rename(copy / "unet" / "sd15.safetensors")
    message = refusal(copy)
    assert "sd15.safetensors" in message
    assert "Rename" in message


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_weights_in_shards(copy: Path, variant: str) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    whole = load_file(path)
    names = sorted(whole)
    placed = {}
    for part, some in enumerate((names[::2], names[1::2]), 1):
        file = f"{UNET}{variant}-{part:05}-of-00002.safetensors"
        save_file({n: whole[n] for n in some}, path.with_name(file), {"format": "pt"})
        placed |= dict.fromkeys(some, file)
    path.unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    path.with_name(f"{UNET}.safetensors.index{variant}.json").write_text(json.dumps(index))
    weights = open_backbone(str(copy)).unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in whole.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_finite_are_named(copy: Path, part: str, value: float) -> None:
    path = next((copy / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})
    message = refusal(copy)
    assert f"'{name}'" in message
    assert str(copy / part) in message
    assert "not finite" in message


def test_a_model_that_answers_infinity_is_refused_by_its_part(copy: Path) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"] = tensors["conv_out.weight"].sign() * 3e38
    save_file(tensors, path, {"format": "pt"})
    assert "The UNet" in refusal(copy)


def test_quantised_weights_are_named(copy: Path) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)
    save_file(tensors, path, {"format": "pt"})
    assert "quantised" in refusal(copy)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path, {"format": "pt"})
    assert "F8_E4M3" in refusal(copy)


PIPELINES = [
    ("StableDiffusionXLInpaintPipeline", "SDXL inpainting"),
    ("StableDiffusionXLInstructPix2PixPipeline", "SDXL editing"),
    ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
    ("FluxPipeline", "FLUX"),
    ("Flux2Pipeline", "FLUX"),
    ("PixArtAlphaPipeline", "PixArt"),
    ("StableDiffusionInpaintPipeline", "inpainting"),
    ("StableDiffusionInstructPix2PixPipeline", "editing"),
    ("StableDiffusionDepth2ImgPipeline", "depth"),
    ("StableDiffusionUpscalePipeline", "upscaler"),
    ("ZImagePipeline", "Z-Image"),
    ("QwenImagePipeline", "Qwen-Image"),
    ("KandinskyV22Pipeline", "Kandinsky"),
    ("IFPipeline", "DeepFloyd"),
]


@pytest.mark.parametrize(("pipeline", "named"), PIPELINES)
def test_folders_of_other_kinds_are_named(copy: Path, pipeline: str, named: str) -> None:
    edit(copy / "model_index.json", _class_name=pipeline)
    message = refusal(copy)
    assert named in message
    assert "not supported yet" in message


def test_sdxls_refiner_is_named(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None])
    assert "is an SDXL refiner, which is not supported yet" in refusal(copy)


@pytest.mark.parametrize("pipeline", ["LatentConsistencyModelPipeline", "StableDiffusionImg2ImgPipeline"])
def test_other_pipelines_of_the_same_parts_open(copy: Path, pipeline: str) -> None:
    edit(copy / "model_index.json", _class_name=pipeline)
    assert open_backbone(str(copy)).latent_channels == 4


def test_an_inpainting_unet_is_named(learnable: Callable[..., Path]) -> None:
    message = refusal(learnable(unet={"in_channels": 9}))
    assert "`in_channels` is 9" in message
    assert "inpainting" in message


def test_one_part_of_a_model_is_named(copy: Path) -> None:
    message = refusal(copy / "unet")
    assert "one part of a model" in message
    assert "UNet2DConditionModel" in message


def test_a_folder_around_a_file_names_the_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "sd15.safetensors")
    assert f"Name the file itself, such as {tmp_path / 'sd15.safetensors'}" in refusal(tmp_path)


FILES = [
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX"),
    ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
    ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    ("conditioner.embedders.0.model.ln_final.weight", "SDXL refiner"),
    ("edm_mean", "Playground"),
    ("adaln_single.linear.weight", "PixArt"),
    ("lora_unet_down_blocks_0.lora_down.weight", "LoRA"),
    ("unet.up_blocks.0.to_q.lora.down.weight", "LoRA"),
    ("transformer.x.lora_A.weight", "LoRA"),
    ("control_model.input_blocks.0.0.weight", "ControlNet"),
    ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
    ("emb_params", "textual inversion"),
    ("down_blocks.0.resnets.0.conv1.weight", "UNet in the layout of diffusers"),
    ("first_stage_model.decoder.conv_in.weight", "VAE alone"),
    ("encoder.conv_in.weight", "VAE alone"),
    ("text_model.embeddings.position_embedding.weight", "text encoder alone"),
    ("model.diffusion_model.label_emb.0.0.weight", "class embeddings"),
    ("model.diffusion_model.time_embed.cond_proj.weight", "latent consistency"),
]


@pytest.mark.parametrize(("tensor", "named"), FILES)
def test_files_of_other_kinds_are_named(tmp_path: Path, tensor: str, named: str) -> None:
    save_file({tensor: torch.ones(1)}, tmp_path / "x.safetensors")
    assert named in refusal(tmp_path / "x.safetensors")


def test_an_identity_is_not_a_model(tmp_path: Path) -> None:
    save_file({"tokens": torch.ones(1)}, tmp_path / "ada.safetensors", {"sefi": "{}"})
    assert "identity of sefi" in refusal(tmp_path / "ada.safetensors")


def test_links_to_shared_parts_are_followed(copy: Path, tmp_path: Path) -> None:
    """The hub's cache is a folder of links, and users share a VAE between models."""
    shutil.move(copy / "vae", tmp_path / "shared")
    (copy / "vae").symlink_to(tmp_path / "shared")
    weights = copy / "unet" / f"{UNET}.safetensors"
    shutil.move(weights, tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert open_backbone(str(copy)).resolution == 32
