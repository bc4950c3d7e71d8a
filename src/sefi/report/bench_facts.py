"""What a run's page says in words: what failed, what was not computed, conventions, settings, limits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sefi.bench.figures import FIGURES
from sefi.bench.records import RunInfo, Sample
from sefi.bench.tables import Table, compared
from sefi.core.json_text import dump_json

FEW = 10  # subjects below which a bootstrap interval is known to be too narrow
ANCHORS = {
    "class word": "the plain class word, what the model does unasked; its pictures are the same for every subject",
    "photo": "the learned photo pasted as the picture: all of the person, none of the prompt",
    "same": "another picture of the same subject: the ceiling of ID",
    "other": "another subject's photo: the floor of ID",
}


@dataclass(frozen=True)
class Failures:
    """How the pictures of one way failed; None is not computed.

    Attributes:
        way: Its label.
        pictures: How many there are.
        missing: How many were asked for and are not there; None for an anchor, which not every run can have.
        no_face: How many have no face.
        more_faces: How many have more faces than subjects.
        disobeyed: How many score below tau.
    """

    way: str
    pictures: int
    missing: int | None
    no_face: int | None
    more_faces: int | None
    disobeyed: int | None


def failures(samples: Sequence[Sample], run: RunInfo) -> list[Failures]:
    """What failed, a row for each way, anchors last; a way of which nothing is there too."""
    suite = run.suite
    asked = len(run.subjects) * len(suite.prompts) * len(suite.seeds)
    return [
        failed([c for c in samples if c.variant == way.label], way.label, run, asked if way.control is None else None)
        for way in compared(samples, run)
    ]


def failed(own: Sequence[Sample], label: str, run: RunInfo, asked: int | None) -> Failures:
    """The failures of one way from its pictures."""
    faces = [sample.faces for sample in own if sample.faces is not None]
    scores = [sample.prompt_score for sample in own if sample.prompt_score is not None]
    tau, together = run.tau, run.suite.together
    return Failures(
        label,
        len(own),
        None if asked is None else asked - len(own),
        sum(number == 0 for number in faces) if faces else None,
        sum(number > together for number in faces) if faces else None,
        sum(score < tau for score in scores) if scores and tau is not None else None,
    )


def not_computed(found: Table) -> dict[str, str]:
    """Label of each figure that no way has, and why."""
    return {figure.label: found.missing[figure.name] for figure in FIGURES if figure.name in found.missing}


def conventions(run: RunInfo) -> list[str]:
    """How the figures are to be read, one sentence each."""
    tau, far = run.tau, run.far_threshold
    told_tau = "The run has no tau: ID(Prompt) was not computed."
    if tau is not None:
        told_tau = f"tau is {tau:.4f}. A tau holds for one CLIP only; the paper's 0.23 was set for the paper's own."
    told_far = "The run has no false-accept threshold: no picture was verified."
    if far is not None:
        told_far = (
            f"A face passes as the person of the photo from a cosine of {far:.4f}, set on pairs of different people."
        )
    return [
        "Every cosine is raw, from -1 to 1: neither times 100 nor times 2.5.",
        "ID is taken to the photo that was learned. A picture without a face counts 0 in ID and ID(Prompt) and is left "
        "out of ID over faces. Of several faces the surest counts; two subjects get the faces that suit them best.",
        told_tau,
        told_far,
        "The prompt score is that of the sentence with the class word in place of the person.",
        "A figure is taken within each subject first, then over subjects. In brackets: 95 % interval, percentile "
        "bootstrap over subjects, 10 000 resamples. Differences are paired by subject.",
        "No interval is written where it has no width, or for a single subject.",
        "Bold: the best mean of a column, of ways with at least two subjects; nothing is bold in an unfinished run. It "
        "says which mean leads, not that the lead is sure: see the differences. Grey rows are anchors, which do not "
        "compete.",
        "Not computed means just that; it never counts as 0.",
    ]


def anchors(run: RunInfo) -> dict[str, str]:
    """Label of each anchor and what it is."""
    return {way.label: ANCHORS.get(way.control, way.about) for way in run.suite.variants if way.control}


def settings_apart(run: RunInfo) -> tuple[list[str], dict[str, list[str]]]:
    """The ways that have settings, and every setting in which they differ with its value for each."""
    trees = {label: flat(tree) for label, tree in run.settings.items()}
    names = sorted({name for tree in trees.values() for name in tree})
    rows = {name: [plain(tree.get(name)) for tree in trees.values()] for name in names}
    return list(trees), {name: row for name, row in rows.items() if len(set(row)) > 1}


def settings_shared(run: RunInfo) -> dict[str, str]:
    """Every setting in which all ways agree."""
    trees = [flat(tree) for tree in run.settings.values()]
    _, apart = settings_apart(run)
    return {name: plain(value) for name, value in (trees[0] if trees else {}).items() if name not in apart}


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A tree of settings as `section.name` to value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def plain(value: object) -> str:
    """A setting as text, as JSON writes it."""
    return value if isinstance(value, str) else dump_json(value)


def pictures_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over the hashes of all pictures, whatever their order: equal runs have equal ones."""
    lines = sorted(f"{s.subject}/{s.variant}/{s.prompt}/{s.seed}/{s.sha256}" for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def limits(samples: Sequence[Sample]) -> list[str]:
    """What the figures do not tell, one sentence each."""
    subjects = len({sample.subject for sample in samples})
    few = (
        f"Few subjects ({subjects}): bootstrap intervals of fewer than {FEW} are too narrow." if subjects < FEW else ""
    )
    told = [
        few,
        "The intervals cover the choice of subjects only: prompts and seeds are those of the suite.",
        "Differences are not corrected for their number: of twenty comparisons of equal ways, one will look clear.",
        "Judges err, and not evenly: a recogniser knows some faces better than others, and CLIP also rewards a style. "
        "Look at the pictures too.",
        "Cosines of other judges, models or crops cannot be compared with these; differences within this page can.",
        "Seconds and memory belong to the machine of this run.",
    ]
    return [sentence for sentence in told if sentence]
