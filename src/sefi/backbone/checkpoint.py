"""A single-file checkpoint in the original layout to the parts of the model, and back."""

import re
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sefi.backbone.bundle import ModelParts
from sefi.backbone.files import LIMITS, is_regular, read_or_refuse, read_weights_header
from sefi.backbone.folder import parse_noise_settings, read_scheduler
from sefi.backbone.kinds import (
    REMEDY,
    SDXL_TEXT_PREFIX,
    Family,
    choose_article,
    detect_family,
    detect_file_kind,
    is_sdxl_file,
)
from sefi.backbone.part_configs import MAX_LATENT_SIZE
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
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
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
_OPEN_CLIP: Rules = [
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.([qkv]_proj)\.(weight|bias)$", r".\1"),
]
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)")


def write_checkpoint(model: ModelParts, path: Path) -> None:
    """Write UNet, VAE and text encoders as one file, in the layout of the model's family.

    Args:
        model: a model of SD 1.x (or a tiny one, written the same way), SD 2.x or SDXL.
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
    for name, encoder in zip(TEXT_PREFIXES[model.family], model.text_encoders, strict=True):
        tensors |= _rename_text_encoder(encoder, name)
    whole = {key: value.contiguous() for key, value in tensors.items()}
    write_file(path, lambda partial: save_file(whole, partial))


def _rename_text_encoder(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a text encoder's weights by their original names: CLIP's own, or OpenCLIP's where the prefix is its."""
    weights = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    if prefix.endswith(".transformer."):
        return {f"{prefix}text_model.{key}": value for key, value in weights.items()}
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        renamed = _apply_rules(key, _OPEN_CLIP)
        if renamed.endswith(".q_proj"):  # OpenCLIP has one matrix for query, key and value
            kinds = [weights[key.replace(".q_proj.", f".{kind}_proj.")] for kind in "qkv"]
            ending = key.rpartition(".")[2]
            found[f"{prefix}{renamed.removesuffix('.q_proj')}.in_proj_{ending}"] = torch.cat(kinds)
        elif not renamed.endswith((".k_proj", ".v_proj")):
            found[prefix + renamed] = value.T if renamed == "text_projection" else value
    return found


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
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
# Where each text encoder's weights are; the one after `transformer.` is CLIP's own, the others OpenCLIP's.
TEXT_PREFIXES: dict[Family, tuple[str, ...]] = {
    "tiny": (CLIP_PREFIX,),
    "sd1": (CLIP_PREFIX,),
    "sd2": (OPEN_CLIP_PREFIX,),
    "sdxl": (SDXL_CLIP_PREFIX, SDXL_TEXT_PREFIX),
}
# EMA copies and the training's own numbers stay in the file.
READ = (UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX, SDXL_CLIP_PREFIX, SDXL_TEXT_PREFIX)
TEXT_KEY = UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = UNET_PREFIX + "input_blocks.0.0.weight"
# SDXL's first block reads no text.
SDXL_TEXT_KEY = UNET_PREFIX + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
SDXL_WIDTH = 2048
PAD_TOKENS: dict[Family, tuple[str, ...]] = {"sd1": (END,), "sd2": ("!",), "sdxl": (END, "!")}
# ModelSpec's words for what the UNet predicts; files without it follow their family's config.
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
SQUARE = re.compile(r"(\d{3,4})x\1")  # a width and the same height, ModelSpec's base resolution
DIVISIBLE = 8  # latent cells per side are multiples of it: the UNet halves them three times at the most
BASE_CELLS = 64  # of Stable Diffusion 2.x base, per side
WHOLE = "Use a whole checkpoint: UNet, VAE and text encoder in one file."


def read_checkpoint(path: Path, dtype: torch.dtype) -> ModelParts:
    """Read one `.safetensors` file of SD 1.x, 2.x or SDXL; needs no network.

    Configurations and the tokenizers come with the package. A 2.x file is taken to predict v at 768 pixels unless its
    header says otherwise (`modelspec.prediction_type`, `modelspec.resolution`); one that predicts noise, at 512.

    Args:
        path: the file; both its content and its name must say safetensors.
        dtype: of the weights once read.

    Raises:
        BackboneError: pickled, damaged, not a whole model, an inpainting model, or of another family.
    """
    _check_magic(path)
    header = read_weights_header(path)
    family = _detect_family(path, header)
    _check_whole(path, header, family)
    refuse_other_numbers(path, header)
    folder = CONFIGS / family
    tensors = read_or_refuse(path, lambda: _read_tensors(path), "Copy or download the file again.")
    first, *others = [create_clip_tokenizer(pad) for pad in PAD_TOKENS[family]]
    second: dict[str, Any] = {}
    if family == "sdxl":
        kind, name = CLIPTextModelWithProjection, "text_encoder_2"
        second = {"tokenizer_2": others[0], name: _build_text_encoder(kind, name, path, tensors, folder, dtype)}
    parts = ModelParts(
        tokenizer=first,
        text_encoder=_build_text_encoder(CLIPTextModel, "text_encoder", path, tensors, folder, dtype),
        vae=_build_model(AutoencoderKL, "vae", path, tensors, folder, dtype),
        unet=_build_model(UNet2DConditionModel, "unet", path, tensors, folder, dtype),
        scheduler=_build_scheduler(folder, header),
        family=family,
        **second,
    )
    _set_trained_size(parts, header)
    return parts


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
    """Return `sd1`, `sd2` or `sdxl` from the header alone; refuses what is none of them."""
    kind = detect_file_kind(header.shapes, header.metadata)
    if kind is not None:
        outcome = ", which is not supported yet" if "checkpoint" in kind else ", not a whole model"
        raise BackboneError(f"{path} is {choose_article(kind)} {kind}{outcome}.", REMEDY)
    sdxl = is_sdxl_file(header.shapes)
    text, inputs = header.shapes.get(SDXL_TEXT_KEY if sdxl else TEXT_KEY), header.shapes.get(INPUT_KEY)
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
    if sdxl and text[-1] == SDXL_WIDTH:
        return "sdxl"
    family = detect_family(text[-1])
    if sdxl or family not in PAD_TOKENS:
        raise BackboneError(
            f"{path} reads text of width {text[-1]}, which is not that of SD 1.x (768), 2.x (1024) or XL (2048).",
            REMEDY,
        )
    return family


def _check_whole(path: Path, header: Layout, family: Family) -> None:
    """Refuse a file without VAE or text encoder, saying which."""
    texts = {"text encoder": (CLIP_PREFIX, OPEN_CLIP_PREFIX)}
    if family == "sdxl":
        texts = {"text encoder": (SDXL_CLIP_PREFIX,), "second text encoder": (SDXL_TEXT_PREFIX,)}
    parts = {"VAE": (VAE_PREFIX,), **texts}
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


def _build_text_encoder(
    cls: type[Part], name: str, path: Path, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype
) -> Part:
    build: Any = create_diffusers_clip_model_from_ldm
    settings = {"subfolder": name, "config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    model = read_or_refuse(
        path, lambda: cast(Part, build(cls, dict(tensors), **settings)), "Copy or download the file again."
    )
    _check_complete(path, name, model)
    return model


def _check_complete(path: Path, name: str, model: nn.Module) -> None:
    # diffusers leaves a weight that the file lacks without storage ("meta") instead of failing.
    missing = [key for key, value in model.named_parameters() if value.is_meta]
    if missing:
        raise BackboneError(
            f"{path} cannot be read: its {name} lacks {len(missing)} weights, such as {missing[0]}.", WHOLE
        )
    check_finite(model, path)


def _read_prediction(header: Layout) -> str | None:
    """Return what the file says that its UNet predicts; None where it says nothing, or what is not known."""
    if "v_pred" in header.shapes:
        return "v_prediction"
    return PREDICTION.get(header.metadata.get("modelspec.prediction_type", "").lower())


def _set_trained_size(parts: ModelParts, header: Layout) -> None:
    """Set the size that the file says it was trained at; what is no square, or no size for images, is passed over.

    Without it a 2.x model that predicts noise is the base model; the shipped configuration is that of the other one.
    """
    cells = BASE_CELLS if parts.family == "sd2" and _read_prediction(header) == "epsilon" else None
    if stated := SQUARE.fullmatch(header.metadata.get("modelspec.resolution", "").lower()):
        side, rest = divmod(int(stated[1]), parts.latent_factor)
        if not rest and side % DIVISIBLE == 0 and 0 < side <= MAX_LATENT_SIZE:
            cells = side
    if cells is not None:
        parts.unet.register_to_config(sample_size=cells)


def _build_scheduler(folder: Path, header: Layout) -> DDPMScheduler:
    """Build the family's noise schedule with what the file says of its own.

    Fine-tunes of SDXL that predict v, or were trained with zero terminal SNR, say so by empty tensors of these names.
    """
    scheduler = read_scheduler(folder)
    stated: dict[str, Any] = {}
    prediction = _read_prediction(header)
    if prediction is not None:
        stated["prediction_type"] = prediction
    if "ztsnr" in header.shapes and prediction == "v_prediction":
        stated["rescale_betas_zero_snr"] = True
    return DDPMScheduler(**parse_noise_settings(dict(scheduler.config) | stated)) if stated else scheduler
