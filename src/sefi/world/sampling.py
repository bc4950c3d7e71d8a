"""Random pictures: who, where, doing what, how close."""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from sefi.world.animal import random_animal
from sefi.world.face import DYES
from sefi.world.fifth_things import GARMENT_COLOURS
from sefi.world.person import Colour, Person, random_person
from sefi.world.picture import (
    EXPRESSIONS,
    INTERACTIONS,
    PET_ATTRIBUTES,
    Pet,
    Picture,
    Subject,
)
from sefi.world.versions import FOURTH, WorldVersion

# Pairs that no training picture shows, so that composition can be tested on them.
HELD_OUT = frozenset(
    {
        ("purple hair", "snow"),
        ("sunglasses", "space"),
        ("old", "guitar"),
        ("hat", "basketball"),
        ("beard", "balloon"),
        ("smiling", "desert"),
        ("umbrella", "tower"),
        ("book", "beach"),
        ("curly hair", "city"),
        ("cooking", "forest"),
    }
)
# Clothes and things: hues that go together, as hue (turns), lightness, saturation.
WARDROBE = (
    (0.02, 0.52, 0.62),  # coral
    (0.06, 0.44, 0.55),  # terracotta
    (0.12, 0.55, 0.72),  # mustard
    (0.30, 0.38, 0.35),  # sage
    (0.42, 0.34, 0.48),  # bottle green
    (0.49, 0.42, 0.55),  # teal
    (0.55, 0.56, 0.55),  # sky
    (0.61, 0.36, 0.55),  # navy
    (0.69, 0.52, 0.42),  # lavender
    (0.79, 0.40, 0.38),  # plum
    (0.93, 0.58, 0.55),  # rose
    (0.98, 0.40, 0.60),  # wine
)


@dataclass(frozen=True)
class Shares:
    """How often a picture shows two people, a pet alone, and a person with a pet."""

    pair: float = 0.12
    pet: float = 0.14
    companion: float = 0.04


PEOPLE_ONLY = Shares(pet=0.0, companion=0.0)


def vivid(random: np.random.Generator) -> Colour:
    """A clear colour for clothes and things, near one of the wardrobe's."""
    hue, light, strength = WARDROBE[int(random.integers(len(WARDROBE)))]
    near = random.uniform(-1, 1, 3)
    return colorsys.hls_to_rgb((hue + 0.02 * near[0]) % 1, light + 0.07 * near[1], strength + 0.10 * near[2])


# No two of one group can be seen together.
EXCLUSIVE = (EXPRESSIONS, tuple(DYES), ("eyes closed", "sunglasses"), ("eyes closed", "surprised"), ("hat", "crown"))


def random_attributes(random: np.random.Generator, version: WorldVersion = FOURTH) -> tuple[str, ...]:
    """None to two attributes that can be seen together."""
    count = int(random.choice(3, p=(0.40, 0.42, 0.18)))
    while True:
        chosen = tuple(str(a) for a in random.permutation(version.attributes)[:count])
        if all(sum(a in group for a in chosen) < 2 for group in EXCLUSIVE):
            return chosen


def random_subject(
    random: np.random.Generator,
    person: Person,
    action: str,
    *,
    centre: float | None = None,
    version: WorldVersion = FOURTH,
) -> Subject:
    """One person, framed close enough for what they do; centre gives the place in two-subject pictures."""
    attributes = random_attributes(random, version)
    if centre is not None:
        scale, x, y = random.uniform(20, 25), centre + random.uniform(-3, 3), random.uniform(50, 62)
    elif action:
        scale, x, y = random.uniform(23, 31), 58 + random.uniform(-9, 7), random.uniform(48, 58)
        y += 6 if action == "umbrella" else 0
    else:
        scale, x, y = (
            random.uniform(26, 46),
            64 + random.uniform(-10, 10),
            64 + random.uniform(-8, 8),
        )
    made = Subject(
        person,
        x,
        y,
        scale,
        attributes,
        action,
        vivid(random),
        vivid(random),
        random.uniform(-9, 9),
        random.uniform(-1, 1),
    )
    return dressed(made, random, version) if version.garments else made


def dressed(subject: Subject, random: np.random.Generator, version: WorldVersion) -> Subject:
    """Return the subject in random clothes, one in three a plain shirt; some clothes have a colour of their own."""
    garment = "shirt" if random.random() < 0.3 else str(random.choice(version.garments))
    return replace(subject, garment=garment, clothes=GARMENT_COLOURS.get(garment, subject.clothes))


def random_pet(random: np.random.Generator, kind: str = "", *, beside: bool = False) -> Pet:
    """One animal, alone in the picture or at the right beside somebody."""
    animal = random_animal(random, kind)
    worn = tuple(str(a) for a in PET_ATTRIBUTES if random.random() < 0.15)
    if beside:
        scale, x, y = random.uniform(19, 23), 98 + random.uniform(-3, 3), random.uniform(74, 84)
    else:
        scale, x, y = random.uniform(27, 42), 64 + random.uniform(-10, 10), 66 + random.uniform(-8, 8)
    return Pet(
        animal, x, y, scale, worn, vivid(random), vivid(random), random.uniform(-9, 9), random.uniform(-1, 1)
    )  # fmt: skip


def allowed(picture: Picture) -> bool:
    """Whether the picture shows no held-out pair."""
    shown = {picture.scene} | {a for s in picture.subjects for a in (*s.attributes, s.action)}
    shown |= {a for p in picture.pets for a in p.attributes}
    return not any(a in shown and b in shown for a, b in HELD_OUT)


def random_company(
    random: np.random.Generator, people: tuple[Person, ...] | None, shares: Shares, version: WorldVersion = FOURTH
) -> tuple[tuple[Subject, ...], tuple[Pet, ...]]:
    """Who is in a picture: one person, two, a pet, or a person and a pet; given people are never joined by a pet."""
    kind = 1.0 if people else random.random()
    if kind < shares.pet:
        return (), (random_pet(random),)
    beside = kind < shares.pet + shares.companion
    two = len(people) == 2 if people else not beside and random.random() < shares.pair
    chosen = people or tuple(random_person(random) for _ in range(2 if two else 1))
    action = "" if two or beside or random.random() < 0.5 else str(random.choice(version.actions))
    places = (34.0, 94.0) if two else (36.0,) if beside else (None,)
    subjects = tuple(
        random_subject(random, p, action, centre=c, version=version) for p, c in zip(chosen, places, strict=True)
    )
    return subjects, (random_pet(random, "dog", beside=True),) if beside else ()


def random_picture(
    random: np.random.Generator,
    people: tuple[Person, ...] | None = None,
    shares: Shares = Shares(),
    version: WorldVersion = FOURTH,
) -> Picture:
    """A picture of one or two given people, or of whoever comes by."""
    while True:
        subjects, pets = random_company(random, people, shares, version)
        made = Picture(
            subjects,
            "" if random.random() < 0.25 else str(random.choice(version.scenes)),
            str(random.choice(version.styles, p=version.style_shares)),
            str(random.choice(version.lights, p=version.light_shares)),
            float(random.choice((-1.0, 1.0))),
            int(random.integers(2**31)),
            pets,
            str(random.choice(INTERACTIONS)) if len(subjects) == 2 and random.random() < 0.4 else "",
        )
        if len(version.cameras) > 1:
            made = viewed(made, str(random.choice(version.cameras, p=version.camera_shares)))
        if allowed(made):
            return made


def viewed(picture: Picture, camera: str) -> Picture:
    """Return the picture as the camera sees it; a wide shot moves people and animals away."""
    if camera != "wide shot":
        return replace(picture, camera=camera if picture.scene else "")
    crowd = len(picture.subjects) + len(picture.pets) > 1
    size = 0.8 if crowd else 0.62
    people, pets = (
        tuple(replace(one, scale=one.scale * size) for one in group) for group in (picture.subjects, picture.pets)
    )
    return replace(picture, subjects=people, pets=pets, camera=camera)
