"""Words of prompts: names, placeholders, class words, templates, refused syntax, and what the embedded model knows."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from pathlib import Path

from sefi.core.errors import ConfigError, IdentityError, PromptError, check_type
from sefi.core.hints import find_nearest
from sefi.core.text import is_utf8

NAME = r"[A-Za-z0-9_-]{1,64}"


def check_name(name: str) -> None:
    """Refuse names that could not be a placeholder or a file.

    Raises:
        IdentityError: it holds anything but letters a to z, digits, `-` and `_`, or is empty or too long.
    """
    remedy = "Use 1 to 64 of a-z, A-Z, 0-9, - and _, no brackets, as in ada."
    check_type(name, str, "The name", IdentityError, remedy)
    if not re.fullmatch(NAME, name):
        raise IdentityError(f"{name!r} cannot be a name.", remedy)


# Words for people that are one token of CLIP; such subjects are cut out by their faces.
PEOPLE = (
    "person", "human", "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant", "teen", "teenager",
    "adult", "lady", "gentleman", "guy", "male", "female", "people", "men", "women", "children", "mother", "father",
    "mom", "dad", "brother", "sister", "daughter", "grandmother", "grandfather", "grandma", "grandpa", "bride", "groom",
    "wife", "husband", "son", "uncle", "aunt", "friend", "student", "king", "queen", "prince", "princess",
    "actor", "actress", "celebrity", "face",
)  # fmt: skip
EXAMPLES = (*PEOPLE[:8], "dog", "cat", "bear")


def normalise_class_word(word: str) -> str:
    """Return a class word in small letters with single spaces; `ValueError` if nothing is left.

    >>> normalise_class_word(" Person ")
    'person'
    """
    normal = " ".join(word.split()).lower()
    if not normal:
        raise ValueError("the class word is empty")
    return normal


def is_person(class_word: str) -> bool:
    """Return whether a class word means a person, however it is spelt; of several words the last one says it.

    >>> is_person("old man"), is_person("golden retriever")
    (True, False)
    """
    return class_word.lower().split()[-1:] in [[word] for word in PEOPLE]


def needs_face(class_word: str, *, crop: bool) -> bool:
    """Return whether the subject is cut out by its face: people are, unless the whole photo is wanted."""
    return crop and is_person(class_word)


Box = tuple[int, int, int, int]
"""A part of a photo: left, top, width and height in pixels of the photo as it is read, turned upright."""


def check_crop_options(
    class_word: str,
    *,
    crop: bool,
    face: int | None = None,
    box: Box | None = None,
    detector: object | None = None,
    reads_face: bool = False,
) -> None:
    """Refuse options that say where the subject is and contradict each other, or look for a face where there is none.

    Args:
        reads_face: the settings look for a person's face in what is learned too (`Config.reads_face`): then a
            detector is of use without a crop and with a box.

    Raises:
        ConfigError: a box and another of them, or a face or a detector though the subject is no person or the whole
            photo is taken.
    """
    options = {"--face": face, "--detector": None if reads_face and is_person(class_word) else detector}
    unused = [option for option, value in options.items() if value is not None]
    if box is not None and (unused or not crop):
        others = [*unused, *([] if crop else ["--no-crop"])]
        raise ConfigError(
            f"--box and {' and '.join(others)} contradict each other: each says what to cut out of the photo.",
            "Give only one of them.",
        )
    if not unused or needs_face(class_word, crop=crop):
        return
    listed, have = " and ".join(unused), "has" if len(unused) == 1 else "have"
    if is_person(class_word):
        reason, other = "--no-crop takes the whole photo", "leave out --no-crop"
    else:
        reason, other = f"{class_word!r} is not known as a word for a person", "use the class word person"
    raise ConfigError(f"{listed} {have} no effect: {reason}.", f"Leave out {listed}, or {other}.")


def check_photo_count(count: int, *, face: int | None, box: Box | None) -> None:
    """Refuse to choose a face or a box for several photos at once.

    Raises:
        ConfigError: there are several photos.
    """
    if count > 1 and (face is not None or box is not None):
        option = "--face" if face is not None else "--box"
        raise ConfigError(
            f"{option} belongs to one photo, and there are {count}.",
            "Crop the photos to the subject, or give one photo.",
        )


PLACEHOLDER = re.compile(f"<({NAME})>")
ANGLED = re.compile(r"<[^<>]*>?|>")
WRITE_WEIGHTS = r"Write (text:1.1) to change a weight, and \( and \) for plain parentheses."
PLAIN_WORDS = "Write (text:1.1) to change a weight, and all else in plain words, such as: a photo of <ada> smiling."
ADAPTER = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:", re.IGNORECASE)
# What other programs read as weights, alternatives and joints.
MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\[\]{}]"), "Brackets change no weight here"),
    (re.compile(r"(?<=[^\s\d]):[-+]?\d*\.?\d+"), "A number after a colon changes no weight here"),
    (re.compile(r"(?<=\w)(?:\+\+|--)(?=\W|$)"), "++ and -- change no weight here"),
    (re.compile(r"(?<!\S)--[A-Za-z]\w*"), "Options are not read from a prompt"),
    (re.compile(r"(?<!\S)(?:BREAK|AND)(?!\S)"), "BREAK and AND do not join prompts here"),
)
# Escaped parentheses, and where a weighted text begins and ends.
WEIGHT_MARK = re.compile(r"\\[()]|\(|:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|\)")
LARGEST_WEIGHT = 3.0


@dataclass(frozen=True)
class WeightedText:
    """A part of a prompt in plain words, and how much it counts: 1 is no change."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[WeightedText]:
    r"""Divide a prompt into parts of one weight each; neighbours have different weights.

    `(text:1.3)` gives a weight from 0 to 3 to everything inside; the weights of nested parentheses are multiplied, as
    in AUTOMATIC1111. `\(` and `\)` are plain parentheses.

    Raises:
        PromptError: parentheses without a number or without their other half, around nothing, or a weight out of range.

    >>> parse_weights("a (big (red:1.5) hat:2) here")[1:3]
    [WeightedText(text='big ', weight=2.0), WeightedText(text='red', weight=3.0)]
    """
    parts, begun, end = list[WeightedText](), list[tuple[int, int]](), 0
    for mark in WEIGHT_MARK.finditer(prompt):
        parts.append(WeightedText(prompt[end : mark.start()]))
        end = mark.end()
        if mark[0].startswith("\\"):
            parts.append(WeightedText(mark[0][1]))
        elif mark[0] == "(":
            begun.append((len(parts), mark.start()))
        elif not begun:
            raise PromptError(f"A parenthesis is closed that was not opened: {mark[0]!r} in {prompt!r}.", WRITE_WEIGHTS)
        else:
            first, start = begun.pop()
            parts[first:] = weight_group(parts[first:], mark[1], prompt[start:end])
    if begun:
        raise PromptError(f"A parenthesis is not closed: {prompt[begun[-1][1] :]!r} in {prompt!r}.", WRITE_WEIGHTS)
    parts.append(WeightedText(prompt[end:]))
    texts = (part for part in parts if part.text)
    groups = groupby(texts, key=lambda part: part.weight)
    return [WeightedText("".join(part.text for part in group), weight) for weight, group in groups]


def weight_group(parts: Sequence[WeightedText], number: str | None, group: str) -> list[WeightedText]:
    """Multiply the weights of what stands in parentheses.

    Args:
        number: what follows the colon; None where there is no colon.
        group: the parentheses and what is in them.

    Raises:
        PromptError: no number, no words, or a weight out of range.
    """
    if number is None:
        raise PromptError(f"Parentheses without a number change no weight here: {group!r}.", WRITE_WEIGHTS)
    if not any(part.text.strip() for part in parts):
        raise PromptError(f"There are no words in {group!r}.", WRITE_WEIGHTS)
    weighted = [WeightedText(part.text, part.weight * float(number)) for part in parts]
    if any(not 0 <= part.weight <= LARGEST_WEIGHT for part in weighted):
        raise PromptError(
            f"Weights are 0 to {LARGEST_WEIGHT:g}, those of nested parentheses multiplied: {group!r}.",
            f"{WRITE_WEIGHTS} 0.5 to 1.5 is usual.",
        )
    return weighted


def strip_weights(prompt: str) -> str:
    """Return the words of a prompt without their weights.

    Raises:
        PromptError: as `parse_weights`.

    >>> strip_weights("a (photo:1.2) of <ada>")
    'a photo of <ada>'
    """
    return "".join(part.text for part in parse_weights(prompt))


def find_placeholders(prompt: str) -> list[str]:
    """Return the names in the prompt, in order, each once."""
    return list(dict.fromkeys(PLACEHOLDER.findall(prompt)))


def check_syntax(prompt: str) -> None:
    """Refuse what is not UTF-8, angle brackets that hold no valid name, wrong weights, and syntax of other programs.

    Raises:
        PromptError: names the first mark that would otherwise be read as words.
    """
    check_type(prompt, str, "A prompt", PromptError, "Give it as text.")
    if not is_utf8(prompt):
        raise PromptError(f"The text {prompt!r} is not UTF-8.", "Type it in UTF-8.")
    for match in ANGLED.finditer(prompt):
        if not PLACEHOLDER.fullmatch(match[0]):
            raise make_angled_error(match[0])
    parts = [PLACEHOLDER.sub("x", part.text) for part in parse_weights(prompt)]
    for text, (mark, meaning) in product(["".join(parts), *parts], MARKS):
        match = mark.search(text)
        if match:
            raise PromptError(f"{meaning}: {match[0]!r} in {prompt!r}.", PLAIN_WORDS)


def check_template(sentence: str) -> None:
    """Refuse weights in a sentence to learn with, and whatever `check_syntax` refuses.

    Raises:
        PromptError: names what is refused.
    """
    check_syntax(sentence)
    if strip_weights(sentence) != sentence:
        raise PromptError(
            f"Sentences to learn with have no weights and no parentheses: {sentence!r}.",
            "Learn with plain words; weights belong into prompts.",
        )


def make_angled_error(text: str) -> PromptError:
    """Return the error for angle brackets around anything but a name."""
    if ADAPTER.match(text):
        return PromptError(
            f"Prompts load no LoRA or other adapter: {text!r}.",
            "Leave it out; subjects come from identity files.",
        )
    inner = text.strip("<> ")
    if re.fullmatch(NAME, inner):
        return PromptError(f"{text!r} is no placeholder.", f"Write <{inner}>, without spaces.")
    return PromptError(
        f"{text!r} is no placeholder.",
        "Names between < and > have 1 to 64 letters a to z, digits, - or _; leave other angle brackets out.",
    )


def make_unknown_placeholder_error(name: str, names: Mapping[str, str]) -> PromptError:
    """Return the error for a name that no identity has."""
    has = f"known here: {', '.join(f'<{n}>' for n in names)}" if names else "no identity file was given"
    near = find_nearest(name, names)
    remedy = f"Give its file with -i {name}.safetensors." if near is None else f"Write <{near}>, as it was learned."
    return PromptError(f"The prompt names <{name}>, but {has}.", remedy)


def refuse_names(negative_prompt: str) -> None:
    """Refuse identities in a negative text: they change by stage, which a negative text does not.

    Raises:
        PromptError: it names one.
    """
    for name in find_placeholders(negative_prompt)[:1]:
        raise PromptError(f"The negative prompt names <{name}>.", "Describe what to avoid in plain words.")


def check_used(prompts: Sequence[str], names: Sequence[str]) -> None:
    """Check that every identity stands in a prompt; `PromptError` names the first that does not."""
    used = {name for prompt in prompts for name in find_placeholders(prompt)}
    for name in names:
        if name not in used:
            raise PromptError(
                f"The identity {name!r} was given, but no prompt contains <{name}>.",
                f'Write <{name}> where the subject belongs, as in "a photo of <{name}> at the beach".',
            )


def check_prompts(prompts: Iterable[str], class_words: Mapping[str, str], negative_prompt: str = "") -> None:
    """Refuse prompts that cannot be used, before any model is opened.

    Args:
        class_words: class word of every identity given, by its name.

    Raises:
        PromptError: foreign syntax, a name without identity, an identity without its name, a name in the negative
            prompt.
    """
    prompts = list(prompts)
    for prompt in (*prompts, negative_prompt):
        check_syntax(prompt)
    refuse_names(negative_prompt)
    for name in (name for prompt in prompts for name in find_placeholders(prompt)):
        if name not in class_words:
            raise make_unknown_placeholder_error(name, class_words)
    check_used(prompts, list(class_words))


# Ours: the seven of the paper, section 6.4.
FACE_TEMPLATES = (
    "a photo of a face of {}",
    "a photo of a rendering of a face of {}",
    "a close-up photo of the face of {}",
    "a photo of the cool face of {}",
    "a rendition of the face of {}",
    "an illustration of a face of {}",
    "a depiction of a face of {}",
)

# DreamBooth and Custom Diffusion: one sentence.
SHORT_TEMPLATES = ("a photo of {}",)

# The 27 sentences of CLIP's small ImageNet list that Textual Inversion took up.
CLASS_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
# Their 81 with two more media, as in Textual Inversion's and Celeb Basis' code.
MEDIA = ("a photo of", "an illustration of", "a depiction of")
ALL_TEMPLATES = tuple(
    t.replace(MEDIA[0], medium, 1) if t.startswith(MEDIA[0]) else t for medium in MEDIA for t in CLASS_TEMPLATES
)
# Of a face, as Celeb Basis and Cross Initialization learn.
FACE_TEMPLATES_81 = tuple(t.format("face of {}") for t in ALL_TEMPLATES)

# Sentences with a context, in words that the embedded model knows too: what tokens must not change (CoRe).
CONTEXT_TEMPLATES = (
    "a photo of {} at the beach",
    "a photo of {} in the snow",
    "a photo of {} in the forest",
    "a photo of {} in the city at night",
    "a photo of {} reading a book",
    "a photo of {} holding a cup",
    "a photo of {} smiling",
    "a photo of {} wearing a hat",
    "a painting of {} in a garden",
    "a drawing of {} in the mountains",
)


# What the embedded model knows; files in its folder.
CHARACTERS = Path(__file__).parent.parent / "models" / "characters.txt"
WORDS = Path(__file__).parent.parent / "models" / "words.json"
# As the embedded tokenizer splits a text: letters together, other signs one by one.
PIECE = re.compile(r"[^\W\d_]+|[^\s]")
PROMPT_PIECE = re.compile(f"<{NAME}>|{PIECE.pattern}")  # a name is one piece
PUNCTUATION = frozenset(",-.")


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
    return frozenset(split_words([*phrases, *read_names()])) | PUNCTUATION


def find_untrained_words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts that the embedded model was not trained with, each once, in order."""
    return [word for word in dict.fromkeys(split_words(texts)) if word not in read_known_words()]


def split_words(texts: Iterable[str]) -> list[str]:
    """Return the words and marks of texts in small letters, without names in angle brackets.

    >>> split_words(["A close-up of <ada>, smiling"])
    ['a', 'close', '-', 'up', 'of', ',', 'smiling']
    """
    return [piece for text in texts for piece in PIECE.findall(PLACEHOLDER.sub(" ", text).lower())]


def describe_equal_prompts(prompts: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """Return a remark for every group of prompts that are equal but for unknown words."""
    groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for prompt in dict.fromkeys(prompts):
        pieces = (
            (piece.lower(), part.weight) for part in parse_weights(prompt) for piece in PROMPT_PIECE.findall(part.text)
        )
        known = tuple(piece for piece in pieces if piece[0] not in unknown)
        groups.setdefault(known, []).append(prompt)
    return [
        f"to this model these prompts say the same, and their images differ by chance only: {'; '.join(group)}"
        for group in groups.values()
        if len(group) > 1
    ]
