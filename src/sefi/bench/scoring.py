"""COMPOSER: a picture to its record: every score, and what it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sefi.bench.drawing import Drawn
from sefi.bench.focus import focus_of
from sefi.bench.identities import Costs
from sefi.bench.judging import Seen, finite_or_none, likeness, plain_numbers
from sefi.bench.opened import Bench, digest, group_key
from sefi.bench.records import Sample
from sefi.bench.subject import Subject
from sefi.bench.suite import Way
from sefi.metrics.similarity import similarity

# What a picture shows whose prompt was not obeyed; CLIP's margin is the prompt's lead over it.
PLAIN = "a photo of {}"


@dataclass(frozen=True)
class SampleFiles:
    """Where an image and its attention maps lie, from the run's folder."""

    image: str
    maps: str | None


class IdentityScores(TypedDict):
    """The scores of likeness, by the fields of a `Sample`."""

    faces: int | None
    id: float | None
    id_other: float | None
    id_leaked: float | None
    clip_image: float | None
    background: float | None


def scored(
    bench: Bench, group: Sequence[Subject], way: Way, picture: Drawn, files: SampleFiles, costs: Costs
) -> Sample:
    """The record of a picture; a score without its judge is None."""
    asked, judging, kind = bench.suite.prompts[picture.place.prompt], bench.judging, bench.suite.kind
    seen = judging.see(picture.rgb)
    text, plain = asked.text.format(*[kind] * len(group)), PLAIN.format(" and ".join([kind] * len(group)))
    return Sample(
        subject=group_key(group),
        variant=way.label,
        kind=asked.kind,
        prompt=picture.place.prompt,
        text=text,
        class_word=kind,
        seed=picture.place.seed,
        sha256=digest(picture.rgb),
        prompt_score=finite_or_none(judging.prompt_score(seen, text)),
        margin=finite_or_none(judging.margin(seen, text, plain)),
        shown=judging.shown(picture.rgb, seen, asked.wanted),
        embedding=plain_numbers(seen.clip),
        draw_seconds=None if picture.seconds is None else round(picture.seconds, 3),
        image=files.image,
        maps=files.maps,
        trained=costs.trained,
        added=costs.added,
        learn_seconds=costs.learn_seconds,
        class_seconds=costs.class_seconds,
        peak_mb=costs.peak_mb,
        **identity_scores(bench, group, way, seen),
        **focus_of(picture.attended, asked.wanted, seen, picture.rgb),
    )


def identity_scores(bench: Bench, group: Sequence[Subject], way: Way, seen: Seen) -> IdentityScores:
    """Faces, likeness to the learned photos, to other pictures, to the wrong person; CLIP's likeness; what leaked.

    The face judges know people only: for an animal theirs are not computed. Where the picture *is* the other picture,
    its likeness to itself says nothing and is left out.
    """
    photos = [bench.looks(s)[0] for s in group]
    others = [bench.looks(s)[1] for s in group]
    like, leaked = likeness(seen, [first_face(p) for p in photos])
    like_other, _ = likeness(seen, [first_face(o) for o in others])
    person, alone = bench.suite.kind == "person", len(group) == 1
    return IdentityScores(
        faces=len(seen.faces) if person and seen.faces is not None else None,
        id=finite_or_none(like) if person else None,
        id_other=finite_or_none(like_other) if person and way.control != "same" else None,
        id_leaked=finite_or_none(leaked) if person else None,
        clip_image=nearness(seen.clip, photos[0].clip) if alone else None,
        background=nearness(seen.background, photos[0].background) if alone and person else None,
    )


def first_face(seen: Seen | None) -> NDArray[np.float32] | None:
    """Embedding of the surest face."""
    return seen.embeddings[0] if seen is not None and seen.embeddings else None


def nearness(first: NDArray[np.float32] | None, second: NDArray[np.float32] | None) -> float | None:
    """Return the cosine, where both are known."""
    return None if first is None or second is None else finite_or_none(similarity(first, second))
