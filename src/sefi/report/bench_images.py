"""The images of a run's page: some chosen at random, the best and the worst, and the attention figures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from sefi.benchmark.records import RunInfo, Sample, name_photo, split_group
from sefi.benchmark.run import RunFolder
from sefi.benchmark.samples import contains_file, read_image
from sefi.benchmark.tables import list_variants
from sefi.core.errors import PhotoError
from sefi.core.prompts import strip_weights
from sefi.provenance.metadata import shorten_digests
from sefi.provenance.save import JPEG_QUALITY, encode_copy, read_marking, read_named_identities
from sefi.report.contact_sheet import fit_image
from sefi.report.pages import make_data_uri

Thing = TypeVar("Thing")
SIDE = 192  # pixels of an image on the page
WIDEST = 1400  # pixels of an attention figure
SUBJECTS, PROMPTS = 3, 4  # on the sheet
PICKED = 3  # best, and as many worst


@dataclass(frozen=True)
class PageImage:
    """One image: its `data:` address, empty where the file is gone, and what is said of it.

    Attributes:
        uri: The address.
        caption: What stands below.
        alt: What is said instead.
        size: Width and height in pixels, known to the page before the image is decoded, so that nothing moves.
        identities: First digits of the SHA-256 of each that it shows.
    """

    uri: str
    caption: str
    alt: str
    size: tuple[int, int] = (0, 0)
    identities: str = ""


@dataclass(frozen=True)
class SubjectSheet:
    """Images of one subject: its photos, the prompts, and a row of images for each variant."""

    subject: str
    photos: tuple[PageImage, ...]
    prompts: tuple[str, ...]
    rows: tuple[tuple[str, tuple[PageImage | None, ...]], ...]


@dataclass(frozen=True)
class RankedImage:
    """One of the best or worst: the photos it is held against, and the image."""

    photos: tuple[PageImage, ...]
    image: PageImage


def make_sheets(
    samples: Sequence[Sample], run: RunInfo, folder: Path, chance: np.random.Generator
) -> list[SubjectSheet]:
    """Return a sheet for each of a few subjects; they, the prompts and the seed are chosen at random.

    Rows are the variants under test and the class word; the other reference rows are photos.

    Args:
        samples: Images of the run.
        run: What was asked.
        folder: The run's folder.
        chance: Decides what is shown; nothing else does.
    """
    subjects_with_images = {sample.subject for sample in samples}
    subjects = choose_some([subject for subject in run.subjects if subject in subjects_with_images], SUBJECTS, chance)
    prompts = choose_some(sorted({sample.prompt for sample in samples}), PROMPTS, chance)
    seed = choose_some(sorted({sample.seed for sample in samples}), 1, chance)
    variants = [variant.label for variant in list_variants(samples, run) if variant.is_generated]
    sample_by_key = {(c.subject, c.variant, c.prompt): c for c in samples if c.seed in seed}
    texts = [strip_weights(prompt.text) for prompt in run.suite.prompts]
    sheets: list[SubjectSheet] = []
    for subject in subjects:
        chosen = prompts
        if run.folders:  # other programs' images may have prompts of one subject only
            own = {sample.prompt for sample in samples if sample.subject == subject}
            chosen = [prompt for prompt in prompts if prompt in own] or choose_some(sorted(own), PROMPTS, chance)
        rows = [
            (variant, tuple(make_sheet_image(sample_by_key.get((subject, variant, p)), folder) for p in chosen))
            for variant in variants
        ]
        spoken = tuple(texts[prompt].format(*format_placeholders(subject)) for prompt in chosen)
        sheets.append(SubjectSheet(subject, load_photos(subject, folder), spoken, tuple(rows)))
    return sheets


def format_placeholders(subject: str) -> list[str]:
    """Return the placeholder of a subject in a prompt, or of the two who share an image.

    >>> format_placeholders("ada+bob")
    ['<ada>', '<bob>']
    """
    return [f"<{key}>" for key in split_group(subject)]


def choose_some(things: Sequence[Thing], most: int, chance: np.random.Generator) -> list[Thing]:
    """Return at most so many of some things, chosen at random, in their old order."""
    chosen = chance.permutation(len(things))[:most]
    return [things[int(index)] for index in sorted(chosen)]


def choose_best_and_worst(
    samples: Sequence[Sample], run: RunInfo, folder: Path, variant: str
) -> tuple[list[RankedImage], list[RankedImage]]:
    """Return the best and the worst images of one variant by ID(Prompt), worst last, of those where it is computed.

    Images with the same ID(Prompt), such as the many zeros, are ordered by prompt score and likeness. Without a tau
    every image counts with its likeness.
    """
    scored = [c for c in samples if c.variant == variant and c.id is not None and c.prompt_score is not None]
    generated = all(one.is_generated for one in run.suite.variants if one.label == variant)
    ranked = sorted(scored, key=lambda sample: rank_sample(sample, run.tau), reverse=True)
    count = min(PICKED, len(ranked) // 2)
    ends = ranked[:count], ranked[len(ranked) - count :]
    best, worst = (
        [RankedImage(load_photos(c.subject, folder), make_captioned_image(c, folder, generated=generated)) for c in end]
        for end in ends
    )
    return best, worst


def rank_sample(sample: Sample, tau: float | None) -> tuple[float, float, float, str, int, int]:
    """Return ID(Prompt) of one image, and what decides between equal ones."""
    likeness, score = (
        sample.id or 0.0,
        sample.prompt_score or 0.0,
    )  # `choose_best_and_worst` has left out what was not computed
    counts = tau is None or score >= tau
    return likeness if counts else 0.0, score, likeness, sample.subject, sample.prompt, sample.seed


def make_sheet_image(sample: Sample | None, folder: Path) -> PageImage | None:
    """Return an image with its scores; None where the run has none."""
    if sample is None:
        return None
    return load_page_image(
        folder, sample.image, format_scores(sample), f"{sample.subject}, {sample.variant}: {sample.text}"
    )


def make_captioned_image(sample: Sample, folder: Path, *, generated: bool) -> PageImage:
    """Return an image that stands alone: its caption has subject, prompt and seed too."""
    caption = f"{sample.subject}, {sample.text}, seed {sample.seed}: {format_scores(sample)}"
    return load_page_image(folder, sample.image, caption, f"{sample.variant}: {sample.text}", generated=generated)


def format_scores(sample: Sample) -> str:
    """Return the scores of one image in a few words; nothing of what was not computed."""
    parts: list[str] = []
    if sample.faces == 0:
        parts.append("no face")
    elif sample.id is not None:
        parts.append(f"ID {sample.id:.2f}")
    if sample.prompt_score is not None:
        parts.append(f"prompt {sample.prompt_score:.2f}")
    if sample.shown:
        parts.append(f"{sum(sample.shown)} of {len(sample.shown)} shown")
    return ", ".join(each.replace(" ", "\N{NO-BREAK SPACE}") for each in parts)


def load_photos(subject: str, folder: Path) -> tuple[PageImage, ...]:
    """Return the learned photo of a subject, of both where two share an image."""
    keys = split_group(subject)
    return tuple(
        load_page_image(folder, name_photo(key), key, f"The learned photo of {key}", generated=False) for key in keys
    )


def load_attention_figures(folder: Path) -> list[PageImage]:
    """Return every PNG in the run's folder `attention`, by name."""
    run = RunFolder(folder)
    files = sorted(file for file in run.attention.glob("*.png") if file.name[0] != ".")
    return [
        load_page_image(folder, run.shorten(file), file.stem, f"Attention maps: {file.stem}", side=WIDEST)
        for file in files
    ]


def load_page_image(
    folder: Path, name: str, caption: str, alt: str, *, side: int = SIDE, generated: bool = True
) -> PageImage:
    """Return an image file of the run's folder with its caption.

    Args:
        side: Most pixels of its width and height.
        generated: It has the marks of a generated image on the page too; a photograph, also as a reference row, none.
    """
    image = read_small_image(folder, name, side)
    if image is None:
        return PageImage("", caption, alt)
    if not generated:
        uri = encode_photo_jpeg_uri(image)
    else:
        mark = read_marking(folder / name) is not False
        uri = make_data_uri(encode_copy(image, mark=mark, kind="JPEG").content, "jpeg")
    return PageImage(uri, caption, alt, image.size, shorten_digests(sorted(read_named_identities(folder / name))))


def read_small_image(run: Path, name: str, side: int) -> Image.Image | None:
    """Return an image file of the run's folder, no longer than `side` pixels.

    None if it cannot be read, or lies elsewhere: a record from somebody else must not fetch this machine's files.
    """
    if not contains_file(run, name):
        return None
    try:
        image = Image.fromarray(read_image(run / name))
    except PhotoError:
        return None
    return image if max(image.size) <= side else fit_image(image, side)


def encode_photo_jpeg_uri(image: Image.Image) -> str:
    """Return a photo as a `data:` address."""
    buffer = io.BytesIO()
    # JPEG: a page of a hundred images stays below a few megabytes; the run's folder has them bit by bit.
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return make_data_uri(buffer.getvalue(), "jpeg")
