"""Cross Initialization: two tokens that start where the text encoder puts the mean of all known names."""

from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.names import COLUMNS, look_up_name_rows, read_name_list
from sefi.conditioning.prompt import parse_prompt
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import FreeVectors
from sefi.methods.base import MethodInfo, RunOptions, TokenMethod, WeightCounts, get_class_row, learn_tokens
from sefi.methods.checks import check_one_word
from sefi.photo.views import PhotoViews


class CrossInitialization(TokenMethod):
    """Cross Initialization (Pang et al. 2023, arXiv 2312.15905); the class word follows its two vectors.

    Differs: no pull back to the start (the published code's has a weight of 1e-5).
    """

    info = MethodInfo("Cross Initialization", "arXiv 2312.15905", "MIT; written anew")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Both vectors; the class word behind them is the model's own."""
        return WeightCounts(COLUMNS * backbone.width, 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no keys of their own; names."""
        del judges
        check_one_word(self.info.title, config, COLUMNS)
        look_up_name_rows(backbone, read_name_list(backbone, config.basis.names))

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Tokens `[1, 2, 3, width]`: the two vectors, then the class word."""
        means = torch.stack(
            [rows.mean(0) for rows in look_up_name_rows(backbone, read_name_list(backbone, config.basis.names))]
        )
        first = encode_crossed(backbone, means, config.learn.class_word)
        vectors = FreeVectors(get_class_row(backbone, config), first, then_class=True)
        return learn_tokens(vectors, name, views, backbone, config, seed, options)


@torch.no_grad()
def encode_crossed(backbone: Backbone, means: Tensor, class_word: str) -> Tensor:
    """What the text encoder makes of two tokens `[2, width]` that stand alone: its states at their places."""
    parsed = parse_prompt(backbone.tokenizer, "<both>", {"both": class_word}, backbone.text_length, {"both": COLUMNS})
    places = list(parsed.places["both"])
    rows = torch.zeros(1, len(parsed.ids), backbone.width, dtype=torch.float32)
    mask = torch.zeros(1, len(parsed.ids), dtype=torch.bool)
    rows[0, places], mask[0, places] = means, True
    return encode_token_ids(backbone, parsed.ids[None], rows, mask)[0, places].float().cpu()
