"""CLIP's tokenizer from a model folder: words and merges are taken from the files, and nothing else is run.

`tokenizer.json` may carry normalisers and patterns of its own, whose cost nothing bounds. transformers builds CLIP's
from the words and merges alone, and so does this reader.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import AddedToken, CLIPTokenizer

from sefi.backbone.files import guarded, is_regular, read_json, read_text
from sefi.backbone.part_configs import shown
from sefi.backbone.vocabulary import END, START
from sefi.core.errors import BackboneError

MAX_TOKENIZER_BYTES = 16 << 20
MAX_WORD = 256
MAX_ADDED = 10_000
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
SHORTEST_TEXT = 3  # start, one word, end
REMEDY = "Copy or download the tokenizer again, as CLIP's."

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


def read_tokenizer(where: Path, rows: int) -> CLIPTokenizer:
    """Read `tokenizer.json`, or `vocab.json` and `merges.txt`, with the special and added tokens beside them.

    Args:
        where: the tokenizer's folder.
        rows: rows of the text encoder's table; every word needs one.

    Raises:
        BackboneError: a file is missing, damaged or too large, or a word has no row.
    """
    vocabulary, merges, added = _words(where)
    settings = _optional(where / "tokenizer_config.json")
    legacy = _optional(where / "special_tokens_map.json")
    added |= _added_decoder(where, settings) | _added_file(where)
    for word, number in vocabulary.items() | {(str(token), number) for number, token in added.items()}:
        if number >= rows:
            raise BackboneError(
                f"{where}: the word {shown(word)} has number {number}, and the text encoder knows {rows}.", REMEDY
            )
    stated = SPECIAL | _without_null(legacy) | _without_null(settings)
    special = {name: _special(where, name, stated[name]) for name in SPECIAL}
    tokenizer = guarded(
        where,
        lambda: CLIPTokenizer(
            vocab=vocabulary,
            merges=cast(list[str], merges),  # pairs, as `tokenizers` takes them
            added_tokens_decoder=added,
            model_max_length=_length(where, settings),
            **special,
        ),
        REMEDY,
    )
    _check_special(where, tokenizer, rows)
    return tokenizer


def _words(where: Path) -> tuple[Vocabulary, Merges, dict[int, AddedToken]]:
    """Return words with their numbers, merges and added tokens."""
    whole = where / "tokenizer.json"
    if not is_regular(whole):
        vocabulary = _vocabulary(where / "vocab.json", read_json(where / "vocab.json", MAX_TOKENIZER_BYTES))
        lines = read_text(where / "merges.txt", MAX_TOKENIZER_BYTES).splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
        return vocabulary, _merges(where / "merges.txt", pairs), {}
    content = read_json(whole, MAX_TOKENIZER_BYTES)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise BackboneError(f"{whole}: `model` is no byte-pair encoding.", REMEDY)
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list):
        raise BackboneError(f"{whole}: `added_tokens` is no list.", REMEDY)
    added = _added(whole, {_field(entry, "id"): entry for entry in entries})
    return _vocabulary(whole, model.get("vocab")), _merges(whole, model.get("merges", [])), added


def _field(entry: object, name: str) -> object:
    return entry.get(name) if isinstance(entry, dict) else None


def _vocabulary(path: Path, words: object) -> Vocabulary:
    if not isinstance(words, dict) or not words:
        raise BackboneError(f"{path} holds no words.", REMEDY)
    for word, number in words.items():
        if type(number) is not int or number < 0 or len(word) > MAX_WORD:
            raise BackboneError(f"{path}: the word {shown(word)} has the number {shown(number)}.", REMEDY)
    if len(set(words.values())) < len(words):
        raise BackboneError(f"{path} gives one number to two words.", REMEDY)
    return cast(Vocabulary, words)


def _merges(path: Path, entries: object) -> Merges:
    """Return pairs; an entry is a pair or a line of two pieces."""
    if not isinstance(entries, list):
        raise BackboneError(f"{path}: `merges` is no list.", REMEDY)
    pairs: Merges = []
    for entry in entries:
        match entry.split(" ") if isinstance(entry, str) else entry:
            case [str(left), str(right)]:
                pairs.append((left, right))
            case _:
                raise BackboneError(f"{path}: {shown(entry)} is no merge of two pieces.", REMEDY)
    return pairs


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.lexists(path) else {}


def _added_decoder(where: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise BackboneError(f"{where / 'tokenizer_config.json'}: `added_tokens_decoder` is no object.", REMEDY)
    numbered = {int(key) if key.isascii() and key.isdigit() and len(key) < 12 else key: e for key, e in entries.items()}
    return _added(where / "tokenizer_config.json", numbered)


def _added_file(where: Path) -> dict[int, AddedToken]:
    path = where / "added_tokens.json"
    return _added(path, {number: {"content": word} for word, number in _optional(path).items() if _is_number(number)})


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _added(path: Path, entries: Mapping[Any, object]) -> dict[int, AddedToken]:
    """Return added tokens by number, of each only what it is and how it is found in a text."""
    if len(entries) > MAX_ADDED:
        raise BackboneError(f"{path} adds {len(entries):,} tokens; at most {MAX_ADDED:,}.", REMEDY)
    added: dict[int, AddedToken] = {}
    for number, entry in entries.items():
        content = _field(entry, "content")
        if not (_is_number(number) and isinstance(entry, dict) and isinstance(content, str) and content):
            raise BackboneError(f"{path}: the added token {shown(entry)} has no number or no text.", REMEDY)
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        chosen = {flag: entry[flag] for flag in flags if isinstance(entry.get(flag), bool)}
        added[number] = AddedToken(content[:MAX_WORD], **chosen)
    return added


def _special(where: Path, name: str, value: object) -> str:
    """Return a special token's text; it may stand alone or with flags."""
    content = _field(value, "content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not 0 < len(content) <= MAX_WORD:
        raise BackboneError(f"{where}: `{name}` is {shown(value)}, which is no word.", REMEDY)
    return content


def _length(where: Path, settings: Mapping[str, Any]) -> int | None:
    """Return the stated length of a text in tokens; absurdly large stands for none."""
    length = settings.get("model_max_length")
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or length < SHORTEST_TEXT:
        raise BackboneError(
            f"{where / 'tokenizer_config.json'}: `model_max_length` is {shown(length)}; at least {SHORTEST_TEXT}.",
            REMEDY,
        )
    return int(length) if length < 1 << 31 else None


def _check_special(where: Path, tokenizer: CLIPTokenizer, rows: int) -> None:
    """Start, end and padding must have a row in the text encoder's table, also where the files forget them."""
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_id")
        if number is None or not 0 <= number < rows:
            raise BackboneError(f"{where}: `{name}` has no row in the text encoder's table of {rows}.", REMEDY)
