"""DreamBooth: the whole model learns a rare word, and pictures of the plain class keep the class as it is."""

from collections.abc import Sequence
from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import copy_for_training, copy_with_weights, parameters_of
from sefi.conditioning.conditioner import check_identities
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.words import WordsConditioner
from sefi.core.config import Config
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.nouns import Identity
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

PARTS = {"unet": ("unet",), "unet+text": ("unet", "text_encoder")}


class DreamBooth:
    """DreamBooth (Ruiz et al. 2022, arXiv 2208.12242), with the text encoder and prior preservation.

    The name in a prompt becomes the rare word and the class word. An identity holds every changed weight, so only one
    can be used at a time, and it has no strength in between.
    """

    info = MethodInfo("DreamBooth", "arXiv 2208.12242", "diffusers' recipe (Apache-2.0); written anew", alone=True)

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Every weight of the parts that are trained."""
        parts = [getattr(backbone, part) for part in list_parts(config)]
        return WeightCounts(sum(p.numel() for part in parts for p in part.parameters()), 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no attention loss; weights in single precision."""
        del judges
        check_tuned_weights(self.info.title, config, backbone)
        list_parts(config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """All weights of UNet and text encoder, named `unet....` and `text_encoder....`."""
        latents = encode_class_images(backbone, config, options.progress)
        trained = list_parts(config)
        model, weights = copy_for_training(
            backbone, [name for name in parameters_of(backbone) if name.split(".")[0] in trained]
        )
        own, plain = tokenize_rare_and_plain(backbone, config)
        parts = TrainingParts(
            wrap_weights(weights),
            make_subject_part(backbone, views, config, seed, lambda which: encode_token_ids(model, own[which])),
            make_prior_part(backbone, config, seed, latents, lambda which: encode_token_ids(model, plain[which])),
            lambda: weights,
        )
        task = WeightTraining(model, config, parts, collect_run_settings(backbone, views, config, seed))
        return learn_identity(task, name, backbone, config, seed, options)

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """A copy of the model with the learned weights, and names written as words.

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


def list_parts(config: Config) -> tuple[str, ...]:
    """Parts of the model that are trained.

    Raises:
        ConfigError: parts that DreamBooth does not have.
    """
    if config.tune.parts not in PARTS:
        raise ConfigError(f"DreamBooth trains no {config.tune.parts!r}.", f"Set tune.parts to {' or '.join(PARTS)}.")
    return PARTS[config.tune.parts]
