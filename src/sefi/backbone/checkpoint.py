"""A single-file checkpoint in the original layout to the five parts of the model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from sefi.backbone.bundle import ModelParts
from sefi.backbone.files import LIMITS, is_regular, read_or_refuse, read_weights_header
from sefi.backbone.folder import parse_noise_settings, read_scheduler
from sefi.backbone.kinds import Family, choose_article, detect_family, detect_file_kind
from sefi.backbone.tokenizer import END, create_clip_tokenizer
from sefi.backbone.weights import check_finite, refuse_other_numbers
from sefi.core.errors import BackboneError
from sefi.core.files import write_file
from sefi.core.reading import Layout

Rules = list[tuple[str, str]]

_RESNET: Rules = [
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_UNET_STEM: Rules = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
]
_VAE: Rules = [
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.resnets\.", ".block."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.down_blocks\.", ".down."),
]
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)")


def write_checkpoint(model: ModelParts, path: Path) -> None:
    """Write UNet, VAE and text encoder of an SD 1.x-type model as one file.

    Args:
        model: its text encoder must be CLIP's (SD 2.x files hold OpenCLIP's layout instead).
        path: the file to write; an existing one is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    layers = int(model.unet.config["layers_per_block"])
    with_attention = _find_blocks_with_attention(model.unet)
    blocks = len(model.vae.config["block_out_channels"])
    tensors: dict[str, Tensor] = {}
    for key, value in model.unet.state_dict().items():
        tensors["model.diffusion_model." + rename_unet_key(key, layers, with_attention)] = value
    for key, value in model.vae.state_dict().items():
        renamed = rename_vae_key(key, blocks)
        # The original VAE attends through 1 x 1 convolutions.
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", renamed)
        tensors["first_stage_model." + renamed] = value[..., None, None] if is_projection else value
    for key, value in model.text_encoder.state_dict().items():
        bare = key.removeprefix("text_model.")
        tensors["cond_stage_model.transformer.text_model." + bare] = value
    whole = {key: value.contiguous() for key, value in tensors.items()}
    write_file(path, lambda partial: save_file(whole, partial))


def rename_unet_key(key: str, layers: int, with_attention: frozenset[int]) -> str:
    """Return the original name of a diffusers UNet weight.

    Args:
        key: diffusers' name, such as `down_blocks.0.resnets.1.conv1.weight`.
        layers: residual layers per block (2 in Stable Diffusion).
        with_attention: which up blocks hold attention; there the upsampler comes third.
    """
    match = _BLOCK.match(key)
    if match is None:
        return _apply_rules(key, _UNET_STEM + (_RESNET if ".resnets." in key else []))
    direction, kind, rest = match[1], match[3], match[5]
    block, layer = int(match[2]), int(match[4])
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        place = 2 if block in with_attention else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{place}.{rest}"
    start = 1 if direction == "down" else 0
    side = "input_blocks" if direction == "down" else "output_blocks"
    number = start + block * (layers + 1) + layer
    if kind == "attentions":
        return f"{side}.{number}.1.{rest}"
    return _apply_rules(f"{side}.{number}.0.{rest}", _RESNET)


def rename_vae_key(key: str, blocks: int) -> str:
    """Return the original name of a diffusers VAE weight; `blocks` is the number of resolutions."""
    renamed = _apply_rules(key, _VAE)
    # The original decoder counts its blocks from the finest.
    return re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up.{blocks - 1 - int(m[1])}.", renamed)


def _apply_rules(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _find_blocks_with_attention(unet: nn.Module) -> frozenset[int]:
    keys = unet.state_dict()
    return frozenset(int(key.split(".")[1]) for key in keys if re.match(r"up_blocks\.\d+\.att", key))


Part = TypeVar("Part", bound=nn.Module)

CONFIGS = Path(__file__).parent / "configs"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
# EMA copies and the training's own numbers stay in the file.
READ = (UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX)
TEXT_KEY = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = UNET_PREFIX + "input_blocks.0.0.weight"
PAD_TOKEN: dict[Family, str] = {"sd1": END, "sd2": "!"}
# ModelSpec's words for what the UNet predicts; files without it follow their family's config.
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
REMEDY = "Use a Stable Diffusion 1.x or 2.x model."
WHOLE = "Use a whole checkpoint: UNet, VAE and text encoder in one file."


def read_checkpoint(path: Path, dtype: torch.dtype) -> ModelParts:
    """Read one `.safetensors` file of SD 1.x or 2.x; needs no network.

    Configurations and the tokenizer come with the package. A 2.x file is taken to predict v at
    768 pixels unless its header says otherwise (`modelspec.prediction_type`).

    Args:
        path: the file; both its content and its name must say safetensors.
        dtype: of the weights once read.

    Raises:
        BackboneError: pickled, damaged, not a whole model, an inpainting model, or not SD 1 or 2.
    """
    _check_magic(path)
    header = read_weights_header(path)
    family = _detect_family(path, header)
    _check_whole(path, header)
    refuse_other_numbers(path, header)
    folder = CONFIGS / family
    tensors = read_or_refuse(path, lambda: _read_tensors(path), "Copy or download the file again.")
    return ModelParts(
        tokenizer=create_clip_tokenizer(PAD_TOKEN[family]),
        text_encoder=_build_text_encoder(path, tensors, folder, dtype),
        vae=_build_model(AutoencoderKL, "vae", path, tensors, folder, dtype),
        unet=_build_model(UNet2DConditionModel, "unet", path, tensors, folder, dtype),
        scheduler=_build_scheduler(folder, header.metadata),
        family=family,
    )


def _check_magic(path: Path) -> None:
    if not is_regular(path):
        raise BackboneError(f"{path} is no file.", "Name a .safetensors checkpoint or a model folder.")
    with path.open("rb") as file:
        start = file.read(9)
    header_bytes = int.from_bytes(start[:8], "little")
    if len(start) == 9 and start[8:] == b"{" and header_bytes <= LIMITS.header:
        if path.suffix == ".safetensors":
            return
        raise BackboneError(f"{path} is a safetensors file by another name.", "Rename it.")
    raise BackboneError(
        f"{path} is not a safetensors file; a pickled checkpoint (.ckpt, .pt, .bin) may run code "
        "when opened and is refused.",
        "Use the model's .safetensors file, or convert it.",
    )


def _detect_family(path: Path, header: Layout) -> Family:
    """Return `sd1` or `sd2` from the header alone; refuses what is neither."""
    kind = detect_file_kind(header.shapes, header.metadata)
    if kind is not None:
        outcome = ", which is not supported yet" if "checkpoint" in kind else ", not a whole model"
        raise BackboneError(f"{path} is {choose_article(kind)} {kind}{outcome}.", REMEDY)
    text, inputs = header.shapes.get(TEXT_KEY), header.shapes.get(INPUT_KEY)
    if not text or inputs is None or len(inputs) != 4:
        raise BackboneError(
            f"{path} holds no Stable Diffusion UNet (is it a LoRA, a VAE or an embedding?).",
            "Name a whole checkpoint, in the original layout.",
        )
    if inputs[1] != 4:
        raise BackboneError(
            f"{path} takes {inputs[1]} input channels: it is an inpainting, depth or editing model.",
            "Use the text-to-image checkpoint of the same family.",
        )
    family = detect_family(text[-1])
    if family not in PAD_TOKEN:
        raise BackboneError(
            f"{path} reads text of width {text[-1]}, which is neither SD 1.x (768) nor 2.x (1024).", REMEDY
        )
    return family


def _check_whole(path: Path, header: Layout) -> None:
    """Refuse a file without VAE or text encoder, saying which."""
    parts = {"VAE": (VAE_PREFIX,), "text encoder": (CLIP_PREFIX, OPEN_CLIP_PREFIX)}
    missing = [part for part, starts in parts.items() if not any(name.startswith(starts) for name in header.shapes)]
    if missing:
        raise BackboneError(f"{path} holds no {' and no '.join(missing)}.", WHOLE)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what belongs to the three parts, under today's names."""
    with safe_open(path, framework="pt") as file:
        return {_rename_tensor(name): file.get_tensor(name) for name in file.keys() if name.startswith(READ)}  # noqa: SIM118


def _rename_tensor(name: str) -> str:
    """Rename the text encoder's weights of older files, which lack `text_model.`."""
    bare = name.removeprefix(CLIP_PREFIX)
    if bare == name or bare.startswith(("text_model.", "text_projection.")):
        return name
    return f"{CLIP_PREFIX}text_model.{bare}"


def _build_model(
    cls: type[Part], name: str, path: Path, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype
) -> Part:
    loader: Any = cls
    # Copies: the converters take out of the mapping what they have used.
    model = read_or_refuse(
        path,
        lambda: loader.from_single_file(
            dict(tensors), config=str(folder), subfolder=name, torch_dtype=dtype, local_files_only=True
        ),
        "Copy or download the file again.",
    )
    _check_complete(path, name, model)
    return model


def _build_text_encoder(path: Path, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> CLIPTextModel:
    build: Any = create_diffusers_clip_model_from_ldm
    settings = {"subfolder": "text_encoder", "config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    model = read_or_refuse(
        path,
        lambda: cast(CLIPTextModel, build(CLIPTextModel, dict(tensors), **settings)),
        "Copy or download the file again.",
    )
    _check_complete(path, "text_encoder", model)
    return model


def _check_complete(path: Path, name: str, model: nn.Module) -> None:
    # diffusers leaves a weight that the file lacks without storage ("meta") instead of failing.
    missing = [key for key, value in model.named_parameters() if value.is_meta]
    if missing:
        raise BackboneError(
            f"{path} cannot be read: its {name} lacks {len(missing)} weights, such as {missing[0]}.", WHOLE
        )
    check_finite(model, path)


def _build_scheduler(folder: Path, metadata: Mapping[str, str]) -> DDPMScheduler:
    scheduler = read_scheduler(folder)
    prediction = PREDICTION.get(metadata.get("modelspec.prediction_type", "").lower())
    if prediction is None:
        return scheduler
    return DDPMScheduler(**parse_noise_settings(dict(scheduler.config) | {"prediction_type": prediction}))
