"""Which seeds there are."""

from operator import index
from typing import SupportsIndex

from sefi.core.errors import ConfigError

# Files hold whole numbers below 2^63, and image k of a prompt has seed + k.
LARGEST_SEED = 2**62


def check_seed(seed: SupportsIndex) -> int:
    """Return a seed, 0 to 2^62, as a plain integer.

    Raises:
        ConfigError: it is no whole number, negative or too large for the files that keep it.

    >>> check_seed(7)
    7
    """
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise ConfigError(f"{seed!r:.60} is no seed.", f"Use a whole number from 0 to {LARGEST_SEED}.")
    return number
