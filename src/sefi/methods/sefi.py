"""The paper's method: a key token and a value token for every stage; they may start at what a name encoder reads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, SettingsTree
from sefi.core.errors import ConfigError
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots, expand_slots
from sefi.methods.base import (
    MethodInfo,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    check_person,
    create_header,
    fit_first_tokens,
    get_class_row,
    learn_tokens,
    refuse_vectors_and_limit,
)
from sefi.methods.name_encoder import hash_encoder, load_chosen_encoder, read_tokens
from sefi.photo.augment import PhotoViews
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

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require one token for the placeholder where the module makes it, and an encoder where tokens start at one.

        What is learned needs a model that is not in float16.
        """
        del evaluators
        refuse_vectors_and_limit(self.info.title, config)
        if config.learn.steps or config.learn.start == "auto":  # else the tokens are taken as they come
            check_gradient_dtype(backbone)
        if config.learn.start == "encoder":
            check_person(f"{self.info.title} with learn.start=encoder", config)
            load_chosen_encoder(backbone, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[stage, 2, width]`, or `[stage, 2, vector, width]`, that give the subject.

        Raises:
            ConfigError: they are to start both at an identity and at what the encoder reads, or the encoder is missing.
        """
        if config.learn.start == "encoder":
            if options.init is not None:
                raise ConfigError(
                    "Tokens start either at an identity or at what the name encoder reads.",
                    "Leave out --init, or set learn.start=class.",
                )
            read = read_tokens(name, views, backbone, config, seed)
            options = replace(options, init=read, encoder_digest=hash_encoder(config))
        first = fit_first_tokens(options.init, config.learn)
        if first is not None and config.learn.vectors == 1:
            first = first[:, :, 0]
        if first is not None and config.learn.steps == 0:
            tokens = expand_slots(first).contiguous()
            return Identity({"tokens": tokens}, create_header(name, backbone, config, seed))
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed, first)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)
