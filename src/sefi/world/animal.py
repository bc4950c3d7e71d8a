"""Which animal: kind, coat, markings, ears and eyes, and the words that can say so."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sefi.world.person import Colour, clip
from sefi.world.point import Point

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
COORDINATES = (
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
ANIMAL_WIDTH = CHOICE_WIDTH + len(COORDINATES) - 3


@dataclass(frozen=True)
class Animal(Point):
    """One animal.

    Attributes:
        kind: a name from `ANIMALS`.
        coordinates: `[len(COORDINATES)]` numbers in [0, 1]; neighbours look alike.
    """

    kind: str
    names: ClassVar = COORDINATES
    coordinates: tuple[float, ...]

    @property
    def coat(self) -> str:
        """One of `COATS`."""
        return self.choice("coat", tuple(COATS))

    @property
    def marking(self) -> str:
        """One of `MARKINGS`."""
        return self.choice("marking", MARKINGS)

    @property
    def eye_colour(self) -> str:
        """One of `PET_EYES`."""
        return self.choice("eye_colour", tuple(PET_EYES))

    @property
    def floppy(self) -> bool:
        """Whether a dog's ears hang."""
        return self.kind == "dog" and self.value("ear_droop") > 0.5

    def coat_rgb(self) -> Colour:
        """Coat colour with this animal's own shade, RGB in [0, 1]."""
        shift = (self.value("coat_shade") - 0.5) * 0.14
        red, green, blue = COATS[self.coat]
        return clip((red + shift, green + shift, blue + shift))

    def vector(self) -> np.ndarray:
        """What a network may be told of this animal, each number in [-1, 1], `[ANIMAL_WIDTH]`."""
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

    def traits(self) -> dict[str, str]:
        """Words for what stands out: coat and markings go before the kind, the rest behind `with`."""
        found = {"coat": self.coat, "eyes": f"{self.eye_colour} eyes"}
        if self.marking != "plain":
            found["marking"] = self.marking
        if self.kind == "dog":
            found["ears"] = "floppy ears" if self.floppy else "pointed ears"
        return found


def random_animal(random: np.random.Generator, kind: str = "") -> Animal:
    """An animal drawn uniformly from the space of animals, of any kind or of this one."""
    return Animal(kind or str(random.choice(ANIMALS)), tuple(float(x) for x in random.random(len(COORDINATES))))
