"""Cross Initialization: two tokens that start where the text encoder puts the mean of all known names."""

from pathlib import Path

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import encode
from sefi.conditioning.names import COLUMNS, name_rows, names_for
from sefi.conditioning.prompt import parse
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.identity.tokens import FreeVectors
from sefi.methods.base import About, TokenMethod, Watched, Weights, class_row, learn_tokens
from sefi.methods.refusals import one_word
from sefi.photo.views import PhotoViews


class CrossInitialization(TokenMethod):
    """Cross Initialization (Pang et al. 2023, arXiv 2312.15905); the class word follows its two vectors.

    Differs: no pull back to the start (the published code's has a weight of 1e-5).
    """

    about = About("Cross Initialization", "arXiv 2312.15905", "MIT; written anew")

    def weights(self, backbone: Backbone, config: Config) -> Weights:
        """Both vectors; the class word behind them is the model's own."""
        return Weights(COLUMNS * backbone.width, 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no keys of their own; names."""
        del judges
        one_word(self.about.title, config, COLUMNS)
        name_rows(backbone, names_for(backbone, config.basis.names))

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, watched: Watched
    ) -> Identity:
        """Tokens `[1, 2, 3, width]`: the two vectors, then the class word."""
        means = torch.stack([rows.mean(0) for rows in name_rows(backbone, names_for(backbone, config.basis.names))])
        first = crossed(backbone, means, config.learn.class_word)
        vectors = FreeVectors(class_row(backbone, config), first, then_class=True)
        return learn_tokens(vectors, name, views, backbone, config, seed, watched)


@torch.no_grad()
def crossed(backbone: Backbone, means: Tensor, class_word: str) -> Tensor:
    """What the text encoder makes of two tokens `[2, width]` that stand alone: its states at their places."""
    parsed = parse(backbone.tokenizer, "<both>", {"both": class_word}, backbone.text_length, {"both": COLUMNS})
    places = list(parsed.places["both"])
    rows = torch.zeros(1, len(parsed.ids), backbone.width, dtype=torch.float32)
    mask = torch.zeros(1, len(parsed.ids), dtype=torch.bool)
    rows[0, places], mask[0, places] = means, True
    return encode(backbone, parsed.ids[None], rows, mask)[0, places].float().cpu()
