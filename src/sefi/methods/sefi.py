"""The paper's method: a key token and a value token for every stage; they may start at what a name encoder reads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, LearnSettings, SettingsTree
from sefi.core.errors import ConfigError, FaceError
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots, expand_slots
from sefi.methods.base import (
    MethodInfo,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    check_person,
    check_training_options,
    create_header,
    fit_first_tokens,
    get_class_row,
    learn_tokens,
    refuse_vectors_and_limit,
)
from sefi.methods.name_encoder import hash_encoder, load_chosen_encoder, read_tokens
from sefi.photo.augment import PhotoViews
from sefi.training.person_loss import PersonTask, make_more_alike, make_person_config
from sefi.training.token_inversion import check_gradient_dtype


class StagedKeyValue(TokenMethod):
    """SeFi-IDE (arXiv 2402.00631)."""

    info = MethodInfo(
        "SeFi-IDE",
        "arXiv 2402.00631",
        "no code was published; ours is Apache-2.0",
        keeps="a key and a value token for each of five stages",
        kilobytes=12,
        starts_from_tokens=True,
    )
    # Its presets are those that are named after no method: `STARTING_PRESETS` (default, scratch, fast, paper).
    presets: Mapping[str, SettingsTree] = MappingProxyType({})

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count a token for each stage and slot; the module, where there is one, is thrown away afterwards."""
        trained = config.learn.stages * count_slots(config.learn) * config.learn.vectors * backbone.token_width
        return WeightCounts(trained, count_module_weights(backbone.token_width, config.learn))

    def check_settings(self, config: Config) -> None:
        """Require one token for the placeholder where the module makes it, and a person where a face is read."""
        refuse_vectors_and_limit(self.info.title, config)
        if config.learn.person_steps:
            check_person("learn.person_steps", config)
        if config.learn.start == "encoder":
            check_person(f"{self.info.title} with learn.start=encoder", config)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require an encoder where tokens start at one; what is learned needs a model that is not in float16."""
        del evaluators
        self.check_settings(config)
        if config.learn.steps or config.learn.person_steps or config.learn.start == "auto":  # else taken as they come
            check_gradient_dtype(backbone)
        check_person_steps(backbone, config)
        if config.learn.start == "encoder":
            load_chosen_encoder(backbone, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[stage, 2, width]`, or `[stage, 2, vector, width]`, that give the subject.

        Raises:
            ConfigError: they are to start both at an identity and at what the encoder reads, the encoder is missing, or
            memory is limited where `learn.person_steps` are to be taken.
        FaceError: nobody said where the face is that settings ask for.
        """
        check_training_options(config, has_init=options.init is not None, has_limit=options.memory is not None)
        check_person_steps_fit(config, views)
        if config.learn.start == "encoder":
            read = read_tokens(name, views, backbone, config, seed)
            options = replace(options, init=read, encoder_digest=hash_encoder(config))
        learned = self.learn_denoising(name, views, backbone, config, seed, options)
        return take_person_steps(learned, views, backbone, config, seed, options)

    def learn_denoising(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn as `learn`, from where tokens start, without further steps; with `learn.steps` 0 return the start."""
        first = fit_first_table(options.init, config.learn)
        if first is not None and config.learn.steps == 0:
            tokens = expand_slots(first).contiguous()
            return Identity({"tokens": tokens}, create_header(name, backbone, config, seed))
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed, first)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)


def check_person_steps(backbone: Backbone, config: Config) -> None:
    """Refuse `learn.person_steps` where there is no recogniser to learn with.

    Raises:
        ConfigError: the subject is no drawn person.
    """
    if config.learn.person_steps and not backbone.is_embedded:
        raise ConfigError(
            "learn.person_steps needs a face recogniser to learn with, and the package has one for drawn faces only.",
            "Set learn.person_steps=0.",
        )


def check_person_steps_fit(config: Config, views: PhotoViews) -> None:
    """Refuse `learn.person_steps` that could not be taken after all the others were.

    Raises:
        FaceError: nobody said where the face is.
    """
    if config.learn.person_steps and not views.faces:
        raise FaceError(
            "learn.person_steps needs to know where the face is.",
            "Learn with sefi.learn or `sefi learn`, which find it.",
        )


def fit_first_table(init: Identity | None, settings: LearnSettings) -> Tensor | None:
    """Return what `fit_first_tokens` does as `IdentityTokens` takes it: without the axis of vectors where one is."""
    first = fit_first_tokens(init, settings)
    return first[:, :, 0] if first is not None and settings.vectors == 1 else first


def take_person_steps(
    identity: Identity, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
) -> Identity:
    """Return an identity after `learn.person_steps` more steps, as it is where there are none."""
    if config.learn.person_steps == 0:
        return identity
    config = make_person_config(config)
    first = fit_first_table(identity, config.learn)
    tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed, first)
    tensors, numbers = make_more_alike(PersonTask(backbone, views, config, seed, tokens), options.progress)
    header = identity.header.model_copy(update={"metrics": identity.header.metrics | numbers})
    return Identity(identity.tensors | tensors, header)
