"""Random contents of images: what is together, the numbered series, and people and animals to test with."""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tiny_portraits.drawing.content import (
    ACTIONS,
    ATTRIBUTES,
    EXPRESSIONS,
    INTERACTIONS,
    PET_ATTRIBUTES,
    SCENES,
    SHIPPED,
    ImageContent,
    Pet,
    Subject,
    WorldVersion,
)
from tiny_portraits.drawing.face import DYES
from tiny_portraits.drawing.held_and_worn import GARMENT_COLOURS
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.traits import Colour, Person, sample_animal, sample_person

# Pairs that no training image shows, so that composition can be tested on them.
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
# No two of one group can be seen together.
EXCLUSIVE = (EXPRESSIONS, tuple(DYES), ("eyes closed", "sunglasses"), ("eyes closed", "surprised"), ("hat", "crown"))
# The series that the model is trained on; evaluators have series of their own.
MODEL_SEED = 1
# Test people are drawn with the first labels of each kind and without garments: with all of them, every subject of
# every suite would be another image than the one that the records were made with.
PLAIN = replace(SHIPPED, attributes=ATTRIBUTES[:12], actions=ACTIONS[:8], scenes=SCENES[:8], garments=())
# Training uses seeds 1 to 3; the named characters have their own.
SUBJECT_SEED = 4


@dataclass(frozen=True)
class Shares:
    """How often an image shows two people, a pet alone, and a person with a pet."""

    pair: float = 0.12
    pet: float = 0.14
    companion: float = 0.04


PEOPLE_ONLY = Shares(pet=0.0, companion=0.0)


def sample_colour(random: np.random.Generator) -> Colour:
    """Sample a clear colour for clothes and things, near one of the wardrobe's."""
    hue, light, strength = WARDROBE[int(random.integers(len(WARDROBE)))]
    near = random.uniform(-1, 1, 3)
    return colorsys.hls_to_rgb((hue + 0.02 * near[0]) % 1, light + 0.07 * near[1], strength + 0.10 * near[2])


def sample_attributes(random: np.random.Generator, version: WorldVersion = SHIPPED) -> tuple[str, ...]:
    """Sample up to two attributes that can be seen together."""
    count = int(random.choice(3, p=(0.40, 0.42, 0.18)))
    while True:
        chosen = tuple(str(a) for a in random.permutation(version.attributes)[:count])
        if all(sum(a in group for a in chosen) < 2 for group in EXCLUSIVE):
            return chosen


def sample_subject(
    random: np.random.Generator,
    person: Person,
    action: str,
    *,
    centre: float | None = None,
    version: WorldVersion = SHIPPED,
) -> Subject:
    """Sample how one person is shown, close enough for what they do; centre gives the place in images of two."""
    attributes = sample_attributes(random, version)
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
    subject = Subject(
        person,
        x,
        y,
        scale,
        attributes,
        action,
        sample_colour(random),
        sample_colour(random),
        random.uniform(-9, 9),
        random.uniform(-1, 1),
    )
    return dress_subject(subject, random, version) if version.garments else subject


def dress_subject(subject: Subject, random: np.random.Generator, version: WorldVersion) -> Subject:
    """Return the subject in random clothes, one in three a plain shirt; some clothes have a colour of their own."""
    garment = "shirt" if random.random() < 0.3 else str(random.choice(version.garments))
    return replace(subject, garment=garment, clothes=GARMENT_COLOURS.get(garment, subject.clothes))


def sample_pet(random: np.random.Generator, kind: str = "", *, next_to_person: bool = False) -> Pet:
    """Sample one animal, alone in the image or at the right beside somebody."""
    animal = sample_animal(random, kind)
    worn = tuple(str(a) for a in PET_ATTRIBUTES if random.random() < 0.15)
    if next_to_person:
        scale, x, y = random.uniform(19, 23), 98 + random.uniform(-3, 3), random.uniform(74, 84)
    else:
        scale, x, y = random.uniform(27, 42), 64 + random.uniform(-10, 10), 66 + random.uniform(-8, 8)
    return Pet(
        animal,
        x,
        y,
        scale,
        worn,
        sample_colour(random),
        sample_colour(random),
        random.uniform(-9, 9),
        random.uniform(-1, 1),
    )


def is_allowed(content: ImageContent) -> bool:
    """Return whether the image shows no held-out pair."""
    shown = {content.scene} | {a for s in content.subjects for a in (*s.attributes, s.action)}
    shown |= {a for p in content.pets for a in p.attributes}
    return not any(a in shown and b in shown for a, b in HELD_OUT)


def sample_company(
    random: np.random.Generator, people: tuple[Person, ...] | None, shares: Shares, version: WorldVersion = SHIPPED
) -> tuple[tuple[Subject, ...], tuple[Pet, ...]]:
    """Sample who is shown: one person, two, a pet, or a person and a pet; given people are never joined by a pet."""
    kind = 1.0 if people else random.random()
    if kind < shares.pet:
        return (), (sample_pet(random),)
    next_to_person = kind < shares.pet + shares.companion
    two = len(people) == 2 if people else not next_to_person and random.random() < shares.pair
    chosen = people or tuple(sample_person(random) for _ in range(2 if two else 1))
    action = "" if two or next_to_person or random.random() < 0.5 else str(random.choice(version.actions))
    places = (34.0, 94.0) if two else (36.0,) if next_to_person else (None,)
    subjects = tuple(
        sample_subject(random, p, action, centre=c, version=version) for p, c in zip(chosen, places, strict=True)
    )
    return subjects, (sample_pet(random, "dog", next_to_person=True),) if next_to_person else ()


def sample_content(
    random: np.random.Generator,
    people: tuple[Person, ...] | None = None,
    shares: Shares = Shares(),
    version: WorldVersion = SHIPPED,
) -> ImageContent:
    """Sample the content of an image of one or two given people, or of anybody."""
    while True:
        subjects, pets = sample_company(random, people, shares, version)
        content = ImageContent(
            subjects,
            "" if random.random() < 0.25 else str(random.choice(version.scenes)),
            str(random.choice(version.styles, p=version.style_shares)),
            str(random.choice(version.lights, p=version.light_shares)),
            float(random.choice((-1.0, 1.0))),
            int(random.integers(2**31)),
            pets,
            str(random.choice(INTERACTIONS)) if len(subjects) == 2 and random.random() < 0.4 else "",
        )
        content = apply_camera(content, str(random.choice(version.cameras, p=version.camera_shares)))
        if is_allowed(content):
            return content


def apply_camera(content: ImageContent, camera: str) -> ImageContent:
    """Return the image as the camera sees it; a wide shot moves people and animals away."""
    if camera != "wide shot":
        return replace(content, camera=camera if content.scene else "")
    crowd = len(content.subjects) + len(content.pets) > 1
    size = 0.8 if crowd else 0.62
    people, pets = (
        tuple(replace(one, scale=one.scale * size) for one in group) for group in (content.subjects, content.pets)
    )
    return replace(content, subjects=people, pets=pets, camera=camera)


def get_content(seed: int, index: int, version: WorldVersion = SHIPPED) -> ImageContent:
    """Return the content of the index-th image of a seed's endless series."""
    return sample_content(np.random.default_rng([seed, index]), version=version)


def draw_numbers(numbers: Iterable[int], seed: int = MODEL_SEED, version: WorldVersion = SHIPPED) -> np.ndarray:
    """Return the numbered drawings of a seed, uint8 `[count, side, side, 3]`."""
    return np.stack([draw(get_content(seed, number, version), version.side) for number in numbers])


def make_test_person(number: int) -> Person:
    """Return the number-th test person."""
    return sample_person(np.random.default_rng([SUBJECT_SEED, number]))


def make_portrait(person: Person, number: int, view: int = 0) -> ImageContent:
    """Return a plain photo of a person, face close, nothing held or worn; each view has its own light and tilt."""
    random = np.random.default_rng([SUBJECT_SEED, number, 1 + view])
    plain = replace(
        sample_subject(random, person, "", version=PLAIN),
        attributes=(),
        scale=float(random.uniform(34, 42)),
        x=64 + float(random.uniform(-4, 4)),
        y=64 + float(random.uniform(-3, 5)),
        clothes=sample_colour(random),
    )
    return ImageContent((plain,), "", "photo", "", float(random.choice((-1.0, 1.0))), int(random.integers(2**31)))


def make_scene_photo(person: Person, number: int, view: int = 0, version: WorldVersion = PLAIN) -> ImageContent:
    """Return a photo of a person somewhere, holding or doing something.

    Views with an even number are photos to learn from, with a thing in the hand. Those with an odd number are for
    comparison: the same person in another scene, closer, with nothing in the hand. Scenes of neighbouring views differ.
    """
    random = np.random.default_rng([SUBJECT_SEED, 5, number])
    scenes, actions = random.permutation(version.scenes), random.permutation(version.actions)
    random = np.random.default_rng([SUBJECT_SEED, 6, number, view])
    while True:
        action = "" if view % 2 else str(actions[view // 2 % len(actions)])
        shown = replace(sample_subject(random, person, action, version=version), attributes=())
        if not action:
            shown = replace(shown, scale=float(random.uniform(28, 36)))
        light_side, seed = float(random.choice((-1.0, 1.0))), int(random.integers(2**31))
        photo = ImageContent((shown,), str(scenes[view % len(scenes)]), "photo", "", light_side, seed)
        if is_allowed(photo):
            return photo
        actions = np.roll(actions, 1)


def make_pet_portrait(kind: str, number: int, view: int = 0) -> ImageContent:
    """Return a plain photo of the number-th test animal of a kind, close, nothing worn; each view has its own light."""
    animal = sample_animal(np.random.default_rng([SUBJECT_SEED, 2, number]), kind)
    random = np.random.default_rng([SUBJECT_SEED, 3, number, 1 + view])
    plain = replace(sample_pet(random, kind), animal=animal, attributes=(), scale=float(random.uniform(34, 42)))
    return ImageContent((), "", "photo", "", float(random.choice((-1.0, 1.0))), int(random.integers(2**31)), (plain,))
