"""Which words of a prompt a model does not know: the embedded model has read the words of its captions only."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from sefi.backbone.bundle import Backbone
from sefi.conditioning.names import CHARACTERS
from sefi.conditioning.prompt import get_class_token_id, tokenize_plain
from sefi.core.errors import PromptError
from sefi.core.names import NAME
from sefi.core.prompt_syntax import PLACEHOLDER

WORDS = Path(__file__).parent.parent / "models" / "words.json"
# As the embedded tokenizer splits a text: letters together, other signs one by one.
PIECE = re.compile(r"[^\W\d_]+|[^\s]")
PROMPT_PIECE = re.compile(f"<{NAME}>|{PIECE.pattern}")  # a name is one piece
MARKS = frozenset(",-.")


@cache
def read_word_groups() -> dict[str, list[str]]:
    """Return the phrases that the embedded model knows, by what they say."""
    return json.loads(WORDS.read_text(encoding="utf-8"))


@cache
def read_names() -> tuple[str, ...]:
    """Return the two-word names of the characters that the embedded model knows."""
    return tuple(CHARACTERS.read_text(encoding="utf-8").splitlines())


@cache
def read_known_words() -> frozenset[str]:
    """Return every word that the embedded model was trained with, names and marks included."""
    phrases = [phrase for group in read_word_groups().values() for phrase in group]
    return frozenset(split_words([*phrases, *read_names()])) | MARKS


def split_words(texts: Iterable[str]) -> list[str]:
    """Return the words and marks of texts in small letters, without names in angle brackets.

    >>> split_words(["A close-up of <ada>, smiling"])
    ['a', 'close', '-', 'up', 'of', ',', 'smiling']
    """
    return [piece for text in texts for piece in PIECE.findall(PLACEHOLDER.sub(" ", text).lower())]


def find_unknown_words(backbone: Backbone, texts: Iterable[str]) -> list[str]:
    """Return the words that the model does not know, each once, in order.

    The embedded model knows the words of its captions. Any other model reads every word in pieces; only signs
    that its tokenizer has no token for are unknown to it.
    """
    words = dict.fromkeys(split_words(texts))
    if backbone.judges is not None:
        return [word for word in words if word not in read_known_words()]
    unknown = backbone.tokenizer.unk_token_id
    return [word for word in words if unknown in tokenize_plain(backbone.tokenizer, word)]


def check_class_word(backbone: Backbone, word: str) -> None:
    """Refuse a class word that is not one word the model knows.

    Raises:
        PromptError: it is several tokens, or only a piece of words.
    """
    get_class_token_id(backbone.tokenizer, word)
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
    if backbone.judges is not None:
        remarks[0] += "; `sefi world words` lists what it knows"
    return [*remarks, *describe_equal_prompts(prompts, unknown)]


def describe_equal_prompts(prompts: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """Return a remark for every group of prompts that are equal but for unknown words."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for prompt in dict.fromkeys(prompts):
        pieces = (piece.lower() for piece in PROMPT_PIECE.findall(prompt))
        known = tuple(piece for piece in pieces if piece not in unknown)
        groups.setdefault(known, []).append(prompt)
    return [
        f"to this model these prompts say the same, and their images differ by chance only: {'; '.join(group)}"
        for group in groups.values()
        if len(group) > 1
    ]
