"""The training sentences: tokenised once, the reference texts encoded once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import encode
from sefi.conditioning.prompt import parse
from sefi.core.config import LearnConfig


@dataclass(frozen=True)
class TrainingTexts:
    """The templates with the class word in the placeholder's place.

    Attributes:
        ids: `[template, word]`.
        place: boolean `[template, word]`, true at the placeholder.
        counted: boolean `[template, word]`, the words that the attention loss compares.
        reference: states of the class-word sentences, `[template, word, width]`.
    """

    ids: Tensor
    place: Tensor
    counted: Tensor
    reference: Tensor


@torch.no_grad()
def training_texts(backbone: Backbone, config: LearnConfig) -> TrainingTexts:
    """Tokenise and encode the templates.

    Option 1 counts the placeholder, 2 the sentence without its start token, 3 all words.
    """
    parsed = [
        parse(
            backbone.tokenizer,
            t.replace("{}", "<subject>"),
            {"subject": config.class_word},
            backbone.text_length,
        )
        for t in config.templates
    ]
    ids = torch.stack([p.ids for p in parsed])
    place, counted = (
        torch.zeros_like(ids, dtype=torch.bool),
        torch.zeros_like(ids, dtype=torch.bool),
    )
    for i, one in enumerate(parsed):
        place[i, list(one.places["subject"])] = True
        counted[i, 1 : one.length] = True
    chosen = {1: place, 2: counted, 3: torch.ones_like(place)}[config.attention_option]
    return TrainingTexts(ids, place, chosen, encode(backbone, ids))


def key_value_texts(backbone: Backbone, texts: TrainingTexts, template: Tensor, tokens: Tensor) -> Tensor:
    """Key, value and reference text side by side, `[batch, word, 3 * width]`; differentiable in the tokens.

    Args:
        template: which sentence each sample uses, `[batch]`.
        tokens: each sample's key and value token, `[batch, 2, width]`.
    """
    ids, place = texts.ids[template], texts.place[template]
    rows = tokens.transpose(0, 1).flatten(0, 1)[:, None].expand(-1, ids.shape[1], -1)
    states = encode(backbone, ids.repeat(2, 1), rows, place.repeat(2, 1))
    key, value = states.chunk(2)
    return torch.cat([key, value, texts.reference[template]], dim=-1)
