"""A training's folder, the sizes and recipes of all parts, and the time that each part took."""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from sefi.core.errors import ConfigError
from sefi.core.files import write_text
from sefi.core.progress import Progress
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import SHIPPED, WorldVersion
from tiny_portraits.training.autoencoder import AutoencoderPlan, Stage
from tiny_portraits.training.composer import ComposerRecipe
from tiny_portraits.training.denoiser import DenoiserRecipe, DenoiserShape
from tiny_portraits.training.features import FeatureRecipe
from tiny_portraits.training.latent_reader import LatentReaderRecipe
from tiny_portraits.training.loop import Checkpointing
from tiny_portraits.training.recognisers import SecondRecipe
from tiny_portraits.training.text import TextRecipe

EVERY = 180.0  # seconds between two checkpoints
LINE_EVERY = 60.0  # seconds between two lines of the log


@dataclass(frozen=True)
class Run:
    """Where a training keeps its files, and how it was asked for.

    Attributes:
        start: a finished model's folder to go on from; None begins with nothing.
        device: where autoencoder, text encoder and denoiser learn; the evaluators are small and stay on the CPU.
    """

    folder: Path
    resume: bool
    seed: int
    progress: Progress
    start: Path | None = None
    device: str = "cpu"

    def require(self, name: str, part: str) -> Path:
        """Return a file or folder that another part makes.

        Raises:
            ConfigError: it is not there.
        """
        path = self.folder / name
        if not path.exists():
            raise ConfigError(f"{path} is missing.", f"Run `sefi world train {part}` first.")
        return path


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes and recipes of all parts.

    Attributes:
        drawings, held_out: how many the denoiser learns from, and how many score its averages.
        stored: on a GPU, how many drawings the autoencoder learns from; a CPU draws new ones for every step.
        captions: on a GPU, how many captions every drawing has; a CPU says every drawing in new words each time.
        scaled: on how many drawings the scale of the latents is measured.
    """

    version: WorldVersion = SHIPPED
    drawings: int = 48_000
    stored: int = 24_000
    captions: int = 3
    held_out: int = 512
    scaled: int = 512
    features: FeatureRecipe = field(default_factory=FeatureRecipe)
    autoencoder: AutoencoderPlan = field(default_factory=AutoencoderPlan)
    reader: LatentReaderRecipe = field(default_factory=LatentReaderRecipe)
    text: TextRecipe = field(default_factory=partial(TextRecipe, steps=1500, version=SHIPPED))
    more_text: TextRecipe = field(
        default_factory=partial(TextRecipe, steps=240, learning_rate=5e-4, earlier_weight=1.0, version=SHIPPED)
    )
    shape: DenoiserShape = field(default_factory=DenoiserShape)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    second: SecondRecipe = field(default_factory=SecondRecipe)
    composer: ComposerRecipe = field(default_factory=partial(ComposerRecipe, images=4000, version=SHIPPED))
    more_composer: ComposerRecipe = field(
        default_factory=partial(ComposerRecipe, images=1600, steps=700, version=SHIPPED)
    )


PLAN = TrainingPlan()

# A GPU gains little by small batches: more images in fewer steps.
CUDA_PLAN = TrainingPlan(
    drawings=120_000,
    scaled=128,
    autoencoder=AutoencoderPlan(
        stages=(
            Stage("small-crops", 1500, 64, 48, 1.5e-3, falling=False, warm=200),
            Stage("crops", 9000, 32, 96, 1e-3, falling=False),
            Stage("whole", 3000, 12, 0, 6e-4, perceptual_weight=0.2, average=0.998),
            Stage(
                "sharpening", 4000, 32, 96, 4e-4, perceptual_weight=0.3, adversarial_weight=0.02, decoder_only=True,
                average=0.998,
            ),
            Stage("decoder", 800, 12, 0, 1e-4, perceptual_weight=0.3, decoder_only=True, average=0.99),
        )
    ),
    reader=LatentReaderRecipe(steps=4000, batch=256),
    denoiser=DenoiserRecipe(steps=8000, batch=128, learning_rate=1e-3, averages=(0.995, 0.998, 0.9995)),
)  # fmt: skip


def choose_plan(device: str) -> TrainingPlan:
    """Return the sizes and recipes for a device."""
    return CUDA_PLAN if is_gpu(device) else PLAN


def is_gpu(device: str) -> bool:
    """Return whether a device is a GPU that can capture steps."""
    return torch.device(device).type == "cuda"


def get_checkpointing(run: Run, part: str) -> Checkpointing:
    """Return where a part's checkpoint lies."""
    return Checkpointing(run.folder / f"{part}.training.safetensors", run.resume, EVERY)


@dataclass
class TimedProgress:
    """Pass progress on, and write it down.

    Each run of each part adds one entry to `times.json`: part, start, steps, wall and CPU seconds. A run that is
    killed keeps the entry of its last line.

    Attributes:
        inner: shows the progress to the user.
        folder: of the training; gets `training.log` and `times.json`.
        part: name of the part that is trained.
    """

    inner: Progress
    folder: Path
    part: str
    label: str = ""
    steps: int = 0
    total: int = 0
    losses: list[float] = field(default_factory=list[float])
    begun: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    written: float = 0.0

    def start(self, total: int, label: str) -> None:
        """Begin a stretch of steps."""
        self.inner.start(total, label)
        self.label, self.steps, self.total, self.losses = label, 0, total, []
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self.wall, self.cpu, self.written = time.monotonic(), time.process_time(), time.monotonic()

    def advance(self, **numbers: float) -> None:
        """Count one step."""
        self.inner.advance(**numbers)
        self.steps += 1
        if "loss" in numbers:
            self.losses.append(numbers["loss"])
        if time.monotonic() - self.written > LINE_EVERY:
            self.write()

    def finish(self) -> None:
        """End the stretch."""
        self.inner.finish()
        if self.steps:
            self.write()

    def make_entry(self) -> dict[str, str | int | float]:
        """Return what `times.json` holds of this stretch."""
        return {
            "part": self.part,
            "label": self.label,
            "begun": self.begun,
            "steps": self.steps,
            "wall_seconds": round(time.monotonic() - self.wall, 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
        }

    def write(self) -> None:
        """Add a line to the log and bring `times.json` up to date."""
        entry = self.make_entry()
        mean = f", loss {sum(self.losses) / len(self.losses):.4f}" if self.losses else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = (
            f"{now} {self.label}: {self.steps} of {self.total} steps{mean}, "
            f"wall {entry['wall_seconds']} s, CPU {entry['cpu_seconds']} s\n"
        )
        with (self.folder / "training.log").open("a", encoding="utf-8") as log:
            log.write(line)
        write_entry(self.folder / "times.json", entry)
        self.losses, self.written = [], time.monotonic()


def read_times(path: Path) -> list[dict[str, str | int | float]]:
    """Return the entries of a `times.json`; none where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def write_entry(path: Path, entry: dict[str, str | int | float]) -> None:
    """Add an entry to a `times.json`, or replace the one with the same part, label and start."""
    same = ("part", "label", "begun")
    others = [e for e in read_times(path) if any(e[k] != entry[k] for k in same)]
    write_text(path, dump_json([*others, entry], indent=1) + "\n")
