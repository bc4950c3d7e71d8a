"""What a way learns of a subject, kept in the run's folder; and what is changed of it afterwards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sefi.api import learn
from sefi.backbone.bundle import Backbone
from sefi.bench.memory import forget_peak, peak_megabytes
from sefi.bench.records import Cell
from sefi.bench.slots import slots_named
from sefi.bench.subject import Subject, save_photo
from sefi.bench.suite import Suite, Way, slug
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.core.protocols import Progress
from sefi.identity.expansion import ExpansionModule


@dataclass(frozen=True)
class Learner:
    """What learning needs beside the way and the subject: suite, model, the run's folder, and who is told."""

    suite: Suite
    backbone: Backbone
    run: Path
    progress: Progress

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
        metrics = [i.header.metrics for i in identities]
        seconds = [m["learn_seconds"] for m in metrics if "learn_seconds" in m]
        peaks = [m["peak_mb"] for m in metrics if "peak_mb" in m]
        return {
            "trained": trained_numbers(identities[0], config),
            "added": added_weights(config, self.backbone.width),
            "learn_seconds": round(float(np.mean(seconds)), 2) if len(seconds) == len(identities) else None,
            "peak_mb": round(max(peaks), 1) if peaks else None,
        }


def changed(identity: Identity, way: Way, backbone: Backbone) -> Identity:
    """The identity with the class word in the way's slots, the others between class word and what was learned."""
    if not way.class_slots and way.strength == 1.0:
        return identity
    slots = slots_named(way.class_slots, identity.header.stages)
    tokens = IdentityConditioner(backbone, [identity], way.strength, slots).tables[identity.name]
    return replace(identity, tensors={"tokens": tokens})


def trained_numbers(identity: Identity, config: Config) -> int:
    """How many numbers were learned and are kept; a token that serves as key and as value counts once."""
    held = sum(t.numel() for t in identity.tensors.values())
    return held if config.learn.split_key_value else held // 2


def added_weights(config: Config, width: int) -> int:
    """Weights that learning needs beside the frozen model and that are thrown away afterwards."""
    if config.learn.expansion == "direct":
        return 0
    with torch.device("meta"):
        module = ExpansionModule(width, config.learn.stages)
    return sum(p.numel() for p in module.parameters())
