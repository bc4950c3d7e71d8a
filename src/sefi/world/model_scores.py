"""How well the model obeys words: faces, attributes, actions, scenes, styles and names, seen by the judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sefi.attention.install import key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.config import GenerateConfig
from sefi.core.protocols import Progress
from sefi.generate.sampler import generate
from sefi.world.captions import DOING, MEDIA, PHRASES, PLACES
from sefi.world.drawing import draw
from sefi.world.figure import Figure
from sefi.world.looking import LOOKING_SIDE, Judges, Sight
from sefi.world.names import characters
from sefi.world.recogniser_training import EMBEDDING
from sefi.world.sampling import HELD_OUT
from sefi.world.subjects import portrait

NAMED, PAIRS = 60, 24
KINDS = {"attribute": PHRASES, "action": DOING, "scene": PLACES}
TARGETS = {"attribute": 0.90, "action": 0.90, "scene": 0.95, "style": 0.95, "held out": 0.80}


@dataclass(frozen=True)
class Wish:
    """A prompt with `{}` for the person, and what its picture must show."""

    group: str
    prompt: str
    wanted: tuple[tuple[str, str], ...]


def wishes() -> list[Wish]:
    """Every attribute, action, scene and style alone, and the combinations that training never saw."""
    found = [
        Wish(kind, f"a photo of {{}} {words[0]}", ((kind, label),))
        for kind, table in KINDS.items()
        for label, words in table.items()
    ]
    found += [Wish("style", f"{words[0]} {{}}", (("style", style),)) for style, words in MEDIA.items()]
    kind_of = {label: kind for kind, table in KINDS.items() for label in table}
    order = list(kind_of)
    for pair in sorted(sorted(pair, key=order.index) for pair in HELD_OUT):
        said = ", ".join(KINDS[kind_of[label]][label][0] for label in pair)
        found.append(Wish("held out", f"a photo of {{}} {said}", tuple((kind_of[label], label) for label in pair)))
    return found


def look(
    backbone: Backbone, judges: Judges, prompts: Sequence[str], config: GenerateConfig, progress: Progress
) -> list[Sight]:
    """One picture of every prompt, seen by the judges; the n-th has seed n."""
    with key_value_attention(backbone.unet, backbone.width):
        conditioner = IdentityConditioner(backbone, [])
        made = generate(backbone, conditioner, prompts, list(range(len(prompts))), config, progress)
        return [judges(np.asarray(image.pixels)) for image in made]


def score_words(
    backbone: Backbone, judges: Judges, count: int, config: GenerateConfig, progress: Progress
) -> list[Figure]:
    """Share of pictures that show what was asked, `count` of every wish, half of them of a named character."""
    asked = [(wish, who_of(k)) for wish in wishes() for k in range(count)]
    sights = look(backbone, judges, [wish.prompt.format(who) for wish, who in asked], config, progress)
    right: dict[str, list[float]] = {}
    for (wish, _), sight in zip(asked, sights, strict=True):
        right.setdefault(wish.group, []).append(float(all(sight.reading.shows(*w) for w in wish.wanted)))
    figures = [Figure("face found", float(np.mean([bool(s.faces) for s in sights])), 0.97, len(sights))]
    return figures + [Figure(f"{g} right", float(np.mean(r)), TARGETS[g], len(r)) for g, r in right.items()]


def who_of(number: int) -> str:
    """The plain word and names in turn."""
    return "a person" if number % 2 == 0 else characters()[7 * number].first


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
    """Two people asked for: two faces found."""
    named = [c.first for c in characters()[: PAIRS + 1]]
    prompts = [f"a photo of {one} and {other}" for one, other in pairwise(named)]
    sights = look(backbone, judges, prompts, config, progress)
    return [Figure("both people present", float(np.mean([len(s.faces) == 2 for s in sights])), 0.85, len(sights))]
