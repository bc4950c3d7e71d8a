"""DreamBooth: the whole model learns a rare word, and images of the plain class preserve the class."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from sefi.backbone.bundle import Backbone, TextEncoding
from sefi.backbone.weights import collect_parameters, copy_for_training, copy_with_weights
from sefi.core.config import PLAIN_VIEWS, TRAINED_WEIGHTS, Config, make_embedded_preset, require_config
from sefi.core.errors import ConfigError, IdentityError
from sefi.diffusion.conditioning import WordsConditioner, check_identities
from sefi.diffusion.sampling import ConditionedModel
from sefi.identity.file import LIMITS, Identity
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

PARTS = {"unet": ("unet",), "unet+text": ("unet", "text_encoder", "text_encoder_2")}  # where a model has them


class DreamBoothSettings(FinetuningSettings, frozen=True):
    """Settings of finetuning, and which parts of the model are trained."""

    parts: Literal["unet", "unet+text"] = Field("unet+text", description="what is trained: unet or unet+text")


class DreamBoothConfig(FinetuningConfig, frozen=True):
    """Settings of DreamBooth."""

    tune: DreamBoothSettings = DreamBoothSettings()  # pyright: ignore[reportCallIssue]


PRESETS = {
    "": make_embedded_preset(
        TRAINED_WEIGHTS | {"steps": 300, "batch": 2, "learning_rate": 2e-5, "weight_decay": 1e-2, "gradient_clip": 1.0},
        tune={"parts": "unet+text", "prior_images": 32},
    ),
    # diffusers, examples/dreambooth, with text encoder and prior preservation.
    "official": {
        "learn": TRAINED_WEIGHTS | {"steps": 800, "learning_rate": 2e-6, "weight_decay": 1e-2, "gradient_clip": 1.0},
        "views": PLAIN_VIEWS | {"flip": 0.0},
        "tune": {"parts": "unet+text"},
    },
}


class DreamBooth:
    """DreamBooth (Ruiz et al. 2022, arXiv 2208.12242), with the text encoder and prior preservation.

    The name in a prompt becomes the rare word and the class word. An identity holds every changed weight, so only one
    can be used at a time, and it has no strength in between.
    Differs: images of the class are encoded once, by the posterior's mean; diffusers draws from it in every step.
    """

    info = MethodInfo(
        "DreamBooth",
        "arXiv 2208.12242",
        "diffusers' recipe (Apache-2.0); own implementation",
        alone=True,
        keeps="every weight of UNet and text encoder",
        kilobytes=59_000,
        needs="class images",
        trains_model=True,
        unread=UNREAD_BY_WEIGHTS,
    )
    presets = PRESETS
    config_type = DreamBoothConfig

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count every weight of the parts that are trained."""
        parameters = collect_parameters(backbone)
        return WeightCounts(sum(parameters[name].numel() for name in list_trained(backbone, config)), 0)

    def check_settings(self, config: Config) -> None:
        """Require no stages, and no attention loss."""
        refuse_stages_and_attention(self.info.title, config)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require weights in single precision, and a model that fits into an identity.

        Sentences that cannot be learned with are refused here, before images of the class are generated.
        """
        del evaluators
        self.check_settings(config)
        check_single_precision(self.info.title, backbone)
        tokenize_rare_and_plain(backbone, require_config(config, DreamBoothConfig))
        size = 4 * self.count_weights(backbone, require_config(config, DreamBoothConfig)).trained
        if size > LIMITS.size:
            raise ConfigError(
                f"DreamBooth saves every weight that it trains, of this model {size / 2**30:.1f} GiB, and an identity "
                f"has at most {LIMITS.size / 2**30:.0f}.",
                "Use dreambooth-lora, custom-diffusion or a method of tokens, such as sefi.",
            )

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn all weights of UNet and text encoders, named `unet....`, `text_encoder....`, `text_encoder_2....`."""
        config = require_config(config, DreamBoothConfig)
        model, weights = copy_for_training(backbone, list_trained(backbone, config))
        rare, plain = tokenize_rare_and_plain(backbone, config)

        def encode_plain(which: Tensor) -> TextEncoding:
            return model.encode_text(plain[which])

        inputs = WeightTaskInputs(
            wrap_weights(weights),
            make_subject_drawer(backbone, views, config, seed, lambda which: model.encode_text(rare[which])),
            partial(make_prior_drawer, backbone, config, seed, options.class_images, encode_plain),
            lambda: weights,
        )
        task = WeightTask(model, config, inputs, collect_training_key(backbone, views, config, seed))
        return learn_identity(task, name, backbone, config, seed, options)

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """Return a copy of the model with the learned weights, and names written as words.

        Raises:
            IdentityError: several identities, or one of another model.
            ConfigError: a strength that is neither 0 nor 1.
        """
        check_identities(backbone, identities)
        if len(identities) > 1:
            raise IdentityError(
                "Each DreamBooth identity changes the whole model, so two cannot share a prompt.",
                "Use one of them, or learn both with a method of tokens.",
            )
        if strength not in (0.0, 1.0):
            raise ConfigError("DreamBooth has no strength between 0 and 1.", "Set generate.identity_strength=1.")
        words = {identity.name: format_subject_words(identity.header, strength) for identity in identities}
        model = copy_with_weights(backbone, identities[0].tensors if identities and strength else {})
        return ConditionedModel(model, WordsConditioner(model, words))


def list_trained(backbone: Backbone, config: Config) -> list[str]:
    """Return the names of the weights that are trained."""
    parts = PARTS[require_config(config, DreamBoothConfig).tune.parts]
    return [name for name in collect_parameters(backbone) if name.split(".")[0] in parts]
