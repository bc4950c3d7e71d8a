"""A model to one `.safetensors` file in the original layout, which other programs read."""

import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.backbone.parts import Parts
from sefi.core.files import write_file

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


def write_checkpoint(model: Backbone | Parts, path: Path) -> None:
    """Write UNet, VAE and text encoder of an SD 1.x-type model as one file.

    Args:
        model: its text encoder must be CLIP's (SD 2.x files hold OpenCLIP's layout instead).
        path: the file to write; an existing one is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    layers = int(model.unet.config["layers_per_block"])
    with_attention = _blocks_with_attention(model.unet)
    blocks = len(model.vae.config["block_out_channels"])
    tensors: dict[str, Tensor] = {}
    for key, value in model.unet.state_dict().items():
        tensors["model.diffusion_model." + unet_key(key, layers, with_attention)] = value
    for key, value in model.vae.state_dict().items():
        renamed = vae_key(key, blocks)
        # The original VAE attends through 1 x 1 convolutions.
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", renamed)
        tensors["first_stage_model." + renamed] = value[..., None, None] if is_projection else value
    for key, value in model.text_encoder.state_dict().items():
        bare = key.removeprefix("text_model.")
        tensors["cond_stage_model.transformer.text_model." + bare] = value
    whole = {key: value.contiguous() for key, value in tensors.items()}
    write_file(path, lambda partial: save_file(whole, partial))


def unet_key(key: str, layers: int, with_attention: frozenset[int]) -> str:
    """Original name of a diffusers UNet weight.

    Args:
        key: diffusers' name, such as `down_blocks.0.resnets.1.conv1.weight`.
        layers: residual layers per block (2 in Stable Diffusion).
        with_attention: which up blocks hold attention; there the upsampler comes third.
    """
    found = _BLOCK.match(key)
    if found is None:
        return _renamed(key, _UNET_STEM + (_RESNET if ".resnets." in key else []))
    direction, kind, rest = found[1], found[3], found[5]
    block, layer = int(found[2]), int(found[4])
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
    return _renamed(f"{side}.{number}.0.{rest}", _RESNET)


def vae_key(key: str, blocks: int) -> str:
    """Original name of a diffusers VAE weight; `blocks` is the number of resolutions."""
    renamed = _renamed(key, _VAE)
    # The original decoder counts its blocks from the finest.
    return re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up.{blocks - 1 - int(m[1])}.", renamed)


def _renamed(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _blocks_with_attention(unet: nn.Module) -> frozenset[int]:
    keys = unet.state_dict()
    return frozenset(int(key.split(".")[1]) for key in keys if re.match(r"up_blocks\.\d+\.att", key))
