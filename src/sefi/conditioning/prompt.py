"""A prompt with `<name>` placeholders to token ids and the places of the names."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sefi.core.errors import PromptError
from sefi.core.hints import find_nearest
from sefi.core.people import EXAMPLES
from sefi.core.prompt_syntax import PLACEHOLDER, check_syntax, unknown_placeholder

# A fast tokenizer is set up anew where a call wants other padding than the last one, and fails while others use it.
TOKENIZING = threading.Lock()


@dataclass(frozen=True)
class ParsedPrompt:
    """A tokenised prompt.

    Attributes:
        ids: `[length]`, padded; a placeholder has its class word's id.
        places: positions of each name's placeholders, by name; those of several tokens side by side.
        length: tokens before padding, start and end included.
        words: one readable word per token, padding excluded.
    """

    ids: Tensor
    places: dict[str, tuple[int, ...]]
    length: int
    words: tuple[str, ...]


def get_class_token_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The id of a class word; `PromptError` unless it is exactly one known token."""
    ids = tokenize_plain(tokenizer, word)
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        near = find_nearest(word, EXAMPLES)
        question = "" if near is None else f"Did you mean {near!r}? "
        raise PromptError(
            f"The class word {word!r} is not one token of this model ({len(ids)} tokens).",
            f"{question}Choose one common word, such as person, dog or cat.",
        )
    return ids[0]


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
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    class_words: Mapping[str, str],
    text_length: int,
    spans: Mapping[str, int] | None = None,
) -> ParsedPrompt:
    """Tokenise around the placeholders.

    Args:
        class_words: class word of every known name.
        text_length: words of a padded prompt.
        spans: how many tokens a name's placeholder stands for, where that is not one.

    Raises:
        PromptError: a placeholder without its identity, syntax of other programs, or a prompt that does not fit.
    """
    check_syntax(prompt)
    start, end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    padding = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end)  # pyright: ignore[reportArgumentType]
    ids, words, places = [start], ["(start)"], dict[str, tuple[int, ...]]()
    for i, piece in enumerate(PLACEHOLDER.split(prompt)):
        if i % 2:
            if piece not in class_words:
                raise unknown_placeholder(piece, class_words)
            span = (spans or {}).get(piece, 1)
            places[piece] = (*places.get(piece, ()), *range(len(ids), len(ids) + span))
            ids += [get_class_token_id(tokenizer, class_words[piece])] * span
            words += [f"<{piece}>"] * span
        else:
            new = tokenize_plain(tokenizer, piece)
            ids += new
            words += [format_token(tokenizer, n) for n in new]
    if len(ids) + 1 > text_length:
        raise PromptError(
            f"The prompt has {len(ids) - 1} tokens; this model reads {text_length - 2}: {prompt!r}.",
            "Shorten it.",
        )
    length = len(ids) + 1
    ids += [end] + [padding] * (text_length - length)
    return ParsedPrompt(torch.tensor(ids), places, length, (*words, "(end)"))


def format_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as a person would write it."""
    return str(tokenizer.convert_ids_to_tokens(token)).replace("</w>", "")
