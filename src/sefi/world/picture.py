"""What one drawing shows: people and pets, their state, the scene, the light, the style."""

from dataclasses import dataclass

from sefi.world.animal import Animal
from sefi.world.person import Person

ATTRIBUTES = (
    "smiling",
    "sad",
    "angry",
    "surprised",
    "eyes closed",
    "old",
    "beard",
    "sunglasses",
    "hat",
    "purple hair",
    "curly hair",
    "round face",
)
PET_ATTRIBUTES = ("hat", "sunglasses")
EXPRESSIONS = ("smiling", "sad", "angry", "surprised")
ACTIONS = ("cup", "guitar", "book", "balloon", "umbrella", "basketball", "waving", "cooking")
INTERACTIONS = ("shaking hands",)
SCENES = ("beach", "snow", "forest", "city", "room", "tower", "desert", "space")
STYLES = ("photo", "drawing", "painting", "pixel art")
LIGHTS = ("", "warm", "cold")


@dataclass(frozen=True)
class Subject:
    """One person in a picture.

    Attributes:
        person: who it is.
        x, y: face centre, in pixels of the 128-pixel square.
        scale: half the head's height, pixels.
        attributes: names from `ATTRIBUTES`.
        action: a name from `ACTIONS`, or "".
        clothes, accent: RGB colours in [0, 1]; accent colours the hat, the cup, the book ...
        tilt: head rotation, degrees.
        turn: where the face looks, -1 (its features moved to the left) to 1.
        garment: a name from `GARMENTS`, or "" for plain clothes.
    """

    person: Person
    x: float
    y: float
    scale: float
    attributes: tuple[str, ...]
    action: str
    clothes: tuple[float, float, float]
    accent: tuple[float, float, float]
    tilt: float
    turn: float
    garment: str = ""


@dataclass(frozen=True)
class Pet:
    """One animal in a picture; places, colours and angles as in `Subject`, `attributes` from `PET_ATTRIBUTES`."""

    animal: Animal
    x: float
    y: float
    scale: float
    attributes: tuple[str, ...]
    collar: tuple[float, float, float]
    accent: tuple[float, float, float]
    tilt: float
    turn: float


@dataclass(frozen=True)
class Picture:
    """Everything that one drawing shows.

    Attributes:
        subjects: the people, left to right.
        scene_seed: fixes the scenery's details.
        pets: the animals, right of the people.
        interaction: what two people do with each other, from `INTERACTIONS`, or "".
        camera: a name from `CAMERAS`, or "" for the usual view.
    """

    subjects: tuple[Subject, ...]
    scene: str
    style: str
    light: str
    light_side: float
    scene_seed: int
    pets: tuple[Pet, ...] = ()
    interaction: str = ""
    camera: str = ""


# What cannot be seen of a person who has an attribute; in a pencil drawing no colour can.
HIDES: dict[str, tuple[str, ...]] = {
    "smiling": ("lips",),
    "angry": ("lips",),
    "surprised": ("lips", "eye_size"),
    "eyes closed": ("eyes", "eye_size"),
    "old": ("hair colour",),
    "beard": ("jaw", "mole", "lips"),
    "sunglasses": ("eyes", "eye_size", "glasses", "brows"),
    "hat": ("hair style",),
    "purple hair": ("hair colour",),
    "orange hair": ("hair colour",),
    "white hair": ("hair colour",),
    "turquoise hair": ("hair colour",),
    "curly hair": ("hair style",),
    "round face": ("face", "jaw"),
}
# Styles without colour, beside the pencil drawing.
GREY_STYLES = ("drawing", "black and white", "chalk")
COLOURS = ("skin", "hair colour", "eyes", "coat")


def hidden(subject: Subject | Pet, style: str) -> frozenset[str]:
    """Kinds of traits (see `Person.traits`, `Animal.traits`) that a picture in this style cannot show of this one."""
    found = {kind for attribute in subject.attributes for kind in HIDES.get(attribute, ())}
    return frozenset(found | set(COLOURS if style in GREY_STYLES else ()))
