"""A prompt with `<name>` to ComfyUI's conditioning: for every stage of denoising a key text and a value text.

The text goes through ComfyUI's own tokenizer and text encoder, so weights, long prompts and `embedding:` work as
everywhere. In the place of each name stands a word that the prompt has not; in the tokens it is then exchanged for
the identity's vectors, which ComfyUI takes in the place of numbers. No file in models/embeddings is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from .identity_file import NAME, Identity

TIMESTEPS = 1000  # of Stable Diffusion
MOST_CLASS_TOKENS = 8  # of a class word, as `sefi learn` takes
PLACEHOLDER = re.compile(f"<({NAME})>")
KEY, VALUE = 0, 1
# ComfyUI's names of the text encoders, in the order of an identity's tensors.
ENCODERS = (("l",), ("h",), ("l", "g"))
STAND_INS = [
    "person",
    "man",
    "woman",
    "dog",
    "cat",
    "beach",
    "tree",
    "house",
    "car",
    "red",
    "blue",
    "hat",
    "sun",
    "snow",
    "book",
]

Tokens = Mapping[str, list[list[tuple[Any, ...]]]]
"""What ComfyUI's tokenizer returns: for each text encoder chunks of (number or vector, weight)."""
Conditioning = list[list[Any]]
"""ComfyUI's: pairs of a text `[1, word, width]` and a dict with its range and pooled text."""


class Clip(Protocol):
    """What is used of ComfyUI's text encoders and tokenizers."""

    cond_stage_model: Any

    def tokenize(self, text: str) -> Tokens:
        """Return the chunks of a text."""
        ...

    def encode_from_tokens(self, tokens: Tokens, *, return_pooled: bool, return_dict: bool) -> dict[str, Any]:
        """Return the state `[1, word, width]` as `cond`, and what belongs to it."""
        ...


@dataclass(frozen=True)
class Person:
    """An identity in a prompt.

    Attributes:
        stand_in: the word in the text where its vectors go.
        numbers: the stand-in's token, for each text encoder.
        tokens: for each text encoder `[stage, 2, vector, width]`, with strength applied.
        class_words: the class word in the same shape; none where nobody else is in the prompt, or at strength 0.
    """

    stand_in: str
    numbers: Mapping[str, int]
    tokens: Mapping[str, Tensor]
    class_words: Mapping[str, Tensor]

    @property
    def stages(self) -> int:
        """How many stages it has."""
        return len(next(iter(self.tokens.values())))

    @property
    def vectors(self) -> int:
        """How many vectors stand in the place of its name."""
        return next(iter(self.tokens.values())).shape[2]


def encode_prompt(
    clip: Clip, text: str, identities: Sequence[Identity], strength: float = 1.0, class_word_stages: int = 0
) -> Conditioning:
    """Encode a prompt to one conditioning for each stage, each `[1, word, 2 * width]`: key text, value text.

    Args:
        clip: ComfyUI's CLIP of Stable Diffusion 1.x, 2.x or XL.
        text: with `<name>` for an identity; weights as in `(<ada>:1.2)`.
        identities: who the names are; those that the text does not name do nothing.
        strength: 0 is the class word, 1 what was learned, a straight line in between and beyond.
        class_word_stages: how many of the noisiest stages read the class word, which frees the layout.

    Raises:
        ValueError: an unknown name, two identities of one name, or an identity of another kind of model.
    """
    people = create_people(clip, text, identities, strength, class_word_stages)
    tokens = clip.tokenize(write_stand_ins(text, people))
    check_stand_ins(tokens, text, people)
    borders = list_borders([person.stages for person in people.values()])
    return [encode_range(clip, tokens, list(people.values()), first, end) for first, end in pairwise(borders)]


def encode_negative(clip: Clip, text: str) -> Conditioning:
    """Encode a negative prompt as key and value text of every stage, `[1, word, 2 * width]`.

    Raises:
        ValueError: it names an identity.
    """
    name = PLACEHOLDER.search(text)
    if name:
        raise ValueError(f"The negative prompt names {name[0]}. Describe what to avoid in plain words.")
    return [encode_range(clip, clip.tokenize(text), [], 0, TIMESTEPS, whole=True)]


def list_borders(counts: Sequence[int], timesteps: int = TIMESTEPS) -> list[int]:
    """List the timesteps at which a stage of any identity begins, with 0 and the end.

    >>> list_borders([5, 2])
    [0, 200, 400, 500, 600, 800, 1000]
    """
    # Stage s has the timesteps t with s = floor(count * t / timesteps).
    return sorted({0, timesteps, *(-(-stage * timesteps // count) for count in counts for stage in range(count))})


def get_percent(border: int, timesteps: int = TIMESTEPS) -> float:
    """Return the percent at which ComfyUI goes from timestep `border` to the one below.

    Its percent p is the noise of timestep (1 - p) * 999. Halfway between two timesteps is also where it rounds a noise
    to either, so that a range holds exactly the noises that the UNet gets as timesteps of that range.
    """
    if border >= timesteps:
        return 0.0
    return 1.0 if border <= 0 else 1.0 - (border - 0.5) / (timesteps - 1)


# ------------------------------------------------------------------ who is in the prompt


def create_people(
    clip: Clip, text: str, identities: Sequence[Identity], strength: float, class_word_stages: int
) -> dict[str, Person]:
    """Create, by name, the identities that a text names; errors as in `encode_prompt`."""
    known = {identity.name: identity for identity in identities}
    if len(known) < len(identities):
        raise ValueError("Two identities have the same name. Load each once, or learn one again with another --name.")
    used = list(dict.fromkeys(PLACEHOLDER.findall(text)))
    for name in used:
        if name not in known:
            listed = ", ".join(f"<{one}>" for one in known) or "none"
            raise ValueError(f"The prompt names <{name}>; loaded: {listed}. Load its file, or correct the name.")
    others = list_numbers(clip.tokenize(PLACEHOLDER.sub(" ", text)))
    people: dict[str, Person] = {}
    for name in used:
        tokens = build_tokens(clip, known[name], strength, class_word_stages)
        stand_in, numbers = choose_stand_in(clip, known[name], others)
        others = {key: others[key] | {numbers[key]} for key in others}
        class_words: dict[str, Tensor] = {}
        if len(used) > 1 and strength != 0:
            rows = get_class_rows(clip, known[name])
            class_words = {key: rows[key].mean(dim=0).expand_as(one) for key, one in tokens.items()}
        people[name] = Person(stand_in, numbers, tokens, class_words)
    return people


def get_class_rows(clip: Clip, identity: Identity) -> dict[str, Tensor]:
    """Return the rows `[token, width]` of an identity's class word for each text encoder.

    Raises:
        ValueError: this model does not know it.
    """
    numbers = find_tokens(clip, identity.class_word)
    if numbers is None:
        raise ValueError(f"The class word {identity.class_word!r} of <{identity.name}> is not known to this model.")
    return {key: table[numbers[key]].float().cpu() for key, table in get_token_tables(clip).items()}


def build_tokens(clip: Clip, identity: Identity, strength: float, class_word_stages: int) -> dict[str, Tensor]:
    """Build an identity's tokens for each text encoder, `[stage, 2, vector, width]`, with strength applied.

    Raises:
        ValueError: it was learned on another kind of model, or this one does not know its class word.
    """
    tables = get_token_tables(clip)
    if [table.shape[-1] for table in tables.values()] != [one.shape[-1] for one in identity.tokens]:
        own, model = ([t.shape[-1] for t in ts] for ts in (identity.tokens, tables.values()))
        raise ValueError(
            f"<{identity.name}> has tokens of width {own}, this model reads {model}. "
            "Use a model of the family it was learned on, or learn it again."
        )
    tokens = dict(zip(tables, identity.tokens, strict=True))
    if strength == 1 and not class_word_stages:
        return tokens
    class_rows = get_class_rows(clip, identity)
    built: dict[str, Tensor] = {}
    for key, one in tokens.items():
        rows = class_rows[key]
        row = rows.mean(dim=0)
        # The class word's tokens are written, however many vectors were learned.
        built[key] = rows.expand(*one.shape[:2], -1, -1).clone() if strength == 0 else row + strength * (one - row)
        if class_word_stages:
            built[key][-class_word_stages:] = row
    return built


def get_token_tables(clip: Clip) -> dict[str, Tensor]:
    """Return the token table `[token, width]` of each text encoder.

    Raises:
        ValueError: they are not those of Stable Diffusion 1.x, 2.x or XL.
    """
    names = set(clip.tokenize(""))
    keys = next((keys for keys in ENCODERS if set(keys) == names), None)
    if keys is None:
        raise ValueError("sefi's nodes need the text encoders of Stable Diffusion 1.x, 2.x or XL.")
    model = clip.cond_stage_model
    return {key: getattr(model, f"clip_{key}").transformer.get_input_embeddings().weight for key in keys}


def choose_stand_in(clip: Clip, identity: Identity, others: Mapping[str, set[int]]) -> tuple[str, dict[str, int]]:
    """Choose a word of one token that the prompt has not; `ValueError` if there is none."""
    for word in (identity.class_word, *STAND_INS):
        numbers = find_token(clip, word)
        if numbers is not None and not any(number in others[key] for key, number in numbers.items()):
            return word, numbers
    raise ValueError(f"No word is left to stand for <{identity.name}> in this prompt. Shorten the prompt.")


def find_token(clip: Clip, word: str) -> dict[str, int] | None:
    """Return a word's token for each text encoder; None unless it is exactly one."""
    found = find_tokens(clip, word)
    if found is None or any(len(numbers) > 1 for numbers in found.values()):
        return None
    return {key: numbers[0] for key, numbers in found.items()}


def find_tokens(clip: Clip, words: str) -> dict[str, list[int]] | None:
    """Return the tokens of a few words for each text encoder; None if there are none, or too many."""
    empty, found = clip.tokenize(""), clip.tokenize(words)
    numbers: dict[str, list[int]] = {}
    for key, (blank, *_) in empty.items():
        around, tokens = [one[0] for one in blank], [one[0] for one in found[key][0]]
        count = next(
            (n for n in range(1, MOST_CLASS_TOKENS + 1) if tokens[0] == around[0] and tokens[1 + n :] == around[1:-n]),
            0,
        )
        if not count or tokens == around or not all(isinstance(one, int) for one in tokens):
            return None
        numbers[key] = tokens[1 : 1 + count]
    return numbers


def list_numbers(tokens: Tokens) -> dict[str, set[int]]:
    """Return the numbers among a text's tokens, for each text encoder."""
    return {
        key: {one[0] for chunk in chunks for one in chunk if isinstance(one[0], int)} for key, chunks in tokens.items()
    }


def write_stand_ins(text: str, people: Mapping[str, Person]) -> str:
    """Return a text with a stand-in for every vector of its names."""
    return PLACEHOLDER.sub(lambda name: f" {' '.join([people[name[1]].stand_in] * people[name[1]].vectors)} ", text)


def check_stand_ins(tokens: Tokens, text: str, people: Mapping[str, Person]) -> None:
    """Check that every stand-in is in the tokens; `ValueError` for a name in a place that is not read as words."""
    names = PLACEHOLDER.findall(text)
    for name, person in people.items():
        for key, chunks in tokens.items():
            numbers = [one[0] for chunk in chunks for one in chunk if isinstance(one[0], int)]
            if numbers.count(person.numbers[key]) != person.vectors * names.count(name):
                raise ValueError(f"<{name}> stands where this prompt has no words. Put spaces around it.")


# ------------------------------------------------------------------ texts


def encode_range(
    clip: Clip, tokens: Tokens, people: Sequence[Person], first: int, end: int, *, whole: bool = False
) -> list[Any]:
    """Encode the key and the value text for the timesteps from `first` to before `end`."""
    options = encode_slot(clip, tokens, people, first, KEY)
    key = options.pop("cond")
    same = all(torch.equal(one[:, KEY], one[:, VALUE]) for person in people for one in person.tokens.values())
    value = key if same else encode_slot(clip, tokens, people, first, VALUE)["cond"]
    # ControlNets have no patch: they get the value text alone, at the width they know.
    options["cross_attn_controlnet"] = value
    if not whole:
        options |= {"start_percent": get_percent(end), "end_percent": get_percent(first)}
    return [torch.cat([key, value], dim=-1), options]


def encode_slot(clip: Clip, tokens: Tokens, people: Sequence[Person], timestep: int, slot: int) -> dict[str, Any]:
    """Encode a key or a value text as `Clip.encode_from_tokens` answers.

    Of several people each is encoded with the class words of the others, so that nobody is mixed into those who are
    named later; all other words, and what belongs to the text as a whole, are those of the class words alone.
    """

    def encode(some: Sequence[Person]) -> dict[str, Any]:
        placed = place_vectors(tokens, some, timestep, slot)
        return clip.encode_from_tokens(placed, return_pooled=True, return_dict=True)

    if not all(person.class_words for person in people):
        return encode(people)
    plain = [replace(person, tokens=person.class_words) for person in people]
    answer = encode(plain)
    states = answer["cond"].clone()
    for number, person in enumerate(people):
        places = list_places(tokens, person)
        states[:, places] = encode([*plain[:number], person, *plain[number + 1 :]])["cond"][:, places]
    return {**answer, "cond": states}


def list_places(tokens: Tokens, person: Person) -> list[int]:
    """List where a person's stand-ins are in a text, whose chunks follow each other."""
    key, chunks = next(iter(tokens.items()))
    numbers = [one[0] for chunk in chunks for one in chunk]
    # Of a loaded embedding there is a vector in place of the number.
    return [place for place, one in enumerate(numbers) if isinstance(one, int) and one == person.numbers[key]]


def place_vectors(tokens: Tokens, people: Sequence[Person], timestep: int, slot: int) -> Tokens:
    """Return a text's tokens with the vectors of a timestep's stage in the places of the stand-ins."""
    placed: dict[str, list[list[tuple[Any, ...]]]] = {}
    for key, chunks in tokens.items():
        vectors = {p.numbers[key]: p.tokens[key][p.stages * timestep // TIMESTEPS, slot] for p in people}
        seen = dict.fromkeys(vectors, 0)
        placed[key] = []
        for chunk in chunks:
            row: list[tuple[Any, ...]] = []
            for number, *rest in chunk:
                if isinstance(number, int) and number in vectors:
                    row.append((vectors[number][seen[number] % len(vectors[number])], *rest))
                    seen[number] += 1
                else:
                    row.append((number, *rest))
            placed[key].append(row)
    return placed
