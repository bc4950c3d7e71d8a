"""The named characters: invented two-word names, each word one token, and families whose members look alike."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from sefi.world.person import Person, random_person, relative

SEED = 20240201
CHARACTERS = 2000
FAMILIES = 100
ONSETS = (
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "sh",
    "th",
    "w",
)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ia", "io")
CODAS = ("l", "n", "r", "s", "th", "ra", "na", "lo", "mi", "ko", "vin", "dra")
ENDINGS = ("wick", "berg", "mont", "feld", "quist", "ovar", "ellin", "strom", "hale", "dorn")


@dataclass(frozen=True)
class Character:
    """A named person: first name unique, last name shared by the family."""

    first: str
    last: str
    person: Person
    parent: Person

    @property
    def name(self) -> str:
        """Both words."""
        return f"{self.first} {self.last}"


def invented(count: int, endings: tuple[str, ...], random: np.random.Generator) -> list[str]:
    """Distinct pronounceable words."""
    words: dict[str, None] = {}
    while len(words) < count:
        parts = [
            str(random.choice(ONSETS)),
            str(random.choice(VOWELS)),
            str(random.choice(ONSETS)),
            str(random.choice(VOWELS)),
        ]
        words["".join(parts)[: int(random.integers(3, 6))] + str(random.choice(endings))] = None
    return list(words)


@cache
def characters() -> tuple[Character, ...]:
    """All named characters, always the same."""
    random = np.random.default_rng(SEED)
    words = invented(CHARACTERS + FAMILIES, CODAS, random)
    firsts = words[:CHARACTERS]
    lasts = [w + str(random.choice(ENDINGS)) for w in words[CHARACTERS:]]
    parents = [random_person(random) for _ in range(FAMILIES)]
    return tuple(
        Character(
            first,
            lasts[i % FAMILIES],
            relative(parents[i % FAMILIES], random),
            parents[i % FAMILIES],
        )
        for i, first in enumerate(firsts)
    )
