"""COMPOSER: a picture to its record: every score, and what it was made from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sefi.bench.drawing import Drawn
from sefi.bench.focus import focus_of
from sefi.bench.judging import Seen, likeness, plain_numbers
from sefi.bench.opened import Bench, digest, group_key
from sefi.bench.records import Cell
from sefi.bench.subject import Subject
from sefi.bench.suite import Way
from sefi.metrics.similarity import similarity

# What a picture shows whose prompt was not obeyed; CLIP's margin is the prompt's lead over it.
PLAIN = "a photo of {}"


def scored(bench: Bench, group: Sequence[Subject], way: Way, picture: Drawn) -> Cell:
    """The record of a picture; a score without its judge is None."""
    asked, judging, kind = bench.suite.prompts[picture.place.prompt], bench.judging, bench.suite.kind
    seen = judging.see(picture.rgb)
    text, plain = asked.text.format(*[kind] * len(group)), PLAIN.format(" and ".join([kind] * len(group)))
    return {
        "subject": group_key(group),
        "way": way.label,
        "kind": asked.kind,
        "prompt": picture.place.prompt,
        "text": text,
        "class_word": kind,
        "seed": picture.place.seed,
        "sha256": digest(picture.rgb),
        **identity_scores(bench, group, way, seen),
        "prompt_score": judging.prompt_score(seen, text),
        "margin": judging.margin(seen, text, plain),
        "shown": judging.shown(picture.rgb, seen, asked.wanted),
        "embedding": plain_numbers(seen.clip),
        "draw_seconds": None if picture.seconds is None else round(picture.seconds, 3),
        **focus_of(picture.attended, asked.wanted, seen, picture.rgb),
    }


def identity_scores(bench: Bench, group: Sequence[Subject], way: Way, seen: Seen) -> dict[str, float | None]:
    """Faces, likeness to the learned photos, to other pictures, to the wrong person; CLIP's likeness; what leaked.

    The face judges know people only: for an animal theirs are not computed. Where the picture *is* the other picture,
    its likeness to itself says nothing and is left out.
    """
    photos = [bench.looks(s)[0] for s in group]
    others = [bench.looks(s)[1] for s in group]
    like, leaked = likeness(seen, [first_face(p) for p in photos])
    like_other, _ = likeness(seen, [first_face(o) for o in others])
    person, alone = bench.suite.kind == "person", len(group) == 1
    return {
        "faces": len(seen.faces) if person and seen.faces is not None else None,
        "id": like if person else None,
        "id_other": like_other if person and way.control != "same" else None,
        "id_leaked": leaked if person else None,
        "clip_image": nearness(seen.clip, photos[0].clip) if alone else None,
        "background": nearness(seen.background, photos[0].background) if alone and person else None,
    }


def first_face(seen: Seen | None) -> NDArray[np.float32] | None:
    """Embedding of the surest face."""
    return seen.embeddings[0] if seen is not None and seen.embeddings else None


def nearness(first: NDArray[np.float32] | None, second: NDArray[np.float32] | None) -> float | None:
    """Cosine, where both are known."""
    return None if first is None or second is None else similarity(first, second)
