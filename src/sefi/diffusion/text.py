"""A prompt with placeholders and weights to token ids; texts side by side; words that a model does not know."""

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
    check_template,
    describe_equal_prompts,
    find_placeholders,
    find_untrained_words,
    make_unknown_placeholder_error,
    parse_weights,
    read_word_groups,
    split_words,
    strip_weights,
)

# A call with other padding than the last one changes a fast tokenizer, which fails while another thread uses it.
TOKENIZING = threading.Lock()

TokenIds = tuple[int, ...]  # of one token: its number in each tokenizer


MAX_CLASS_TOKENS = 8
MAX_CHUNKS = 8
COMMA_REACH = 20  # AUTOMATIC1111's default


@dataclass(frozen=True)
class PromptToken:
    """A token of a prompt.

    Attributes:
        ids: its number in each tokenizer.
        word: what a person would write for it.
        name: whose placeholder it belongs to; None for words.
        weight: how much it counts; 1 is no change.
        ends: whether a prompt may be divided after it: not within a word or a placeholder.
    """

    ids: TokenIds
    word: str
    name: str | None = None
    weight: float = 1.0
    ends: bool = True


@dataclass(frozen=True)
class ParsedPrompt:
    """A tokenised prompt: one chunk of the model's text length, or several side by side, each with start and end.

    Attributes:
        ids: `[encoder, word]`, padded, as each tokenizer numbers the words; a placeholder has the id of its class word,
            of one of several tokens the first.
        places: positions of each name's placeholders, by name; those of several tokens side by side.
        words: one readable word per token, start and end of each chunk included, padding excluded.
        word_places: the position of each of the words.
        weights: of every position, `[word]`; None where all are 1.
    """

    ids: Tensor
    places: dict[str, tuple[int, ...]]
    words: tuple[str, ...]
    word_places: tuple[int, ...]
    weights: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions before the padding at the end."""
        return self.word_places[-1] + 1


def get_class_token_ids(backbone: Backbone, word: str) -> TokenIds:
    """Return the token of a class word; `PromptError` unless it is exactly one known token."""
    tokens = tokenize_text(backbone, word)
    if len(tokens) != 1 or has_unknown_token(backbone, tokens):
        raise make_class_word_error(word, f"is not one token of this model ({len(tokens)} tokens)")
    return tokens[0]


def tokenize_class_word(backbone: Backbone, word: str) -> list[TokenIds]:
    """Return the tokens of a class word, which may be several words or a rare one, as "golden retriever".

    Raises:
        PromptError: no token, more than `MAX_CLASS_TOKENS`, an unknown one, or a misspelt word.
    """
    tokens = tokenize_text(backbone, word)
    if not 1 <= len(tokens) <= MAX_CLASS_TOKENS or has_unknown_token(backbone, tokens):
        raise make_class_word_error(
            word, f"is not 1 to {MAX_CLASS_TOKENS} tokens that this model knows ({len(tokens)} tokens)"
        )
    # A common word in pieces is more likely misspelt than meant.
    pieces = [one for one in word.split() if len(tokenize_text(backbone, one)) > 1]
    if any(find_nearest(one, EXAMPLES) for one in pieces):
        raise make_class_word_error(word, "is perhaps misspelt")
    return tokens


def make_class_word_error(word: str, problem: str) -> PromptError:
    """Return the error for a class word, with the word that may be meant."""
    near = find_nearest(word, EXAMPLES) or next(filter(None, (find_nearest(w, EXAMPLES) for w in word.split())), None)
    question = "" if near in (None, word) else f"Did you mean {near!r}? "
    return PromptError(
        f"The class word {word!r} {problem}.", f"{question}Choose a common word, such as person, dog or cat."
    )


def compute_class_row(backbone: Backbone, word: str) -> Tensor:
    """Compute the token-table row that stands for a class word, `[width]`: that of its token, of several their mean."""
    rows = [backbone.get_token_row(token) for token in tokenize_class_word(backbone, word)]
    return rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)


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
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # it warns of long texts


def parse_prompt(
    backbone: Backbone, prompt: str, class_words: Mapping[str, str], vector_counts: Mapping[str, int] | None = None
) -> ParsedPrompt:
    """Tokenise a prompt around its placeholders; one that is too long for the model is divided into chunks.

    Args:
        class_words: class word of every known name.
        vector_counts: how many tokens a name's placeholder stands for, where that is not one.

    Raises:
        PromptError: a placeholder without its identity, syntax of other programs, or more than `MAX_CHUNKS` chunks.
    """
    check_syntax(prompt)
    tokens, room = list_tokens(backbone, prompt, class_words, vector_counts or {}), backbone.text_length - 2
    chunks = divide_tokens(tokens, room)
    if len(chunks) > MAX_CHUNKS:
        raise PromptError(
            f"The prompt has {len(tokens)} tokens; this model reads {room} at once, and at most {MAX_CHUNKS} times as"
            f" many in parts: {prompt!r}.",
            "Shorten it.",
        )
    return join_chunks(backbone, chunks)


def count_chunks(
    backbone: Backbone, prompt: str, class_words: Mapping[str, str], vector_counts: Mapping[str, int] | None = None
) -> int:
    """Return how many chunks a prompt is divided into; arguments and errors are those of `parse_prompt`."""
    return parse_prompt(backbone, prompt, class_words, vector_counts).ids.shape[-1] // backbone.text_length


def parse_template(
    backbone: Backbone, sentence: str, class_words: Mapping[str, str], vector_counts: Mapping[str, int] | None = None
) -> ParsedPrompt:
    """Tokenise a sentence to learn with: as `parse_prompt`, without weights and in one chunk.

    Raises:
        PromptError: as `parse_prompt`, or the sentence has weights or does not fit.
    """
    check_template(sentence)
    parsed = parse_prompt(backbone, sentence, class_words, vector_counts)
    if parsed.ids.shape[-1] > backbone.text_length:
        raise PromptError(
            f"The sentence has more than the {backbone.text_length - 2} tokens that this model reads: {sentence!r}.",
            "Shorten it.",
        )
    return parsed


def list_tokens(
    backbone: Backbone, prompt: str, class_words: Mapping[str, str], vector_counts: Mapping[str, int]
) -> list[PromptToken]:
    """List the tokens of a prompt without start, end and padding.

    Raises:
        PromptError: a placeholder without its identity.
    """
    tokens = list[PromptToken]()
    for part in parse_weights(prompt):
        for i, piece in enumerate(PLACEHOLDER.split(part.text)):
            if not i % 2:
                tokens += [
                    make_word_token(backbone.tokenizer, token, part.weight) for token in tokenize_text(backbone, piece)
                ]
                continue
            if piece not in class_words:
                raise make_unknown_placeholder_error(piece, class_words)
            one = PromptToken(
                tokenize_class_word(backbone, class_words[piece])[0], f"<{piece}>", piece, part.weight, ends=False
            )
            tokens += [*[one] * (vector_counts.get(piece, 1) - 1), replace(one, ends=True)]
    return tokens


def make_word_token(tokenizer: PreTrainedTokenizerBase, ids: TokenIds, weight: float) -> PromptToken:
    """Make the token of a word or a piece of one; CLIP's tokenizers mark the last piece of a word."""
    ends = str(tokenizer.convert_ids_to_tokens(ids[0])).endswith("</w>")
    return PromptToken(ids, format_token(tokenizer, ids[0]), weight=weight, ends=ends)


def divide_tokens(tokens: Sequence[PromptToken], room: int) -> list[list[PromptToken]]:
    """Divide the tokens of a prompt into chunks of at most `room` tokens; a short prompt is one chunk.

    A chunk ends after its last comma where that is among its last `COMMA_REACH` tokens, as in AUTOMATIC1111, else after
    the last word that fits. A placeholder is never divided, a word only if it is longer than a chunk.

    Raises:
        PromptError: a placeholder of more than `room` tokens.
    """
    chunks, chunk = list[list[PromptToken]](), list[PromptToken]()
    for unit in list_units(tokens, room):
        while len(chunk) + len(unit) > room:
            cut = len(chunk) if unit[0].word == "," else find_cut(chunk)
            chunks.append(chunk[:cut])
            chunk = chunk[cut:]
        chunk += unit
    return [*chunks, chunk]


def find_cut(chunk: Sequence[PromptToken]) -> int:
    """Return how many tokens of a full chunk stay in it: those up to a comma near its end, or all."""
    commas = [place for place, token in enumerate(chunk) if token.word == "," and token.ends]
    return commas[-1] + 1 if commas and len(chunk) - commas[-1] <= COMMA_REACH else len(chunk)


def list_units(tokens: Sequence[PromptToken], room: int) -> list[list[PromptToken]]:
    """List the tokens that stay together: words and placeholders; a longer word than `room` is several.

    Raises:
        PromptError: a placeholder of more than `room` tokens.
    """
    units, unit = list[list[PromptToken]](), list[PromptToken]()
    for number, token in enumerate(tokens):
        unit.append(token)
        following = tokens[number + 1] if number + 1 < len(tokens) else None
        whole = token.ends or following is None or following.name != token.name
        if not whole and len(unit) == room and token.name is not None:
            raise PromptError(
                f"{token.word} stands for more than the {room} tokens that this model reads.",
                "Learn it again with fewer learn.vectors.",
            )
        if whole or len(unit) == room:
            units.append(unit)
            unit = []
    return units


def join_chunks(backbone: Backbone, chunks: Sequence[Sequence[PromptToken]]) -> ParsedPrompt:
    """Return chunks side by side as one prompt, each with start, end and padding."""
    start, end, padding = zip(*map(get_special_tokens, backbone.tokenizers), strict=True)
    ids, weights, words = list[TokenIds](), list[float](), dict[int, str]()
    places = dict[str, tuple[int, ...]]()
    for chunk in chunks:
        first, missing = len(ids), backbone.text_length - 2 - len(chunk)
        words |= {first: "(start)"} | {first + 1 + n: token.word for n, token in enumerate(chunk)}
        words[first + 1 + len(chunk)] = "(end)"
        for place, token in enumerate(chunk, first + 1):
            if token.name is not None:
                places[token.name] = (*places.get(token.name, ()), place)
        ids += [start, *(token.ids for token in chunk), end, *[padding] * missing]
        weights += [1.0, *(token.weight for token in chunk), *[1.0] * (1 + missing)]
    changed = torch.tensor(weights) if any(weight != 1 for weight in weights) else None
    return ParsedPrompt(torch.tensor(ids).T.contiguous(), places, tuple(words.values()), tuple(words), changed)


@torch.no_grad()
def encode_reference(
    backbone: Backbone, prompts: Sequence[ParsedPrompt], class_words: Mapping[str, str]
) -> TextEncoding:
    """Encode prompts of equal length with the class word in every place of a name, states `[batch, word, width]`.

    A class word of several tokens is there as the mean of their rows, so that every other word keeps its place.
    """
    ids = torch.stack([one.ids for one in prompts])
    several = [name for name, word in class_words.items() if len(tokenize_class_word(backbone, word)) > 1]
    if not several:
        return backbone.encode_text(ids)
    rows = torch.zeros(len(prompts), ids.shape[-1], backbone.token_width)
    mask = torch.zeros(rows.shape[:2], dtype=torch.bool)
    for number, one in enumerate(prompts):
        for name in several:
            places = list(one.places.get(name, ()))
            rows[number, places], mask[number, places] = compute_class_row(backbone, class_words[name]), True
    return backbone.encode_text(ids, rows, mask)


@torch.no_grad()
def apply_weights(backbone: Backbone, encoding: TextEncoding, parsed: ParsedPrompt) -> TextEncoding:
    """Apply the weights of a prompt's words to its states `[batch, word, width]`; the pooled text stays.

    Each state z is moved from that of the empty prompt at the same place, e, to `e + weight * (z - e)`, as ComfyUI
    does; without weights it is returned as it is.

    Differs:
        AUTOMATIC1111 multiplies the states themselves and restores their mean over the whole prompt afterwards.
    """
    if parsed.weights is None:
        return encoding
    states, length = encoding.states, backbone.text_length
    empty = backbone.encode_text(join_chunks(backbone, [[]]).ids[None]).states
    empty = empty.repeat(1, states.shape[1] // length, 1)
    weights = parsed.weights.to(states)[:, None]
    return replace(encoding, states=torch.where(weights == 1, states, empty + weights * (states - empty)))


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
    plain = [strip_weights(text) for text in texts]
    if backbone.is_embedded:
        return find_untrained_words(plain)
    return [
        word for word in dict.fromkeys(split_words(plain)) if has_unknown_token(backbone, tokenize_text(backbone, word))
    ]


def check_class_word(backbone: Backbone, word: str) -> None:
    """Refuse a class word that the model does not know.

    Raises:
        PromptError: as `tokenize_class_word`, or it is only a piece of words.
    """
    tokenize_class_word(backbone, word)
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


def describe_long_prompts(
    backbone: Backbone, texts: Iterable[str], class_words: Mapping[str, str], vector_counts: Mapping[str, int]
) -> list[str]:
    """Return a remark for every text, each once, that is divided because the model does not read it at once.

    A text with a name that has no class word is left out: how long it is is not known.
    """
    room, remarks = backbone.text_length - 2, list[str]()
    for text in dict.fromkeys(texts):
        if not class_words.keys() >= set(find_placeholders(text)):
            continue
        count = count_chunks(backbone, text, class_words, vector_counts)
        if count > 1:
            remarks.append(f"longer than the {room} tokens that the model reads at once, so in {count} parts: {text!r}")
    return remarks
