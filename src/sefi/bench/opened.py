"""Everything that a run needs, opened; and the description of it that `run.json` keeps."""

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sefi.backbone.bundle import Backbone
from sefi.bench.identities import Learner
from sefi.bench.judging import Judging, Seen
from sefi.bench.plan import planned_keys
from sefi.bench.records import SCHEMA, EvaluatorInfo, Key, ModelInfo, RunInfo, SuiteInfo
from sefi.bench.run_folder import RunFolder
from sefi.bench.subject import Subject
from sefi.bench.suite import Suite
from sefi.core.config import to_dict
from sefi.core.errors import ConfigError, first_fault
from sefi.core.json_text import dump_json
from sefi.core.protocols import Progress, RunProgress

LIBRARIES = ("sefi", "torch", "diffusers", "transformers", "numpy")


@dataclass(frozen=True)
class Bench:
    """Suite, subjects, model, judges and the run's folder.

    Attributes:
        progress: is told of every image; learning has one of its own, `learning`.
        judges: folder of networks that methods learn with; None takes the model's own.
    """

    suite: Suite
    subjects: tuple[Subject, ...]
    backbone: Backbone
    judging: Judging
    run: RunFolder
    progress: RunProgress
    learning: Progress
    judges: Path | None = None
    seen: dict[str, tuple[Seen, Seen | None]] = field(default_factory=dict[str, tuple[Seen, "Seen | None"]])

    @property
    def learner(self) -> Learner:
        """Learns the identities of this run, or reads them."""
        return Learner(self.suite, self.backbone, self.run.path, self.learning, self.judges)

    def groups(self) -> list[tuple[Subject, ...]]:
        """Subjects that share a picture: everybody alone, or neighbours in twos."""
        size = self.suite.together
        starts = range(0, len(self.subjects) - size + 1, size)
        return [self.subjects[start : start + size] for start in starts]

    def plan(self) -> list[Key]:
        """Return every image of this run, in the order in which they are made."""
        return planned_keys(describe_suite(self.suite), [group_key(group) for group in self.groups()], self.photos())

    def photos(self) -> dict[str, tuple[str, ...]]:
        """Return the hash of every subject's photo and, where there is one, other picture."""
        return {s.key: tuple(digest(p) for p in (s.photo, s.other) if p is not None) for s in self.subjects}

    def looks(self, subject: Subject) -> tuple[Seen, Seen | None]:
        """What the judges make of a subject's photo and other picture; looked at once."""
        if subject.key not in self.seen:
            other = None if subject.other is None else self.judging.see(subject.other)
            self.seen[subject.key] = self.judging.see(subject.photo), other
        return self.seen[subject.key]

    def others(self, group: Sequence[Subject]) -> list[Subject]:
        """As many subjects who are not in the group, the next ones in turn; fewer if there are no others."""
        keys = [s.key for s in self.subjects]
        start = keys.index(group[-1].key) + 1
        turned = [*self.subjects[start:], *self.subjects[:start]]
        mine = {s.key for s in group}
        return [s for s in turned if s.key not in mine][: len(group)]


def group_key(group: Sequence[Subject]) -> str:
    """Name of the subjects that share a picture."""
    return "+".join(s.key for s in group)


def digest(rgb: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels, its first 16 digits."""
    return hashlib.sha256(rgb.tobytes()).hexdigest()[:16]


def describe_suite(suite: Suite) -> SuiteInfo:
    """Return a suite as the record of a run has it.

    Raises:
        ConfigError: a text in it is one that no record holds.
    """
    with record_errors():
        return SuiteInfo.parse(suite.model_dump_json())


def describe_run(
    bench: Bench, evaluators: dict[str, EvaluatorInfo | None], tau: float | None, far_threshold: float | None
) -> RunInfo:
    """Return what `run.json` says: everything that decides a run's figures.

    Raises:
        ConfigError: a text in it is one that no record holds.
    """
    suite, backbone = bench.suite, bench.backbone
    learned = [way for way in suite.ways if way.control is None]
    with record_errors():
        return RunInfo(
            schema_number=SCHEMA,
            suite=describe_suite(suite),
            subjects=tuple(group_key(group) for group in bench.groups()),
            photos=bench.photos(),
            model=ModelInfo(name=backbone.source, fingerprint=backbone.fingerprint),
            device=backbone.device.type,
            dtype=str(backbone.dtype).removeprefix("torch."),
            evaluators=evaluators,
            versions={name: version(name) for name in LIBRARIES},
            # As JSON has them, lists for tuples, so that they equal those that are read again.
            settings=json.loads(dump_json({way.label: to_dict(suite.config(way)) for way in learned})),
            tau=tau,
            far_threshold=far_threshold,
        )


@contextmanager
def record_errors() -> Generator[None]:
    """Raise `ConfigError` for what no record holds."""
    try:
        yield
    except ValidationError as error:
        problem = f"This run cannot be put on record: {first_fault(error)}."
        raise ConfigError(problem, "Change it in the suite, or rename the photographs.") from error
