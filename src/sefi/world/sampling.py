"""Random pictures: who, where, doing what, how close."""

import colorsys

import numpy as np

from sefi.world.person import Colour, Person, random_person
from sefi.world.picture import (
    ACTIONS,
    ATTRIBUTES,
    EXPRESSIONS,
    LIGHTS,
    SCENES,
    STYLES,
    Picture,
    Subject,
)

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
    }
)


def vivid(random: np.random.Generator) -> Colour:
    """A clear colour for clothes and things."""
    return colorsys.hls_to_rgb(random.random(), random.uniform(0.32, 0.62), random.uniform(0.35, 0.85))


def random_attributes(random: np.random.Generator) -> tuple[str, ...]:
    """None to two attributes that can be seen together."""
    count = int(random.choice(3, p=(0.42, 0.40, 0.18)))
    while True:
        chosen = tuple(str(a) for a in random.permutation(ATTRIBUTES)[:count])
        clash = sum(a in EXPRESSIONS for a in chosen) > 1 or {"eyes closed", "sunglasses"} <= set(chosen)
        if not clash and not {"eyes closed", "surprised"} <= set(chosen):
            return chosen


def random_subject(random: np.random.Generator, person: Person, action: str, *, centre: float | None = None) -> Subject:
    """One person, framed close enough for what they do; centre gives the place in two-person pictures."""
    attributes = random_attributes(random)
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
    return Subject(
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


def allowed(picture: Picture) -> bool:
    """Whether the picture shows no held-out pair."""
    shown = {picture.scene} | {a for s in picture.subjects for a in (*s.attributes, s.action)}
    return not any(a in shown and b in shown for a, b in HELD_OUT)


def random_picture(
    random: np.random.Generator, people: tuple[Person, ...] | None = None, *, pair: float = 0.10
) -> Picture:
    """A picture of one person, or of two with probability `pair`; people None draws new ones."""
    while True:
        two = len(people) == 2 if people else random.random() < pair
        chosen = people or tuple(random_person(random) for _ in range(2 if two else 1))
        action = "" if two or random.random() < 0.5 else str(random.choice(ACTIONS))
        places = (34.0, 94.0) if two else (None,)
        made = Picture(
            tuple(random_subject(random, p, action, centre=c) for p, c in zip(chosen, places, strict=True)),
            "" if random.random() < 0.25 else str(random.choice(SCENES)),
            str(random.choice(STYLES, p=(0.70, 0.10, 0.10, 0.10))),
            str(random.choice(LIGHTS, p=(0.84, 0.08, 0.08))),
            float(random.choice((-1.0, 1.0))),
            int(random.integers(2**31)),
        )
        if allowed(made):
            return made
