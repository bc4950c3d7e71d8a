"""Identities of every method, made up of random numbers."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import collect_parameters
from sefi.core.config import Config, override
from sefi.core.rng import create_generator
from sefi.diffusion.composer import Fuse, describe_model
from sefi.identity.file import Identity
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import create_header
from sefi.methods.dreambooth_lora import is_adapted
from sefi.methods.fastcomposer import hash_file

FEATURES = 7


def settings(method: str, *more: str) -> Config:
    """The method's own preset with two steps an image."""
    preset = next((p for p in PRESETS.values() if p.method == method), None)
    return override(preset or PRESETS["default"], ["generate.steps=2", "generate.batch_size=1", *more])


def person(backbone: Backbone, method: str, name: str, folder=None) -> Identity:
    """A made-up subject of any method; the name decides its numbers.

    Args:
        folder: where FastComposer's made-up weights lie.
    """
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
    config, tensors = settings(method), {}
    if method == "fastcomposer":
        file = composer_file(backbone, folder)
        config, tensors = override(config, [f"compose.weights={file}"]), {"composer": hash_file(file)}
    for n, (key, (base, shape)) in enumerate(shapes(backbone, method, config).items()):
        noise = torch.randn(shape, generator=create_generator(seed, method, n))
        tensors[key] = noise if base is None else base * (1 + 0.3 * noise)
    return Identity(tensors, create_header(name, backbone, config, seed))


def shapes(backbone: Backbone, method: str, config: Config) -> dict[str, tuple[torch.Tensor | None, tuple[int, ...]]]:
    """What an identity of a method holds: the model's own values where it changes them, and the shape."""
    unet = dict(backbone.unet.named_parameters())
    if method == "dreambooth":
        return {n: (p.detach(), tuple(p.shape)) for n, p in collect_parameters(backbone).items()}
    if method == "dreambooth-lora":
        layers = {n: m for n, m in backbone.unet.named_modules() if is_adapted(n)}
        rank = config.tune.rank
        first = {f"unet.{n}.lora_A": (None, (rank, m.in_features)) for n, m in layers.items()}
        return first | {f"unet.{n}.lora_B": (None, (m.out_features, rank)) for n, m in layers.items()}
    if method == "fastcomposer":
        return {"image": (None, (1, FEATURES))}
    tokens = {"tokens": (None, (config.learn.stages, 2, backbone.token_width))}
    if method == "custom-diffusion":
        keys = [n for n in unet if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
        return {f"unet.{n}": (None, tuple(unet[n].shape)) for n in keys} | {
            "tokens": (None, (1, 2, 2, backbone.token_width))
        }
    return tokens


def composer_file(backbone: Backbone, folder):
    """FastComposer's weights for this model, made up once."""
    file = folder / "composer.safetensors"
    if not file.exists():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            fuse = Fuse(backbone.token_width, FEATURES)
        tensors = {f"composer.fuse.{key}": value for key, value in fuse.state_dict().items()}
        for n, (key, weight) in enumerate(backbone.unet.named_parameters()):
            if ".attn2.to_" in key:
                tensors[f"unet.{key}"] = torch.randn(weight.shape, generator=create_generator(1, "composer", n))
        save_file(tensors, file, metadata=describe_model(backbone))
    return file


def couple(backbone: Backbone, method: str, folder) -> tuple[Identity, Identity]:
    """Two people of one method."""
    return person(backbone, method, "ada", folder), person(backbone, method, "bob", folder)


ALL = tuple(METHODS)
# In the default tests one method of tokens, one of words and one of images; the strictest one where one must do.
OFTEN, ONCE = ("sefi", "dreambooth", "fastcomposer"), ("dreambooth",)
EACH, MOSTLY_SLOW = (
    [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
    for default in (OFTEN, ONCE)
)
