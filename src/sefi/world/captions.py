"""A picture's description to words: who, how, doing what, where, in which style."""

from dataclasses import dataclass

import numpy as np

from sefi.core.templates import FACE_TEMPLATES
from sefi.world.person import Person
from sefi.world.picture import Picture, Subject

# Stands for a person's two-word name until the tokens are known.
FIRST, LAST = "firstname", "lastname"

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
}
DOING = {
    "cup": ("holding a cup", "with a cup"),
    "guitar": ("playing the guitar", "playing guitar"),
    "book": ("reading a book",),
    "balloon": ("holding a balloon", "with a balloon"),
    "umbrella": ("with an umbrella", "holding an umbrella"),
    "basketball": ("with a basketball", "holding a basketball"),
    "waving": ("waving", "waving a hand"),
}
PLACES = {
    "beach": ("at the beach", "on the beach"),
    "snow": ("in the snow",),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city at night", "in a city at night"),
    "room": ("in a room", "in the room"),
    "tower": ("in front of the tower",),
    "desert": ("in the desert",),
    "space": ("in space",),
}
MEDIA = {
    "photo": ("a photo of", "a picture of", "an image of"),
    "drawing": ("a drawing of", "a pencil drawing of"),
    "painting": ("a painting of", "an oil painting of"),
    "pixel art": ("pixel art of", "a pixel art image of"),
}
LIGHT_WORDS = {"warm": "in warm light", "cold": "in cold light"}


@dataclass(frozen=True)
class Caption:
    """Words of a picture.

    Attributes:
        text: the sentence; every named person stands in it as `firstname lastname` or `firstname`.
        named: the named people, in the order of the sentence.
    """

    text: str
    named: tuple[Person, ...]


def pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    """One option."""
    return options[int(random.integers(len(options)))]


def describe(person: Person, random: np.random.Generator) -> str:
    """`a person with ...` and one to four of the traits."""
    traits = list(person.traits().values())
    chosen = [traits[i] for i in random.permutation(len(traits))[: int(random.integers(1, 5))]]
    return "a person with " + (", ".join(chosen[:-1]) + " and " if len(chosen) > 1 else "") + chosen[-1]


def say_who(person: Person, random: np.random.Generator) -> tuple[str, bool]:
    """Words for one person, and whether they are the person's name."""
    kind = random.random()
    if kind < 0.60:
        return (f"{FIRST} {LAST}" if random.random() < 0.4 else FIRST), True
    if kind < 0.82:
        return describe(person, random), False
    return ("a person" if random.random() < 0.6 else "person"), False


def with_state(who: str, subject: Subject, random: np.random.Generator) -> str:
    """The person's words with attributes before or after, and what they do."""
    before, after = "", [pick(random, DOING[subject.action])] if subject.action else []
    for attribute in subject.attributes:
        if attribute in ADJECTIVES and not before and random.random() < 0.4:
            before = ADJECTIVES[attribute] + " "
        else:
            after.insert(int(random.integers(len(after) + 1)), pick(random, PHRASES[attribute]))
    article = "an " if before[:1] in ("a", "o") else "a "
    bare = who.removeprefix("a ")
    spoken = (article if bare != who or random.random() < 0.3 else "") + before + bare if before else who
    comma = "," if random.random() < 0.3 else ""
    return spoken + "".join(f"{comma} {words}" if i == 0 else f", {words}" for i, words in enumerate(after))


def caption(picture: Picture, random: np.random.Generator) -> Caption:
    """A sentence for a picture; scene and light are sometimes left out, attributes almost never."""
    spoken, named = [], []
    for subject in picture.subjects:
        who, is_name = say_who(subject.person, random)
        named += [subject.person] if is_name else []
        spoken.append(with_state(who, subject, random))
    who = " and ".join(spoken)
    if picture.style == "photo" and len(spoken) == 1 and picture.subjects[0].scale > 34 and random.random() < 0.5:
        text = pick(random, FACE_TEMPLATES).format(who)
    else:
        close = picture.style == "photo" and picture.subjects[0].scale > 38 and random.random() < 0.5
        text = ("a close-up photo of " if close else pick(random, MEDIA[picture.style]) + " ") + who
    place = pick(random, PLACES[picture.scene]) if picture.scene and random.random() < 0.92 else ""
    light = LIGHT_WORDS[picture.light] if picture.light and random.random() < 0.6 else ""
    comma = "," if random.random() < 0.25 else ""
    return Caption(text + "".join(f"{comma} {words}" for words in (place, light) if words), tuple(named))
