"""COMPOSER: subjects x ways x prompts x seeds, a line per picture; whatever is on record is not made again."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sefi.bench.attended import keep_maps
from sefi.bench.drawing import Drawn, Place, anchor, drawn, drawn_attending
from sefi.bench.opened import Bench, group_key
from sefi.bench.records import Sample
from sefi.bench.scoring import SampleFiles, scored
from sefi.bench.subject import Subject
from sefi.bench.suite import Way, slug
from sefi.bench.time_left import TimeLeft
from sefi.core.errors import PhotoError
from sefi.core.files import write_file
from sefi.core.nouns import Identity
from sefi.core.reading import LimitError, file_errors, is_inside
from sefi.photo.read import BOMBS, MAX_PIXELS


def run_cells(bench: Bench, numbers: Sequence[int] | None = None) -> int:
    """Make whatever is missing of these groups (None: all); returns how many images were made."""
    groups, samples = bench.groups(), bench.run.read_samples()
    done = {sample.key for sample in samples}
    chosen = [groups[n] for n in (range(len(groups)) if numbers is None else numbers)]
    names = {group_key(group) for group in chosen}
    planned = [key for key in bench.plan() if key[0] in names]
    missing, left = [key for key in planned if key not in done], TimeLeft(bench.suite, planned, samples)
    bench.progress.start(len(missing), "images")
    made = 0
    for group in chosen:
        for way in bench.suite.ways:
            mine = (group_key(group), way.label)
            for sample in way_cells(bench, group, way, [Place(k[2], k[3]) for k in missing if k[:2] == mine]):
                bench.run.add(sample)
                left.count(sample)
                bench.progress.estimate(left.seconds())
                bench.progress.advance()
                made += 1
    bench.progress.finish()
    return made


def way_cells(bench: Bench, group: tuple[Subject, ...], way: Way, places: list[Place]) -> Iterator[Sample]:
    """The records of one group and one way, as they come."""
    if not places:
        return
    identities = [] if way.control else [bench.learner.known(way, s) for s in group]
    costs = bench.learner.costs(way, identities)
    for picture in pictures_of(bench, group, way, identities, places):
        files = SampleFiles(save_picture(bench, group, way, picture), save_maps(bench, group, way, picture))
        yield scored(bench, group, way, picture, files, costs)


def pictures_of(
    bench: Bench, group: tuple[Subject, ...], way: Way, identities: Sequence[Identity], places: Sequence[Place]
) -> Iterator[Drawn]:
    """The pictures of these places; the plain word's, which know no subject, are drawn once for the whole run."""
    if way.control in ("photo", "same", "other"):
        rgb = anchor(way.control, group, bench.others(group), bench.backbone.resolution)
        if rgb is not None:
            yield from (Drawn(place, rgb) for place in places)
        return
    there = [(place, bench.run.path / file_of(group, way, place)) for place in places]
    if way.control == "class word":
        yield from (Drawn(place, read_picture(file)) for place, file in there if file.is_file())
        places = [place for place, file in there if not file.is_file()]
    names = [f"<{i.name}>" for i in identities] or [bench.suite.kind] * len(group)
    texts = [bench.suite.prompts[place.prompt].text.format(*names) for place in places]
    draw = drawn_attending if bench.suite.attention and identities else drawn
    yield from draw(bench.backbone, identities, texts, places, bench.suite.config(way))


def file_of(group: Sequence[Subject], way: Way, place: Place) -> str:
    """A picture's file, from the run's folder."""
    who = slug(way.label) if way.control == "class word" else f"{group_key(group)}--{slug(way.label)}"
    return f"pictures/{who}--{place.prompt}--{place.seed}.png"


def save_picture(bench: Bench, group: Sequence[Subject], way: Way, picture: Drawn) -> str:
    """Write a picture, whole or not at all, unless it was read from there; returns its file from the run's folder."""
    name = file_of(group, way, picture.place)
    path = bench.run.path / name
    if not (way.control == "class word" and picture.seconds is None):
        write_file(path, Image.fromarray(picture.rgb).save)
    return name


def save_maps(bench: Bench, group: Sequence[Subject], way: Way, picture: Drawn) -> str | None:
    """Write where the picture's words looked, if that was asked for; returns the file from the run's folder."""
    if picture.attended is None:
        return None
    name = file_of(group, way, picture.place).replace("pictures/", "attention/").replace(".png", ".safetensors")
    keep_maps(picture.attended, bench.run.path / name)
    return name


def read_picture(path: os.PathLike[str]) -> NDArray[np.uint8]:
    """A picture that this run wrote, uint8 RGB.

    Raises:
        PhotoError: it is damaged, or far larger than one.
    """
    problem, remedy = "is damaged", "Delete it, and let `sefi bench run` make it again."
    with file_errors(path, PhotoError, problem, remedy, BOMBS), Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise LimitError(f"it has {image.width} x {image.height} pixels")
        return np.asarray(image.convert("RGB"), np.uint8)


def lies_in(run: Path, name: str | None) -> bool:
    """Return whether a record names a file that is there, in the run's own folder; no name is no file."""
    if not name or "\0" in name:
        return False
    try:
        return is_inside(run / name, run) and (run / name).is_file()
    except OSError:  # a name that is too long
        return False
