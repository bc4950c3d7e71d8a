"""A prompt with placeholders to token ids; texts side by side; words that a model does not know."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sefi.backbone.bundle import Backbone, TextEncoding
from sefi.core.errors import PromptError
from sefi.core.hints import find_nearest
from sefi.core.prompts import (
    EXAMPLES,
    PLACEHOLDER,
    check_syntax,
    describe_equal_prompts,
    make_unknown_placeholder_error,
    read_known_words,
    read_word_groups,
    split_words,
)

# A call with other padding than the last one changes a fast tokenizer, which fails while another thread uses it.
TOKENIZING = threading.Lock()

TokenIds = tuple[int, ...]  # of one token: its number in each tokenizer


@dataclass(frozen=True)
class ParsedPrompt:
    """A tokenised prompt.

    Attributes:
        ids: `[encoder, word]`, padded, as each tokenizer numbers the words; a placeholder has its class word's id.
        places: positions of each name's placeholders, by name; those of several tokens side by side.
        length: tokens before padding, start and end included.
        words: one readable word per token, padding excluded.
    """

    ids: Tensor
    places: dict[str, tuple[int, ...]]
    length: int
    words: tuple[str, ...]


def get_class_token_ids(backbone: Backbone, word: str) -> TokenIds:
    """Return the token of a class word; `PromptError` unless it is exactly one known token."""
    tokens = tokenize_text(backbone, word)
    if len(tokens) != 1 or has_unknown_token(backbone, tokens):
        near = find_nearest(word, EXAMPLES)
        question = "" if near in (None, word) else f"Did you mean {near!r}? "
        raise PromptError(
            f"The class word {word!r} is not one token of this model ({len(tokens)} tokens).",
            f"{question}Choose one common word, such as person, dog or cat.",
        )
    return tokens[0]


def has_unknown_token(backbone: Backbone, tokens: Iterable[TokenIds]) -> bool:
    """Return whether a tokenizer has only its sign for unknown words for one of these tokens."""
    unknown = [tokenizer.unk_token_id for tokenizer in backbone.tokenizers]
    return any(number == sign for token in tokens for number, sign in zip(token, unknown, strict=True))


def tokenize_text(backbone: Backbone, text: str) -> list[TokenIds]:
    """Return the tokens of a text without start, end and padding.

    Raises:
        PromptError: bytes that are no text, or two tokenizers that divide it differently, so that a word would not have
            one place in the states.
    """
    first, *others = (tokenize_plain(tokenizer, text) for tokenizer in backbone.tokenizers)
    if any(len(other) != len(first) for other in others):
        raise PromptError(f"The tokenizers of this model divide {text!r} into different tokens.", "Use other words.")
    return list(zip(first, *others, strict=True))


def tokenize_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids without start, end and padding; `PromptError` for bytes that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"The text {text!r} is not UTF-8.", "Type it in UTF-8.") from None
    if not text.strip():
        return []
    with TOKENIZING:
        return list(tokenizer(text, add_special_tokens=False).input_ids)


def parse_prompt(
    backbone: Backbone, prompt: str, class_words: Mapping[str, str], vector_counts: Mapping[str, int] | None = None
) -> ParsedPrompt:
    """Tokenise a prompt around its placeholders.

    Args:
        class_words: class word of every known name.
        vector_counts: how many tokens a name's placeholder stands for, where that is not one.

    Raises:
        PromptError: a placeholder without its identity, syntax of other programs, or a prompt that does not fit.
    """
    check_syntax(prompt)
    start, end, padding = zip(*map(get_special_tokens, backbone.tokenizers), strict=True)
    tokens, words, places = [start], ["(start)"], dict[str, tuple[int, ...]]()
    for i, piece in enumerate(PLACEHOLDER.split(prompt)):
        if i % 2:
            if piece not in class_words:
                raise make_unknown_placeholder_error(piece, class_words)
            count = (vector_counts or {}).get(piece, 1)
            places[piece] = (*places.get(piece, ()), *range(len(tokens), len(tokens) + count))
            tokens += [get_class_token_ids(backbone, class_words[piece])] * count
            words += [f"<{piece}>"] * count
        else:
            new = tokenize_text(backbone, piece)
            tokens += new
            words += [format_token(backbone.tokenizer, token[0]) for token in new]
    length, longest = len(tokens) + 1, backbone.text_length
    if length > longest:
        raise PromptError(
            f"The prompt has {length - 2} tokens; this model reads {longest - 2}: {prompt!r}.", "Shorten it."
        )
    tokens += [end] + [padding] * (longest - length)
    return ParsedPrompt(torch.tensor(tokens).T.contiguous(), places, length, (*words, "(end)"))


def get_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Return the ids of start, end and padding; a tokenizer without padding repeats the end."""
    start, end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return start, end, end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]


def format_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Format a token as a person would write it."""
    return str(tokenizer.convert_ids_to_tokens(token)).replace("</w>", "")


def join_texts(key: TextEncoding, *others: TextEncoding) -> TextEncoding:
    """Join key text, value text and, if there is one, reference text on the last axis, as cross-attention reads them.

    Pooled text and further conditions are the key text's: values alone never change where the attention goes.
    """
    return replace(key, states=torch.cat([key.states, *(other.states for other in others)], dim=-1))


def find_unknown_words(backbone: Backbone, texts: Iterable[str]) -> list[str]:
    """Return the words that the model does not know, each once, in order.

    The embedded model knows the words of its captions. Any other model reads every word in pieces; only signs
    that its tokenizer has no token for are unknown to it.
    """
    words = dict.fromkeys(split_words(texts))
    if backbone.is_embedded:
        return [word for word in words if word not in read_known_words()]
    return [word for word in words if has_unknown_token(backbone, tokenize_text(backbone, word))]


def check_class_word(backbone: Backbone, word: str) -> None:
    """Refuse a class word that is not one word the model knows.

    Raises:
        PromptError: it is several tokens, or only a piece of words.
    """
    get_class_token_ids(backbone, word)
    if find_unknown_words(backbone, [word]):
        raise PromptError(
            f"This model does not know the class word {word!r}.",
            "Choose one of these: " + ", ".join(read_word_groups()["subjects"]) + ".",
        )


def describe_unknown_words(backbone: Backbone, prompts: Sequence[str], negative_prompt: str = "") -> list[str]:
    """Return remarks on words that a model does not know, and on prompts that differ in nothing else."""
    unknown = find_unknown_words(backbone, [*prompts, negative_prompt])
    if not unknown:
        return []
    listed = ", ".join(repr(word) for word in unknown)
    remarks = [f"this model does not know {listed}: no image will show what it means"]
    if backbone.is_embedded:
        remarks[0] += "; `sefi world words` lists what it knows"
    return [*remarks, *describe_equal_prompts(prompts, unknown)]
