"""Cross Initialization: two tokens that start where the text encoder puts the mean of all known names."""

from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.core.config import ONE_TOKEN, PLAIN_VIEWS, Config, make_embedded_preset, require_config
from sefi.core.prompts import FACE_TEMPLATES_81
from sefi.diffusion.text import parse_prompt
from sefi.identity.file import Identity
from sefi.identity.tokens import FreeVectors
from sefi.methods.base import (
    MODULE_SETTINGS,
    NAME_WORDS,
    STAGE_SETTINGS,
    MethodInfo,
    NameListSettings,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    find_name_rows,
    get_class_row,
    learn_tokens,
    read_name_list,
    refuse_stages,
)
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import check_gradient_dtype

TWO_VECTORS = ONE_TOKEN | {"vectors": NAME_WORDS}
PRESETS = {
    "": make_embedded_preset(TWO_VECTORS | {"steps": 200, "batch": 5, "learning_rate": 2e-2}),
    # lyuPang/CrossInitialization: 6.25e-4 times a batch of 8.
    "official": {
        "learn": TWO_VECTORS
        | {"templates": FACE_TEMPLATES_81, "steps": 320, "batch": 8, "learning_rate": 5e-3, "weight_decay": 1e-2},
        "views": PLAIN_VIEWS,
        "generate": {"scheduler": "dpm++"},
    },
}


class CrossInitializationConfig(Config, frozen=True):
    """Settings of Cross Initialization."""

    basis: NameListSettings = NameListSettings()  # pyright: ignore[reportCallIssue]


class CrossInitialization(TokenMethod):
    """Cross Initialization (Pang et al. 2023, arXiv 2312.15905); the class word follows its two vectors.

    Differs: no pull back to the start (the published code's has a weight of 1e-5).
    """

    info = MethodInfo(
        "Cross Initialization",
        "arXiv 2312.15905",
        "MIT; own implementation",
        keeps="two tokens, then the class word",
        kilobytes=9,
        needs="a list of names",
        unread=(*MODULE_SETTINGS, *STAGE_SETTINGS),
    )
    presets = PRESETS
    config_type = CrossInitializationConfig

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count both vectors; the class word behind them is the model's own."""
        return WeightCounts(NAME_WORDS * backbone.token_width, 0)

    def check_settings(self, config: Config) -> None:
        """Require no stages, and no keys of their own."""
        refuse_stages(self.info.title, config, NAME_WORDS)

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require names, and a model that is not in float16."""
        del evaluators
        self.check_settings(config)
        check_gradient_dtype(backbone)
        read_known_names(backbone, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[1, 2, 3, width]`: the two vectors, then the class word."""
        means = torch.stack([rows.mean(0) for rows in read_known_names(backbone, config)])
        first = encode_crossed(backbone, means, config.learn.class_word)
        vectors = FreeVectors(get_class_row(backbone, config), first, then_class=True)
        return learn_tokens(vectors, name, views, backbone, config, seed, options)


def read_known_names(backbone: Backbone, config: Config) -> list[Tensor]:
    """Return the rows of first and of last names, each `[name, width]`.

    Raises:
        ConfigError: no list of names.
    """
    names = require_config(config, CrossInitializationConfig).basis.names
    return find_name_rows(backbone, read_name_list(backbone, names))


@torch.no_grad()
def encode_crossed(backbone: Backbone, means: Tensor, class_word: str) -> Tensor:
    """Encode two tokens `[2, width]` that stand alone; return the states at their places."""
    parsed = parse_prompt(backbone, "<both>", {"both": class_word}, {"both": NAME_WORDS})
    places, words = list(parsed.places["both"]), parsed.ids.shape[-1]
    rows = torch.zeros(1, words, backbone.token_width, dtype=torch.float32)
    mask = torch.zeros(1, words, dtype=torch.bool)
    rows[0, places], mask[0, places] = means, True
    return backbone.encode_text(parsed.ids[None], rows, mask).states[0, places].float().cpu()
