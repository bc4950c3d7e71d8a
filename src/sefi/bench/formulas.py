"""The pictures of one subject and one way to one number: the formulas behind the figures of a benchmark."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sefi.bench.records import Cell
from sefi.metrics.copying import copy_score
from sefi.metrics.diversity import diversity
from sefi.metrics.gated import gated_area, identity_at_prompt
from sefi.metrics.margin import margin_success
from sefi.metrics.similarity import mean_over_detected
from sefi.metrics.verification import verification_rate

Run = Mapping[str, Any]


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


Formula = Callable[[Sequence[Cell], Conditions], float]


def conditions(cells: Sequence[Cell], run: Run) -> Conditions:
    """What the run fixes, the range of prompt scores taken from all of its pictures."""
    suite = run["suite"]
    anchors = {way["label"] for way in suite["ways"] if way.get("control")}
    scores = numbers([cell for cell in cells if cell["way"] not in anchors], "prompt_score")
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (math.nan, math.nan)
    wanted = [[kind for kind, _ in prompt.get("wanted") or ()] for prompt in suite["prompts"]]
    return Conditions(run.get("tau"), run.get("far_threshold"), low, high, wanted, suite.get("together", 1))


def having(cells: Sequence[Cell], *keys: str) -> list[Cell]:
    """The cells in which each of the keys was computed."""
    return [cell for cell in cells if all(cell.get(key) is not None for key in keys)]


def numbers(cells: Sequence[Cell], key: str) -> NDArray[np.float64]:
    """The values `[picture]` of one key where it was computed."""
    return np.array([cell[key] for cell in having(cells, key)], np.float64)


def mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean of what there is; nan of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def mean_of(key: str) -> Formula:
    """The mean of one key over the pictures that have it."""
    return lambda cells, _: mean(numbers(cells, key))


def face_found(cells: Sequence[Cell], _: Conditions) -> float:
    """Share of pictures with at least one face."""
    return mean([float(cell["faces"] > 0) for cell in having(cells, "faces")])


def one_face_each(cells: Sequence[Cell], run: Conditions) -> float:
    """Share of pictures with as many faces as there are subjects in one."""
    return mean([float(cell["faces"] == run.together) for cell in having(cells, "faces")])


def id_detected(cells: Sequence[Cell], _: Conditions) -> float:
    """Mean likeness over the pictures on which a face was found."""
    known = having(cells, "id", "faces")
    return mean_over_detected(numbers(known, "id"), np.array([cell["faces"] > 0 for cell in known], np.bool_))


def id_prompt(cells: Sequence[Cell], run: Conditions) -> float:
    """ID(Prompt) at the run's tau."""
    known = having(cells, "id", "prompt_score")
    if run.tau is None:
        return math.nan
    return identity_at_prompt(numbers(known, "id"), numbers(known, "prompt_score"), run.tau)


def id_prompt_area(cells: Sequence[Cell], run: Conditions) -> float:
    """Mean of ID(Prompt) over tau, from the lowest to the highest prompt score of the run."""
    known = having(cells, "id", "prompt_score")
    if not run.lowest < run.highest:
        return math.nan
    return gated_area(numbers(known, "id"), numbers(known, "prompt_score"), run.lowest, run.highest)


def verified(cells: Sequence[Cell], run: Conditions) -> float:
    """Share of pictures on which a recogniser would take the person for the one of the photo.

    Where two share a picture, likeness is a mean over both, and the threshold belongs to one.
    """
    if run.far_threshold is None or run.together > 1:
        return math.nan
    return verification_rate(numbers(cells, "id"), run.far_threshold)


def copying(cells: Sequence[Cell], run: Conditions) -> float:
    """How much nearer the faces are to the learned photo than to another picture; of one subject a picture only."""
    if run.together > 1:
        return math.nan
    faces = [cell for cell in having(cells, "id", "id_other", "faces") if cell["faces"] > 0]
    return copy_score(numbers(faces, "id"), numbers(faces, "id_other"))


def obeyed_by_margin(cells: Sequence[Cell], _: Conditions) -> float:
    """Share of pictures that CLIP finds nearer to their prompt than to a plain photo of the subject."""
    return margin_success(numbers(cells, "margin"))


def shown(cells: Sequence[Cell], _: Conditions) -> float:
    """Mean over pictures of the share of what was wanted that is there."""
    return mean([mean([float(s) for s in cell["shown"]]) for cell in having(cells, "shown") if cell["shown"]])


def shown_kind(kind: str) -> Formula:
    """Share of everything wanted of one kind that is there."""

    def formula(cells: Sequence[Cell], run: Conditions) -> float:
        pairs = [pair for c in having(cells, "shown") for pair in zip(run.wanted[c["prompt"]], c["shown"], strict=True)]
        return mean([float(there) for asked, there in pairs if asked == kind])

    return formula


def diversity_over_seeds(cells: Sequence[Cell], _: Conditions) -> float:
    """Mean over prompts of how much the pictures of one prompt differ."""
    by_prompt: dict[int, list[Sequence[float]]] = {}
    for cell in having(cells, "embedding"):
        by_prompt.setdefault(cell["prompt"], []).append(cell["embedding"])
    return mean([diversity(np.array(rows, np.float64)) for rows in by_prompt.values() if len(rows) > 1])


def most(key: str) -> Formula:
    """The highest value of one key."""
    return lambda cells, _: float(max(numbers(cells, key), default=math.nan))
