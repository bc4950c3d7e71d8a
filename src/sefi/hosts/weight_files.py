"""Write the weights that an identity changes as files of other programs: LoRA, and Custom Diffusion for diffusers.

A LoRA leaves with the names of diffusers (`unet.LAYER.lora_A.weight`) or with kohya's
(`lora_unet_LAYER.lora_down.weight`), which every other program reads; layers of SDXL have the names of its published
code there. Nothing is lost in either.
"""

import re

import torch

from sefi.core.errors import ConfigError, IdentityError
from sefi.core.text import escape_controls
from sefi.hosts.export import (
    TIMESTEPS,
    Embedding,
    Exported,
    ExportedFile,
    Host,
    describe_diffusers_loading,
    find_prediction,
    make_model_metadata,
    make_stem,
    split_vectors,
)
from sefi.identity.file import Identity, Tensors

DOWN, UP = "lora_A", "lora_B"
CROSS = ".attn2."
UP_BLOCK = re.compile(r"unet\.up_blocks\.\d+\.attentions\.(\d+)\.")
# What kohya's trainers write of the model: A1111 and Forge hide a LoRA of SDXL or 2.x that does not say so.
KOHYA_VERSIONS = {
    "sd1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "sd2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "sdxl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
}
CUSTOM_TOKENS = 2  # the new word, and the class word behind it


def is_lora(identity: Identity) -> bool:
    """Return whether an identity consists of LoRA's pairs of matrices at layers of the UNet."""
    names = identity.tensors
    return bool(names) and all(name.startswith("unet.") and name.endswith((f".{DOWN}", f".{UP}")) for name in names)


def is_custom_diffusion(identity: Identity) -> bool:
    """Return whether an identity has a word and weights of cross-attention, and nothing else."""
    others = [name for name in identity.tensors if name != "tokens"]
    return (
        "tokens" in identity.tensors
        and bool(others)
        and all(name.startswith("unet.") and CROSS in name for name in others)
    )


def export_lora(identity: Identity, host: Host, words: str) -> Exported:
    """Return the file of a LoRA identity for a program, and how it is used there.

    Args:
        words: what its name stands for in prompts: the rare word and the class word.
    """
    stem, words = make_stem(identity), escape_controls(words)  # a line end would end the comment in calls of Python
    if host.reads_diffusers_lora:
        tensors = make_diffusers_lora(identity)
    else:
        tensors = make_kohya_lora(identity, of_sdxl=len(identity.header.widths) > 1)
    rank = min(tensor.shape[0] for name, tensor in identity.tensors.items() if name.endswith(DOWN))
    metadata = make_model_metadata(identity, stem, "lora") | {
        "modelspec.trigger_phrase": words,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        **describe_kohya_version(identity),
    }
    prompt = host.lora_prompt.format(stem=stem, words=words)
    return Exported((ExportedFile(stem, tensors, metadata),), prompt, host.lora_folder, host.lora_advice)


def describe_kohya_version(identity: Identity) -> dict[str, str]:
    """Return what kohya's trainers write of the model, `_v` behind the version of SD 1.x and 2.x that predict v."""
    family = identity.header.base_model.partition(":")[0]
    described = dict(KOHYA_VERSIONS.get(family, {}))
    if family in ("sd1", "sd2") and find_prediction(identity) == "v_prediction":
        described["ss_base_model_version"] += "_v"
    return described


def make_diffusers_lora(identity: Identity) -> Tensors:
    """Return LoRA's matrices by the names of diffusers and peft, `[rank, in]` and `[out, rank]`, float32."""
    return {f"{name}.weight": convert_matrix(tensor) for name, tensor in identity.tensors.items()}


def make_kohya_lora(identity: Identity, *, of_sdxl: bool = False) -> Tensors:
    """Return LoRA's matrices by kohya's names, with `alpha` of each layer: its rank, so that nothing is scaled.

    Args:
        of_sdxl: name layers as SDXL's published code does: sd-scripts finds no others there.
    """
    found = [UP_BLOCK.match(name) for name in identity.tensors if of_sdxl]
    layers_per_block = max((int(one[1]) for one in found if one), default=0) + 1
    tensors: Tensors = {}
    for name, tensor in identity.tensors.items():
        layer, _, kind = name.removeprefix("unet.").rpartition(".")
        prefix = f"lora_unet_{(rename_block(layer, layers_per_block) if of_sdxl else layer).replace('.', '_')}"
        tensors[f"{prefix}.{'lora_down' if kind == DOWN else 'lora_up'}.weight"] = convert_matrix(tensor)
        if kind == DOWN:
            tensors[f"{prefix}.alpha"] = torch.tensor(float(tensor.shape[0]))
    return tensors


def rename_block(layer: str, layers_per_block: int) -> str:
    """Rename an attention layer of diffusers' UNet as the published code of Stable Diffusion does.

    Args:
        layers_per_block: of the up blocks, which have one for each of the numbers that a block takes there.

    >>> rename_block("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", 3)
    'input_blocks.4.1.transformer_blocks.1.attn1.to_q'
    """
    if layer.startswith("mid_block.attentions.0."):
        return layer.replace("mid_block.attentions.0", "middle_block.1", 1)
    side, block, _, number, rest = layer.split(".", 4)
    place = int(block) * layers_per_block + int(number)
    return f"input_blocks.{place + 1}.1.{rest}" if side == "down_blocks" else f"output_blocks.{place}.1.{rest}"


def convert_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as files hold it: on the CPU, float32 and contiguous."""
    return tensor.detach().float().cpu().contiguous()


def export_custom_diffusion(identity: Identity, host: Host) -> Exported:
    """Return both files of a Custom Diffusion identity, as diffusers reads them.

    Raises:
        ConfigError: the program is not diffusers; no other reads such weights.
        IdentityError: the tokens are not a new word and the class word.
    """
    if not host.reads_custom_diffusion:
        raise ConfigError(
            f"{host.title} reads no weights of Custom Diffusion.",
            "Export with --to diffusers, or learn with --method dreambooth-lora, whose files every program reads.",
        )
    tokens, stem, widths = identity.stage_tokens, make_stem(identity), identity.header.widths
    if tokens.shape[:3] != (1, 2, CUSTOM_TOKENS):
        raise IdentityError(f"{identity.name!r} has tokens that are no new word and class word.", "Learn it again.")
    metadata, word = make_model_metadata(identity, stem, "custom-diffusion"), f"<{stem}>"
    # Two people may share a folder, which diffusers' own name for this file would not allow; no name has a dot.
    weights = f"{stem}.weights"
    vectors = convert_matrix(tokens[0, 0, :1])
    new_word = split_vectors(vectors, widths) or {word: vectors}
    files = (
        ExportedFile(weights, make_custom_diffusion_weights(identity), metadata),
        ExportedFile(stem, new_word, metadata | {"modelspec.trigger_phrase": word}),
    )
    class_word = escape_controls(identity.header.class_word)
    lines = [
        # Without the last argument diffusers 0.42 reads the file and leaves the model as it was.
        f'pipe.unet.load_attn_procs(FOLDER, weight_name="{weights}.safetensors", _pipeline=pipe)',
        describe_diffusers_loading([Embedding(stem, vectors, 0, TIMESTEPS - 1, widths)], "<{}>"),
        f"# a photo of {word} {class_word} at the beach",
    ]
    return Exported(files, "\n".join(lines), host.folder)


def make_custom_diffusion_weights(identity: Identity) -> Tensors:
    """Return the weights of cross-attention by the names that diffusers' attention processors have for them.

    Self-attention stays as it is: diffusers wants a processor for each layer of it too, as an empty tensor.
    """
    tensors: Tensors = {}
    for name, tensor in identity.tensors.items():
        if name != "tokens":
            block, _, kind = name.removeprefix("unet.").rpartition(CROSS)
            part, _, rest = kind.partition(".")
            tensors[f"{block}{CROSS}processor.{part}_custom_diffusion.{rest}"] = convert_matrix(tensor)
            tensors[f"{block}.attn1.processor"] = torch.zeros(0)
    return tensors
