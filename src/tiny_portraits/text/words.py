"""The words of captions, the plainest phrase first, and the names of the characters."""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from tiny_portraits.drawing.traits import Person, sample_person, sample_relative

ADJECTIVES = {
    "smiling": "smiling",
    "sad": "sad",
    "angry": "angry",
    "surprised": "surprised",
    "old": "old",
}
PHRASES = {
    "smiling": ("smiling", "with a smile"),
    "sad": ("looking sad", "sad"),
    "angry": ("looking angry", "angry"),
    "surprised": ("looking surprised", "surprised"),
    "eyes closed": ("with eyes closed", "with closed eyes"),
    "old": ("as an old person", "old"),
    "beard": ("with a beard",),
    "sunglasses": ("wearing sunglasses", "with sunglasses"),
    "hat": ("wearing a hat", "with a hat"),
    "purple hair": ("with purple hair",),
    "curly hair": ("with curly hair",),
    "round face": ("with a round face",),
    "orange hair": ("with orange hair",),
    "white hair": ("with white hair",),
    "turquoise hair": ("with turquoise hair",),
    "crown": ("wearing a crown", "with a crown"),
}
DOING = {
    "cup": ("holding a cup", "with a cup"),
    "guitar": ("playing the guitar", "playing guitar"),
    "book": ("reading a book",),
    "balloon": ("holding a balloon", "with a balloon"),
    "umbrella": ("with an umbrella", "holding an umbrella"),
    "basketball": ("with a basketball", "holding a basketball"),
    "waving": ("waving", "waving a hand"),
    "cooking": ("cooking", "cooking an egg"),
    "flowers": ("holding flowers", "with a bunch of flowers"),
    "phone": ("talking on the phone", "with a phone"),
    "ice cream": ("eating ice cream", "holding an ice cream"),
    "singing": ("singing", "singing into a microphone"),
}
TOGETHER = {"shaking hands": ("shaking hands", "who are shaking hands")}
PLACES = {
    "beach": ("at the beach", "on the beach"),
    "snow": ("in the snow",),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city at night", "in a city at night"),
    "room": ("in a room", "in the room"),
    "tower": ("in front of the tower",),
    "desert": ("in the desert",),
    "space": ("in space",),
    "mountains": ("in the mountains",),
    "garden": ("in a garden", "in the garden"),
    "underwater": ("underwater", "under water"),
    "library": ("in a library", "in the library"),
}
MEDIA = {
    "photo": ("a photo of", "a picture of", "an image of"),
    "drawing": ("a drawing of", "a pencil drawing of"),
    "painting": ("a painting of", "an oil painting of"),
    "pixel art": ("pixel art of", "a pixel art image of"),
    "watercolour": ("a watercolour of", "a watercolour painting of"),
    "comic": ("a comic of", "a comic book drawing of"),
    "black and white": ("a black and white photo of", "a black and white picture of"),
    "chalk": ("a chalk drawing of",),
}
LIGHT_WORDS = {
    "warm": "in warm light",
    "cold": "in cold light",
    "sunset": "at sunset",
    "neon": "in neon light",
    "dim": "in dim light",
    "fog": "in fog",
}
# Clothes; where a colour is named, the image's own goes into {}.
GARMENTS = {
    "shirt": ("in a {} shirt", "wearing a {} shirt"),
    "striped shirt": ("in a striped shirt", "wearing a striped shirt"),
    "hoodie": ("in a {} hoodie", "wearing a {} hoodie"),
    "sweater": ("in a {} sweater", "wearing a {} sweater"),
    "dress": ("in a {} dress", "wearing a {} dress"),
    "suit": ("in a suit", "wearing a suit"),
    "leather jacket": ("in a leather jacket", "wearing a leather jacket"),
    "raincoat": ("in a raincoat", "wearing a raincoat"),
    "scarf": ("with a scarf", "wearing a scarf"),
    "apron": ("in an apron", "wearing an apron"),
    "armour": ("in armour", "wearing armour"),
    "spacesuit": ("in a spacesuit", "wearing a spacesuit"),
}
CAMERAS = {
    "blurred background": ("with a blurred background",),
    "wide shot": ("in a wide shot", "from afar"),
}
# Upper ends of ranges of hue (turns), and the word for a colour in each.
HUES = (
    (0.04, "red"),
    (0.09, "orange"),
    (0.20, "yellow"),
    (0.45, "green"),
    (0.52, "turquoise"),
    (0.66, "blue"),
    (0.86, "purple"),
    (0.955, "pink"),
    (1.01, "red"),
)
READABLE = {"attribute": PHRASES, "action": DOING, "scene": PLACES, "light": LIGHT_WORDS, "camera": CAMERAS}
GARMENT_PHRASES = {label: phrases for label, phrases in GARMENTS.items() if "{}" not in phrases[0]}
ARTICLES = re.compile(r"\s+(a|an|the)$")
SEPARATORS = re.compile(r"^(?:[\s,.]|and\b)+")
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


def invent_words(count: int, endings: tuple[str, ...], random: np.random.Generator) -> list[str]:
    """Return distinct pronounceable words."""
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
def list_characters() -> tuple[Character, ...]:
    """Return all named characters, always the same."""
    random = np.random.default_rng(SEED)
    words = invent_words(CHARACTERS + FAMILIES, CODAS, random)
    firsts = words[:CHARACTERS]
    lasts = [w + str(random.choice(ENDINGS)) for w in words[CHARACTERS:]]
    parents = [sample_person(random) for _ in range(FAMILIES)]
    return tuple(
        Character(
            first,
            lasts[i % FAMILIES],
            sample_relative(parents[i % FAMILIES], random),
            parents[i % FAMILIES],
        )
        for i, first in enumerate(firsts)
    )


@cache
def list_readable_phrases() -> tuple[tuple[str, str, str], ...]:
    """Return every phrase that a reader can answer for, with its kind and label, the longest first."""
    tables = {**READABLE, "garment": GARMENT_PHRASES}
    phrases = [
        (phrase, kind, label)
        for kind, table in tables.items()
        for label, spoken in table.items()
        for phrase in ([spoken] if isinstance(spoken, str) else spoken)
    ]
    return tuple(sorted(phrases, key=lambda one: -len(one[0])))


def parse_wanted(sentence: str) -> tuple[tuple[str, str], ...] | None:
    """Return what a reader must see in an image of a sentence, as kind and label; None where a word is not understood.

    A photo is no style that is asked for: it is what is drawn unasked.

    >>> parse_wanted("a painting of {} smiling, at the beach"), parse_wanted("{} on the moon")
    ((('style', 'painting'), ('attribute', 'smiling'), ('scene', 'beach')), None)

    Args:
        sentence: with `{}` in the place of the person.
    """
    before, place, rest = sentence.lower().partition("{}")
    media = [label for label, spoken in MEDIA.items() if ARTICLES.sub("", before.strip()) in spoken]
    if not place or not media:
        return None
    wanted = [] if media[0] == "photo" else [("style", media[0])]
    while rest := SEPARATORS.sub("", rest):
        fitting = [one for one in list_readable_phrases() if re.match(rf"{re.escape(one[0])}\b", rest)]
        if not fitting:
            return None
        phrase, kind, label = fitting[0]
        wanted.append((kind, label))
        rest = rest[len(phrase) :]
    return tuple(wanted)
