"""The training sentences: tokenised once, the reference texts encoded once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.prompt import parse_prompt
from sefi.core.config import LearnConfig
from sefi.core.nouns import as_table


@dataclass(frozen=True)
class TrainingTexts:
    """The templates with the class word in the placeholder's place, as often as the placeholder has tokens.

    Attributes:
        ids: `[template, word]`.
        vector: `[template, word]`, which of the placeholder's tokens stands there; -1 where none does.
        counted: boolean `[template, word]`, the words that the attention loss compares.
        reference: states of the class-word sentences, `[template, word, width]`.
    """

    ids: Tensor
    vector: Tensor
    counted: Tensor
    reference: Tensor


@torch.no_grad()
def encode_training_texts(backbone: Backbone, config: LearnConfig) -> TrainingTexts:
    """Tokenise and encode the templates.

    Option 1 counts the placeholder, 2 the sentence without its start token, 3 all words.
    """
    parsed = [
        parse_prompt(
            backbone.tokenizer,
            t.replace("{}", "<subject>"),
            {"subject": config.class_word},
            backbone.text_length,
            {"subject": config.vectors},
        )
        for t in config.templates
    ]
    ids = torch.stack([p.ids for p in parsed])
    vector, counted = torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool)
    for i, one in enumerate(parsed):
        places = list(one.places["subject"])
        vector[i, places] = torch.arange(len(places)) % config.vectors
        counted[i, 1 : one.length] = True
    chosen = {1: vector >= 0, 2: counted, 3: torch.ones_like(counted)}[config.attention_option]
    return TrainingTexts(ids, vector, chosen, encode_token_ids(backbone, ids))


def encode_key_value_texts(backbone: Backbone, texts: TrainingTexts, template: Tensor, tokens: Tensor) -> Tensor:
    """Key, value and reference text side by side, `[batch, word, 3 * width]`; differentiable in the tokens.

    Args:
        template: which sentence each sample uses, `[batch]`.
        tokens: each sample's key and value tokens, `[batch, 2, width]` or `[batch, 2, vector, width]`.
    """
    tokens = as_table(tokens)
    ids, vector = texts.ids[template], texts.vector[template]
    sample = torch.arange(len(ids))[:, None]
    rows = torch.cat([tokens[sample, slot, vector.clamp(min=0)] for slot in (0, 1)])
    states = encode_token_ids(backbone, ids.repeat(2, 1), rows, (vector >= 0).repeat(2, 1))
    key, value = states.chunk(2)
    return torch.cat([key, value, texts.reference[template]], dim=-1)
