"""Text in lines that fit, whatever measures them."""

from bisect import bisect_right
from collections.abc import Callable, Iterator

DOTS = "..."


def wrap_text(content: str, width: float, measure: Callable[[str], float], most: int) -> str:
    """Return a text in lines of at most a width: broken between words, and inside a word only if it alone is wider.

    Args:
        content: Any text; its own line breaks count as spaces.
        width: Greatest width of a line, in the unit of `measure`.
        measure: The width of a line.
        most: Greatest number of lines; of a longer text the end is left out, marked by three dots.
    """
    lines = [""]
    for word in content.split():
        if len(lines) > most + 1:  # the first may be empty
            break
        longer = f"{lines[-1]} {word}".lstrip()
        if measure(longer) <= width:
            lines[-1] = longer
        else:
            lines += split_word(word, width, measure)
    lines = [line for line in lines if line]
    if len(lines) <= most:
        return "\n".join(lines)
    last = next(split_word(lines[most - 1], width - measure(DOTS), measure))
    return "\n".join([*lines[: most - 1], last + DOTS])


def split_word(word: str, width: float, measure: Callable[[str], float]) -> Iterator[str]:
    """Yield the pieces of a word, each as long as the width allows and at least one letter."""
    while word:
        letters = bisect_right(range(1, len(word) + 1), width, key=lambda count: measure(word[:count]))
        yield word[: max(1, letters)]
        word = word[max(1, letters) :]
