"""What a prompt may hold: plain words and `<name>`; the marks of other programs are refused, never read as words."""

import re
from collections.abc import Iterable, Mapping, Sequence

from sefi.core.errors import PromptError
from sefi.core.hints import find_nearest
from sefi.core.names import NAME
from sefi.core.utf8 import is_utf8

PLACEHOLDER = re.compile(f"<({NAME})>")
ANGLED = re.compile(r"<[^<>]*>?|>")
PLAIN_WORDS = "Write it in plain words, such as: a photo of <ada> smiling."
ADAPTER = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:", re.IGNORECASE)
# What other programs read as weights, alternatives and joints.
MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[()\[\]{}]"), "Brackets change no weight here"),
    (re.compile(r"(?<=[^\s\d]):[-+]?\d*\.?\d+"), "A number after a colon changes no weight here"),
    (re.compile(r"(?<=\w)(?:\+\+|--)(?=\W|$)"), "++ and -- change no weight here"),
    (re.compile(r"(?<!\S)--[A-Za-z]\w*"), "Options are not read from a prompt"),
    (re.compile(r"(?<!\S)(?:BREAK|AND)(?!\S)"), "BREAK and AND do not join prompts here"),
)


def placeholders(prompt: str) -> list[str]:
    """Return the names in the prompt, in order, each once."""
    return list(dict.fromkeys(PLACEHOLDER.findall(prompt)))


def check_syntax(prompt: str) -> None:
    """Refuse what is not UTF-8, angle brackets that hold no valid name, and the weight syntax of other programs.

    Raises:
        PromptError: names the first mark that would otherwise be read as words.
    """
    if not is_utf8(prompt):
        raise PromptError(f"The text {prompt!r} is not UTF-8.", "Type it in UTF-8.")
    for found in ANGLED.finditer(prompt):
        if not PLACEHOLDER.fullmatch(found[0]):
            raise refuse_angled(found[0])
    plain = PLACEHOLDER.sub("x", prompt)
    for mark, meaning in MARKS:
        found = mark.search(plain)
        if found:
            raise PromptError(f"{meaning}: {found[0]!r} in {prompt!r}.", PLAIN_WORDS)


def refuse_angled(text: str) -> PromptError:
    """Return the error for angle brackets around anything but a name."""
    if ADAPTER.match(text):
        return PromptError(
            f"Prompts load no LoRA or other adapter: {text!r}.",
            "Leave it out; subjects come from identity files (-i FILE).",
        )
    inner = text.strip("<> ")
    if re.fullmatch(NAME, inner):
        return PromptError(f"{text!r} is no placeholder.", f"Write <{inner}>, without spaces.")
    return PromptError(
        f"{text!r} is no placeholder.",
        "Names between < and > have 1 to 64 letters a to z, digits, - or _; leave other angle brackets out.",
    )


def unknown_placeholder(name: str, known: Mapping[str, str]) -> PromptError:
    """Return the error for a name that no identity has."""
    has = f"known here: {', '.join(f'<{n}>' for n in known)}" if known else "no identity file was given"
    near = find_nearest(name, known)
    remedy = f"Give its file with -i {name}.safetensors." if near is None else f"Write <{near}>, as it was learned."
    return PromptError(f"The prompt names <{name}>, but {has}.", remedy)


def refuse_names(negative_prompt: str) -> None:
    """Refuse identities in a negative text: they change by stage, which a negative text does not.

    Raises:
        PromptError: it names one.
    """
    for name in placeholders(negative_prompt)[:1]:
        raise PromptError(f"The negative prompt names <{name}>.", "Describe what to avoid in plain words.")


def check_used(prompts: Sequence[str], names: Sequence[str]) -> None:
    """Every identity must stand in a prompt; `PromptError` names the first that does not."""
    used = {name for prompt in prompts for name in placeholders(prompt)}
    for name in names:
        if name not in used:
            raise PromptError(
                f"The identity {name!r} was given, but no prompt contains <{name}>.",
                f'Write <{name}> where the subject belongs, as in "a photo of <{name}> at the beach".',
            )


def check_prompts(prompts: Iterable[str], class_words: Mapping[str, str], negative_prompt: str = "") -> None:
    """Refuse prompts that cannot be drawn, before any model is opened.

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
    for name in (name for prompt in prompts for name in placeholders(prompt)):
        if name not in class_words:
            raise unknown_placeholder(name, class_words)
    check_used(prompts, list(class_words))
