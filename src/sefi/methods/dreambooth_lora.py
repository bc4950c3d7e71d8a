"""DreamBooth's LoRA form: low-rank matrices beside the UNet's attention learn a rare word."""
# peft's signatures are loose.
# pyright: reportArgumentType=false

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.backbone.quiet import LOADING
from sefi.backbone.weights import ATTENTION_LAYERS, copy_part, part_of
from sefi.conditioning.conditioner import check_identities
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.words import WordsConditioner
from sefi.core.config import Config, from_saved
from sefi.core.errors import ConfigError, IdentityError, how_to_install
from sefi.core.nouns import Identity
from sefi.core.streams import stream
from sefi.generate.sampler import ConditionedModel
from sefi.learn.tokens import collect_run_settings
from sefi.learn.weights import (
    TrainingParts,
    WeightTraining,
    encode_class_images,
    format_subject_words,
    make_prior_part,
    make_subject_part,
    tokenize_rare_and_plain,
    wrap_weights,
)
from sefi.methods.base import MethodInfo, RunOptions, WeightCounts, learn_identity
from sefi.methods.checks import check_tuned_weights
from sefi.photo.views import PhotoViews

ADAPTER = "sefi"


class DreamBoothLora:
    """DreamBooth with LoRA (Hu et al. 2021, arXiv 2106.09685), through `peft`; the text encoder stays as it is."""

    info = MethodInfo("DreamBooth, LoRA", "arXiv 2106.09685", "diffusers' recipe and peft (Apache-2.0)", alone=True)

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Two matrices for every attention layer."""
        layers = [layer for name, layer in backbone.unet.named_modules() if is_adapted(name)]
        sides = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
        return WeightCounts(sum(config.tune.rank * (out + into) for out, into in sides), 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no attention loss, the UNet only; weights in single precision; `peft`."""
        del judges
        check_tuned_weights(self.info.title, config, backbone)
        if config.tune.parts != "unet":
            raise ConfigError("DreamBooth's LoRA form trains the UNet only.", "Set tune.parts=unet.")
        if importlib.util.find_spec("peft") is None:
            raise create_peft_error()

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Matrices named `unet.LAYER.lora_A` and `unet.LAYER.lora_B`."""
        latents = encode_class_images(backbone, config, options.progress)
        sentences = tokenize_rare_and_plain(backbone, config)
        model, matrices = copy_with_matrices(backbone, config.tune.rank)
        draw_first(matrices, config.tune.rank, stream(seed, "lora"))
        states = [encode_token_ids(backbone, ids) for ids in sentences]
        parts = TrainingParts(
            wrap_weights(matrices),
            make_subject_part(backbone, views, config, seed, lambda which: states[0][which]),
            make_prior_part(backbone, config, seed, latents, lambda which: states[1][which]),
            lambda: {f"unet.{key}": value for key, value in matrices.items()},
        )
        task = WeightTraining(model, config, parts, collect_run_settings(backbone, views, config, seed))
        return learn_identity(task, name, backbone, config, seed, options)

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """A copy of the model with the matrices, scaled by the strength, and names written as words.

        Raises:
            IdentityError: several identities, or one of another model.
        """
        check_identities(backbone, identities)
        if len(identities) > 1:
            raise IdentityError(
                "Two LoRA identities answer to the same rare word, so they cannot share a prompt.",
                "Use one of them, or learn both with a method of tokens.",
            )
        words = {identity.name: format_subject_words(identity.header, strength) for identity in identities}
        conditioner = WordsConditioner(backbone, words)
        if not identities:
            return ConditionedModel(backbone, conditioner)
        model, matrices = copy_with_matrices(backbone, from_saved(identities[0].header.settings).tune.rank)
        fill(matrices, identities[0].tensors, strength)
        return ConditionedModel(model, conditioner)


def is_adapted(name: str) -> bool:
    """Whether a layer of the UNet gets matrices: those of every attention, as in diffusers' script."""
    return any(name.endswith(f".{layer}") for layer in ATTENTION_LAYERS) and ".attn" in name


def copy_with_matrices(backbone: Backbone, rank: int) -> tuple[Backbone, dict[str, nn.Parameter]]:
    """Return a copy of a model with a pair of matrices beside every attention layer of its UNet, and the matrices.

    The matrices have no values yet, and want gradients.

    Raises:
        ConfigError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  optional
    except ImportError:
        raise create_peft_error() from None
    copied = copy_part(backbone.unet)
    layers = [name for name, _ in copied.named_modules() if is_adapted(name)]
    chosen = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, init_lora_weights=False)
    # On the meta device peft draws nothing: its first values would come from torch's state that all threads share.
    with LOADING, torch.device("meta"):
        inject_adapter_in_model(chosen, copied, adapter_name=ADAPTER)
    for name, layer in copied.named_modules():
        if name.endswith(f".{ADAPTER}"):
            layer.to_empty(device=backbone.device).float()
    matrices = {
        name.replace(f".{ADAPTER}.weight", ""): weight
        for name, weight in copied.named_parameters()
        if f".{ADAPTER}." in name
    }
    model = replace(backbone, unet=copied)
    for matrix in matrices.values():
        matrix.requires_grad = True  # a Backbone freezes what it is made of
    return model, matrices


@torch.no_grad()
def draw_first(matrices: dict[str, nn.Parameter], rank: int, random: torch.Generator) -> None:
    """Fill pairs of matrices with first values: normal ones of deviation `1 / rank`, and zeros.

    The numbers are those that `peft` draws with `init_lora_weights="gaussian"`: it fills both matrices as new linear
    layers first.
    """
    for name, matrix in matrices.items():
        if name.endswith("lora_A"):
            pair = (matrix, matrices[name.removesuffix("A") + "B"])
            for one in pair:
                torch.empty(one.shape, dtype=torch.float32).uniform_(generator=random)
            matrix.copy_(torch.empty(matrix.shape, dtype=torch.float32).normal_(0, 1 / rank, generator=random))
            pair[1].zero_()


def create_peft_error() -> ConfigError:
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
