"""Scores of how well the model follows words: everything it can be asked for, seen by the evaluators."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from sefi.backbone.bundle import Backbone
from sefi.core.config import GenerateSettings
from sefi.core.progress import Progress
from sefi.evaluation.encoders import ClipEncoder
from sefi.evaluation.metrics import measure_mean_prompt_score
from sefi.photo.detect import LOOKING_SIDE
from tiny_portraits.drawing.content import SHIPPED, WorldVersion
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import HELD_OUT, make_portrait
from tiny_portraits.drawing.traits import ANIMALS, COATS, EXTREMES, EYE_COLOURS, HAIR_COLOURS, HAIR_STYLES, SKIN_TONES
from tiny_portraits.evaluation.figures import (
    Figure,
    ImageEvaluators,
    Observation,
    embed_face,
    generate_arrays,
    observe_generated,
)
from tiny_portraits.text.captions import remove_names, say
from tiny_portraits.text.words import DOING, MEDIA, PHRASES, PLACES, TOGETHER, list_characters
from tiny_portraits.training.clip import CLIP
from tiny_portraits.training.drawings import HELD_OUT_SEED, list_contents

NAMED, PAIRS = 60, 24
KINDS = {"attribute": PHRASES, "action": DOING, "scene": PLACES}
# Which kind each label is of; its order is that in which a sentence says them.
KIND_OF = {label: kind for kind, table in KINDS.items() for label in table}
TARGETS = {"attribute": 0.95, "action": 0.90, "scene": 0.95, "style": 0.95, "described trait": 0.85}
# Held-out combinations may be this much less often right than seen ones.
COMPOSITION = -0.10
# Unseen images whose captions the model is asked to draw; the evaluator CLIP itself is measured on the first ones.
ASKED_FROM, ASKED = 1000, 64


@dataclass(frozen=True)
class Wish:
    """A prompt with `{}` for the person, and what its image must show."""

    group: str
    prompt: str
    wanted: tuple[tuple[str, str], ...]


def list_wishes() -> list[Wish]:
    """List attributes, actions, scenes and styles alone, unseen combinations, and as many seen ones."""
    wishes = [
        Wish(kind, f"a photo of {{}} {words[0]}", ((kind, label),))
        for kind, table in KINDS.items()
        for label, words in table.items()
    ]
    wishes += [Wish("style", f"{words[0]} {{}}", (("style", style),)) for style, words in MEDIA.items()]
    for group, pairs in (("held out", sort_pairs(HELD_OUT)), ("seen pair", list_seen_pairs())):
        for pair in pairs:
            said = ", ".join(KINDS[KIND_OF[label]][label][0] for label in pair)
            wishes.append(Wish(group, f"a photo of {{}} {said}", tuple((KIND_OF[label], label) for label in pair)))
    return wishes


def sort_pairs(pairs: frozenset[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Sort pairs, each as attribute, action, scene."""
    return sorted(sort_labels(pair) for pair in pairs)


def sort_labels(pair: tuple[str, ...]) -> tuple[str, ...]:
    """Return labels in the order in which a sentence says them."""
    return tuple(sorted(pair, key=list(KIND_OF).index))


def list_seen_pairs() -> list[tuple[str, ...]]:
    """Pair the first and second parts of the held-out pairs so that training saw each pair."""
    held, moved = sort_pairs(HELD_OUT), list[tuple[str, ...]]()
    for n, (first, _) in enumerate(held):
        others = [held[(n + k) % len(held)][1] for k in range(1, len(held))]
        second = next(o for o in others if KIND_OF[o] != KIND_OF[first] and (first, o) not in held)
        moved.append(sort_labels((first, second)))
    return moved


def list_trait_wishes() -> list[Wish]:
    """List wishes for a person with one trait: every colour, style, shape and mark that captions can say."""
    traits = [("skin", f"{tone} skin", tone) for tone, _ in SKIN_TONES]
    traits += [("hair style", f"{style} hair", style) for style in HAIR_STYLES]
    traits += [("hair colour", f"{colour} hair", colour) for colour in HAIR_COLOURS]
    traits += [("eyes", f"{colour} eyes", colour) for colour in EYE_COLOURS]
    traits += [("without", low, high) for _, _, low, high in EXTREMES]
    traits += [("attribute", high, high) for _, _, _, high in EXTREMES]
    traits += [("attribute", mark, mark) for mark in ("freckles", "glasses", "a mole")]
    return [Wish("described trait", f"a photo of a person with {w}", ((kind, label),)) for kind, w, label in traits]


def score_wish(wish: Wish, observation: Observation) -> float:
    """Return 1 if the image shows all that was wanted, else 0."""
    return float(all(observation.reading.shows(*wanted) for wanted in wish.wanted))


def score_words(
    backbone: Backbone,
    evaluators: ImageEvaluators,
    count: int,
    settings: GenerateSettings,
    progress: Progress,
) -> list[Figure]:
    """Return the share of images that show what was asked, `count` of every wish, half of them of a named character."""
    asked = [(wish, choose_who(k)) for wish in list_wishes() for k in range(count)]
    observations = observe_generated(
        backbone, evaluators, [wish.prompt.format(who) for wish, who in asked], settings, progress
    )
    scores: dict[str, list[float]] = {}
    for (wish, _), observation in zip(asked, observations, strict=True):
        scores.setdefault(wish.group, []).append(score_wish(wish, observation))
    mean = {group: float(np.mean(values)) for group, values in scores.items()}
    figures = [Figure("face found", float(np.mean([bool(s.faces) for s in observations])), 0.97, len(observations))]
    figures += [Figure(f"{g} right", mean[g], TARGETS.get(g), len(values)) for g, values in scores.items()]
    fewer = mean["held out"] - mean["seen pair"]
    return [*figures, Figure("held-out combinations against seen ones", fewer, COMPOSITION, len(scores["held out"]))]


def choose_who(number: int) -> str:
    """Return the plain word or a name, in turn."""
    return "a person" if number % 2 == 0 else list_characters()[7 * number].first


def score_traits(
    backbone: Backbone, evaluators: ImageEvaluators, count: int, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return the share of images of a described person that show the described trait, `count` of every trait."""
    asked = [wish for wish in list_trait_wishes() for _ in range(count)]
    observations = observe_generated(backbone, evaluators, [wish.prompt for wish in asked], settings, progress)
    scores = [score_wish(wish, observation) for wish, observation in zip(asked, observations, strict=True)]
    group = asked[0].group
    return [Figure(f"{group} right", float(np.mean(scores)), TARGETS[group], len(scores))]


def score_pets(
    backbone: Backbone, evaluators: ImageEvaluators, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how often animals of every coat are that animal; no target."""
    asked = [(kind, f"a photo of a {coat} {kind}") for kind, coat in product(ANIMALS, COATS)]
    observations = observe_generated(backbone, evaluators, [prompt for _, prompt in asked], settings, progress)
    right = [s.reading.shows("pet", kind) for (kind, _), s in zip(asked, observations, strict=True)]
    return [Figure("animal right", float(np.mean(right)), None, len(right))]


def score_names(
    backbone: Backbone, evaluators: ImageEvaluators, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how often a named character's face is nearest to that character's drawing among all named ones."""
    named = list_characters()
    gallery = np.stack(
        [embed_face(evaluators, draw(make_portrait(c.person, number), LOOKING_SIDE)) for number, c in enumerate(named)]
    )
    chosen = range(0, len(named), len(named) // NAMED)
    observations = observe_generated(
        backbone, evaluators, [f"a photo of {named[n].first}" for n in chosen], settings, progress
    )
    ranks = [rank(gallery, observation.embedding, n) for n, observation in zip(chosen, observations, strict=True)]
    return [
        Figure(f"named character recognised, top-{top} of {len(named)}", compute_share(ranks, top), target, len(ranks))
        for top, target in ((1, 0.60), (10, 0.85), (100, None))
    ]


def rank(gallery: np.ndarray, face: np.ndarray | None, number: int) -> int:
    """Return how many of the gallery `[person, embedding]` are nearer to the face than the right one, 0 at best."""
    if face is None:
        return len(gallery)
    nearness = gallery @ face
    return int((nearness > nearness[number]).sum())


def compute_share(ranks: Sequence[int], top: int) -> float:
    """Return the share of ranks among the first `top`."""
    return float(np.mean([r < top for r in ranks]))


def score_pairs(
    backbone: Backbone, evaluators: ImageEvaluators, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how often both subjects are there (two faces, or a face and a dog), and how often they shake hands."""
    names = [c.first for c in list_characters()[: PAIRS + 1]]
    together = TOGETHER["shaking hands"][0]
    people = [f"{one} and {other}" for one, other in pairwise(names)]
    people[1::2] = [f"a person and {name}" for name in names[1::2]]
    prompts = [f"a photo of {who} {together if n % 3 == 0 else ''}".strip() for n, who in enumerate(people)]
    with_dogs = [f"a photo of {name} and a {coat} dog" for name, coat in zip(names[::4], COATS, strict=False)]
    observations = observe_generated(backbone, evaluators, prompts + with_dogs, settings, progress)
    both = [len(s.faces) == 2 for s in observations[:PAIRS]]
    both += [len(s.faces) == 1 and s.reading.shows("pet", "dog") for s in observations[PAIRS:]]
    shaking = [s.reading.shows("interaction", "shaking hands") for s in observations[:PAIRS:3]]
    return [
        Figure("both subjects present", float(np.mean(both)), 0.85, len(both)),
        Figure("shaking hands right", float(np.mean(shaking)), None, len(shaking)),
    ]


def score_agreement(
    folder: Path, backbone: Backbone, settings: GenerateSettings, progress: Progress, version: WorldVersion = SHIPPED
) -> list[Figure]:
    """Return how well images of the captions of unseen drawings agree with them, compared with the drawings."""
    shown = list_contents(HELD_OUT_SEED, ASKED_FROM, ASKED, version)
    # As the version's training says it: a sentence that is too long for the model is never asked.
    chances = [np.random.default_rng([HELD_OUT_SEED, 33, i]) for i in range(len(shown))]
    said = [remove_names(say(p, chance, version)[0].text) for p, chance in zip(shown, chances, strict=True)]
    images = generate_arrays(backbone, said, settings, progress)
    return [compute_agreement_ratio(ClipEncoder(folder / CLIP), images, said, [draw(p) for p in shown], said)]


def compute_agreement_ratio(
    encoder: ClipEncoder,
    generated: Sequence[np.ndarray],
    prompts: Sequence[str],
    drawings: Sequence[np.ndarray],
    captions: Sequence[str],
) -> Figure:
    """Return the mean CLIP score of generated images, as a share of the mean CLIP score of true drawings.

    Args:
        generated: uint8 RGB images `[side, side, 3]`.
        prompts: what each was asked to show; without names, which the evaluator does not know (see `remove_names`).
        drawings: uint8 RGB drawings of the same kinds of things.
        captions: what each drawing shows, worded like the prompts.
    """
    of_generated = measure_mean_prompt_score(encoder.encode_images(generated), encoder.encode_texts(prompts))
    of_drawings = measure_mean_prompt_score(encoder.encode_images(drawings), encoder.encode_texts(captions))
    return Figure("judge CLIP score, share of drawings'", of_generated / of_drawings, 0.90, len(generated))
