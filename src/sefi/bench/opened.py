"""Everything that a run needs, opened; and the description of it that `run.json` keeps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sefi.backbone.bundle import Backbone
from sefi.bench.identities import Learner
from sefi.bench.judging import Judging, Seen
from sefi.bench.plan import planned_keys
from sefi.bench.records import SCHEMA, Key, RunFolder
from sefi.bench.subject import Subject
from sefi.bench.suite import Suite
from sefi.core.config import to_dict
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
        return planned_keys(
            {
                "suite": self.suite.model_dump(),
                "subjects": [group_key(group) for group in self.groups()],
                "photos": self.photos(),
            }
        )

    def photos(self) -> dict[str, list[str]]:
        """Return the hash of every subject's photo and, where there is one, other picture."""
        return {s.key: [digest(p) for p in (s.photo, s.other) if p is not None] for s in self.subjects}

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


def about(bench: Bench, judges: dict[str, Any], thresholds: dict[str, float | None]) -> dict[str, Any]:
    """What `run.json` says: everything that decides a run's figures."""
    suite, backbone = bench.suite, bench.backbone
    learned = [way for way in suite.ways if way.control is None]
    return {
        "schema": SCHEMA,
        "suite": suite.model_dump(mode="json"),
        "subjects": [group_key(group) for group in bench.groups()],
        "photos": bench.photos(),
        "model": {"name": backbone.source, "fingerprint": backbone.fingerprint},
        "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "judges": judges,
        "versions": {name: version(name) for name in LIBRARIES},
        "settings": {way.label: to_dict(suite.config(way)) for way in learned},
        **thresholds,
    }
