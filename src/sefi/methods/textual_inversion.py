"""Textual Inversion: a few free token vectors, the same in every stage."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import FreeVectors
from sefi.methods.base import MethodInfo, RunOptions, TokenMethod, WeightCounts, get_class_row, learn_tokens
from sefi.methods.checks import check_one_word
from sefi.photo.views import PhotoViews


class TextualInversion(TokenMethod):
    """Textual Inversion (Gal et al. 2022, arXiv 2208.01618), with our attention loss where that has a weight.

    The vectors are parameters of their own, as in the authors' code; diffusers' script optimises the whole token table
    and puts the other rows back after every step.
    """

    info = MethodInfo("Textual Inversion", "arXiv 2208.01618", "MIT; written anew")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """The vectors."""
        return WeightCounts(config.learn.vectors * backbone.width, 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no keys of their own."""
        del backbone, judges
        check_one_word(self.info.title, config, config.learn.vectors)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Tokens `[1, 2, vector, width]` that start at the class word."""
        row = get_class_row(backbone, config)
        vectors = FreeVectors(row, row.expand(config.learn.vectors, -1))
        return learn_tokens(vectors, name, views, backbone, config, seed, options)
