"""Values to JSON that every reader takes: no `NaN`, no `Infinity`, no half of a character."""

import json
import math
from typing import Any

from sefi.core.utf8 import escape_halves


def dump_json(value: object, *, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """Return JSON; a number that is not finite becomes null, and bytes of a file name that are no UTF-8 become escapes.

    Args:
        indent: spaces for each level; None writes one line.
        options: `sort_keys` and `separators`, as of `json.dumps`.

    >>> dump_json({"norm": float("inf"), "steps": (1, 2)})
    '{"norm": null, "steps": [1, 2]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, **options)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {_plain(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return escape_halves(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
