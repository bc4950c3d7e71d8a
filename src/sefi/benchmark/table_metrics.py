"""The metrics of a table: the formula of each, its unit, its direction and what it means."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sefi.benchmark.records import RunInfo, Sample
from sefi.evaluation.metrics import (
    measure_copying,
    measure_diversity,
    measure_id_prompt,
    measure_id_prompt_area,
    measure_margin_success,
    measure_mean_over_detected,
    measure_verification_rate,
)


@dataclass(frozen=True)
class Conditions:
    """What is the same for all images of a run.

    Attributes:
        tau: Prompt score from which an image counts in ID(Prompt); None if the run has none.
        far_threshold: Cosine from which two faces count as one person; None likewise.
        lowest: Lowest prompt score of the variants that are no reference rows, nan if there is none.
        highest: Highest, likewise.
        wanted: For each prompt the kinds of what a reader must see.
        together: How many subjects share an image.
    """

    tau: float | None
    far_threshold: float | None
    lowest: float
    highest: float
    wanted: Sequence[Sequence[str]]
    together: int


Formula = Callable[[Sequence[Sample], Conditions], float]


def find_conditions(samples: Sequence[Sample], run: RunInfo) -> Conditions:
    """Return what is the same for all images of a run, with the range of their prompt scores."""
    suite = run.suite
    references = {variant.label for variant in suite.variants if variant.control}
    scores = collect_numbers([sample for sample in samples if sample.variant not in references], "prompt_score")
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (math.nan, math.nan)
    wanted = [[kind for kind, _ in prompt.wanted] for prompt in suite.prompts]
    return Conditions(run.tau, run.far_threshold, low, high, wanted, suite.together)


def select_with(samples: Sequence[Sample], *keys: str) -> list[Sample]:
    """Return the samples in which each of the fields was computed."""
    return [sample for sample in samples if all(getattr(sample, key) is not None for key in keys)]


def collect_numbers(samples: Sequence[Sample], key: str) -> NDArray[np.float64]:
    """Return the values `[sample]` of one field where it was computed."""
    values = (getattr(sample, key) for sample in samples)
    return np.array([value for value in values if value is not None], np.float64)


def compute_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the mean; nan of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def make_mean(key: str) -> Formula:
    """Return the formula of the mean of one field over the images that have it."""
    return lambda samples, _: compute_mean(collect_numbers(samples, key))


def score_face_found(samples: Sequence[Sample], _: Conditions) -> float:
    """Return the share of images with at least one face."""
    return compute_mean([float(sample.faces > 0) for sample in samples if sample.faces is not None])


def score_one_face_each(samples: Sequence[Sample], run: Conditions) -> float:
    """Return the share of images with as many faces as there are subjects in one."""
    return compute_mean([float(sample.faces == run.together) for sample in samples if sample.faces is not None])


def score_id_detected(samples: Sequence[Sample], _: Conditions) -> float:
    """Return the mean likeness over the images on which a face was found."""
    scored_samples = select_with(samples, "id", "faces")
    return measure_mean_over_detected(
        collect_numbers(scored_samples, "id"), collect_numbers(scored_samples, "faces") > 0
    )


def make_id_prompt(key: str) -> Formula:
    """Return the formula of ID(Prompt) at the run's tau, from one field of likeness."""

    def score_id_prompt(samples: Sequence[Sample], run: Conditions) -> float:
        scored_samples = select_with(samples, key, "prompt_score")
        if run.tau is None:
            return math.nan
        return measure_id_prompt(
            collect_numbers(scored_samples, key), collect_numbers(scored_samples, "prompt_score"), run.tau
        )

    return score_id_prompt


def score_id_prompt_area(samples: Sequence[Sample], run: Conditions) -> float:
    """Return the mean of ID(Prompt) over tau, from the lowest to the highest prompt score of the run."""
    scored_samples = select_with(samples, "id", "prompt_score")
    if not run.lowest < run.highest:
        return math.nan
    return measure_id_prompt_area(
        collect_numbers(scored_samples, "id"), collect_numbers(scored_samples, "prompt_score"), run.lowest, run.highest
    )


def score_verified(samples: Sequence[Sample], run: Conditions) -> float:
    """Return the share of images on which a recogniser would take the person for the one of the photo.

    An image without a face, whose likeness counts 0, shows nobody, also where the threshold is 0 or less. Where two
    share an image, likeness is a mean over both, and the threshold belongs to one.
    """
    if run.far_threshold is None or run.together > 1:
        return math.nan
    scored_samples = select_with(samples, "id")
    has_face = np.array([sample.faces != 0 for sample in scored_samples], bool)
    return measure_verification_rate(collect_numbers(scored_samples, "id"), run.far_threshold, has_face)


def score_copying(samples: Sequence[Sample], run: Conditions) -> float:
    """Return how much nearer the faces are to the learned photo than to another image; nan for two in an image."""
    if run.together > 1:
        return math.nan
    faces = [sample for sample in select_with(samples, "id", "id_other_photo") if (sample.faces or 0) > 0]
    return measure_copying(collect_numbers(faces, "id"), collect_numbers(faces, "id_other_photo"))


def score_margin_success(samples: Sequence[Sample], _: Conditions) -> float:
    """Return the share of images that CLIP finds nearer to their prompt than to a plain photo of the subject."""
    return measure_margin_success(collect_numbers(samples, "margin"))


def score_shown(samples: Sequence[Sample], _: Conditions) -> float:
    """Return the mean over images of the share of what was wanted that is there."""
    return compute_mean(
        [compute_mean([float(is_shown) for is_shown in sample.shown]) for sample in samples if sample.shown]
    )


def make_shown_kind(kind: str) -> Formula:
    """Return the formula of the share of everything wanted of one kind that is there."""

    def score_kind(samples: Sequence[Sample], run: Conditions) -> float:
        readings = [(run.wanted[sample.prompt], sample.shown) for sample in samples if sample.shown is not None]
        pairs = [pair for wanted, shown in readings for pair in zip(wanted, shown, strict=True)]
        return compute_mean([float(is_shown) for wanted_kind, is_shown in pairs if wanted_kind == kind])

    return score_kind


def score_diversity(samples: Sequence[Sample], _: Conditions) -> float:
    """Return the mean over prompts of how much the images of one prompt differ."""
    by_prompt: dict[int, list[Sequence[float]]] = {}
    for sample in samples:
        if sample.embedding is not None:
            by_prompt.setdefault(sample.prompt, []).append(sample.embedding)
    return compute_mean([measure_diversity(np.array(rows, np.float64)) for rows in by_prompt.values() if len(rows) > 1])


def make_own(key: str) -> Formula:
    """Return the formula of how much nearer images are to the own photo than to those of others, mean over images.

    Args:
        key: field of the cosine to the own photo; `KEY_others` is its mean over other subjects' photos.
    """

    def score_own(samples: Sequence[Sample], _: Conditions) -> float:
        compared = select_with(samples, key, f"{key}_others")
        return compute_mean(collect_numbers(compared, key) - collect_numbers(compared, f"{key}_others"))

    return score_own


def make_maximum(key: str) -> Formula:
    """Return the formula of the highest value of one field."""
    return lambda samples, _: float(max(collect_numbers(samples, key), default=math.nan))


Unit = Literal["cosine", "share", "seconds", "count", "MB"]
Bounds = tuple[float, float]
BOUNDS: dict[Unit, Bounds] = {"cosine": (-1.0, 1.0), "share": (0.0, 1.0)}
DIFFERENCE: Bounds = (-2.0, 2.0)  # of two cosines
DISTANCE: Bounds = (0.0, 2.0)  # 1 less a cosine
Direction = Literal["up", "down", "none"]
Part = Literal["main", "person", "prompt", "image", "cost"]


@dataclass(frozen=True)
class Metric:
    """One number of a table: a column of it.

    Attributes:
        name: Short name, for files.
        label: What a reader sees.
        unit: `cosine` is raw, -1 to 1, or a difference of such; `share` is 0 to 1.
        direction: Whether higher or lower is better; `none` where neither is.
        formula: From the images of one subject and one variant to the value; nan where it was not computed.
        needs: What a run must have for it: evaluators, `tau`, `far_threshold`, or a field of its samples.
        part: Which of the page's tables shows it.
        about: One sentence on what it says.
        own_bounds: The lowest and highest value, where they are not the unit's.
    """

    name: str
    label: str
    unit: Unit
    direction: Direction
    formula: Formula
    needs: tuple[str, ...]
    part: Part
    about: str
    own_bounds: Bounds | None = None

    @property
    def bounds(self) -> Bounds | None:
        """The lowest and highest value; None where there is no highest."""
        return self.own_bounds or BOUNDS.get(self.unit)


FACES, FACE_ID, CLIP, READERS = ("detector",), ("detector", "recogniser"), ("clip",), ("reader",)
SECOND = ("detector", "second_recogniser")
METRICS: tuple[Metric, ...] = (
    Metric("id_prompt", "ID(Prompt)", "cosine", "up", make_id_prompt("id"), (*FACE_ID, *CLIP, "tau"), "main",
           "Likeness to the photo where the prompt score is at least tau, else 0: person and prompt at once."),
    Metric("prompt", "prompt score", "cosine", "up", make_mean("prompt_score"), CLIP, "main",
           "CLIP cosine of the image and its prompt, the class word in place of the person."),
    Metric("shown", "shown", "share", "up", score_shown, READERS, "main",
           "Share of what a prompt asks for that readers find in the image."),
    Metric("id", "ID", "cosine", "up", make_mean("id"), FACE_ID, "main",
           "Likeness of the face to the learned photo; an image without a face counts 0."),
    Metric("verified", "verified", "share", "up", score_verified, (*FACE_ID, "far_threshold"), "main",
           "Share of images whose face passes as the person of the photo at the run's false-accept threshold."),
    Metric("face", "face found", "share", "up", score_face_found, FACES, "main",
           "Share of images with at least one face."),

    Metric("id_detected", "ID over faces", "cosine", "up", score_id_detected, FACE_ID, "person",
           "Likeness to the learned photo over the images with a face only."),
    Metric("id_other", "ID to another image", "cosine", "up", make_mean("id_other_photo"),
           (*FACE_ID, "id_other_photo"), "person",
           "Likeness to an image of the subject that was not learned; an image without a face counts 0."),
    Metric("copy", "copying", "cosine", "none", score_copying, (*FACE_ID, "id_other_photo"), "person",
           "Likeness to the learned photo minus that to another image, over faces: best at 0; above, it is copied.",
           DIFFERENCE),
    Metric("one_face", "exactly one face", "share", "up", score_one_face_each, FACES, "person",
           "Share of images with as many faces as subjects: one, or two where two share an image."),
    Metric("id_leaked", "ID of the wrong one", "cosine", "down", make_mean("id_leaked"),
           (*FACE_ID, "id_leaked"), "person",
           "Where two share an image: likeness of each face to the other of the two."),
    Metric("id_second", "ID, second recogniser", "cosine", "up", make_mean("id_second"), SECOND, "person",
           "ID by a recogniser that methods may learn with; says nothing about a method that learns with it."),
    Metric("id_prompt_second", "ID(Prompt), second recogniser", "cosine", "up", make_id_prompt("id_second"),
           (*SECOND, *CLIP, "tau"), "person",
           "ID(Prompt) by that recogniser."),
    Metric("id_other_second", "ID to another image, second recogniser", "cosine", "up", make_mean("id_second_other"),
           (*SECOND, "id_second_other"), "person",
           "Likeness to an image of the subject that was not learned, by that recogniser."),

    Metric("id_prompt_area", "area of ID(Prompt)", "cosine", "up", score_id_prompt_area,
           (*FACE_ID, *CLIP), "prompt",
           "Mean of ID(Prompt) over every tau from the run's lowest to its highest prompt score: no threshold."),
    Metric("margin", "prompt followed, by CLIP's margin", "share", "up", score_margin_success,
           (*CLIP, "margin"), "prompt",
           "Share of images nearer to their prompt than to the sentence of a plain photo: needs no reader."),
    Metric("shown_attribute", "attribute", "share", "up", make_shown_kind("attribute"), READERS, "prompt",
           "Share of every wanted attribute, such as a smile, that readers find."),
    Metric("shown_action", "action", "share", "up", make_shown_kind("action"), READERS, "prompt",
           "Share of every wanted action, such as playing the guitar, that readers find."),
    Metric("shown_scene", "scene", "share", "up", make_shown_kind("scene"), READERS, "prompt",
           "Share of every wanted scene, such as a beach, that readers find."),
    Metric("shown_style", "style", "share", "up", make_shown_kind("style"), READERS, "prompt",
           "Share of every wanted style, such as a painting, that readers find."),

    Metric("background", "background leakage", "cosine", "down", make_mean("background"),
           (*FACES, *CLIP), "image",
           "CLIP cosine of image and photo, the most certain face of each blanked: how much background is copied."),
    Metric("background_own", "own background", "cosine", "down", make_own("background"),
           (*FACES, *CLIP, "background_others"), "image",
           "Background leakage minus its mean over other subjects' photos: what is copied from this photo alone.",
           DIFFERENCE),
    Metric("clip_image", "CLIP likeness", "cosine", "none", make_mean("clip_image"), CLIP, "image",
           "CLIP cosine of the whole image and the photo: who it is, but also how the photo was taken."),
    Metric("clip_image_own", "own CLIP likeness", "cosine", "up", make_own("clip_image"),
           (*CLIP, "clip_image_others"), "image",
           "CLIP likeness minus its mean over other subjects' photos: what the image shares with this subject alone.",
           DIFFERENCE),
    Metric("dino", "DINO likeness", "cosine", "none", make_mean("dino"), ("dino",), "image",
           "DINOv2 cosine of the whole image and the photo: like CLIP likeness, by a network trained without words."),
    Metric("diversity", "diversity", "cosine", "up", score_diversity, (*CLIP, "embedding"), "image",
           "1 - CLIP cosine between the images of one prompt from different seeds, mean over prompts.",
           DISTANCE),
    Metric("focus", "attention on the face", "share", "up", make_mean("focus"), ("focus",), "image",
           "Share of the learned word's attention that lies inside the face."),
    Metric("on_objects", "attention on objects", "share", "down", make_mean("on_objects"),
           ("on_objects",), "image",
           "Share of the learned word's attention that lies where the prompt's action or scene is."),
    Metric("focus_plain", "class word's attention on the face", "share", "none", make_mean("focus_plain"),
           ("focus_plain",), "image",
           "The same for the class word in the same images, to compare the learned word's with."),
    Metric("on_objects_plain", "class word's attention on objects", "share", "none",
           make_mean("on_objects_plain"), ("on_objects_plain",), "image",
           "The same for the class word in the same images."),

    Metric("learn_seconds", "learning", "seconds", "down", make_mean("learn_seconds"),
           ("learn_seconds",), "cost", "Seconds to learn one subject, class images included."),
    Metric("class_seconds", "of it class images", "seconds", "down", make_mean("class_seconds"),
           ("class_seconds",), "cost", "Seconds of learning for images of the class, which subjects could share."),
    Metric("draw_seconds", "generation", "seconds", "down", make_mean("draw_seconds"),
           ("draw_seconds",), "cost", "Seconds to generate one image."),
    Metric("trained", "trained numbers", "count", "down", make_mean("trained"), ("trained",), "cost",
           "Numbers that are learned and saved in the identity."),
    Metric("added", "added weights", "count", "down", make_mean("added"), ("added",), "cost",
           "Extra weights while learning, or trained once for all subjects; other networks are not counted."),
    Metric("peak_mb", "peak memory", "MB", "down", make_maximum("peak_mb"), ("peak_mb",), "cost",
           "The most memory that learning took."),
)  # fmt: skip
