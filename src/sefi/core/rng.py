"""Random streams named by seed and purpose, and the seeds that are allowed."""

import hashlib
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

from sefi.core.errors import ConfigError

if TYPE_CHECKING:  # the command line checks seeds before torch is loaded
    import torch

# Files hold whole numbers below 2^63, and image k of a prompt has seed + k.
LARGEST_SEED = 2**62


def require_seed(seed: SupportsIndex) -> int:
    """Return a seed, 0 to 2^62, as a plain integer.

    Raises:
        ConfigError: it is no whole number, negative or too large for the files that keep it.

    >>> require_seed(7)
    7
    """
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise ConfigError(f"{seed!r:.60} is no seed.", f"Use a whole number from 0 to {LARGEST_SEED}.")
    return number


def create_generator(seed: int, purpose: str, step: int = 0) -> "torch.Generator":
    """Create a CPU generator for one use, so that a draw added elsewhere changes no numbers here.

    >>> import torch
    >>> first, second = (torch.rand(3, generator=create_generator(3, "noise", 7)) for _ in range(2))
    >>> bool((first == second).all())
    True
    """
    import torch  # noqa: PLC0415

    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
