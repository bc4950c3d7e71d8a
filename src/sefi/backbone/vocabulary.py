"""CLIP's tokenizer, from the byte-pair merges that ship with the package."""

import gzip
from functools import cache
from pathlib import Path
from typing import cast

from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
WORD_END = "</w>"
TEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """The tokenizer of CLIP ViT-L/14: 49,408 words, prompts of 77 tokens.

    Source: OpenAI CLIP, `simple_tokenizer.py` (MIT licence, in `configs/clip`).

    Args:
        pad_token: fills short prompts; Stable Diffusion 1.x repeats the end, 2.x uses "!".
    """
    merges = _merges()
    return CLIPTokenizer(
        vocab=_vocabulary(merges),
        merges=cast(list[str], list(merges)),  # pairs, as `tokenizers` takes them
        pad_token=pad_token,
        model_max_length=TEXT_LENGTH,
    )


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        pairs = (line.split() for line in lines)
        return tuple((left, right) for left, right in pairs)


def _vocabulary(merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Word to id: bytes, bytes that end a word, merged pieces, the two marks."""
    letters = _byte_letters()
    words = [*letters, *(letter + WORD_END for letter in letters)]
    words += [left + right for left, right in merges]
    return {word: index for index, word in enumerate([*words, START, END])}


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in GPT-2's order: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]
