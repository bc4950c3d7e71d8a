"""Textual Inversion: a few free token vectors, the same in every stage."""

from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.core.config import ONE_TOKEN, PLAIN_VIEWS, Config, make_embedded_preset
from sefi.core.prompts import ALL_TEMPLATES, CLASS_TEMPLATES
from sefi.identity.file import Identity
from sefi.identity.tokens import FreeVectors
from sefi.methods.base import (
    MODULE_SETTINGS,
    STAGE_SETTINGS,
    MethodInfo,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    fit_first_tokens,
    get_class_row,
    learn_tokens,
    refuse_stages,
)
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import check_gradient_dtype

TWO_VECTORS = ONE_TOKEN | {"vectors": 2}
PUBLISHED = TWO_VECTORS | {"templates": ALL_TEMPLATES, "weight_decay": 1e-2}
PRESETS = {
    "": make_embedded_preset(TWO_VECTORS | {"steps": 200, "batch": 5}),
    # rinongal/textual_inversion, v1-finetune.yaml: base rate 5e-3 times a batch of 2. Differs: two vectors, as the
    # paper's baseline has them; the file's default is one.
    "official": {
        "learn": PUBLISHED | {"steps": 6100, "batch": 2, "learning_rate": 1e-2},
        "views": PLAIN_VIEWS,
        "generate": {"guidance_scale": 10.0},
    },
    # diffusers, examples/textual_inversion: 5e-4 times 4 accumulated samples. Differs: two vectors, as above.
    "diffusers": {
        "learn": PUBLISHED | {"templates": CLASS_TEMPLATES, "steps": 3000, "batch": 4, "learning_rate": 2e-3},
        "views": PLAIN_VIEWS,
    },
}


class TextualInversion(TokenMethod):
    """Textual Inversion (Gal et al. 2022, arXiv 2208.01618), with our attention loss where that has a weight.

    The vectors are parameters of their own, as in the authors' code; diffusers' script optimises the whole token table
    and puts the other rows back after every step.
    """

    info = MethodInfo(
        "Textual Inversion",
        "arXiv 2208.01618",
        "MIT; own implementation",
        keeps="two tokens",
        kilobytes=8,
        starts_from_tokens=True,
        unread=(*MODULE_SETTINGS, *STAGE_SETTINGS),
    )
    presets = PRESETS

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count the vectors."""
        return WeightCounts(config.learn.vectors * backbone.token_width, 0)

    def check_settings(self, config: Config) -> None:
        """Require no stages, and no keys of their own."""
        refuse_stages(self.info.title, config, config.learn.vectors)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require a model that is not in float16."""
        del evaluators
        self.check_settings(config)
        check_gradient_dtype(backbone)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[1, 2, vector, width]` that start at the class word, or at the tokens that are given."""
        row = get_class_row(backbone, config)
        first = fit_first_tokens(options.init, config.learn)
        vectors = FreeVectors(row, row.expand(config.learn.vectors, -1) if first is None else first[0, 0])
        return learn_tokens(vectors, name, views, backbone, config, seed, options)
