"""Who somebody is: a point in a continuous space of faces, and the traits that words can say of it."""

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from sefi.world.point import Point

Colour = tuple[float, float, float]

HAIR_STYLES = ("short", "long", "bob", "curly", "bun", "spiky")
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.10, 0.09, 0.11),
    "brown": (0.38, 0.22, 0.12),
    "red": (0.70, 0.24, 0.10),
    "blond": (0.92, 0.75, 0.38),
    "silver": (0.80, 0.82, 0.86),
    "blue": (0.18, 0.36, 0.72),
    "green": (0.20, 0.55, 0.36),
    "pink": (0.92, 0.48, 0.62),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (0.36, 0.20, 0.09),
    "blue": (0.20, 0.47, 0.86),
    "green": (0.20, 0.60, 0.30),
    "grey": (0.52, 0.56, 0.62),
    "amber": (0.85, 0.55, 0.10),
}
SKIN_TONES: tuple[tuple[str, Colour], ...] = (
    ("pale", (0.99, 0.87, 0.79)),
    ("light", (0.95, 0.76, 0.62)),
    ("tan", (0.82, 0.60, 0.43)),
    ("brown", (0.60, 0.40, 0.27)),
    ("dark", (0.38, 0.24, 0.17)),
)
CONTINUOUS = (
    "skin",
    "skin_warmth",
    "face_width",
    "jaw",
    "chin",
    "hair_shade",
    "fringe",
    "eye_size",
    "eye_spacing",
    "eye_height",
    "brow_thickness",
    "brow_tilt",
    "nose_width",
    "nose_length",
    "mouth_width",
    "lip_thickness",
    "lip_colour",
    "ear_size",
    "mole_x",
    "mole_y",
)
CHANCES = ("freckles", "mole", "glasses", "round_glasses")
CHOICES = ("hair_style", "hair_colour", "eye_colour")
COORDINATES = CONTINUOUS + CHANCES + CHOICES
CHANCE_LEVELS = {"freckles": 0.25, "mole": 0.22, "glasses": 0.24, "round_glasses": 0.5}


@dataclass(frozen=True)
class Person(Point):
    """One identity.

    Attributes:
        coordinates: `[len(COORDINATES)]` numbers in [0, 1]; neighbours look alike.
    """

    names: ClassVar = COORDINATES
    coordinates: tuple[float, ...]

    def has(self, name: str) -> bool:
        """Whether a yes-or-no feature (see `CHANCES`) is present."""
        return self.value(name) > 1.0 - CHANCE_LEVELS[name]

    @cached_property
    def hair_style(self) -> str:
        """One of `HAIR_STYLES`."""
        return self.choice("hair_style", HAIR_STYLES)

    @cached_property
    def hair_colour(self) -> str:
        """One of `HAIR_COLOURS`."""
        return self.choice("hair_colour", tuple(HAIR_COLOURS))

    @cached_property
    def eye_colour(self) -> str:
        """One of `EYE_COLOURS`."""
        return self.choice("eye_colour", tuple(EYE_COLOURS))

    @cached_property
    def skin_tone(self) -> str:
        """The nearest named tone of `SKIN_TONES`."""
        return SKIN_TONES[round(self.value("skin") * (len(SKIN_TONES) - 1))][0]

    def skin_rgb(self) -> Colour:
        """Skin colour, between the named tones, RGB in [0, 1]."""
        place = self.value("skin") * (len(SKIN_TONES) - 1)
        low = min(int(place), len(SKIN_TONES) - 2)
        base = mix(SKIN_TONES[low][1], SKIN_TONES[low + 1][1], place - low)
        warm = (self.value("skin_warmth") - 0.5) * 0.07
        return clip((base[0] + warm, base[1], base[2] - warm))

    def hair_rgb(self) -> Colour:
        """Hair colour with this person's own shade, RGB in [0, 1]."""
        hue, light, strength = colorsys.rgb_to_hls(*HAIR_COLOURS[self.hair_colour])
        shift = (self.value("hair_shade") - 0.5) * 0.14
        return clip(colorsys.hls_to_rgb(hue, min(max(light + shift, 0.05), 0.92), strength))

    def vector(self) -> np.ndarray:
        """What a network may be told of this person: continuous values and one-hot choices, each in [-1, 1].

        Features that cannot be seen (the place of a mole that is not there) are 0, so equal looks have equal vectors.
        """
        seen = {
            "mole_x": self.has("mole"),
            "mole_y": self.has("mole"),
            "round_glasses": self.has("glasses"),
        }
        smooth = [(2 * self.value(n) - 1) * seen.get(n, True) for n in CONTINUOUS]
        flags = [(1.0 if self.has(n) else -1.0) * seen.get(n, True) for n in CHANCES]
        choices = [
            1.0 if option == chosen else -1.0
            for chosen, options in (
                (self.hair_style, HAIR_STYLES),
                (self.hair_colour, tuple(HAIR_COLOURS)),
                (self.eye_colour, tuple(EYE_COLOURS)),
            )
            for option in options
        ]
        return np.array(smooth + flags + choices, dtype=np.float32)

    def look(self, name: str) -> float:
        """1 or 0 for a name from `LOOKS`; half-way where neither word would be said of this person."""
        for _, coordinate, _, high in EXTREMES:
            if name == high:
                value = self.value(coordinate)
                return 0.5 if 0.3 <= value <= 0.7 else float(value > 0.5)
        return float(self.has(LOOKS[name]))

    def traits(self) -> dict[str, str]:
        """Traits that words can say, kind to words; only those that stand out."""
        found = {
            "skin": f"{self.skin_tone} skin",
            "hair style": f"{self.hair_style} hair",
            "hair colour": f"{self.hair_colour} hair",
            "eyes": f"{self.eye_colour} eyes",
        }
        for kind, coordinate, low, high in EXTREMES:
            if self.value(coordinate) < 0.25:
                found[kind] = low
            elif self.value(coordinate) > 0.75:
                found[kind] = high
        found.update({n: n for n in ("freckles", "glasses") if self.has(n)})
        if self.has("mole"):
            found["mole"] = "a mole"
        return found


EXTREMES = (
    ("face", "face_width", "a narrow face", "a wide face"),
    ("jaw", "jaw", "a pointed chin", "a square jaw"),
    ("brows", "brow_thickness", "thin eyebrows", "thick eyebrows"),
    ("nose", "nose_width", "a small nose", "a big nose"),
    ("lips", "lip_thickness", "thin lips", "full lips"),
    ("eye_size", "eye_size", "small eyes", "big eyes"),
)
# Yes-or-no questions about a face, and the kind of trait that each is about (see `Person.traits`).
LOOKS: dict[str, str] = {high: kind for kind, _, _, high in EXTREMES} | {
    "freckles": "freckles",
    "glasses": "glasses",
    "a mole": "mole",
}
VECTOR_WIDTH = len(CONTINUOUS) + len(CHANCES) + len(HAIR_STYLES) + len(HAIR_COLOURS) + len(EYE_COLOURS)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Linear mix of two colours; share 0 gives the first."""
    a, b = first, second
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def clip(colour: Colour) -> Colour:
    """Each channel to [0, 1]."""
    r, g, b = (min(max(c, 0.0), 1.0) for c in colour)
    return (r, g, b)


def changed(person: Person, changes: dict[str, float]) -> Person:
    """The same person with some coordinates replaced; shapes may lie a little outside [0, 1]."""
    values = dict(zip(COORDINATES, person.coordinates, strict=True)) | changes
    return Person(tuple(values.values()))


def random_person(random: np.random.Generator) -> Person:
    """A person drawn uniformly from the space of faces."""
    return Person(tuple(float(x) for x in random.random(len(COORDINATES))))


def relative(parent: Person, random: np.random.Generator, spread: float = 0.16) -> Person:
    """Somebody of the same family: near the parent in every coordinate, reflected at the borders."""
    moved = np.abs(np.array(parent.coordinates) + spread * random.standard_normal(len(COORDINATES)))
    return Person(tuple(float(x) for x in np.clip(1 - np.abs(1 - moved), 0.0, 1.0)))
