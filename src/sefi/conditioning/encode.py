"""Token ids, with some rows replaced by learned tokens, through the whole frozen text transformer."""

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import copy_part


def encode_token_ids(backbone: Backbone, ids: Tensor, rows: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Text states `[batch, word, width]` after the last normalisation.

    Args:
        ids: `[batch, word]`.
        rows: replacement token embeddings `[batch, word, width]`.
        mask: where they go, boolean `[batch, word]`.
    """
    ids = ids.to(backbone.device)
    if rows is None or mask is None:
        return backbone.text_encoder(ids).last_hidden_state
    # On a copy: a hook on the model's own token table would write these rows into other threads' texts.
    text_encoder = copy_part(backbone.text_encoder)
    replace_rows(text_encoder.get_input_embeddings(), rows.to(backbone.device), mask.to(backbone.device))
    return text_encoder(ids).last_hidden_state


def replace_rows(embedding: nn.Module, rows: Tensor, mask: Tensor) -> None:
    """Make a token embedding answer `rows [batch, word, width]` wherever `mask [batch, word]` is true.

    Differentiable in `rows`; copies no table and names no inner module of the text encoder.
    """

    def overwrite(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return torch.where(mask[..., None], rows.to(output.dtype), output)

    embedding.register_forward_hook(overwrite)


def get_token_row(backbone: Backbone, token: int) -> Tensor:
    """One row of the token table, float32 `[width]`."""
    weight = backbone.text_encoder.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight[token].detach().float().cpu()
