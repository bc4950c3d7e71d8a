"""Learn the identities of a run or read them back, and measure what learning costs."""

import ctypes
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sefi.api import crop_photo, learn
from sefi.backbone.bundle import Backbone
from sefi.benchmark.run import OpenRun
from sefi.benchmark.suite import BenchmarkSubject, Variant, parse_slots, save_photo
from sefi.core.errors import ConfigError
from sefi.core.files import check_link, remove_file, write_text
from sefi.core.progress import Progress
from sefi.core.reading import InvalidFileError, read_json, translate_file_errors
from sefi.core.text import dump_json
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.identity.file import Identity
from sefi.methods import get_method
from sefi.photo.read import read_photo
from sefi.provenance.consent import check_consents

SELF = Path("/proc/self")
RESET_PEAK = "5"  # proc(5): sets the peak resident size to the present one


def reset_peak(backbone: Backbone) -> None:
    """Reset the peak, so that later ones are of what comes from here on.

    What earlier work freed but the C library still holds would count again; it is given back first, where that can be
    asked for (glibc).
    """
    gc.collect()
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backbone.device)
    elif (SELF / "clear_refs").exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            (SELF / "clear_refs").write_text(RESET_PEAK, encoding="ascii")
        except OSError:
            return


def read_peak_megabytes(backbone: Backbone) -> float | None:
    """Return the most that was held since `reset_peak`: on the accelerator if there is one, else resident (Linux)."""
    if backbone.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backbone.device) / 2**20
    try:
        lines = (SELF / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) / 1024


class Stopwatch:
    """Passes progress on and adds up how long each kind of work took.

    Args:
        progress: where it is passed to.
        prefix: what stands before every label, for progress of several subjects.

    Attributes:
        seconds: by label, as in `Progress.start`.
    """

    def __init__(self, progress: Progress, prefix: str = "") -> None:
        self.progress, self.prefix, self.seconds = progress, prefix, dict[str, float]()
        self.label, self.started = "", 0.0

    def start(self, total: int, label: str) -> None:
        """Begin another kind of work."""
        self.label, self.started = label, time.monotonic()
        self.progress.start(total, f"{self.prefix}{label}")

    def advance(self, **numbers: float) -> None:
        """Pass on that one step is done."""
        self.progress.advance(**numbers)

    def finish(self) -> None:
        """Add the time since the start to the kind's, and pass on the end."""
        self.seconds[self.label] = self.seconds.get(self.label, 0.0) + time.monotonic() - self.started
        self.progress.finish()


@dataclass(frozen=True)
class Costs:
    """What a variant costs; None for what is not known, or where nothing is learned.

    Attributes:
        trained: Trained parameters.
        added: Weights in addition to the model's.
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
    """Learns the identities of a run, or reads them."""

    run: OpenRun

    def load_or_learn(self, variant: Variant, subject: BenchmarkSubject) -> Identity:
        """Return a subject's identity for a variant: read if it is there.

        Every identity is learned with the variant's seed, which is 0 unless the suite says another, so that variants
        differ in nothing but their settings.
        """
        learning_variant = self.run.suite.find_learning_variant(variant)
        file = self.run.folder.locate_identity(subject.key, learning_variant)
        if not file.is_file():
            self.learn(learning_variant, subject, file)
        remove_file(locate_checkpoint(file))  # also where a kill came before it was
        identity = Identity.load(file)
        check_consents({identity.name: identity.header.consent})
        return change_identity(identity, variant, self.run.backbone)

    def learn(self, variant: Variant, subject: BenchmarkSubject, file: Path) -> None:
        """Learn and write one identity and its costs; a checkpoint is resumed, and then nothing is timed.

        The costs, never the same twice, have a file of their own: the identity's, whose SHA-256 stands in the images,
        is the same in every run.
        """
        check_link(file)
        run, checkpoint = self.run, locate_checkpoint(file)
        resumed, started = checkpoint.is_file(), time.monotonic()
        needed, spared = run.class_images.seconds_needed, run.class_images.seconds_spared
        reset_peak(run.backbone)
        photo = read_photo(save_photo(subject, run.folder.locate_photo(subject.key)))
        config = run.suite.make_config(variant)
        made = learn(
            crop_photo(photo, run.backbone, config, crop=False),  # the subject's square, as it is
            name=subject.key,
            backbone=run.backbone,
            config=config,
            seed=variant.learning_seed,
            detector=run.detector,
            evaluators=run.evaluator_folder,
            any_style=True,  # they are refused when the run is opened
            progress=Stopwatch(run.learning_progress, f"{subject.key}, {variant.label}: "),
            checkpoint=checkpoint,
            class_images=run.class_images,
        )
        ended = time.monotonic()
        peak = read_peak_megabytes(run.backbone)
        # Images that a method draws before it learns are those of the class: the same for every subject. What they took
        # counts for each, as if it were the only one.
        needed, spared = run.class_images.seconds_needed - needed, run.class_images.seconds_spared - spared
        spent = {"learn_seconds": ended - started + spared, "class_seconds": needed}
        cost = {} if resumed else spent
        cost |= {} if peak is None else {"peak_mb": peak}
        write_text(locate_costs(file), dump_json(cost) + "\n")
        made.save(file)

    def collect_costs(
        self, variant: Variant, subjects: Sequence[BenchmarkSubject], identities: Sequence[Identity]
    ) -> Costs:
        """Return what a variant costs to learn these subjects' identities."""
        if not identities:
            return Costs()
        suite = self.run.suite
        variant = suite.find_learning_variant(variant)
        config = suite.make_config(variant)
        weights = get_method(config.method).count_weights(self.run.backbone, config)
        files = [self.run.folder.locate_identity(subject.key, variant) for subject in subjects]
        metrics = [read_costs(file, identity) for file, identity in zip(files, identities, strict=True)]
        peaks = [m["peak_mb"] for m in metrics if "peak_mb" in m]
        return Costs(
            trained=weights.trained,
            added=weights.added,
            learn_seconds=average_seconds(metrics, "learn_seconds"),
            class_seconds=average_seconds(metrics, "class_seconds"),
            peak_mb=round(max(peaks), 1) if peaks else None,
        )


def locate_checkpoint(file: Path) -> Path:
    """Return the file of the unfinished training of an identity."""
    return file.with_suffix(".checkpoint")


def locate_costs(file: Path) -> Path:
    """Return the file of what it cost to learn an identity."""
    return file.with_suffix(".costs.json")


def read_costs(file: Path, identity: Identity) -> Mapping[str, float]:
    """Return what it cost to learn an identity, by name; earlier versions wrote it into the identity's header.

    Raises:
        ConfigError: the file is damaged.
    """
    path = locate_costs(file)
    if not path.is_file():
        return identity.header.metrics
    remedy = "Remove it; the costs of this identity are then unknown."
    with translate_file_errors(path, ConfigError, "is no record of costs", remedy):
        costs = read_json(path)
        if not all(type(value) in (int, float) and value >= 0 for value in costs.values()):
            raise InvalidFileError("a cost is no number above 0")
        return costs


def average_seconds(metrics: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Return the mean over identities; None where one was not timed, because it was learned in pieces."""
    return round(float(np.mean([m[name] for m in metrics])), 2) if all(name in m for m in metrics) else None


def change_identity(identity: Identity, variant: Variant, backbone: Backbone) -> Identity:
    """Return the identity with the class word in the variant's slots; a strength below 1 mixes it into the others."""
    if not variant.class_slots and variant.strength == 1.0:
        return identity
    slots = parse_slots(variant.class_slots, identity.header.stages)
    tokens = IdentityConditioner(backbone, [identity], variant.strength, slots).stage_tokens[identity.name]
    # Without strength there are as many tokens as the class word has.
    shaped = tokens.view_as(identity.tokens) if tokens.numel() == identity.tokens.numel() else tokens
    return replace(identity, tensors={**identity.tensors, "tokens": shaped})
