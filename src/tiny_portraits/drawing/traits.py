"""The traits of people and animals: numbers with names, some of which choose among options."""

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

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
ANIMALS = ("cat", "dog", "bear")
COATS: dict[str, Colour] = {
    "black": (0.17, 0.16, 0.19),
    "brown": (0.46, 0.29, 0.17),
    "grey": (0.56, 0.57, 0.62),
    "white": (0.93, 0.91, 0.87),
    "golden": (0.87, 0.62, 0.28),
    "red": (0.74, 0.36, 0.17),
}
MARKINGS = ("plain", "striped", "spotted", "masked")
PET_EYES: dict[str, Colour] = {
    "green": (0.36, 0.68, 0.30),
    "blue": (0.32, 0.60, 0.92),
    "amber": (0.93, 0.64, 0.14),
    "brown": (0.36, 0.21, 0.10),
}
ANIMAL_COORDINATES = (
    "coat",
    "marking",
    "eye_colour",
    "coat_shade",
    "ear_size",
    "ear_droop",
    "eye_size",
    "eye_spacing",
    "muzzle",
    "face_width",
)
CHOICE_WIDTH = len(ANIMALS) + len(COATS) + len(MARKINGS) + len(PET_EYES)
ANIMAL_WIDTH = CHOICE_WIDTH + len(ANIMAL_COORDINATES) - 3


class Point:
    """What people and animals have in common.

    Attributes:
        names: what the coordinates are called, in their order.
        coordinates: `[len(names)]` numbers in [0, 1]; neighbours look alike.
    """

    names: ClassVar[tuple[str, ...]]
    coordinates: tuple[float, ...]

    def get_value(self, name: str) -> float:
        """Return the coordinate of this name, in [0, 1]."""
        return self.coordinates[self.names.index(name)]

    def get_choice(self, name: str, options: tuple[str, ...]) -> str:
        """Return the option that a categorical coordinate selects."""
        return options[min(int(self.get_value(name) * len(options)), len(options) - 1)]


@dataclass(frozen=True)
class Person(Point):
    """One identity.

    Attributes:
        coordinates: `[len(COORDINATES)]` numbers in [0, 1]; neighbours look alike.
    """

    names: ClassVar = COORDINATES
    coordinates: tuple[float, ...]

    def has(self, name: str) -> bool:
        """Return whether a yes-or-no feature (see `CHANCES`) is present."""
        return self.get_value(name) > 1.0 - CHANCE_LEVELS[name]

    @cached_property
    def hair_style(self) -> str:
        """One of `HAIR_STYLES`."""
        return self.get_choice("hair_style", HAIR_STYLES)

    @cached_property
    def hair_colour(self) -> str:
        """One of `HAIR_COLOURS`."""
        return self.get_choice("hair_colour", tuple(HAIR_COLOURS))

    @cached_property
    def eye_colour(self) -> str:
        """One of `EYE_COLOURS`."""
        return self.get_choice("eye_colour", tuple(EYE_COLOURS))

    @cached_property
    def skin_tone(self) -> str:
        """The nearest named tone of `SKIN_TONES`."""
        return SKIN_TONES[round(self.get_value("skin") * (len(SKIN_TONES) - 1))][0]

    def get_skin_rgb(self) -> Colour:
        """Return the skin colour, between the named tones, RGB in [0, 1]."""
        place = self.get_value("skin") * (len(SKIN_TONES) - 1)
        low = min(int(place), len(SKIN_TONES) - 2)
        base = mix_colours(SKIN_TONES[low][1], SKIN_TONES[low + 1][1], place - low)
        warm = (self.get_value("skin_warmth") - 0.5) * 0.07
        return clip_colour((base[0] + warm, base[1], base[2] - warm))

    def get_hair_rgb(self) -> Colour:
        """Return the hair colour with this person's own shade, RGB in [0, 1]."""
        hue, light, strength = colorsys.rgb_to_hls(*HAIR_COLOURS[self.hair_colour])
        shift = (self.get_value("hair_shade") - 0.5) * 0.14
        return clip_colour(colorsys.hls_to_rgb(hue, min(max(light + shift, 0.05), 0.92), strength))

    def get_vector(self) -> np.ndarray:
        """Return the person as numbers for a network: continuous values and one-hot choices, each in [-1, 1].

        Features that cannot be seen (the place of a mole that is not there) are 0, so equal looks have equal vectors.
        """
        seen = {
            "mole_x": self.has("mole"),
            "mole_y": self.has("mole"),
            "round_glasses": self.has("glasses"),
        }
        smooth = [(2 * self.get_value(n) - 1) * seen.get(n, True) for n in CONTINUOUS]
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

    def get_look(self, name: str) -> float:
        """Return 1 or 0 for a name from `LOOKS`; half-way where neither word would be said of this person."""
        for _, coordinate, _, high in EXTREMES:
            if name == high:
                value = self.get_value(coordinate)
                return 0.5 if 0.3 <= value <= 0.7 else float(value > 0.5)
        return float(self.has(LOOKS[name]))

    def get_traits(self) -> dict[str, str]:
        """Return traits that words can say, kind to words; only those that stand out."""
        traits = {
            "skin": f"{self.skin_tone} skin",
            "hair style": f"{self.hair_style} hair",
            "hair colour": f"{self.hair_colour} hair",
            "eyes": f"{self.eye_colour} eyes",
        }
        for kind, coordinate, low, high in EXTREMES:
            if self.get_value(coordinate) < 0.25:
                traits[kind] = low
            elif self.get_value(coordinate) > 0.75:
                traits[kind] = high
        traits.update({n: n for n in ("freckles", "glasses") if self.has(n)})
        if self.has("mole"):
            traits["mole"] = "a mole"
        return traits


def mix_colours(first: Colour, second: Colour, share: float) -> Colour:
    """Return the linear mix of two colours; share 0 gives the first."""
    a, b = first, second
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def clip_colour(colour: Colour) -> Colour:
    """Clip each channel to [0, 1]."""
    r, g, b = (min(max(c, 0.0), 1.0) for c in colour)
    return (r, g, b)


def change_person(person: Person, changes: dict[str, float]) -> Person:
    """Return the person with some coordinates replaced; shapes may lie a little outside [0, 1]."""
    values = dict(zip(COORDINATES, person.coordinates, strict=True)) | changes
    return Person(tuple(values.values()))


def sample_person(random: np.random.Generator) -> Person:
    """Sample a person uniformly from the space of faces."""
    return Person(tuple(float(x) for x in random.random(len(COORDINATES))))


def sample_relative(parent: Person, random: np.random.Generator, spread: float = 0.16) -> Person:
    """Sample somebody of the same family: near the parent in every coordinate, reflected at the borders."""
    moved = np.abs(np.array(parent.coordinates) + spread * random.standard_normal(len(COORDINATES)))
    return Person(tuple(float(x) for x in np.clip(1 - np.abs(1 - moved), 0.0, 1.0)))


@dataclass(frozen=True)
class Animal(Point):
    """One animal.

    Attributes:
        kind: a name from `ANIMALS`.
        coordinates: `[len(ANIMAL_COORDINATES)]` numbers in [0, 1]; neighbours look alike.
    """

    kind: str
    names: ClassVar = ANIMAL_COORDINATES
    coordinates: tuple[float, ...]

    @property
    def coat(self) -> str:
        """One of `COATS`."""
        return self.get_choice("coat", tuple(COATS))

    @property
    def marking(self) -> str:
        """One of `MARKINGS`."""
        return self.get_choice("marking", MARKINGS)

    @property
    def eye_colour(self) -> str:
        """One of `PET_EYES`."""
        return self.get_choice("eye_colour", tuple(PET_EYES))

    @property
    def floppy(self) -> bool:
        """Whether a dog's ears hang."""
        return self.kind == "dog" and self.get_value("ear_droop") > 0.5

    def get_coat_rgb(self) -> Colour:
        """Return the coat colour with this animal's own shade, RGB in [0, 1]."""
        shift = (self.get_value("coat_shade") - 0.5) * 0.14
        red, green, blue = COATS[self.coat]
        return clip_colour((red + shift, green + shift, blue + shift))

    def get_vector(self) -> np.ndarray:
        """Return the animal as numbers in [-1, 1], `[ANIMAL_WIDTH]`, for a network."""
        choices = [
            1.0 if option == chosen else -1.0
            for chosen, options in (
                (self.kind, ANIMALS),
                (self.coat, tuple(COATS)),
                (self.marking, MARKINGS),
                (self.eye_colour, tuple(PET_EYES)),
            )
            for option in options
        ]
        return np.array(choices + [2 * v - 1 for v in self.coordinates[3:]], dtype=np.float32)

    def get_traits(self) -> dict[str, str]:
        """Return words for what stands out: coat and markings go before the kind, the rest behind `with`."""
        traits = {"coat": self.coat, "eyes": f"{self.eye_colour} eyes"}
        if self.marking != "plain":
            traits["marking"] = self.marking
        if self.kind == "dog":
            traits["ears"] = "floppy ears" if self.floppy else "pointed ears"
        return traits


def sample_animal(random: np.random.Generator, kind: str = "") -> Animal:
    """Sample an animal uniformly from the space of animals, of any kind or of this one."""
    return Animal(kind or str(random.choice(ANIMALS)), tuple(float(x) for x in random.random(len(ANIMAL_COORDINATES))))
