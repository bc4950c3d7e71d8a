"""DreamBooth's LoRA form: low-rank matrices at the UNet's attention learn a rare word."""
# peft's signatures are loose.
# pyright: reportArgumentType=false

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone, copy_part
from sefi.backbone.files import LOADING
from sefi.backbone.weights import ATTENTION_LAYERS, select_part_tensors
from sefi.core.config import PLAIN_VIEWS, TRAINED_WEIGHTS, Config, make_embedded_preset, require_config
from sefi.core.errors import ConfigError, IdentityError, suggest_install
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import WordsConditioner, check_identities
from sefi.diffusion.sampling import ConditionedModel
from sefi.identity.file import Identity, read_saved_config
from sefi.methods.base import (
    UNREAD_BY_WEIGHTS,
    MethodInfo,
    TrainingOptions,
    WeightCounts,
    check_single_precision,
    learn_identity,
    refuse_stages_and_attention,
)
from sefi.photo.augment import PhotoViews
from sefi.training.finetuning import (
    FinetuningConfig,
    FinetuningSettings,
    WeightTask,
    WeightTaskInputs,
    format_subject_words,
    make_prior_drawer,
    make_subject_drawer,
    tokenize_rare_and_plain,
    wrap_weights,
)
from sefi.training.token_inversion import collect_training_key

ADAPTER = "sefi"


class LoraSettings(FinetuningSettings, frozen=True):
    """Settings of finetuning, and the size of the matrices."""

    parts: Literal["unet"] = Field("unet", description="what is trained: unet")
    rank: int = Field(4, ge=1, le=256, description="rank of LoRA's matrices")


class DreamBoothLoraConfig(FinetuningConfig, frozen=True):
    """Settings of DreamBooth's LoRA form."""

    tune: LoraSettings = LoraSettings()  # pyright: ignore[reportCallIssue]


PRESETS = {
    "": make_embedded_preset(
        TRAINED_WEIGHTS | {"steps": 300, "batch": 2, "learning_rate": 1e-3, "weight_decay": 1e-2, "gradient_clip": 1.0},
        tune={"parts": "unet", "prior_images": 32},
    ),
    # diffusers, examples/dreambooth, train_dreambooth_lora.py.
    "official": {
        "learn": TRAINED_WEIGHTS | {"steps": 500, "learning_rate": 1e-4, "weight_decay": 1e-2, "gradient_clip": 1.0},
        "views": PLAIN_VIEWS | {"flip": 0.0},
        "tune": {"parts": "unet", "prior_images": 0},
    },
}


class DreamBoothLora:
    """DreamBooth with LoRA (Hu et al. 2021, arXiv 2106.09685), through `peft`; the text encoder stays as it is.

    Differs: images of the class are encoded once, by the posterior's mean; diffusers draws from it in every step.
    """

    info = MethodInfo(
        "DreamBooth, LoRA",
        "arXiv 2106.09685",
        "diffusers' recipe and peft (Apache-2.0)",
        alone=True,
        keeps="low-rank matrices at the UNet's attention",
        kilobytes=330,
        needs='class images; `pip install ".[lora]"`',
        trains_model=True,
        unread=UNREAD_BY_WEIGHTS,
    )
    presets = PRESETS
    config_type = DreamBoothLoraConfig

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count two matrices for every attention layer."""
        rank = require_config(config, DreamBoothLoraConfig).tune.rank
        layers = [layer for name, layer in backbone.unet.named_modules() if is_adapted(name)]
        sides = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
        return WeightCounts(sum(rank * (out + into) for out, into in sides), 0)

    def check_settings(self, config: Config) -> None:
        """Require no stages, and no attention loss."""
        refuse_stages_and_attention(self.info.title, config)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require weights in single precision, and `peft`.

        Sentences that cannot be learned with are refused here, before images of the class are generated.
        """
        del evaluators
        self.check_settings(config)
        check_single_precision(self.info.title, backbone)
        tokenize_rare_and_plain(backbone, require_config(config, DreamBoothLoraConfig))
        if importlib.util.find_spec("peft") is None:
            raise create_peft_error()

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn matrices named `unet.LAYER.lora_A` and `unet.LAYER.lora_B`."""
        config = require_config(config, DreamBoothLoraConfig)
        sentences = tokenize_rare_and_plain(backbone, config)
        model, matrices = copy_with_matrices(backbone, config.tune.rank)
        draw_first(matrices, config.tune.rank, create_generator(seed, "lora"))
        rare, plain = (backbone.encode_text(ids) for ids in sentences)
        inputs = WeightTaskInputs(
            wrap_weights(matrices),
            make_subject_drawer(backbone, views, config, seed, rare.select),
            partial(make_prior_drawer, backbone, config, seed, options.class_images, plain.select),
            lambda: {f"unet.{key}": value for key, value in matrices.items()},
        )
        task = WeightTask(model, config, inputs, collect_training_key(backbone, views, config, seed))
        return learn_identity(task, name, backbone, config, seed, options)

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return a copy of the model with the matrices, scaled by the strength, and names written as words.

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
        model, matrices = copy_with_matrices(
            backbone, read_saved_config(identities[0].header, DreamBoothLoraConfig).tune.rank
        )
        load_matrices(matrices, identities[0].tensors, strength)
        return ConditionedModel(model, conditioner)


def is_adapted(name: str) -> bool:
    """Return whether a layer of the UNet gets matrices: those of every attention, as in diffusers' script."""
    return any(name.endswith(f".{layer}") for layer in ATTENTION_LAYERS) and ".attn" in name


def copy_with_matrices(backbone: Backbone, rank: int) -> tuple[Backbone, dict[str, nn.Parameter]]:
    """Return a copy of a model with a pair of matrices at every attention layer of its UNet, and the matrices.

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
    """Create the error for a missing package."""
    return ConfigError("LoRA needs the package peft.", suggest_install("lora"))


@torch.no_grad()
def load_matrices(matrices: dict[str, nn.Parameter], tensors: dict[str, Tensor], strength: float) -> None:
    """Load an identity's matrices into the model's; the second of a pair carries the strength.

    Raises:
        IdentityError: they do not fit.
    """
    saved = select_part_tensors(tensors, "unet")
    if saved.keys() != matrices.keys() or any(saved[n].shape != m.shape for n, m in matrices.items()):
        raise IdentityError("The identity's matrices do not fit this model.", "Open the model it was learned on.")
    for name, matrix in matrices.items():
        matrix.copy_(saved[name] * (strength if name.endswith("lora_B") else 1.0))
