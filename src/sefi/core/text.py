"""Text that files and terminals can hold: UTF-8, and JSON without surprises."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from sefi.core.errors import ConfigError

SURROGATE = re.compile("[\ud800-\udfff]")
MOST_NAMED = 10  # files that a message names
SMALLEST_MEMORY = 2**20  # bytes; less is a number whose unit was left out
SLUG_LENGTH = 60  # letters of a prompt in the name of a file
# What moves a terminal's cursor, changes its colours or title, or turns the order of letters round (Unicode's C0 and
# C1, line and paragraph separators, bidirectional overrides and isolates).
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def is_utf8(text: str) -> bool:
    r"""Return whether a text can be written in UTF-8.

    >>> is_utf8("zoë"), is_utf8("zo\udceb")
    (True, False)
    """
    return text.isascii() or not SURROGATE.search(text)


def escape_surrogates(text: str) -> str:
    r"""Return a text that can be written in UTF-8, halves of characters as escapes; names of files may have them.

    >>> escape_surrogates("zo\udceb")
    'zo\\udceb'
    """
    return text if is_utf8(text) else text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_controls(text: str, *, allowed: str = "") -> str:
    r"""Return a text that does nothing to a terminal: control characters, as a file may hold them, become escapes.

    Args:
        allowed: control characters that stay, such as line ends of our own.

    >>> escape_controls("ada\x1b[2J\n", allowed="\n")
    'ada\\x1b[2J\n'
    """
    return CONTROL.sub(lambda found: found[0] if found[0] in allowed else ascii(found[0])[1:-1], text)


def format_names(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Return the first of some names, and how many there are besides.

    >>> format_names(["ada", "bob", "cy"]), format_names(["ada", "bob", "cy"], 2)
    ('ada, bob, cy', 'ada, bob ... and 1 more')
    """
    more = f" ... and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# How a cell begins that a spreadsheet computes; the wide forms (=, +, -, @) in East Asian ones.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_formula(text: str) -> str:
    """Return the text of a table's cell so that no spreadsheet computes it, or asks a server for it.

    >>> escape_formula("=1+1"), escape_formula("ours")
    ("'=1+1", 'ours')
    """
    return f"'{text}" if text.startswith(FORMULA) else text


def make_file_name(prompt: str) -> str:
    """Return a prompt as a short file name.

    >>> make_file_name("a photo of <ada> at the beach!")
    'a-photo-of-ada-at-the-beach'
    """
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].strip("-") or "image"


def make_slug(label: str) -> str:
    """Return a label as part of a file name.

    >>> make_slug("one token, 500 steps")
    'one-token-500-steps'
    """
    return "-".join("".join(c if c.isascii() and (c.isalnum() or c == ".") else " " for c in label.lower()).split())


def dump_json(value: object, *, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """Return JSON; a number that is not finite becomes null, and bytes of a file name that are no UTF-8 become escapes.

    Args:
        indent: spaces for each level; None writes one line.
        options: `sort_keys` and `separators`, as of `json.dumps`.

    >>> dump_json({"norm": float("inf"), "steps": (1, 2)})
    '{"norm": null, "steps": [1, 2]}'
    """
    return json.dumps(_make_plain(value), indent=indent, allow_nan=False, **options)


def _make_plain(value: object) -> object:
    if isinstance(value, dict):
        return {_make_plain(name): _make_plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_plain(inner) for inner in value]
    if isinstance(value, str):
        return escape_surrogates(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_memory(text: str | int) -> int:
    """Return a size in bytes, given in bytes or as text.

    >>> parse_memory("6GB"), parse_memory("512 MiB")
    (6000000000, 536870912)

    Raises:
        ConfigError: it is no size, or less than 1 MiB, as 6 is where 6GB was meant.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError  # noqa: PLC0415  `sefi --help` does without

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < SMALLEST_MEMORY:
        raise ConfigError(f"{str(text)[:40]!r} is no size of memory.", "Write it as 6GB, or 6GiB.")
    return size
