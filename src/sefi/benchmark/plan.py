"""Plan a run: which images it makes, how many are on record, and how long the others will take.

A suite (`suite.py`) says what is compared. The plan lists every image of it: subject, variant, prompt and seed. A run
(`run.py`) makes the missing ones (`samples.py`), learning an identity at its first missing image, and adds a record of
each (`records.py`) with its scores; the tables (`tables.py`) are computed from the records alone.

In a record None was not computed, as without its evaluator; 0 is a score, as the likeness of an image without a face.
In a table nan is no value.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean

from sefi.benchmark.records import Key, ListedFolder, RunInfo, Sample, SuiteInfo, VariantInfo, split_group
from sefi.benchmark.suite import ANOTHER_PHOTO, ANOTHER_SUBJECT, Suite


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


def measure_completeness(run: RunInfo, samples: Iterable[Sample]) -> Completeness:
    """Return how many of a run's planned images are on record.

    Args:
        run: What was asked, as in `run.json`.
        samples: The record; samples of no planned image are not counted.
    """
    planned = set(list_planned_keys(run.suite, run.subjects, run.photos, run.folders))
    return Completeness(len(planned & {sample.key for sample in samples}), len(planned))


def list_planned_keys(
    suite: SuiteInfo,
    groups: Sequence[str],
    photos: Mapping[str, Sequence[str]],
    folders: Mapping[str, ListedFolder] | None = None,
) -> list[Key]:
    """Return every image of a run: subject, variant, prompt and seed, in the order of the suite.

    Where a variant generates, every subject gets every prompt and seed, also of a variant whose images lie in a folder.
    Where none does, a folder has the images that are in it, and a reference row one for each prompt of a subject.

    A reference row that is a photograph has one seed only, and none where the photograph does not exist: `same` needs
    a second image of every subject in the image, `other` as many subjects outside of it.

    Args:
        suite: What is compared.
        groups: The subjects of a run, `ada+bob` where two share an image.
        photos: Of each subject the photo and, where there is one, another image; empty where nothing is known.
        folders: What lies in the folder of each variant whose images another program made.
    """
    images = photos or {subject: ["", ""] for group in groups for subject in split_group(group)}
    listed = {} if suite.generates else group_listed_images(folders or {})
    return [
        (group, variant.label, prompt, seed)
        for group in groups
        for variant in suite.variants
        if has_images(variant.control, split_group(group), images)
        for prompt, seed in list_prompts_and_seeds(suite, variant, group, listed)
    ]


WorkUnit = tuple[tuple[int, str], ...]  # numbers of groups of subjects with labels of variants


def list_work_units(suite: Suite, groups: int) -> list[WorkUnit]:
    """Return the work of a run in the smallest parts that share nothing, so that processes can make them side by side.

    Variants that read the same identity are one unit, as one learns it; the plain word's images, which are drawn once
    for all subjects, are one with all groups. Else a unit is a group and a variant.

    Args:
        groups: how many groups of subjects the run has.
    """
    shared = [variant.label for variant in suite.variants if variant.control == "class word"]
    units: list[WorkUnit] = [tuple((number, label) for number in range(groups)) for label in shared]
    learning = [(v.label, suite.find_learning_variant(v).label) for v in suite.variants if v.label not in shared]
    owners = list(dict.fromkeys(owner for _, owner in learning))
    for number in range(groups):
        units += [tuple((number, label) for label, owner in learning if owner == first) for first in owners]
    return units


@dataclass(frozen=True)
class UnitFailure:
    """Why a unit of work was not finished; the images that it had made are on record.

    Attributes:
        subject: key of the subjects at whose image it ended.
        variant: label of the variant at whose image it ended.
        places: subjects and variant of every image of the unit.
        of_photo: the subject's photo is to blame, so that it says nothing of other subjects.
    """

    subject: str
    variant: str
    problem: str
    remedy: str
    places: tuple[tuple[str, str], ...] = ()
    of_photo: bool = False


def group_listed_images(folders: Mapping[str, ListedFolder]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return prompt and seed of every image in the folders, in order, by variant and subject."""
    grouped: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for label, folder in folders.items():
        for image in folder.images:
            grouped.setdefault((label, image.subject), []).append((image.prompt, image.seed))
    return {key: sorted(cases) for key, cases in grouped.items()}


def list_prompts_and_seeds(
    suite: SuiteInfo, variant: VariantInfo, group: str, listed: Mapping[tuple[str, str], Sequence[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """Return prompt and seed of every image that a variant has of a group.

    Args:
        listed: As from `group_listed_images`, where no variant generates; else the whole suite is asked for.
    """
    if suite.generates:
        seeds = suite.seeds if variant.is_generated else suite.seeds[:1]
        return [(prompt, seed) for prompt in range(len(suite.prompts)) for seed in seeds]
    if variant.images is not None:
        return list(listed.get((variant.label, group), ()))
    prompts = {prompt for (_, subject), cases in listed.items() if subject == group for prompt, _ in cases}
    return [(prompt, suite.seeds[0]) for prompt in sorted(prompts)]


def has_images(control: str | None, group: Sequence[str], images: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a variant can make an image of these subjects.

    Args:
        control: What kind of reference row the variant is; None for one that learns.
        group: The subjects of the image.
        images: Of every subject of the run, the photo and, where there is one, the other image.
    """
    if control == ANOTHER_PHOTO:
        return all(len(images[subject]) > 1 for subject in group)
    return control != ANOTHER_SUBJECT or len(images) >= 2 * len(group)


# A case is a subject with a prompt. Where a variant generates, all have every case, or the run is not finished; folders
# of other programs' images have what is in them, and means over different cases are not compared.
Cases = Mapping[tuple[str, int], int]  # images by subject and number of the prompt
UNEQUAL = (
    "In a table in which variants have different subjects and prompts, or other shares of them, none is marked as the "
    "best; a difference is marked only where both have the same prompts, in the same shares, of the subjects that both "
    "have."
)
REMEDY = (
    "Score folders that have the same subjects and prompts, and of a subject as many images of each prompt; --only "
    "leaves subjects out."
)
EXAMPLE_LENGTH = 60  # letters of a prompt


def count_cases(run: RunInfo, kind: str = "") -> dict[str, Cases]:
    """Return how many images each variant has of each case; nothing where a variant generates.

    Args:
        run: As in `run.json`.
        kind: Only of prompts of this kind; empty for all.
    """
    if run.suite.generates:
        return {}
    prompts = {number for number, prompt in enumerate(run.suite.prompts) if kind in ("", prompt.kind)}
    counts: dict[str, Counter[tuple[str, int]]] = {}
    for subject, label, prompt, _ in list_planned_keys(run.suite, run.subjects, run.photos, run.folders):
        if prompt in prompts:
            counts.setdefault(label, Counter())[subject, prompt] += 1
    return dict(counts)


def compute_shares(cases: Cases) -> dict[str, dict[int, Fraction]]:
    """Return of each subject the share that each prompt has of its images, as it counts in the subject's mean.

    >>> compute_shares({("ada", 0): 2, ("ada", 1): 2, ("bob", 0): 1})["ada"]
    {0: Fraction(1, 2), 1: Fraction(1, 2)}
    """
    totals = Counter[str]()
    for (subject, _), images in cases.items():
        totals[subject] += images
    shares: dict[str, dict[int, Fraction]] = {subject: {} for subject in totals}
    for (subject, prompt), images in cases.items():
        shares[subject][prompt] = Fraction(images, totals[subject])
    return shares


def fits_shares(first: Cases, other: Cases) -> bool:
    """Return whether two variants have the same prompts, in the same shares, of each subject that both have."""
    shares, other_shares = compute_shares(first), compute_shares(other)
    return all(shares[subject] == other_shares[subject] for subject in shares.keys() & other_shares.keys())


def describe_unequal_cases(run: RunInfo) -> list[str]:
    """Return why figures of a run's folders cannot be compared, a sentence for each reason; none where they can."""
    counts = count_cases(run)
    folders = [variant.label for variant in run.suite.variants if variant.control is None and variant.label in counts]
    everything = sorted({case for label in folders for case in counts[label]})
    sentences: list[str] = []
    for label in folders:
        lacking = [case for case in everything if case not in counts[label]]
        if lacking:
            some = format_case(run, lacking[0])
            sentences.append(f"{label}: no image of {len(lacking)} of {len(everything)} cases, such as {some}.")
    if sentences or not folders:
        return sentences
    return [
        describe_unequal_counts(run, {label: counts[label] for label in (folders[0], other)})
        for other in counts
        if not fits_shares(counts[folders[0]], counts[other])
    ]


def explain_unequal_cases(run: RunInfo) -> list[str]:
    """Return what a reader must know where folders have different cases: what follows, each reason, what to do."""
    reasons = describe_unequal_cases(run)
    return [UNEQUAL, *reasons, REMEDY] if reasons else []


def describe_unequal_counts(run: RunInfo, counts: Mapping[str, Cases]) -> str:
    """Return of which subject and prompt two variants have another share of the subject's images, with the numbers."""
    first, other = counts.values()
    shares, other_shares = compute_shares(first), compute_shares(other)
    case = next(
        (subject, prompt)
        for subject, prompt in first
        if subject in other_shares and shares[subject][prompt] != other_shares[subject].get(prompt)
    )
    parts: list[str] = []
    for label, cases in counts.items():
        total = sum(images for (subject, _), images in cases.items() if subject == case[0])
        parts.append(f"{label} {cases.get(case, 0)} of {total}")
    return f"Of the images of {format_case(run, case)}: {', '.join(parts)} of the subject."


def format_case(run: RunInfo, case: tuple[str, int]) -> str:
    """Return subject and prompt, as a person reads them."""
    subject, prompt = case
    return f"{subject} with {run.suite.prompts[prompt].text[:EXAMPLE_LENGTH]!r}"


SECONDS_OF_EVIDENCE = 20.0  # of work since the start, before its pace is believed

Work = tuple[str, str]  # "learn" or "draw", and the variant


class TimeLeft:
    """Estimates the time that a run still takes.

    A variant that learns for minutes and a row that copies a photo both count as images, so images per second say
    little. Instead every variant has two costs, from the records of the run: seconds to learn a subject and to draw an
    image. The clock since the start over the cost of what was made since then is the pace, which includes the scoring
    and the number of processes.

    Args:
        suite: What is compared.
        planned: Every image of the run.
        samples: What is on record at the start.
    """

    def __init__(self, suite: Suite, planned: Sequence[Key], samples: Iterable[Sample]) -> None:
        self.learning_labels = {
            variant.label: suite.find_learning_variant(variant).label
            for variant in suite.variants
            if variant.control is None and variant.images is None
        }
        self.shared = {variant.label for variant in suite.variants if variant.control == "class word"}
        self.images = set(planned)
        self.remaining = {job for key in planned for job in self.list_jobs(key)}
        self.costs, self.done = dict[Work, list[float]](), Counter[Work]()
        for sample in samples:
            self.record(sample)
        self.done.clear()
        self.started = time.monotonic()

    @property
    def costs_differ(self) -> bool:
        """Whether images are learned for or generated: those that are only scored take the same time each."""
        return bool(self.learning_labels or self.shared)

    @property
    def missing(self) -> int:
        """How many images are not on record."""
        return len(self.images)

    def list_jobs(self, key: Key) -> list[tuple[Work, Key]]:
        """Return what must have been done for an image, each job under the key of the images that share it."""
        subject, variant, prompt, seed = key
        # The plain word's images know no subject: they are drawn once for the whole run.
        jobs: list[tuple[Work, Key]] = [
            (("draw", variant), ("" if variant in self.shared else subject, variant, prompt, seed))
        ]
        if variant in self.learning_labels:
            learning_label = self.learning_labels[variant]
            jobs.append((("learn", learning_label), (subject, learning_label, 0, 0)))
        return jobs

    def record(self, sample: Sample) -> None:
        """Take a recorded image and what was done for it off the list, and record what that cost."""
        key = sample.key
        self.images.discard(key)
        for work, shared in self.list_jobs(key):
            if (work, shared) not in self.remaining:
                continue
            self.remaining.discard((work, shared))
            self.done[work] += 1
            seconds = sample.draw_seconds if work[0] == "draw" else sample.learn_seconds
            if work[0] == "draw" or seconds is not None:  # learned in pieces: not timed
                self.costs.setdefault(work, []).append(seconds or 0.0)

    def give_up(self, places: Iterable[tuple[str, str]]) -> None:
        """Take the images of some subjects and variants off the list: a unit of work failed."""
        gone = set(places)
        for key in [key for key in self.images if key[:2] in gone]:
            self.images.discard(key)
            self.remaining.difference_update(self.list_jobs(key))

    def estimate_seconds(self) -> float | None:
        """Return the seconds left; None while a kind of work has never been timed, or too little was done."""
        costs = {work: fmean(seconds) for work, seconds in self.costs.items()}
        remaining = Counter(work for work, _ in self.remaining)
        if not remaining.keys() <= costs.keys():
            return None
        elapsed = time.monotonic() - self.started
        spent = sum(costs.get(work, 0.0) * number for work, number in self.done.items())
        if min(elapsed, spent) < SECONDS_OF_EVIDENCE:
            return None
        return elapsed / spent * sum(costs[work] * number for work, number in remaining.items())
