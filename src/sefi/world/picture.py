"""What one drawing shows: subjects, their state, the scene, the light, the style."""

from dataclasses import dataclass

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
)
EXPRESSIONS = ("smiling", "sad", "angry", "surprised")
ACTIONS = ("cup", "guitar", "book", "balloon", "umbrella", "basketball", "waving")
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


@dataclass(frozen=True)
class Picture:
    """Everything that one drawing shows; `scene_seed` fixes the scenery's details."""

    subjects: tuple[Subject, ...]
    scene: str
    style: str
    light: str
    light_side: float
    scene_seed: int
