"""Values to JSON that every reader takes: no `NaN`, no `Infinity`."""

import json
import math
from typing import Any


def dump_json(value: object, *, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """Return JSON; a number that is not finite becomes null.

    Args:
        indent: spaces for each level; None writes one line.
        options: `sort_keys` and `separators`, as of `json.dumps`.

    >>> dump_json({"norm": float("inf"), "steps": (1, 2)})
    '{"norm": null, "steps": [1, 2]}'
    """
    return json.dumps(_with_nulls(value), indent=indent, allow_nan=False, **options)


def _with_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _with_nulls(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
