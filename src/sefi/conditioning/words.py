"""Prompts in which a name stands for plain words, such as "sks person": for methods that change the model itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.prompt import parse_prompt
from sefi.core.prompt_syntax import PLACEHOLDER, refuse_names, unknown_placeholder


class WordsConditioner:
    """The same text as key and value, in every stage.

    Args:
        words: what to write for each name.
    """

    def __init__(self, backbone: Backbone, words: Mapping[str, str]) -> None:
        self.backbone, self.words = backbone, dict(words)
        self.known: dict[str, Tensor] = {}

    def stage(self, timestep: int) -> int:
        """One stage for all."""
        del timestep
        return 0

    def context(self, prompts: Sequence[str], timestep: int) -> Tensor:
        """Text states twice, `[batch, word, 2 * width]`."""
        del timestep
        return torch.stack([self.one(prompt) for prompt in prompts])

    def null_context(self, count: int, negative_prompt: str = "") -> Tensor:
        """The negative text, `[count, word, 2 * width]`; `PromptError` if it names an identity."""
        refuse_names(negative_prompt)
        return self.one(negative_prompt).expand(count, -1, -1)

    @torch.no_grad()
    def one(self, prompt: str) -> Tensor:
        """One prompt's `[word, 2 * width]`."""
        if prompt not in self.known:
            state = encode_token_ids(self.backbone, tokenize_sentence(self.backbone, self.written(prompt))[None])[0]
            self.known[prompt] = torch.cat([state, state], dim=-1)
        return self.known[prompt]

    def written(self, prompt: str) -> str:
        """The prompt with words for names; `PromptError` for a name nobody brought."""
        for name in PLACEHOLDER.findall(prompt):
            if name not in self.words:
                raise unknown_placeholder(name, self.words)
        return PLACEHOLDER.sub(lambda found: self.words[found[1]], prompt)


def tokenize_sentence(backbone: Backbone, sentence: str) -> Tensor:
    """Token ids `[word]` of a sentence without names, padded.

    Raises:
        PromptError: it does not fit.
    """
    return parse_prompt(backbone.tokenizer, sentence, {}, backbone.text_length).ids
