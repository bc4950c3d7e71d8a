"""What a way learns of a subject, kept in the run's folder; and what is changed of it afterwards."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sefi.api import learn
from sefi.backbone.bundle import Backbone
from sefi.bench.memory import forget_peak, peak_megabytes
from sefi.bench.slots import slots_named
from sefi.bench.subject import Subject, save_photo
from sefi.bench.suite import Suite, Way, slug
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.nouns import Identity
from sefi.core.protocols import Progress
from sefi.methods import get_method


class Stopwatch:
    """Passes progress on and adds up how long each kind of work took.

    Args:
        progress: who is told.
        whom: what stands before every label, for progress that tells of several subjects.

    Attributes:
        seconds: by label, as in `Progress.start`.
    """

    def __init__(self, progress: Progress, whom: str = "") -> None:
        self.progress, self.whom, self.seconds = progress, whom, dict[str, float]()
        self.label, self.started = "", 0.0

    def start(self, total: int, label: str) -> None:
        """Another kind of work begins."""
        self.label, self.started = label, time.monotonic()
        self.progress.start(total, f"{self.whom}{label}")

    def advance(self, **numbers: float) -> None:
        """Passed on."""
        self.progress.advance(**numbers)

    def finish(self) -> None:
        """It is over."""
        self.seconds[self.label] = self.seconds.get(self.label, 0.0) + time.monotonic() - self.started
        self.progress.finish()


@dataclass(frozen=True)
class Costs:
    """What a variant costs; None for what is not known, or where nothing is learned.

    Attributes:
        trained: Numbers that are learned.
        added: Weights beside the model.
        learn_seconds: Mean over the identities of an image.
        class_seconds: Of these, seconds to draw images of the class.
        peak_mb: The most memory that learning held.
    """

    trained: int | None = None
    added: int | None = None
    learn_seconds: float | None = None
    class_seconds: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Learner:
    """What learning needs beside the way and the subject: suite, model, the run's folder, who is told, judges."""

    suite: Suite
    backbone: Backbone
    run: Path
    progress: Progress
    judges: Path | None = None

    def known(self, way: Way, subject: Subject) -> Identity:
        """The identity of a subject for a way: read if it was learned before, with seconds and memory in its header.

        Every identity is learned with seed 0, so that ways differ in nothing but their settings.
        """
        stem = f"{subject.key}--{slug(self.suite.learner(way).label)}"
        file = self.run / "identities" / f"{stem}.safetensors"
        if not file.is_file():
            self.learn(self.suite.learner(way), subject, file)
        return changed(Identity.load(file), way, self.backbone)

    def learn(self, way: Way, subject: Subject, file: Path) -> None:
        """Learn and write one identity; what was begun before is gone on with, and then not timed."""
        checkpoint = file.with_suffix(".checkpoint")
        resumed, started = checkpoint.is_file(), time.monotonic()
        forget_peak(self.backbone)
        watch = Stopwatch(self.progress, f"{subject.key}, {way.label}: ")
        made = learn(
            save_photo(subject, self.run / "photos"),
            name=subject.key,
            backbone=self.backbone,
            config=self.suite.config(way),
            seed=0,
            crop=False,
            judges=self.judges,
            anyway=True,  # photographs are refused when the run is opened
            progress=watch,
            checkpoint=checkpoint,
        )
        peak = peak_megabytes(self.backbone)
        # Pictures that a method draws before it learns are those of the class: the same for every subject.
        spent = {"learn_seconds": time.monotonic() - started, "class_seconds": watch.seconds.get("drawing", 0.0)}
        cost = {} if resumed else spent
        cost |= {} if peak is None else {"peak_mb": peak}
        header = made.header.model_copy(update={"metrics": {**made.header.metrics, **cost}})
        replace(made, header=header).save(file)
        checkpoint.unlink(missing_ok=True)

    def costs(self, way: Way, identities: Sequence[Identity]) -> Costs:
        """Return what a way costs to learn these identities."""
        if not identities:
            return Costs()
        config = self.suite.config(self.suite.learner(way))
        weights = get_method(config.method).weights(self.backbone, config)
        metrics = [i.header.metrics for i in identities]
        peaks = [m["peak_mb"] for m in metrics if "peak_mb" in m]
        return Costs(
            trained=weights.trained,
            added=weights.added,
            learn_seconds=mean_seconds(metrics, "learn_seconds"),
            class_seconds=mean_seconds(metrics, "class_seconds"),
            peak_mb=round(max(peaks), 1) if peaks else None,
        )


def mean_seconds(metrics: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Mean over identities; None where one was not timed, having been learned in pieces."""
    return round(float(np.mean([m[name] for m in metrics])), 2) if all(name in m for m in metrics) else None


def changed(identity: Identity, way: Way, backbone: Backbone) -> Identity:
    """The identity with the class word in the way's slots, the others between class word and what was learned."""
    if not way.class_slots and way.strength == 1.0:
        return identity
    slots = slots_named(way.class_slots, identity.header.stages)
    tokens = IdentityConditioner(backbone, [identity], way.strength, slots).tables[identity.name]
    return replace(identity, tensors={**identity.tensors, "tokens": tokens.view_as(identity.tokens)})
