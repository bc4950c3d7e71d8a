"""The pictures that a run's page shows: some drawn by lot, the best and the worst, and the attention figures."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from sefi.bench.cells import lies_in, read_picture
from sefi.bench.records import RunInfo, Sample
from sefi.bench.tables import compared
from sefi.core.errors import PhotoError
from sefi.report.sheet import fit

Thing = TypeVar("Thing")
SIDE = 192  # pixels of a picture on the page
WIDEST = 1400  # pixels of an attention figure
SUBJECTS, PROMPTS = 3, 4  # on the sheet
PICKED = 3  # best, and as many worst


@dataclass(frozen=True)
class Shot:
    """One picture: its `data:` address, empty where the file is gone, and what is said of it.

    Attributes:
        uri: The address.
        caption: What stands below.
        alt: What is said instead.
        size: Width and height in pixels, known to the page before the picture is decoded, so that nothing moves.
    """

    uri: str
    caption: str
    alt: str
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Sheet:
    """Pictures of one subject: its photos, the prompts, and a row of pictures for each way."""

    subject: str
    photos: tuple[Shot, ...]
    prompts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Shot | None, ...]], ...]


@dataclass(frozen=True)
class Pick:
    """One of the best or worst: the photos it is held against, and the picture."""

    photos: tuple[Shot, ...]
    shot: Shot


def drawn_sheets(samples: Sequence[Sample], run: RunInfo, folder: Path, chance: np.random.Generator) -> list[Sheet]:
    """A sheet for each of a few subjects, who, like prompts and seed, are drawn by lot.

    Rows are the ways under test and the class word; the other anchors are photos.

    Args:
        samples: Pictures of the run.
        run: What was asked.
        folder: The run's folder.
        chance: Decides what is shown; nothing else does.
    """
    there = {sample.subject for sample in samples}
    subjects = some([subject for subject in run.subjects if subject in there], SUBJECTS, chance)
    prompts = some(sorted({sample.prompt for sample in samples}), PROMPTS, chance)
    seed = some(sorted({sample.seed for sample in samples}), 1, chance)
    ways = [way.label for way in compared(samples, run) if way.control in (None, "class word")]
    places = {(c.subject, c.variant, c.prompt): c for c in samples if c.seed in seed}
    return [
        Sheet(
            subject,
            photos_of(subject, folder),
            tuple(run.suite.prompts[prompt].text.format(*names(subject)) for prompt in prompts),
            tuple((way, tuple(shot(places.get((subject, way, p)), folder) for p in prompts)) for way in ways),
        )
        for subject in subjects
    ]


def names(subject: str) -> list[str]:
    """What stands in a prompt for a subject, or for the two who share a picture.

    >>> names("ada+bob")
    ['<ada>', '<bob>']
    """
    return [f"<{key}>" for key in subject.split("+")]


def some(things: Sequence[Thing], most: int, chance: np.random.Generator) -> list[Thing]:
    """At most so many of some things, drawn by lot, in their old order."""
    chosen = chance.permutation(len(things))[:most]
    return [things[int(index)] for index in sorted(chosen)]


def picked(samples: Sequence[Sample], run: RunInfo, folder: Path, way: str) -> tuple[list[Pick], list[Pick]]:
    """The best and the worst pictures of one way by ID(Prompt), worst last; not computed ones do not take part.

    Pictures with the same ID(Prompt), such as the many zeros, are ordered by prompt score and likeness. Without a tau
    every picture counts with its likeness.
    """
    scored = [c for c in samples if c.variant == way and c.id is not None and c.prompt_score is not None]
    ranked = sorted(scored, key=lambda sample: gated(sample, run.tau), reverse=True)
    count = min(PICKED, len(ranked) // 2)
    ends = ranked[:count], ranked[len(ranked) - count :]
    best, worst = ([Pick(photos_of(c.subject, folder), told_shot(c, folder)) for c in end] for end in ends)
    return best, worst


def gated(sample: Sample, tau: float | None) -> tuple[float, float, float, str, int, int]:
    """ID(Prompt) of one picture, and what decides between equal ones."""
    likeness, score = sample.id or 0.0, sample.prompt_score or 0.0  # `picked` has left out what was not computed
    counts = tau is None or score >= tau
    return likeness if counts else 0.0, score, likeness, sample.subject, sample.prompt, sample.seed


def shot(sample: Sample | None, folder: Path) -> Shot | None:
    """A picture with its scores; None where the run has none."""
    if sample is None:
        return None
    return shot_of(folder, sample.image, scores(sample), f"{sample.subject}, {sample.variant}: {sample.text}")


def told_shot(sample: Sample, folder: Path) -> Shot:
    """A picture that stands alone: whose it is, the prompt and the seed are told too."""
    caption = f"{sample.subject}, {sample.text}, seed {sample.seed}: {scores(sample)}"
    return shot_of(folder, sample.image, caption, f"{sample.variant}: {sample.text}")


def scores(sample: Sample) -> str:
    """What the judges say of one picture, in a few words; nothing of what was not computed."""
    told: list[str] = []
    if sample.faces == 0:
        told.append("no face")
    elif sample.id is not None:
        told.append(f"ID {sample.id:.2f}")
    if sample.prompt_score is not None:
        told.append(f"prompt {sample.prompt_score:.2f}")
    if sample.shown:
        told.append(f"{sum(sample.shown)} of {len(sample.shown)} shown")
    return ", ".join(each.replace(" ", "\N{NO-BREAK SPACE}") for each in told)


def photos_of(subject: str, folder: Path) -> tuple[Shot, ...]:
    """The learned photo of a subject, of both where two share a picture."""
    keys = subject.split("+")
    return tuple(shot_of(folder, f"photos/{key}.png", key, f"The learned photo of {key}") for key in keys)


def attention_figures(folder: Path) -> list[Shot]:
    """Every PNG in the run's folder `attention`, by name."""
    files = sorted(file for file in (folder / "attention").glob("*.png") if file.name[0] != ".")
    return [
        shot_of(folder, f"attention/{file.name}", file.stem, f"Attention maps: {file.stem}", WIDEST) for file in files
    ]


def shot_of(folder: Path, name: str, caption: str, alt: str, side: int = SIDE) -> Shot:
    """A picture file of the run's folder with what is said of it."""
    picture = small_picture(folder, name, side)
    return Shot("", caption, alt) if picture is None else Shot(jpeg_uri(picture), caption, alt, picture.size)


def small_picture(run: Path, name: str, side: int) -> Image.Image | None:
    """A picture file of the run's folder, no longer than `side` pixels.

    None if it cannot be read, or lies elsewhere: a record from somebody else must not fetch this machine's files.
    """
    if not lies_in(run, name):
        return None
    try:
        image = Image.fromarray(read_picture(run / name))
    except PhotoError:
        return None
    return image if max(image.size) <= side else fit(image, side)


def jpeg_uri(picture: Image.Image) -> str:
    """A picture as a `data:` address."""
    buffer = io.BytesIO()
    # JPEG: a page of a hundred pictures stays below a few megabytes; the run's folder has them bit by bit.
    picture.save(buffer, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
