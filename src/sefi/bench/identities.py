"""What a way learns of a subject, kept in the run's folder; and what is changed of it afterwards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sefi.api import learn
from sefi.backbone.bundle import Backbone
from sefi.bench.memory import forget_peak, peak_megabytes
from sefi.bench.records import Cell
from sefi.bench.slots import slots_named
from sefi.bench.subject import Subject, save_photo
from sefi.bench.suite import Suite, Way, slug
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.nouns import Identity
from sefi.core.protocols import Progress
from sefi.methods import method_named


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
        made = learn(
            save_photo(subject, self.run / "photos"),
            name=subject.key,
            backbone=self.backbone,
            config=self.suite.config(way),
            seed=0,
            crop=False,
            judges=self.judges,
            progress=self.progress,
            checkpoint=checkpoint,
        )
        peak = peak_megabytes(self.backbone)
        cost = {} if resumed else {"learn_seconds": time.monotonic() - started}
        cost |= {} if peak is None else {"peak_mb": peak}
        header = made.header.model_copy(update={"metrics": {**made.header.metrics, **cost}})
        replace(made, header=header).save(file)
        checkpoint.unlink(missing_ok=True)

    def facts(self, way: Way, identities: Sequence[Identity]) -> Cell:
        """What a way costs: numbers learned, weights added, seconds, memory; None for what is not known."""
        if not identities:
            return {"trained": None, "added": None, "learn_seconds": None, "peak_mb": None}
        config = self.suite.config(self.suite.learner(way))
        weights = method_named(config.method).weights(self.backbone, config)
        metrics = [i.header.metrics for i in identities]
        seconds = [m["learn_seconds"] for m in metrics if "learn_seconds" in m]
        peaks = [m["peak_mb"] for m in metrics if "peak_mb" in m]
        return {
            "trained": weights.trained,
            "added": weights.added,
            "learn_seconds": round(float(np.mean(seconds)), 2) if len(seconds) == len(identities) else None,
            "peak_mb": round(max(peaks), 1) if peaks else None,
        }


def changed(identity: Identity, way: Way, backbone: Backbone) -> Identity:
    """The identity with the class word in the way's slots, the others between class word and what was learned."""
    if not way.class_slots and way.strength == 1.0:
        return identity
    slots = slots_named(way.class_slots, identity.header.stages)
    tokens = IdentityConditioner(backbone, [identity], way.strength, slots).tables[identity.name]
    return replace(identity, tensors={**identity.tensors, "tokens": tokens.view_as(identity.tokens)})
