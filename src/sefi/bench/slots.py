"""Names of an identity's slots: a stage's key or value."""

from typing import TYPE_CHECKING, Literal

from sefi.core.errors import ConfigError

if TYPE_CHECKING:  # naming suites loads no torch
    from sefi.conditioning.conditioner import Slot

KINDS: tuple[Literal["K", "V"], ...] = ("K", "V")


def slots_named(names: tuple[str, ...], stages: int) -> "list[Slot]":
    """`K` (of every stage), `V`, `3` (both of a stage) and `3K` as slots.

    >>> slots_named(("V", "0K"), 2)
    [(0, 'V'), (1, 'V'), (0, 'K')]

    Raises:
        ConfigError: a name is none of these.
    """
    found: list[Slot] = []
    for name in names:
        named: list[Slot] = [
            (stage, k) for k in KINDS for stage in range(stages) if name in (k, str(stage), f"{stage}{k}")
        ]
        if not named:
            raise ConfigError(f"There is no slot {name!r}.", "Write K, V, a stage such as 3, or both as 3K.")
        found += named
    return found
