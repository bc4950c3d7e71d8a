"""How well the model obeys words: everything it can be asked for, seen by the judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateConfig
from sefi.core.protocols import Progress
from sefi.photo.enlarge import LOOKING_SIDE
from sefi.world.animal import ANIMALS, COATS
from sefi.world.captions import (
    DOING,
    EVERY_DOING,
    EVERY_MEDIUM,
    EVERY_PHRASE,
    EVERY_PLACE,
    PHRASES,
    PLACES,
    TOGETHER,
)
from sefi.world.drawing import draw
from sefi.world.figure import Figure
from sefi.world.grids import pictures
from sefi.world.looking import Judges, Sight
from sefi.world.names import characters
from sefi.world.person import EXTREMES, EYE_COLOURS, HAIR_COLOURS, HAIR_STYLES, SKIN_TONES
from sefi.world.recogniser_training import EMBEDDING
from sefi.world.sampling import HELD_OUT
from sefi.world.subjects import portrait
from sefi.world.versions import FOURTH, WorldVersion

NAMED, PAIRS = 60, 24
KINDS = {"attribute": PHRASES, "action": DOING, "scene": PLACES}
# Which kind each label is of; its order is that in which a sentence says them.
KIND_OF = {label: kind for kind, table in KINDS.items() for label in table}
TARGETS = {"attribute": 0.90, "action": 0.90, "scene": 0.95, "style": 0.95, "described trait": 0.85}
# Held-out combinations may be this much less often right than seen ones.
COMPOSITION = -0.10


@dataclass(frozen=True)
class Wish:
    """A prompt with `{}` for the person, and what its picture must show."""

    group: str
    prompt: str
    wanted: tuple[tuple[str, str], ...]


def kinds_of(version: WorldVersion) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the phrases of a version's attributes, actions and scenes by kind and label."""
    if version == FOURTH:
        return KINDS
    tables = {"attribute": EVERY_PHRASE, "action": EVERY_DOING, "scene": EVERY_PLACE}
    labels = {"attribute": version.attributes, "action": version.actions, "scene": version.scenes}
    return {kind: {label: table[label] for label in labels[kind]} for kind, table in tables.items()}


def targets_of(version: WorldVersion) -> dict[str, float]:
    """Return the least shares wanted; the fifth version's attributes must be right more often."""
    return TARGETS if version == FOURTH else TARGETS | {"attribute": 0.95}


def wishes(version: WorldVersion = FOURTH) -> list[Wish]:
    """Every attribute, action, scene and style alone, combinations that training never saw, and as many that it saw."""
    found = [
        Wish(kind, f"a photo of {{}} {words[0]}", ((kind, label),))
        for kind, table in kinds_of(version).items()
        for label, words in table.items()
    ]
    media = {style: EVERY_MEDIUM[style] for style in version.styles}
    found += [Wish("style", f"{words[0]} {{}}", (("style", style),)) for style, words in media.items()]
    for group, pairs in (("held out", ordered(HELD_OUT)), ("seen pair", seen_pairs())):
        for pair in pairs:
            said = ", ".join(KINDS[KIND_OF[label]][label][0] for label in pair)
            found.append(Wish(group, f"a photo of {{}} {said}", tuple((KIND_OF[label], label) for label in pair)))
    return found


def ordered(pairs: frozenset[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Each pair as attribute, action, scene; the pairs sorted."""
    return sorted(as_said(pair) for pair in pairs)


def as_said(pair: tuple[str, ...]) -> tuple[str, ...]:
    """Labels in the order in which a sentence says them."""
    return tuple(sorted(pair, key=list(KIND_OF).index))


def seen_pairs() -> list[tuple[str, ...]]:
    """The held-out pairs' own first and second parts, paired anew so that training saw each pair."""
    held, moved = ordered(HELD_OUT), list[tuple[str, ...]]()
    for n, (first, _) in enumerate(held):
        others = [held[(n + k) % len(held)][1] for k in range(1, len(held))]
        second = next(o for o in others if KIND_OF[o] != KIND_OF[first] and (first, o) not in held)
        moved.append(as_said((first, second)))
    return moved


def traits() -> list[Wish]:
    """A person described by one trait: every colour, style, shape and mark that captions can say."""
    found = [("skin", f"{tone} skin", tone) for tone, _ in SKIN_TONES]
    found += [("hair style", f"{style} hair", style) for style in HAIR_STYLES]
    found += [("hair colour", f"{colour} hair", colour) for colour in HAIR_COLOURS]
    found += [("eyes", f"{colour} eyes", colour) for colour in EYE_COLOURS]
    found += [("without", low, high) for _, _, low, high in EXTREMES]
    found += [("attribute", high, high) for _, _, _, high in EXTREMES]
    found += [("attribute", mark, mark) for mark in ("freckles", "glasses", "a mole")]
    return [Wish("described trait", f"a photo of a person with {w}", ((kind, label),)) for kind, w, label in found]


def look(
    backbone: Backbone, judges: Judges, prompts: Sequence[str], config: GenerateConfig, progress: Progress
) -> list[Sight]:
    """One picture of every prompt, seen by the judges; the n-th has seed n."""
    return [judges(picture) for picture in painted(backbone, prompts, config, progress)]


def painted(backbone: Backbone, prompts: Sequence[str], config: GenerateConfig, progress: Progress) -> list[np.ndarray]:
    """One picture of every prompt, uint8 RGB; the n-th has seed n."""
    return [np.asarray(image) for image in pictures(backbone, prompts, 0, config, progress)]


def right(wish: Wish, sight: Sight) -> float:
    """1 if the picture shows all that was wanted, else 0."""
    return float(all(sight.reading.shows(*wanted) for wanted in wish.wanted))


def score_words(
    backbone: Backbone,
    judges: Judges,
    count: int,
    config: GenerateConfig,
    progress: Progress,
    version: WorldVersion = FOURTH,
) -> list[Figure]:
    """Share of pictures that show what was asked, `count` of every wish, half of them of a named character."""
    asked = [(wish, who_of(k)) for wish in wishes(version) for k in range(count)]
    sights = look(backbone, judges, [wish.prompt.format(who) for wish, who in asked], config, progress)
    scores: dict[str, list[float]] = {}
    for (wish, _), sight in zip(asked, sights, strict=True):
        scores.setdefault(wish.group, []).append(right(wish, sight))
    mean = {group: float(np.mean(found)) for group, found in scores.items()}
    figures = [Figure("face found", float(np.mean([bool(s.faces) for s in sights])), 0.97, len(sights))]
    figures += [Figure(f"{g} right", mean[g], targets_of(version).get(g), len(found)) for g, found in scores.items()]
    fewer = mean["held out"] - mean["seen pair"]
    return [*figures, Figure("held-out combinations against seen ones", fewer, COMPOSITION, len(scores["held out"]))]


def who_of(number: int) -> str:
    """The plain word and names in turn."""
    return "a person" if number % 2 == 0 else characters()[7 * number].first


def score_traits(
    backbone: Backbone, judges: Judges, count: int, config: GenerateConfig, progress: Progress
) -> list[Figure]:
    """Share of pictures of a described person that show the described trait, `count` of every trait."""
    asked = [wish for wish in traits() for _ in range(count)]
    sights = look(backbone, judges, [wish.prompt for wish in asked], config, progress)
    found = [right(wish, sight) for wish, sight in zip(asked, sights, strict=True)]
    group = asked[0].group
    return [Figure(f"{group} right", float(np.mean(found)), TARGETS[group], len(found))]


def score_pets(backbone: Backbone, judges: Judges, config: GenerateConfig, progress: Progress) -> list[Figure]:
    """Animals of every coat: is it that animal? Not on the list of what the model must reach."""
    asked = [(kind, f"a photo of a {coat} {kind}") for kind, coat in product(ANIMALS, COATS)]
    sights = look(backbone, judges, [prompt for _, prompt in asked], config, progress)
    found = [s.reading.shows("pet", kind) for (kind, _), s in zip(asked, sights, strict=True)]
    return [Figure("animal right", float(np.mean(found)), None, len(found))]


def score_names(backbone: Backbone, judges: Judges, config: GenerateConfig, progress: Progress) -> list[Figure]:
    """Whether the face of a named character is nearest to that character's drawing among all named ones."""
    named = characters()
    gallery = np.stack(
        [known_face(judges, draw(portrait(c.person, number), LOOKING_SIDE)) for number, c in enumerate(named)]
    )
    chosen = range(0, len(named), len(named) // NAMED)
    sights = look(backbone, judges, [f"a photo of {named[n].first}" for n in chosen], config, progress)
    ranks = [rank(gallery, sight.embedding, n) for n, sight in zip(chosen, sights, strict=True)]
    return [
        Figure(f"named character recognised, top-{top} of {len(named)}", share(ranks, top), target, len(ranks))
        for top, target in ((1, 0.60), (10, 0.85), (100, None))
    ]


def known_face(judges: Judges, rgb: np.ndarray) -> np.ndarray:
    """Embedding of a drawing's face; zeros where none is found."""
    embedding = judges(rgb).embedding
    return np.zeros(EMBEDDING, np.float32) if embedding is None else embedding


def rank(gallery: np.ndarray, face: np.ndarray | None, number: int) -> int:
    """How many of the gallery `[person, embedding]` are nearer to the face than the right one, 0 at best."""
    if face is None:
        return len(gallery)
    nearness = gallery @ face
    return int((nearness > nearness[number]).sum())


def share(ranks: Sequence[int], top: int) -> float:
    """Share of ranks among the first `top`."""
    return float(np.mean([r < top for r in ranks]))


def score_pairs(backbone: Backbone, judges: Judges, config: GenerateConfig, progress: Progress) -> list[Figure]:
    """Two subjects asked for, both there: two faces, or a face and a dog; and do those who should shake hands?"""
    names = [c.first for c in characters()[: PAIRS + 1]]
    together = TOGETHER["shaking hands"][0]
    people = [f"{one} and {other}" for one, other in pairwise(names)]
    people[1::2] = [f"a person and {name}" for name in names[1::2]]
    prompts = [f"a photo of {who} {together if n % 3 == 0 else ''}".strip() for n, who in enumerate(people)]
    beside = [f"a photo of {name} and a {coat} dog" for name, coat in zip(names[::4], COATS, strict=False)]
    sights = look(backbone, judges, prompts + beside, config, progress)
    both = [len(s.faces) == 2 for s in sights[:PAIRS]]
    both += [len(s.faces) == 1 and s.reading.shows("pet", "dog") for s in sights[PAIRS:]]
    shaking = [s.reading.shows("interaction", "shaking hands") for s in sights[:PAIRS:3]]
    return [
        Figure("both subjects present", float(np.mean(both)), 0.85, len(both)),
        Figure("shaking hands right", float(np.mean(shaking)), None, len(shaking)),
    ]
