"""Identities of sefi in ComfyUI: a key text and a value text for every stage of denoising, in prompts as `<name>`."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
