"""DreamBooth's LoRA form: low-rank matrices beside the UNet's attention learn a rare word."""
# peft's signatures are loose.
# pyright: reportArgumentType=false

import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from sefi.attention.install import key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import ATTENTION_LAYERS, part_of
from sefi.conditioning.conditioner import check_identities
from sefi.conditioning.encode import encode
from sefi.conditioning.words import WordsConditioner
from sefi.core.config import Config
from sefi.core.errors import ConfigError, IdentityError, how_to_install
from sefi.core.nouns import Identity
from sefi.core.protocols import Conditioner
from sefi.core.streams import stream
from sefi.learn.tokens import run_settings
from sefi.learn.weights import (
    Studied,
    WeightLesson,
    as_module,
    class_latents,
    prior_of,
    rare_and_plain,
    rare_or_class,
    subject_of,
)
from sefi.methods.base import About, Watched, Weights, learn_identity
from sefi.methods.refusals import tuned_weights
from sefi.photo.views import PhotoViews

ADAPTER = "sefi"
PEFT_CONFIG = "peft_config"  # what peft leaves on a module


class DreamBoothLora:
    """DreamBooth with LoRA (Hu et al. 2021, arXiv 2106.09685), through `peft`; the text encoder stays as it is."""

    about = About("DreamBooth, LoRA", "arXiv 2106.09685", "diffusers' recipe and peft (Apache-2.0)", alone=True)

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """Two matrices for every attention layer."""
        layers = [layer for name, layer in backbone.unet.named_modules() if is_adapted(name)]
        sides = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
        return Weights(sum(config.tune.rank * (out + into) for out, into in sides), 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no attention loss, the UNet only; weights in single precision; `peft`."""
        del judges
        tuned_weights(self.about.title, config, backbone)
        if config.tune.parts != "unet":
            raise ConfigError("DreamBooth's LoRA form trains the UNet only.", "Set tune.parts=unet.")
        if importlib.util.find_spec("peft") is None:
            raise without_peft()

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """Matrices named `unet.LAYER.lora_A` and `unet.LAYER.lora_B`."""
        latents = class_latents(backbone, config, watched.progress)
        sentences = rare_and_plain(backbone, config)
        with adapters(backbone.unet, config.tune.rank, seed) as matrices:
            states = [encode(backbone, ids) for ids in sentences]
            studied = Studied(
                as_module(matrices),
                subject_of(backbone, views, config, seed, lambda which: states[0][which]),
                prior_of(backbone, config, seed, latents, lambda which: states[1][which]),
                lambda: {f"unet.{key}": value for key, value in matrices.items()},
            )
            lesson = WeightLesson(backbone, config, studied, run_settings(backbone, views, config, seed))
            return learn_identity(lesson, name, backbone, config, seed, watched)

    @contextmanager
    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> Generator[Conditioner]:
        """The matrices in place, scaled by the strength, and names written as words.

        Raises:
            IdentityError: several identities, or one of another model.
        """
        check_identities(backbone, identities)
        if len(identities) > 1:
            raise IdentityError(
                "Two LoRA identities answer to the same rare word, so they cannot share a prompt.",
                "Use one of them, or learn both with a method of tokens.",
            )
        words = {identity.name: rare_or_class(identity.header, strength) for identity in identities}
        rank = int(identities[0].header.settings["tune"]["rank"]) if identities else 0
        with adapters(backbone.unet, rank, 0) if identities else nullcontext({}) as matrices:
            for identity in identities:
                fill(matrices, identity.tensors, strength)
            with key_value_attention(backbone.unet, backbone.width):
                yield WordsConditioner(backbone, words)


def is_adapted(name: str) -> bool:
    """Whether a layer of the UNet gets matrices: those of every attention, as in diffusers' script."""
    return any(name.endswith(f".{layer}") for layer in ATTENTION_LAYERS) and ".attn" in name


@contextmanager
def adapters(unet: nn.Module, rank: int, seed: int) -> Generator[dict[str, nn.Parameter]]:
    """Within the block every attention layer has a pair of matrices beside it; on leaving the layers are who they were.

    Raises:
        ConfigError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  optional
    except ImportError:
        raise without_peft() from None
    # Matrices of a run that goes on outside, as while a probe looks at it, step aside.
    layers = {name: layer for name, layer in unet.named_modules() if is_adapted(name)}
    had = dict(vars(unet))
    vars(unet).pop(PEFT_CONFIG, None)
    for name, layer in layers.items():
        put(unet, name, layer.get_submodule("base_layer") if hasattr(layer, "base_layer") else layer)
    chosen = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), init_lora_weights="gaussian")
    try:
        # peft draws the first weights from torch's global state.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(stream(seed, "lora").get_state())
            inject_adapter_in_model(chosen, unet, adapter_name=ADAPTER)
        yield {
            name.replace(f".{ADAPTER}.weight", ""): weight
            for name, weight in unet.named_parameters()
            if f".{ADAPTER}." in name
        }
    finally:
        for name, layer in layers.items():
            put(unet, name, layer)
        for name in set(vars(unet)) - set(had):
            delattr(unet, name)
        vars(unet).update({PEFT_CONFIG: had[PEFT_CONFIG]} if PEFT_CONFIG in had else {})


def put(unet: nn.Module, name: str, layer: nn.Module) -> None:
    """A layer in the place of this name."""
    above, _, last = name.rpartition(".")
    setattr(unet.get_submodule(above), last, layer)


def without_peft() -> ConfigError:
    """The error for a missing package."""
    return ConfigError("LoRA needs the package peft.", how_to_install("lora"))


@torch.no_grad()
def fill(matrices: dict[str, nn.Parameter], tensors: dict[str, Tensor], strength: float) -> None:
    """An identity's matrices into the model's; the second of a pair carries the strength.

    Raises:
        IdentityError: they do not fit.
    """
    found = part_of(tensors, "unet")
    if found.keys() != matrices.keys() or any(found[n].shape != m.shape for n, m in matrices.items()):
        raise IdentityError("The identity's matrices do not fit this model.", "Open the model it was learned on.")
    for name, matrix in matrices.items():
        matrix.copy_(found[name] * (strength if name.endswith("lora_B") else 1.0))
