"""Read CLIP's tokenizer from bounded files: words and merges only; what it has for a vocabulary."""

import gzip
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from transformers import AddedToken, CLIPTokenizer

from sefi.backbone.files import is_regular, read_model_json, read_model_text, read_or_refuse
from sefi.backbone.part_configs import quote_value
from sefi.core.errors import BackboneError

MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
WORD_END = "</w>"
TEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def create_clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Create the tokenizer of CLIP ViT-L/14: 49,408 words, prompts of 77 tokens.

    Source: OpenAI CLIP, `simple_tokenizer.py` (MIT licence, in `configs/clip`).

    Args:
        pad_token: fills short prompts; Stable Diffusion 1.x repeats the end, 2.x uses "!".
    """
    merges = _read_merges()
    return CLIPTokenizer(
        vocab=_build_vocabulary(merges),
        merges=cast(list[str], list(merges)),  # pairs, as `tokenizers` takes them
        pad_token=pad_token,
        model_max_length=TEXT_LENGTH,
    )


@cache
def _read_merges() -> tuple[tuple[str, str], ...]:
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        pairs = (line.split() for line in lines)
        return tuple((left, right) for left, right in pairs)


def _build_vocabulary(merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Build the ids by word: bytes, bytes that end a word, merged pieces, the two marks."""
    letters = _list_byte_letters()
    words = [*letters, *(letter + WORD_END for letter in letters)]
    words += [left + right for left, right in merges]
    return {word: index for index, word in enumerate([*words, START, END])}


def _list_byte_letters() -> list[str]:
    """List a printable letter for each of the 256 bytes, in GPT-2's order: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]


MAX_TOKENIZER_BYTES = 16 << 20
MAX_WORD = 256
MAX_ADDED = 10_000
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
SHORTEST_TEXT = 3  # start, one word, end
REMEDY = "Copy or download the tokenizer again, as CLIP's."

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


def read_tokenizer(where: Path, rows: int) -> CLIPTokenizer:
    """Read `tokenizer.json`, or `vocab.json` and `merges.txt`, with the special and added tokens of the folder.

    Args:
        where: the tokenizer's folder.
        rows: rows of the text encoder's table; every word needs one.

    Raises:
        BackboneError: a file is missing, damaged or too large, or a word has no row.
    """
    vocabulary, merges, added = _read_words(where)
    settings = _read_optional(where / "tokenizer_config.json")
    legacy = _read_optional(where / "special_tokens_map.json")
    added |= _parse_added_decoder(where, settings) | _read_added_file(where)
    for word, number in vocabulary.items() | {(str(token), number) for number, token in added.items()}:
        if number >= rows:
            raise BackboneError(
                f"{where}: the word {quote_value(word)} has number {number}, and the text encoder knows {rows}.",
                REMEDY,
            )
    stated = SPECIAL | _remove_null(legacy) | _remove_null(settings)
    special = {name: _parse_special(where, name, stated[name]) for name in SPECIAL}
    tokenizer = read_or_refuse(
        where,
        lambda: CLIPTokenizer(
            vocab=vocabulary,
            merges=cast(list[str], merges),  # pairs, as `tokenizers` takes them
            added_tokens_decoder=added,
            model_max_length=_parse_length(where, settings),
            **special,
        ),
        REMEDY,
    )
    _check_special(where, tokenizer, rows)
    return tokenizer


def _read_words(where: Path) -> tuple[Vocabulary, Merges, dict[int, AddedToken]]:
    """Return words with their numbers, merges and added tokens."""
    whole = where / "tokenizer.json"
    if not is_regular(whole):
        vocabulary = _parse_vocabulary(where / "vocab.json", read_model_json(where / "vocab.json", MAX_TOKENIZER_BYTES))
        lines = read_model_text(where / "merges.txt", MAX_TOKENIZER_BYTES).splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
        return vocabulary, _parse_merges(where / "merges.txt", pairs), {}
    content = read_model_json(whole, MAX_TOKENIZER_BYTES)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise BackboneError(f"{whole}: `model` is no byte-pair encoding.", REMEDY)
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list):
        raise BackboneError(f"{whole}: `added_tokens` is no list.", REMEDY)
    added = _parse_added(whole, {_get_field(entry, "id"): entry for entry in entries})
    return _parse_vocabulary(whole, model.get("vocab")), _parse_merges(whole, model.get("merges", [])), added


def _get_field(entry: object, name: str) -> object:
    return entry.get(name) if isinstance(entry, dict) else None


def _parse_vocabulary(path: Path, words: object) -> Vocabulary:
    if not isinstance(words, dict) or not words:
        raise BackboneError(f"{path} holds no words.", REMEDY)
    for word, number in words.items():
        if type(number) is not int or number < 0 or len(word) > MAX_WORD:
            raise BackboneError(f"{path}: the word {quote_value(word)} has the number {quote_value(number)}.", REMEDY)
    if len(set(words.values())) < len(words):
        raise BackboneError(f"{path} gives one number to two words.", REMEDY)
    return cast(Vocabulary, words)


def _parse_merges(path: Path, entries: object) -> Merges:
    """Return pairs; an entry is a pair or a line of two pieces."""
    if not isinstance(entries, list):
        raise BackboneError(f"{path}: `merges` is no list.", REMEDY)
    pairs: Merges = []
    for entry in entries:
        match entry.split(" ") if isinstance(entry, str) else entry:
            case [str(left), str(right)]:
                pairs.append((left, right))
            case _:
                raise BackboneError(f"{path}: {quote_value(entry)} is no merge of two pieces.", REMEDY)
    return pairs


def _remove_null(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _read_optional(path: Path) -> dict[str, Any]:
    return read_model_json(path) if os.path.lexists(path) else {}


def _parse_added_decoder(where: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise BackboneError(f"{where / 'tokenizer_config.json'}: `added_tokens_decoder` is no object.", REMEDY)
    numbered = {int(key) if key.isascii() and key.isdigit() and len(key) < 12 else key: e for key, e in entries.items()}
    return _parse_added(where / "tokenizer_config.json", numbered)


def _read_added_file(where: Path) -> dict[int, AddedToken]:
    path = where / "added_tokens.json"
    return _parse_added(
        path, {number: {"content": word} for word, number in _read_optional(path).items() if _is_number(number)}
    )


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _parse_added(path: Path, entries: Mapping[Any, object]) -> dict[int, AddedToken]:
    """Return added tokens by number, of each only what it is and how it is found in a text."""
    if len(entries) > MAX_ADDED:
        raise BackboneError(f"{path} adds {len(entries):,} tokens; at most {MAX_ADDED:,}.", REMEDY)
    added: dict[int, AddedToken] = {}
    for number, entry in entries.items():
        content = _get_field(entry, "content")
        if not (_is_number(number) and isinstance(entry, dict) and isinstance(content, str) and content):
            raise BackboneError(f"{path}: the added token {quote_value(entry)} has no number or no text.", REMEDY)
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        chosen = {flag: entry[flag] for flag in flags if isinstance(entry.get(flag), bool)}
        added[number] = AddedToken(content[:MAX_WORD], **chosen)
    return added


def _parse_special(where: Path, name: str, value: object) -> str:
    """Return a special token's text; it may stand alone or with flags."""
    content = _get_field(value, "content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not 0 < len(content) <= MAX_WORD:
        raise BackboneError(f"{where}: `{name}` is {quote_value(value)}, which is no word.", REMEDY)
    return content


def _parse_length(where: Path, settings: Mapping[str, Any]) -> int | None:
    """Return the stated length of a text in tokens; absurdly large stands for none."""
    length = settings.get("model_max_length")
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or length < SHORTEST_TEXT:
        raise BackboneError(
            f"{where / 'tokenizer_config.json'}: `model_max_length` is {quote_value(length)}; "
            f"at least {SHORTEST_TEXT}.",
            REMEDY,
        )
    return int(length) if length < 1 << 31 else None


def _check_special(where: Path, tokenizer: CLIPTokenizer, rows: int) -> None:
    """Start, end and padding must have a row in the text encoder's table, also where the files forget them."""
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_id")
        if number is None or not 0 <= number < rows:
            raise BackboneError(f"{where}: `{name}` has no row in the text encoder's table of {rows}.", REMEDY)


def add_exact_words(tokenizer: Any, words: Sequence[str]) -> None:  # noqa: ANN401
    """Add words to a tokenizer, in place, that are found letter by letter: CLIP's own words are of no case."""
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
