"""A picture's description to words: who, how, doing what, where, in which style."""

import re
from dataclasses import dataclass

import numpy as np

from sefi.core.templates import FACE_TEMPLATES
from sefi.world.person import Person
from sefi.world.picture import Pet, Picture, Subject, hidden

# Stands for a person's two-word name until the tokens are known.
FIRST, LAST = "firstname", "lastname"
NAMED = re.compile(rf"\b{FIRST}( {LAST})?\b")

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


def nameless(text: str) -> str:
    """A caption's words with `person` for every name."""
    return text.replace(f"{FIRST} {LAST}", "person").replace(FIRST, "person")


def placed(text: str) -> tuple[str, int]:
    """A caption with `<0>`, `<1>` for its names, in order, and how many there are."""
    count = len(NAMED.findall(text))
    numbers = iter(range(count))
    return NAMED.sub(lambda _: f"<{next(numbers)}>", text), count


def pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    """One option."""
    return options[int(random.integers(len(options)))]


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return (", ".join(words[:-1]) + " and " if len(words) > 1 else "") + words[-1]


def spoken_traits(subject: Subject, style: str, random: np.random.Generator) -> list[str]:
    """Words for every trait that this picture shows; hair style and colour mostly go into one phrase."""
    unseen = hidden(subject, style)
    traits = {kind: words for kind, words in subject.person.traits().items() if kind not in unseen}
    if {"hair style", "hair colour"} <= traits.keys() and random.random() < 0.6:
        traits["hair style"] = traits["hair style"].replace("hair", traits.pop("hair colour"))
    return list(traits.values())


def describe(subject: Subject, style: str, random: np.random.Generator) -> str:
    """`a person with ...` and one to four of the traits, fewer where somebody else needs words too."""
    traits = spoken_traits(subject, style, random)
    most = 3 if subject.scale < 26 else 5
    if not traits:
        return "a person"
    return "a person with " + listed(
        [traits[i] for i in random.permutation(len(traits))[: int(random.integers(1, most))]]
    )


def say_who(subject: Subject, style: str, random: np.random.Generator) -> tuple[str, bool]:
    """Words for one person, and whether they are the person's name."""
    kind = random.random()
    if kind < 0.60:
        return (f"{FIRST} {LAST}" if random.random() < 0.4 else FIRST), True
    if kind < 0.88:
        return describe(subject, style, random), False
    return ("a person" if random.random() < 0.6 else "person"), False


def say_pet(pet: Pet, style: str, random: np.random.Generator) -> str:
    """`a spotted brown dog with floppy ears`: the kind, and often what can be seen of the animal."""
    animal, unseen = pet.animal, hidden(pet, style)
    if random.random() < 0.25:
        return f"a {animal.kind}"
    said = {kind: words for kind, words in animal.traits().items() if random.random() < 0.6}
    traits = {kind: words for kind, words in said.items() if kind not in unseen}
    before = " ".join([traits[k] for k in ("marking", "coat") if k in traits] + [animal.kind])
    behind = [traits[k] for k in ("ears", "eyes") if k in traits]
    return f"a {before}" + (f" with {listed(behind)}" if behind else "")


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


def dressed(pet: Pet, style: str, random: np.random.Generator) -> str:
    """A pet's words and what it wears."""
    return ", ".join([say_pet(pet, style, random), *(pick(random, PHRASES[a]) for a in pet.attributes)])


def company(picture: Picture, random: np.random.Generator) -> tuple[str, tuple[Person, ...]]:
    """Everybody in the picture, left to right, what they do with each other, and who is called by name."""
    spoken, named = list[str](), list[Person]()
    for subject in picture.subjects:
        who, is_name = say_who(subject, picture.style, random)
        named += [subject.person] if is_name else []
        spoken.append(with_state(who, subject, random))
    words = " and ".join(spoken + [dressed(pet, picture.style, random) for pet in picture.pets])
    if picture.interaction:
        words += " " + pick(random, TOGETHER[picture.interaction])
    return words, tuple(named)


def opening(picture: Picture, who: str, random: np.random.Generator) -> str:
    """How the sentence begins: the medium, or one of the face templates for one close person."""
    alone = picture.style == "photo" and len(picture.subjects) == 1 and not picture.pets
    scale = picture.subjects[0].scale if alone else 0.0
    if scale > 34 and random.random() < 0.5:
        return pick(random, FACE_TEMPLATES).format(who)
    close = scale > 38 and random.random() < 0.5
    return ("a close-up photo of " if close else pick(random, MEDIA[picture.style]) + " ") + who


def caption(picture: Picture, random: np.random.Generator) -> Caption:
    """A sentence for a picture; scene and light are sometimes left out, attributes never."""
    who, named = company(picture, random)
    text = opening(picture, who, random)
    place = pick(random, PLACES[picture.scene]) if picture.scene and random.random() < 0.92 else ""
    light = LIGHT_WORDS[picture.light] if picture.light and random.random() < 0.6 else ""
    comma = "," if random.random() < 0.25 else ""
    return Caption(text + "".join(f"{comma} {words}" for words in (place, light) if words), named)
