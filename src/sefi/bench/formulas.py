"""The pictures of one subject and one way to one number: the formulas behind the figures of a benchmark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sefi.bench.records import RunInfo, Sample
from sefi.metrics.copying import copy_score
from sefi.metrics.diversity import diversity
from sefi.metrics.gated import gated_area, identity_at_prompt
from sefi.metrics.margin import margin_success
from sefi.metrics.similarity import mean_over_detected
from sefi.metrics.verification import verification_rate


@dataclass(frozen=True)
class Conditions:
    """What a run fixes for all of its pictures.

    Attributes:
        tau: Prompt score from which a picture counts in ID(Prompt); None if the run has none.
        far_threshold: Cosine from which two faces count as one person; None likewise.
        lowest: Lowest prompt score of the ways that are no anchors, nan if there is none.
        highest: Highest, likewise.
        wanted: For each prompt the kinds of what a reader must see.
        together: How many subjects share a picture.
    """

    tau: float | None
    far_threshold: float | None
    lowest: float
    highest: float
    wanted: Sequence[Sequence[str]]
    together: int


Formula = Callable[[Sequence[Sample], Conditions], float]


def conditions(samples: Sequence[Sample], run: RunInfo) -> Conditions:
    """What the run fixes, the range of prompt scores taken from all of its pictures."""
    suite = run.suite
    anchors = {way.label for way in suite.variants if way.control}
    scores = numbers([sample for sample in samples if sample.variant not in anchors], "prompt_score")
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (math.nan, math.nan)
    wanted = [[kind for kind, _ in prompt.wanted] for prompt in suite.prompts]
    return Conditions(run.tau, run.far_threshold, low, high, wanted, suite.together)


def having(samples: Sequence[Sample], *keys: str) -> list[Sample]:
    """Return the samples in which each of the fields was computed."""
    return [sample for sample in samples if all(getattr(sample, key) is not None for key in keys)]


def numbers(samples: Sequence[Sample], key: str) -> NDArray[np.float64]:
    """Return the values `[sample]` of one field where it was computed."""
    values = (getattr(sample, key) for sample in samples)
    return np.array([value for value in values if value is not None], np.float64)


def mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean of what there is; nan of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def mean_of(key: str) -> Formula:
    """The mean of one key over the pictures that have it."""
    return lambda samples, _: mean(numbers(samples, key))


def face_found(samples: Sequence[Sample], _: Conditions) -> float:
    """Share of pictures with at least one face."""
    return mean([float(sample.faces > 0) for sample in samples if sample.faces is not None])


def one_face_each(samples: Sequence[Sample], run: Conditions) -> float:
    """Share of pictures with as many faces as there are subjects in one."""
    return mean([float(sample.faces == run.together) for sample in samples if sample.faces is not None])


def id_detected(samples: Sequence[Sample], _: Conditions) -> float:
    """Mean likeness over the pictures on which a face was found."""
    known = having(samples, "id", "faces")
    return mean_over_detected(numbers(known, "id"), numbers(known, "faces") > 0)


def id_prompt(samples: Sequence[Sample], run: Conditions) -> float:
    """ID(Prompt) at the run's tau."""
    known = having(samples, "id", "prompt_score")
    if run.tau is None:
        return math.nan
    return identity_at_prompt(numbers(known, "id"), numbers(known, "prompt_score"), run.tau)


def id_prompt_area(samples: Sequence[Sample], run: Conditions) -> float:
    """Mean of ID(Prompt) over tau, from the lowest to the highest prompt score of the run."""
    known = having(samples, "id", "prompt_score")
    if not run.lowest < run.highest:
        return math.nan
    return gated_area(numbers(known, "id"), numbers(known, "prompt_score"), run.lowest, run.highest)


def verified(samples: Sequence[Sample], run: Conditions) -> float:
    """Share of pictures on which a recogniser would take the person for the one of the photo.

    Where two share a picture, likeness is a mean over both, and the threshold belongs to one.
    """
    if run.far_threshold is None or run.together > 1:
        return math.nan
    return verification_rate(numbers(samples, "id"), run.far_threshold)


def copying(samples: Sequence[Sample], run: Conditions) -> float:
    """How much nearer the faces are to the learned photo than to another picture; of one subject a picture only."""
    if run.together > 1:
        return math.nan
    faces = [sample for sample in having(samples, "id", "id_other") if (sample.faces or 0) > 0]
    return copy_score(numbers(faces, "id"), numbers(faces, "id_other"))


def obeyed_by_margin(samples: Sequence[Sample], _: Conditions) -> float:
    """Share of pictures that CLIP finds nearer to their prompt than to a plain photo of the subject."""
    return margin_success(numbers(samples, "margin"))


def shown(samples: Sequence[Sample], _: Conditions) -> float:
    """Mean over pictures of the share of what was wanted that is there."""
    return mean([mean([float(there) for there in sample.shown]) for sample in samples if sample.shown])


def shown_kind(kind: str) -> Formula:
    """Share of everything wanted of one kind that is there."""

    def formula(samples: Sequence[Sample], run: Conditions) -> float:
        known = [(run.wanted[sample.prompt], sample.shown) for sample in samples if sample.shown is not None]
        pairs = [pair for wanted, found in known for pair in zip(wanted, found, strict=True)]
        return mean([float(there) for asked, there in pairs if asked == kind])

    return formula


def diversity_over_seeds(samples: Sequence[Sample], _: Conditions) -> float:
    """Mean over prompts of how much the pictures of one prompt differ."""
    by_prompt: dict[int, list[Sequence[float]]] = {}
    for sample in samples:
        if sample.embedding is not None:
            by_prompt.setdefault(sample.prompt, []).append(sample.embedding)
    return mean([diversity(np.array(rows, np.float64)) for rows in by_prompt.values() if len(rows) > 1])


def most(key: str) -> Formula:
    """The highest value of one key."""
    return lambda samples, _: float(max(numbers(samples, key), default=math.nan))
