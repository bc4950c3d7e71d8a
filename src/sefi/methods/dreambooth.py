"""DreamBooth: the whole model learns a rare word, and pictures of the plain class keep the class as it is."""

from collections.abc import Sequence
from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import copy_for_training, copy_with_weights, parameters_of
from sefi.conditioning.conditioner import check_identities
from sefi.conditioning.encode import encode
from sefi.conditioning.words import WordsConditioner
from sefi.core.config import Config
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.nouns import Identity
from sefi.generate.sampler import ConditionedModel
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

PARTS = {"unet": ("unet",), "unet+text": ("unet", "text_encoder")}


class DreamBooth:
    """DreamBooth (Ruiz et al. 2022, arXiv 2208.12242), with the text encoder and prior preservation.

    The name in a prompt becomes the rare word and the class word. An identity holds every changed weight, so only one
    can be used at a time, and it has no strength in between.
    """

    about = About("DreamBooth", "arXiv 2208.12242", "diffusers' recipe (Apache-2.0); written anew", alone=True)

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """Every weight of the parts that are trained."""
        parts = [getattr(backbone, part) for part in parts_of(config)]
        return Weights(sum(p.numel() for part in parts for p in part.parameters()), 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no attention loss; weights in single precision."""
        del judges
        tuned_weights(self.about.title, config, backbone)
        parts_of(config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """All weights of UNet and text encoder, named `unet....` and `text_encoder....`."""
        latents = class_latents(backbone, config, watched.progress)
        parts = parts_of(config)
        model, weights = copy_for_training(
            backbone, [name for name in parameters_of(backbone) if name.split(".")[0] in parts]
        )
        own, plain = rare_and_plain(backbone, config)
        studied = Studied(
            as_module(weights),
            subject_of(backbone, views, config, seed, lambda which: encode(model, own[which])),
            prior_of(backbone, config, seed, latents, lambda which: encode(model, plain[which])),
            lambda: weights,
        )
        lesson = WeightLesson(model, config, studied, run_settings(backbone, views, config, seed))
        return learn_identity(lesson, name, backbone, config, seed, watched)

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
        words = {identity.name: rare_or_class(identity.header, strength) for identity in identities}
        model = copy_with_weights(backbone, identities[0].tensors if identities and strength else {})
        return ConditionedModel(model, WordsConditioner(model, words))


def parts_of(config: Config) -> tuple[str, ...]:
    """Parts of the model that are trained.

    Raises:
        ConfigError: parts that DreamBooth does not have.
    """
    if config.tune.parts not in PARTS:
        raise ConfigError(f"DreamBooth trains no {config.tune.parts!r}.", f"Set tune.parts to {' or '.join(PARTS)}.")
    return PARTS[config.tune.parts]
