"""The family of a model, and names for models and files of other kinds, for error messages."""

from collections.abc import Collection, Mapping
from typing import Literal

Family = Literal["sd1", "sd2", "sdxl", "tiny"]
EMBEDDED = "tiny-portraits"  # the model in the package
REMEDY = "Use a Stable Diffusion 1.x, 2.x or XL model."  # what to do with a model that cannot be used

# How wide the text is that the UNets of the published families read.
TEXT_WIDTHS: dict[int, Family] = {768: "sd1", 1024: "sd2"}
# What the models of a family predict; those of SD 2.x predict either.
USUAL_PREDICTIONS: dict[str, str] = {"sd1": "epsilon", "sdxl": "epsilon", "tiny": "v_prediction"}

# Starts of pipeline classes in `model_index.json`; the longest that fits names the kind.
PIPELINES = {
    "StableDiffusionXLInpaint": "SDXL inpainting model",
    "StableDiffusionXLInstructPix2Pix": "SDXL editing model (InstructPix2Pix)",
    "StableDiffusion3": "Stable Diffusion 3 model",
    "StableDiffusionInpaint": "inpainting model",
    "StableDiffusionInstructPix2Pix": "editing model (InstructPix2Pix)",
    "StableDiffusionDepth2Img": "depth-to-image model",
    "StableDiffusionUpscale": "upscaler",
    "StableDiffusionLatentUpscale": "upscaler",
    "StableDiffusionGLIGEN": "GLIGEN model",
    "StableDiffusionImageVariation": "image variation model",
    "StableUnCLIP": "unCLIP model",
    "UnCLIP": "unCLIP model",
    "StableCascade": "Stable Cascade model",
    "Wuerstchen": "Wuerstchen model",
    "Flux": "FLUX model",
    "PixArt": "PixArt model",
    "Kandinsky": "Kandinsky model",
    "Kolors": "Kolors model",
    "AltDiffusion": "AltDiffusion model",
    "AuraFlow": "AuraFlow model",
    "Hunyuan": "Hunyuan model",
    "Lumina": "Lumina model",
    "Sana": "Sana model",
    "QwenImage": "Qwen-Image model",
    "ZImage": "Z-Image model",
    "IF": "DeepFloyd IF model",
    "AnimateDiff": "video model (AnimateDiff)",
    "StableVideoDiffusion": "video model",
    "TextToVideo": "video model",
    "Wan": "video model (Wan)",
    "LTX": "video model (LTX)",
}

# SDXL's second text encoder in a checkpoint file; its refiner has no first one.
SDXL_TEXT_PREFIX = "conditioner.embedders.1.model."
# Pieces of tensor names that only such a file has, in this order.
TENSOR_NAMES = {
    "conditioner.embedders.0.model.": "SDXL refiner checkpoint",
    "edm_mean": "Playground v2.5 checkpoint",  # SDXL's parts on another noise schedule
    "double_blocks.0.": "FLUX checkpoint",
    "joint_blocks.0.": "Stable Diffusion 3 checkpoint",
    "adaln_single.": "PixArt checkpoint",
    "lora_": "LoRA",
    ".lora.": "LoRA",
    "control_model.": "ControlNet",
    "controlnet_cond_embedding.": "ControlNet",
    "string_to_param": "textual inversion embedding",
    "emb_params": "textual inversion embedding",
    "label_emb.": "checkpoint with class embeddings (unCLIP)",
    "time_embed.cond_proj.": "latent consistency checkpoint in one file",
}
# Starts of tensor names of one part alone.
ALONE = {
    "down_blocks.": "UNet in the layout of diffusers",
    "encoder.conv_in.": "VAE alone",
    "encoder.down_blocks.": "VAE alone",
    "text_model.": "text encoder alone",
    "first_stage_model.": "VAE alone",
}


def detect_family(text_width: int) -> Family:
    """Return the family of a model with one text encoder, read where its files are opened and nowhere else.

    Args:
        text_width: of the text that its UNet reads. Nothing else in its files tells SD 1.x from 2.x.

    >>> detect_family(768), detect_family(192)
    ('sd1', 'tiny')
    """
    return TEXT_WIDTHS.get(text_width, "tiny")


def detect_pipeline_kind(index: Mapping[str, object]) -> str | None:
    """Name the kind of a pipeline that is neither Stable Diffusion 1.x, 2.x nor SDXL; None if it may be one."""
    name = index.get("_class_name")
    if is_sdxl_index(index) and index.get("text_encoder") in (None, [None, None]):
        return "SDXL refiner"
    if isinstance(name, str):
        starts = [start for start in PIPELINES if name.startswith(start)]
        if starts:
            return PIPELINES[max(starts, key=len)]
    if ("text_encoder_2" in index and not is_sdxl_index(index)) or "transformer" in index or "prior" in index:
        return f"model of another kind ({name})" if isinstance(name, str) else "model of another kind"
    return None


def is_sdxl_index(index: Mapping[str, object]) -> bool:
    """Return whether a `model_index.json` is of an SDXL pipeline."""
    return str(index.get("_class_name")).startswith("StableDiffusionXL")


def is_sdxl_file(names: Collection[str]) -> bool:
    """Return whether a checkpoint file with these tensors is an SDXL model."""
    return any(name.startswith(SDXL_TEXT_PREFIX) for name in names)


def detect_file_kind(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """Name the kind of a safetensors file by its tensors; None if it may be Stable Diffusion 1.x, 2.x or SDXL."""
    if "sefi" in metadata:
        return "identity of sefi"
    for piece, kind in TENSOR_NAMES.items():
        # The size conditions of SDXL have the name of class embeddings.
        if any(piece in name for name in names) and not (piece == "label_emb." and is_sdxl_file(names)):
            return kind
    if any(name.startswith("model.diffusion_model.") for name in names):
        return None
    for start, kind in ALONE.items():
        if any(name.startswith(start) for name in names):
            return kind
    return None


def choose_article(kind: str) -> str:
    """Return "a" or "an", as the kind is spoken."""
    return "an" if kind[0].lower() in "aeiou" or kind.startswith(("SDXL", "LTX")) else "a"
