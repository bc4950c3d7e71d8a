"""People and animals whom neither the model nor its judges have seen, and their portraits."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sefi.core.files import write_file, write_text
from sefi.core.json_text import dump_json
from sefi.world.animal import random_animal
from sefi.world.draw import FILE_SIDE
from sefi.world.drawing import draw, truth
from sefi.world.person import Person, random_person
from sefi.world.picture import Picture
from sefi.world.sampling import allowed, random_pet, random_subject, vivid
from sefi.world.versions import FOURTH, WorldVersion

# Training uses seeds 1 to 3; the named characters have their own.
SUBJECT_SEED = 4


def subject(number: int) -> Person:
    """The number-th test person."""
    return random_person(np.random.default_rng([SUBJECT_SEED, number]))


def portrait(person: Person, number: int, view: int = 0) -> Picture:
    """A plain photo of a person, face close, nothing held or worn; each view has its own light, clothes and tilt."""
    random = np.random.default_rng([SUBJECT_SEED, number, 1 + view])
    plain = replace(
        random_subject(random, person, ""),
        attributes=(),
        scale=float(random.uniform(34, 42)),
        x=64 + float(random.uniform(-4, 4)),
        y=64 + float(random.uniform(-3, 5)),
        clothes=vivid(random),
    )
    return Picture((plain,), "", "photo", "", float(random.choice((-1.0, 1.0))), int(random.integers(2**31)))


def photo_in_scene(person: Person, number: int, view: int = 0, version: WorldVersion = FOURTH) -> Picture:
    """Return a photo of a person somewhere, holding or doing something.

    Views with an even number are photos to learn from, with a thing in the hand. Those with an odd number are for
    comparison: the same person in another scene, closer, with nothing in the hand. Scenes of neighbouring views differ.
    """
    random = np.random.default_rng([SUBJECT_SEED, 5, number])
    scenes, actions = random.permutation(version.scenes), random.permutation(version.actions)
    random = np.random.default_rng([SUBJECT_SEED, 6, number, view])
    while True:
        action = "" if view % 2 else str(actions[view // 2 % len(actions)])
        shown = replace(random_subject(random, person, action, version=version), attributes=())
        if not action:
            shown = replace(shown, scale=float(random.uniform(28, 36)))
        light_side, seed = float(random.choice((-1.0, 1.0))), int(random.integers(2**31))
        found = Picture((shown,), str(scenes[view % len(scenes)]), "photo", "", light_side, seed)
        if allowed(found):
            return found
        actions = np.roll(actions, 1)


def pet_portrait(kind: str, number: int, view: int = 0) -> Picture:
    """A plain photo of the number-th test animal of a kind, close, nothing worn; each view has its own light."""
    animal = random_animal(np.random.default_rng([SUBJECT_SEED, 2, number]), kind)
    random = np.random.default_rng([SUBJECT_SEED, 3, number, 1 + view])
    plain = replace(random_pet(random, kind), animal=animal, attributes=(), scale=float(random.uniform(34, 42)))
    return Picture((), "", "photo", "", float(random.choice((-1.0, 1.0))), int(random.integers(2**31)), (plain,))


def write_portrait(number: int, folder: Path) -> None:
    """Write `portrait.png` and `truth.json` of a test person into a folder."""
    shown = portrait(subject(number), number)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "portrait.png", partial(Image.fromarray(draw(shown, FILE_SIDE)).save, optimize=True))
    told = truth(shown)["subjects"][0]["traits"]
    write_text(folder / "truth.json", dump_json({"subject": number, "traits": told}, indent=1) + "\n")
