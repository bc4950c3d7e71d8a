"""Train the embedded model's autoencoder or denoiser on a GPU for so many seconds; rates fall by the clock.

    python experiments/gpu_training.py inputs --inputs DIR --start MODEL
    python experiments/gpu_training.py autoencoder --inputs DIR --out DIR --seconds 300
    python experiments/gpu_training.py finish --inputs DIR --out DIR --vae DIR/vae --seconds 200
    python experiments/gpu_training.py denoiser --inputs DIR --out DIR --vae DIR/vae --seconds 300 --start MODEL
    python experiments/gpu_training.py draw --inputs DIR --store DIR --drawings 60000

`finish` goes on with a finished autoencoder. `inputs` takes the words of a finished model into a folder of inputs.
`draw` draws ahead, without the GPU, what `denoiser --store DIR` then reads.
For a GPU that is there for minutes only: nothing is resumed, and drawing, labelling and captions run on all cores while
the GPU works. Without such a limit, use `sefi world train all --device cuda`.
The inputs are what `sefi world train tokenizer`, `text` and `features` write. `report.json` says what was done.
"""

import sefi  # noqa: F401  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import argparse
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from sefi.core.files import write_text
from sefi.core.process import count_usable_cores
from sefi.core.progress import SilentProgress
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import WorldVersion
from tiny_portraits.drawing.sampling import MODEL_SEED, draw_numbers
from tiny_portraits.text.text_encoder import load_earlier_words
from tiny_portraits.training import train
from tiny_portraits.training.acceleration import SplitLoss
from tiny_portraits.training.autoencoder import SERIES, Stage, StageTraining, build_autoencoder
from tiny_portraits.training.captioned_series import CaptionedRange, caption_range, encode_text, join_labels, read_range
from tiny_portraits.training.denoiser import DenoiserTraining
from tiny_portraits.training.drawings import CHUNK, draw_series, run_in_processes
from tiny_portraits.training.latent_reader import LatentLabels, LatentReader, store_latents, train_latent_reader
from tiny_portraits.training.latents import DiffusionRecipe, encode_drawings, set_scaling
from tiny_portraits.training.loop import NOWHERE, CapturedTrainer, TrainingSetup, build_trainer, set_step_seed
from tiny_portraits.training.networks import save_tensors
from tiny_portraits.training.runs import CUDA_PLAN, Run, TrainingPlan

BEGUN = time.monotonic()
DEVICE = "cuda"
# Each stage's share of the time.
SHARES = {"small-crops": 0.05, "crops": 0.45, "whole": 0.25, "sharpening": 0.20, "decoder": 0.05}
SAVING = 10.0  # seconds
# A finished autoencoder learns on as a whole, near to the latents that a denoiser knows; then its decoder alone. The
# clock decides how many steps each takes; those named here only pace the start of the discriminator.
FINISH = (
    Stage("joint", 1, 32, 96, 6e-4, edge_weight=1.0, perceptual_weight=0.2, average=0.998, drift_weight=0.05),
    Stage(
        "sharpening", 2000, 32, 96, 4e-4, edge_weight=1.0, perceptual_weight=0.3, adversarial_weight=0.03,
        decoder_only=True, average=0.998,
    ),
    Stage("decoder", 1, 12, 0, 1.5e-4, edge_weight=1.0, perceptual_weight=0.3, decoder_only=True, average=0.99),
)  # fmt: skip
FINISH_SHARES = {"joint": 0.6, "sharpening": 0.25, "decoder": 0.15}
# Every so many steps of the denoiser 100 of its drawings are replaced by new ones.
REFRESH_EVERY = 16
SAVE_EVERY = 120.0  # seconds


def report_line(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGUN:6.1f}] {text}", flush=True)


def train_by_clock(setup: TrainingSetup, loss: SplitLoss, seconds: float, rate: Callable[[float, int], float]) -> int:
    """Take steps for so many seconds; return how many.

    Args:
        rate: returns the learning rate of a share of the time and a step.
    """
    trainer = build_trainer(setup, loss)
    if not isinstance(trainer, CapturedTrainer):
        sys.exit("This needs a GPU.")
    begun, step, value = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begun) / seconds) < 1:
        set_step_seed(setup.seed, step)
        value = trainer.captured.take(step, rate(share, step))
        step += 1
        if not np.isfinite(value):
            sys.exit(f"{setup.label}: the loss of step {step} is {value}")
        if step in (100, 500) or step % 2000 == 0:
            took = (time.monotonic() - begun) / step * 1e3
            report_line(f"{setup.label}: step {step}, {took:.1f} ms, loss {value:.4f}")
    report_line(f"{setup.label}: {step} steps, loss {value:.4f}")
    return step


def train_stage(training: StageTraining, seconds: float) -> int:
    """Train a stage for so many seconds, its rate falling by the clock; return the steps."""
    stage = training.stage

    def rate(share: float, step: int) -> float:
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * share)) if stage.falling else 1.0
        return stage.learning_rate * min(1.0, (step + 1) / stage.warm) * falling

    steps = train_by_clock(training.make_setup(), SplitLoss(training.make_inputs, training.compute), seconds, rate)
    if training.averages is not None:
        training.averages.copy_to(training.vae, 0)
    return steps


def train_autoencoder(
    run: Run, plan: TrainingPlan, seconds: float, started: AutoencoderKL | None = None
) -> dict[str, int]:
    """Train all stages and write `vae`; return the steps of each.

    Args:
        started: a finished autoencoder that goes on; None begins with nothing.
    """
    series = draw_series(run.folder, MODEL_SEED, plan.stored, plan.version, SilentProgress())
    report_line(f"{plan.stored} drawings")
    source = train.store_images(series, plan.version.cell, DEVICE)
    features = train.load_features(run).to(DEVICE).eval().requires_grad_(requires_grad=False)
    torch.manual_seed(run.seed)  # noqa: TID251
    vae = started or build_autoencoder(plan.autoencoder.shape, plan.version)
    vae = vae.to(DEVICE, memory_format=torch.channels_last)
    stages, shares = (FINISH, FINISH_SHARES) if started else (plan.autoencoder.stages, SHARES)
    steps, left = dict[str, int](), seconds - SAVING - (time.monotonic() - BEGUN)
    for number, stage in enumerate(stages):
        training = StageTraining(vae, stage, number * SERIES, run.seed, plan.version, features, source)
        steps[stage.name] = train_stage(training, shares[stage.name] * left)
    vae = vae.eval().to("cpu", memory_format=torch.contiguous_format)
    set_scaling(vae, np.array(series.images[: plan.scaled]))
    vae.half().save_pretrained(run.folder / "vae")
    return steps


def finish_autoencoder(run: Run, plan: TrainingPlan, seconds: float) -> dict[str, int]:
    """Train a finished autoencoder, `vae`, on and write it; return the steps of each stage."""
    started = train.load_vae(run).float().requires_grad_()
    return train_autoencoder(run, plan, seconds, started)


def draw_and_caption(
    tokenizer_folder: Path, captions: int, recipe: DiffusionRecipe, version: WorldVersion, store: Path | None,
    numbers: range,
) -> tuple[np.ndarray, bytes]:  # fmt: skip
    """Return numbered drawings of the model's series, uint8 `[count, side, side, 3]`, and what there is to learn.

    Args:
        store: a folder where `draw_range_ahead` may have written them.
    """
    if store is not None and (store / f"{numbers.start}.npy").is_file():
        return np.load(store / f"{numbers.start}.npy"), (store / f"{numbers.start}.captions").read_bytes()
    drawings = draw_numbers(numbers, MODEL_SEED, version)
    return drawings, caption_range(tokenizer_folder, MODEL_SEED, captions, recipe, version, numbers)


def draw_range_ahead(
    tokenizer_folder: Path, captions: int, recipe: DiffusionRecipe, version: WorldVersion, store: Path, numbers: range
) -> None:
    """Write numbered drawings and what there is to learn into a folder, the drawings last."""
    drawings, captioned = draw_and_caption(tokenizer_folder, captions, recipe, version, store, numbers)
    (store / f"{numbers.start}.captions").write_bytes(captioned)
    partial_file = store / f"{numbers.start}.partial.npy"
    np.save(partial_file, drawings)
    partial_file.replace(store / f"{numbers.start}.npy")


def draw_ahead(inputs: Path, plan: TrainingPlan, store: Path) -> None:
    """Draw the plan's drawings into a folder, with all cores."""
    store.mkdir(parents=True, exist_ok=True)
    job = partial(draw_range_ahead, inputs / "tokenizer", plan.captions, plan.denoiser, plan.version, store)
    run_in_processes(job, plan.drawings, SilentProgress(), "drawings")
    report_line(f"{plan.drawings} drawings")


def write_words(inputs: Path, start: Path) -> None:
    """Write tokenizer and text encoder of a finished model, and a naming network fitted to its names, as inputs."""
    worded = load_earlier_words(start)
    worded.tokenizer.save_pretrained(inputs / "tokenizer")
    train.save_words(worded, inputs)


class DrawingStream:
    """The model's series, drawn ahead by all cores and encoded by the GPU: latents float16 and what there is to learn.

    Args:
        ahead: how many ranges are drawn before they are asked for.
        store: where some may lie already.
    """

    def __init__(
        self, run: Run, plan: TrainingPlan, pool: ProcessPoolExecutor, ahead: int, store: Path | None
    ) -> None:  # fmt: skip
        self.pool, self.requested = pool, 0
        tokenizer = run.folder / "tokenizer"
        self.job = partial(draw_and_caption, tokenizer, plan.captions, plan.denoiser, plan.version, store)
        self.waiting = deque[Future[tuple[np.ndarray, bytes]]]()
        for _ in range(ahead):
            self.draw_ahead()
        # Last: processes that are forked once a GPU is in use may hang.
        self.vae = train.load_vae(run)

    @property
    def taken(self) -> int:
        """How many drawings have been taken."""
        return self.requested - len(self.waiting) * CHUNK

    def draw_ahead(self) -> None:
        """Let the next range be store."""
        self.waiting.append(self.pool.submit(self.job, range(self.requested, self.requested + CHUNK)))
        self.requested += CHUNK

    def is_ready(self) -> bool:
        """Return whether the next range is drawn."""
        return self.waiting[0].done()

    def take(self) -> tuple[np.ndarray, CaptionedRange]:
        """Return the next range, drawn or not."""
        drawings, captioned = self.waiting.popleft().result()
        return encode_drawings(self.vae, drawings), read_range(captioned)


def prepare_denoiser(run: Run, plan: TrainingPlan, stream: DrawingStream) -> list[CaptionedRange]:
    """Write the latents of the first drawings and the latent reader; return the captions."""
    latents, parts = list[np.ndarray](), list[CaptionedRange]()
    while stream.waiting:
        encoded, part = stream.take()
        latents.append(encoded)
        parts.append(part)
    everything = np.concatenate(latents)
    report_line(f"{len(everything)} latents, deviation {everything.astype(np.float32).std():.3f}")
    np.save(run.folder / train.LATENTS, everything)
    source = store_latents(everything, join_labels([part.labels for part in parts]), plan.reader, DEVICE)
    reader = train_latent_reader(
        source, plan.reader, run.seed, run.progress, NOWHERE, version=plan.version, device=DEVICE
    )
    save_tensors(reader.state_dict(), run.folder / train.READER)
    report_line("latent reader")
    return parts


@torch.no_grad()
def measure_reader(reader: LatentReader, latents: np.ndarray, labels: LatentLabels) -> float:
    """Return which share of the variance of unseen people's vectors the reader explains."""
    labels = labels.to(DEVICE)
    there = labels.present.bool()
    found = reader.to(DEVICE)(torch.from_numpy(latents).to(DEVICE).float(), labels.boxes)["person"][there]
    wanted = labels.vectors[there]
    return float(1 - (found - wanted).pow(2).mean(0).sum() / wanted.var(0).sum())


def replace_drawings(training: DenoiserTraining, start: int, latents: np.ndarray, part: CaptionedRange) -> None:
    """Write other drawings over the stored ones from a place on."""
    series, recipe, places = training.series, training.recipe, slice(start, start + len(latents))
    assert series is not None
    assert training.stored is not None
    training.stored[places] = torch.from_numpy(latents).to(DEVICE)
    series.weights[places] = part.weights.to(DEVICE)
    states = encode_text(training.worded, part.text, training.device, recipe.changed_names, recipe.scene_share)
    series.states[places] = states.reshape(len(latents), *series.states.shape[1:])
    for name, values in series.labels.get_tensors().items():
        values[places] = part.labels.get_tensors()[name].to(DEVICE)


def save_averages(run: Run, plan: TrainingPlan, training: DenoiserTraining) -> None:
    """Write every average to `unet-DECAY` in half precision."""
    unet = train.build_denoiser(plan.shape, plan.version)
    for number, decay in enumerate(plan.denoiser.averages):
        unet.load_state_dict(training.averages.average(number))
        unet.half().save_pretrained(run.folder / f"unet-{decay}")
        unet.float()


def train_denoiser(run: Run, plan: TrainingPlan, seconds: float, store: Path | None) -> dict[str, int]:
    """Train reader and denoiser; write every average; return the steps and the drawings seen."""
    recipe, cores = plan.denoiser, count_usable_cores()
    with ProcessPoolExecutor(cores, initializer=os.nice, initargs=(10,)) as pool:
        stream = DrawingStream(run, plan, pool, plan.drawings // CHUNK, store)
        parts = prepare_denoiser(run, plan, stream)
        # More drawings are needed from here on; the first ones measure the reader before it is used.
        for _ in range(2 * cores):
            stream.draw_ahead()
        latents, part = stream.take()
        read = measure_reader(train.load_reader(run, plan), latents, part.labels)
        report_line(f"latent reader: {read:.3f} of the variance of unseen people")
        training = train.start_denoiser(run, plan, recipe, parts)
        report_line("texts")
        setup = TrainingSetup("denoiser", recipe, run.seed, 1, {}, training.optimiser, lambda _: 0.0, 1.0)
        left, saved = seconds - SAVING - (time.monotonic() - BEGUN), time.monotonic()

        def rate(share: float, step: int) -> float:
            return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm, (1 - share) / recipe.fall_share)

        def make_inputs(step: int) -> dict[str, torch.Tensor]:
            nonlocal saved
            if step % REFRESH_EVERY == 0 and stream.is_ready():
                start = stream.taken % len(training.latents)
                replace_drawings(training, start, *stream.take())
                stream.draw_ahead()
            if time.monotonic() - saved > SAVE_EVERY:
                save_averages(run, plan, training)
                saved = time.monotonic()
            return training.get_inputs(step)

        steps = train_by_clock(setup, SplitLoss(make_inputs, training.compute), left, rate)
        save_averages(run, plan, training)
        seen = stream.taken
        pool.shutdown(wait=False, cancel_futures=True)
    return {"denoiser": steps, "drawings": seen}


def read_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("inputs", "draw", "autoencoder", "finish", "denoiser"))
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--start", type=Path, help="a finished model; the denoiser goes on from its `unet`")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--channels", type=int, default=CUDA_PLAN.version.channels)
    parser.add_argument("--drawings", type=int, default=CUDA_PLAN.drawings)
    parser.add_argument("--captions", type=int, default=CUDA_PLAN.captions)
    parser.add_argument("--stored", type=int, default=CUDA_PLAN.stored, help="drawings for the autoencoder")
    parser.add_argument("--store", type=Path, help="where `draw` writes and `denoiser` reads drawings")
    return parser.parse_args()


def make_plan(asked: argparse.Namespace) -> TrainingPlan:
    """Return the plan for a GPU with what was asked for; a denoiser that goes on is not aligned again."""
    version = replace(CUDA_PLAN.version, channels=asked.channels)
    autoencoder = replace(CUDA_PLAN.autoencoder, version=version)
    recipe = replace(CUDA_PLAN.denoiser, alignment_weight=0.0) if asked.start else CUDA_PLAN.denoiser
    return replace(
        CUDA_PLAN, version=version, autoencoder=autoencoder, denoiser=recipe, drawings=asked.drawings,
        captions=asked.captions, stored=asked.stored,
    )  # fmt: skip


def main() -> None:
    """Do one part."""
    asked = read_arguments()
    plan = make_plan(asked)
    if asked.part == "inputs":
        return write_words(asked.inputs, asked.start)
    if asked.part == "draw":
        return draw_ahead(asked.inputs, plan, asked.store)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    shutil.copytree(asked.inputs, asked.out)
    run = Run(asked.out, resume=False, seed=0, progress=SilentProgress(), start=asked.start, device=DEVICE)
    if asked.part != "autoencoder":
        shutil.copytree(asked.vae, asked.out / "vae")
    if asked.part == "denoiser":
        steps = train_denoiser(run, plan, asked.seconds, asked.store)
    else:
        steps = (train_autoencoder if asked.part == "autoencoder" else finish_autoencoder)(run, plan, asked.seconds)
    known = {"steps": steps, "seconds": time.monotonic() - BEGUN, "device": torch.cuda.get_device_name()}
    write_text(asked.out / "report.json", dump_json(known, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
