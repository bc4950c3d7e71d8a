"""Which images a run consists of, and whether all of them are there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sefi.bench.records import Key, RunInfo, Sample, SuiteInfo


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


def completeness(run: RunInfo, samples: Iterable[Sample]) -> Completeness:
    """Return how many of a run's planned images are on record.

    Args:
        run: What was asked, as in `run.json`.
        samples: The record; samples of no planned image are not counted.
    """
    planned = set(planned_keys(run.suite, run.subjects, run.photos))
    return Completeness(len(planned & {sample.key for sample in samples}), len(planned))


def planned_keys(suite: SuiteInfo, groups: Sequence[str], photos: Mapping[str, Sequence[str]]) -> list[Key]:
    """Return every image of a run: subject, way, prompt and seed, in the order in which they are made.

    A reference row that is a photograph has one seed only, and none where the photograph does not exist: `same` needs
    a second picture of every subject in the image, `other` as many subjects outside of it.

    Args:
        suite: What is compared.
        groups: The subjects of a run, `ada+bob` where two share an image.
        photos: Of each subject the photo and, where there is one, another picture; empty where nothing is known.
    """
    pictures = photos or {subject: ["", ""] for group in groups for subject in group.split("+")}
    return [
        (group, way.label, prompt, seed)
        for group in groups
        for way in suite.variants
        if has_pictures(way.control, group.split("+"), pictures)
        for prompt in range(len(suite.prompts))
        for seed in (suite.seeds if way.is_generated else suite.seeds[:1])
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
