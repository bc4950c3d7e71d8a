"""Token training: tokens in the place of the class word, by denoising views and by the attention loss."""

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, to_dict
from sefi.core.nouns import as_table
from sefi.core.streams import stream
from sefi.learn.objective import Losses, compute_losses
from sefi.learn.sampling import ViewLatents, draw_sample
from sefi.learn.texts import encode_training_texts
from sefi.photo.views import PhotoViews


class TokenTable(Protocol):
    """A module that returns tokens, and the further tensors of its identity.

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

    def after_step(self) -> None:
        """Apply limits and averages after an update."""
        ...

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the identity other than its tokens, without gradient."""
        ...


class TokenTraining:
    """Denoising plus lambda times the attention loss, for any module of tokens.

    Args:
        tokens: a module that is also a `TokenTable`.
    """

    def __init__(self, backbone: Backbone, views: PhotoViews, config: Config, seed: int, tokens: nn.Module) -> None:
        self.backbone, self.config, self.seed = backbone, config, seed
        self.weights = tokens
        self.table: TokenTable = tokens  # pyright: ignore[reportAttributeAccessIssue]
        # As many words in a sentence as the table gives tokens, whatever the settings say.
        vectors = as_table(self.get_identity_tensors()["tokens"]).shape[2]
        self.texts = encode_training_texts(backbone, config.learn.model_copy(update={"vectors": vectors}))
        self.latents = ViewLatents(backbone, views, config.views, seed)
        self.settings: dict[str, Any] = collect_run_settings(backbone, views, config, seed)

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step and both of its terms."""
        self.weights.train()
        tokens = self.table(stream(self.seed, "dropout", step))
        sample = draw_sample(self.backbone, self.latents, self.config.learn, self.seed, step)
        found = compute_losses(self.backbone, self.texts, tokens, sample, self.config.learn)
        return found.total, self.list_numbers(found, tokens)

    def list_numbers(self, found: Losses, tokens: Tensor) -> dict[str, float]:
        """Return both losses, their weighted ratio (the scale check) and the mean token norm over the class word's."""
        denoise, attention = float(found.denoise.detach()), float(found.attention.detach())
        norm = float(tokens.detach().norm(dim=-1).mean() / self.table.class_token.norm())
        ratio = self.config.learn.attention_weight * attention / max(denoise, 1e-12)
        return {"loss_denoise": denoise, "loss_attention": attention, "ratio": ratio, "token_norm": norm}

    def after_step(self) -> None:
        """Apply the limits and averages of the tokens."""
        self.table.after_step()

    @torch.no_grad()
    def get_identity_tensors(self) -> dict[str, Tensor]:
        """Return the tokens as generation uses them, without dropout, and the further tensors."""
        self.weights.eval()
        return {"tokens": self.table().clone().contiguous(), **self.table.get_extra_tensors()}


def collect_run_settings(backbone: Backbone, views: PhotoViews, config: Config, seed: int) -> dict[str, Any]:
    """Return what identifies a training run."""
    return {
        "config": to_dict(config),
        "seed": seed,
        "model": backbone.fingerprint,
        "photo": hashlib.sha256(views.square.cpu().numpy().tobytes()).hexdigest(),
    }
