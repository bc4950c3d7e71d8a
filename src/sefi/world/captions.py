"""A picture's description to words: who, how, doing what, where, in which style."""

import colorsys
import re
from dataclasses import dataclass, replace

import numpy as np

from sefi.core.templates import FACE_TEMPLATES
from sefi.world.fifth_words import (
    CAMERAS,
    GARMENTS,
    HUES,
    NEW_DOING,
    NEW_LIGHT_WORDS,
    NEW_MEDIA,
    NEW_PHRASES,
    NEW_PLACES,
)
from sefi.world.person import Person
from sefi.world.picture import GREY_STYLES, Pet, Picture, Subject, hidden
from sefi.world.versions import WorldVersion

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
# The words of every version; a picture's labels say which of them it can have.
EVERY_PHRASE, EVERY_DOING, EVERY_PLACE = PHRASES | NEW_PHRASES, DOING | NEW_DOING, PLACES | NEW_PLACES
OMITTED = ("scene", "action", "clothes", "light")
EVERY_MEDIUM, EVERY_LIGHT = MEDIA | NEW_MEDIA, LIGHT_WORDS | NEW_LIGHT_WORDS


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


def with_state(who: str, subject: Subject, random: np.random.Generator, style: str = "photo") -> str:
    """The person's words with attributes before or after, and what they do."""
    before, after = "", [pick(random, EVERY_DOING[subject.action])] if subject.action else []
    for attribute in subject.attributes:
        if attribute in ADJECTIVES and not before and random.random() < 0.4:
            before = ADJECTIVES[attribute] + " "
        else:
            after.insert(int(random.integers(len(after) + 1)), pick(random, EVERY_PHRASE[attribute]))
    if subject.garment:
        after.append(say_garment(subject, style, random))
    article = "an " if before[:1] in ("a", "o") else "a "
    bare = who.removeprefix("a ")
    spoken = (article if bare != who or random.random() < 0.3 else "") + before + bare if before else who
    comma = "," if random.random() < 0.3 else ""
    return spoken + "".join(f"{comma} {words}" if i == 0 else f", {words}" for i, words in enumerate(after))


def dressed(pet: Pet, style: str, random: np.random.Generator) -> str:
    """A pet's words and what it wears."""
    return ", ".join([say_pet(pet, style, random), *(pick(random, EVERY_PHRASE[a]) for a in pet.attributes)])


def company(picture: Picture, random: np.random.Generator) -> tuple[str, tuple[Person, ...]]:
    """Everybody in the picture, left to right, what they do with each other, and who is called by name."""
    spoken, named = list[str](), list[Person]()
    for subject in picture.subjects:
        who, is_name = say_who(subject, picture.style, random)
        named += [subject.person] if is_name else []
        spoken.append(with_state(who, subject, random, picture.style))
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
    return ("a close-up photo of " if close else pick(random, EVERY_MEDIUM[picture.style]) + " ") + who


def say_garment(subject: Subject, style: str, random: np.random.Generator) -> str:
    """Return words for the clothes, with their colour where the garment comes in any and the style shows colours."""
    colour = "" if style in GREY_STYLES else colour_word(subject.clothes)
    return " ".join(pick(random, GARMENTS[subject.garment]).format(colour).split())


def colour_word(colour: tuple[float, float, float]) -> str:
    """Return the nearest colour word of RGB in [0, 1].

    >>> colour_word((0.8, 0.2, 0.2)), colour_word((0.2, 0.3, 0.7))
    ('red', 'blue')
    """
    hue = colorsys.rgb_to_hls(*colour)[0]
    return next(word for end, word in HUES if hue < end)


def caption(
    picture: Picture, random: np.random.Generator, place_share: float = 0.92, light_share: float = 0.6
) -> Caption:
    """A sentence for a picture; scene and light are sometimes left out, attributes never."""
    who, named = company(picture, random)
    text = opening(picture, who, random)
    place = pick(random, EVERY_PLACE[picture.scene]) if picture.scene and random.random() < place_share else ""
    light = EVERY_LIGHT[picture.light] if picture.light and random.random() < light_share else ""
    comma = "," if random.random() < 0.25 else ""
    camera = pick(random, CAMERAS[picture.camera]) if picture.camera else ""
    return Caption(text + "".join(f"{comma} {words}" for words in (place, light, camera) if words), named)


def hide_unsaid(picture: Picture, random: np.random.Generator, version: WorldVersion) -> Picture:
    """Return what the caption says of a picture: in `version.omission` of them some of what is there is left out.

    Each of scene, action, clothes and light is then left out of every other caption, so an unnamed background can
    come from the word of the subject, as in captions from the web. Attributes are never left out.
    """
    leaves = random.random() < version.omission
    unsaid = {kind for kind in OMITTED if leaves and random.random() < 0.5}
    if not leaves:
        # Few people say what somebody wears; and a caption must fit into the text encoder.
        unsaid |= {"clothes"} if random.random() < 0.4 else set()
    people = tuple(
        replace(s, action="" if "action" in unsaid else s.action, garment="" if "clothes" in unsaid else s.garment)
        for s in picture.subjects
    )
    scene, light = (
        "" if kind in unsaid else there for kind, there in (("scene", picture.scene), ("light", picture.light))
    )
    return replace(picture, subjects=people, scene=scene, light=light)


def say(picture: Picture, random: np.random.Generator, version: WorldVersion) -> tuple[Caption, Picture]:
    """Return a caption of a version's picture, and the picture as far as the caption says it.

    A sentence too long for the text encoder is tried again, the fourth time without clothes and with plain words.
    """
    if not version.omission:
        return caption(picture, random), picture
    said, told = picture, Caption("", ())
    for attempt in range(6):
        said = hide_unsaid(picture, random, version)
        if attempt > 2:
            said = replace(said, subjects=tuple(replace(s, garment="") for s in said.subjects), light="", camera="")
        told = caption(said, random, place_share=1.0, light_share=1.0)
        if count_words(told.text) <= version.longest:
            break
    return told, said


def count_words(text: str) -> int:
    """Return how many tokens a caption has, start and end left out.

    >>> count_words("a close-up photo of a person, smiling")
    10
    """
    return len(re.findall(r"\w+|[^\w\s]", text))
