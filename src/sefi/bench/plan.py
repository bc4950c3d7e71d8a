"""Which images a run consists of, and whether all of them are there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sefi.bench.formulas import Run
from sefi.bench.records import Cell, Key, key_of


@dataclass(frozen=True)
class Completeness:
    """How much of a run is there.

    Attributes:
        made: Planned images that are on record.
        planned: All images that the suite asks for.
    """

    made: int
    planned: int

    @property
    def finished(self) -> bool:
        """Whether no planned image is missing."""
        return self.made == self.planned

    @property
    def banner(self) -> str:
        """One line that says how much of an unfinished run is there; empty for a finished one."""
        return "" if self.finished else f"{self.made:,} of {self.planned:,} images, not finished"


def completeness(run: Run, cells: Iterable[Cell]) -> Completeness:
    """Return how many of a run's planned images are on record.

    Args:
        run: What was asked, as in `run.json`.
        cells: The record; cells of no planned image are not counted.
    """
    planned = set(planned_keys(run))
    return Completeness(len(planned & {key_of(cell) for cell in cells}), len(planned))


def planned_keys(run: Run) -> list[Key]:
    """Return every image of a run: subject, way, prompt and seed, in the order in which they are made.

    A reference row that is a photograph has one seed only, and none where the photograph does not exist: `same` needs
    a second picture of every subject in the image, `other` as many subjects outside of it.

    Args:
        run: What was asked, as in `run.json`.
    """
    suite, groups = run["suite"], [str(group) for group in run.get("subjects", ())]
    pictures = run.get("photos") or {subject: ["", ""] for group in groups for subject in group.split("+")}
    return [
        (group, way["label"], prompt, seed)
        for group in groups
        for way in suite["ways"]
        if has_pictures(way.get("control"), group.split("+"), pictures)
        for prompt in range(len(suite["prompts"]))
        for seed in (suite["seeds"] if way.get("control") in (None, "class word") else suite["seeds"][:1])
    ]


def has_pictures(control: str | None, group: Sequence[str], pictures: Mapping[str, Sequence[str]]) -> bool:
    """Whether a way can make an image of these subjects.

    Args:
        control: What kind of reference row the way is; None for one that learns.
        group: The subjects of the image.
        pictures: Of every subject of the run, the photo and, where there is one, the other picture.
    """
    if control == "same":
        return all(len(pictures[subject]) > 1 for subject in group)
    return control != "other" or len(pictures) >= 2 * len(group)
