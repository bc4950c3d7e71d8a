"""Lesson: tokens in the place of the class word, by denoising views and by the attention loss."""

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, to_dict
from sefi.core.nouns import as_table
from sefi.core.streams import stream
from sefi.learn.objective import Losses, losses
from sefi.learn.sampling import ViewLatents, draw_sample
from sefi.learn.texts import training_texts
from sefi.photo.views import PhotoViews


class TokenTable(Protocol):
    """A module that gives tokens; the ways to make them differ, and what is kept beside them.

    Attributes:
        class_token: the token-table row of the class word, `[width]`.
    """

    class_token: Tensor

    def __call__(self, random: torch.Generator | None = None) -> Tensor:
        """`[stage, 2, width]`, or `[stage, 2, vector, width]` where the placeholder stands for several tokens.

        Args:
            random: draws what drops out while learning; None: nothing does.
        """
        ...

    def settle(self) -> None:
        """Called after every update."""
        ...

    def beside(self) -> dict[str, Tensor]:
        """What an identity keeps beside the tokens; no gradient."""
        ...


class TokenLesson:
    """Denoising plus lambda times the attention loss, for whatever gives the tokens.

    Args:
        tokens: a module that is also a `TokenTable`.
    """

    def __init__(self, backbone: Backbone, views: PhotoViews, config: Config, seed: int, tokens: nn.Module) -> None:
        self.backbone, self.config, self.seed = backbone, config, seed
        self.weights = tokens
        self.table: TokenTable = tokens  # pyright: ignore[reportAttributeAccessIssue]
        # As many words in a sentence as the table gives tokens, whatever the settings say.
        vectors = as_table(self.kept()["tokens"]).shape[2]
        self.texts = training_texts(backbone, config.learn.model_copy(update={"vectors": vectors}))
        self.latents = ViewLatents(backbone, views, config.views, seed)
        self.settings: dict[str, Any] = run_settings(backbone, views, config, seed)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Both terms of a step."""
        self.weights.train()
        tokens = self.table(stream(self.seed, "dropout", step))
        sample = draw_sample(self.backbone, self.latents, self.config.learn, self.seed, step)
        found = losses(self.backbone, self.texts, tokens, sample, self.config.learn)
        return found.total, self.numbers(found, tokens)

    def numbers(self, found: Losses, tokens: Tensor) -> dict[str, float]:
        """Both losses, their weighted ratio (the scale check) and the mean token norm over the class word's."""
        denoise, attention = float(found.denoise.detach()), float(found.attention.detach())
        norm = float(tokens.detach().norm(dim=-1).mean() / self.table.class_token.norm())
        ratio = self.config.learn.attention_weight * attention / max(denoise, 1e-12)
        return {"loss_denoise": denoise, "loss_attention": attention, "ratio": ratio, "token_norm": norm}

    def settle(self) -> None:
        """Limits and averages that the table wants."""
        self.table.settle()

    @torch.no_grad()
    def kept(self) -> dict[str, Tensor]:
        """The tokens as generation uses them, dropout off, and what the table keeps beside them."""
        self.weights.eval()
        return {"tokens": self.table().clone().contiguous(), **self.table.beside()}


def run_settings(backbone: Backbone, views: PhotoViews, config: Config, seed: int) -> dict[str, Any]:
    """What tells one learning run from every other."""
    return {
        "config": to_dict(config),
        "seed": seed,
        "model": backbone.fingerprint,
        "photo": hashlib.sha256(views.square.cpu().numpy().tobytes()).hexdigest(),
    }
