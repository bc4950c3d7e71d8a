"""The nodes: load an identity, encode prompts with identities, let a model read key and value texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import folder_paths
from torch import Tensor

from .encoding import Clip, Conditioning, encode_negative, encode_prompt
from .identity_file import MOST_STAGES, Identity, read_identity

FOLDER = "sefi"  # in ComfyUI's folder of models
CATEGORY = "sefi"
KIND = "SEFI_IDENTITIES"


def register_folder() -> None:
    """Register models/sefi beside the folders of that name in extra_model_paths.yaml, which show safetensors files."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


Patch = Callable[[Tensor, Tensor, Tensor, object], tuple[Tensor, Tensor, Tensor]]


class Model(Protocol):
    """What is used of ComfyUI's model."""

    model: Any

    def clone(self) -> Model:
        """Return a model that shares the weights and has patches of its own."""
        ...

    def set_model_attn2_patch(self, patch: Patch) -> None:
        """Let a patch change query, key and value texts before every cross-attention."""
        ...


class LoadSefiIdentity:
    """Load an identity from models/sefi, and add it to those that are loaded already."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Loads an identity that `sefi learn` wrote, from models/sefi. Chain several for several people."
    RETURN_TYPES = (KIND, "STRING")
    RETURN_NAMES = ("identities", "placeholder")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        return {
            "required": {"file": (folder_paths.get_filename_list(FOLDER),)},
            "optional": {"identities": (KIND, {"tooltip": "Further identities for the same prompt."})},
        }

    @classmethod
    def IS_CHANGED(cls, file: str, **_others: object) -> str:  # noqa: N802
        """Return what changes when the file was learned again."""
        status = Path(folder_paths.get_full_path_or_raise(FOLDER, file)).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    def load(self, file: str, identities: tuple[Identity, ...] = ()) -> tuple[tuple[Identity, ...], str]:
        """Load the file; return all identities and how prompts name this one."""
        one = read_identity(folder_paths.get_full_path_or_raise(FOLDER, file))
        return (*identities, one), f"<{one.name}>"


class EncodePromptWithSefi:
    """Encode a prompt and a negative prompt for a model with `ApplySefiToModel`."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Write <name> where an identity belongs; weights such as (<ada>:1.2) work."
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        text = {"multiline": True, "dynamicPrompts": True}
        strength = {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05,
                    "tooltip": "0 is the class word, 1 what was learned."}  # fmt: skip
        stages = {"default": 0, "min": 0, "max": MOST_STAGES,
                  "tooltip": "How many of the noisiest stages read the class word; it frees the layout."}  # fmt: skip
        return {
            "required": {
                "clip": ("CLIP",),
                "identities": (KIND,),
                "text": ("STRING", text),
                "negative": ("STRING", text),
                "strength": ("FLOAT", strength),
                "class_word_stages": ("INT", stages),
            }
        }

    def encode(
        self,
        clip: Clip,
        identities: tuple[Identity, ...],
        text: str,
        negative: str,
        strength: float = 1.0,
        class_word_stages: int = 0,
    ) -> tuple[Conditioning, Conditioning]:
        """Encode both prompts."""
        return (
            encode_prompt(clip, text, identities, strength, class_word_stages),
            encode_negative(clip, negative),
        )


class ApplySefiToModel:
    """Let a model's cross-attention make keys of the first half of a text and values of the second."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Lets the model read what the node above encodes. Texts of other nodes are read as before."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs, as ComfyUI asks for them."""
        return {"required": {"model": ("MODEL",)}}

    def apply(self, model: Model) -> tuple[Model]:
        """Return a clone with the patch; the model itself stays as it is.

        Raises:
            ValueError: its cross-attention is not that of Stable Diffusion 1.x, 2.x or XL.
        """
        width = model.model.model_config.unet_config.get("context_dim")
        if not isinstance(width, int):
            raise ValueError("sefi's nodes need a model of Stable Diffusion 1.x, 2.x or XL.")
        patched = model.clone()
        patched.set_model_attn2_patch(make_patch(width))
        return (patched,)


def make_patch(width: int) -> Patch:
    """Make the patch of ComfyUI's `attn2`, which gets the text before keys and values are made of it.

    Args:
        width: of the texts that the model was made for; only texts of twice this width are divided.
    """

    def split_text(query: Tensor, key: Tensor, value: Tensor, _options: object) -> tuple[Tensor, Tensor, Tensor]:
        if key.shape[-1] != 2 * width:
            return query, key, value
        return query, key[..., :width], value[..., width:]

    return split_text


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "LoadSefiIdentity": LoadSefiIdentity,
    "EncodePromptWithSefi": EncodePromptWithSefi,
    "ApplySefiToModel": ApplySefiToModel,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadSefiIdentity": "Load sefi identity",
    "EncodePromptWithSefi": "Encode prompt with sefi identities",
    "ApplySefiToModel": "Apply sefi to model",
}

register_folder()
