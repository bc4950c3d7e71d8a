"""Train the fifth version's autoencoder or denoiser on a GPU for so many seconds; rates fall by the clock.

    python benchmarks/gpu_training.py autoencoder --inputs FOLDER --out FOLDER --seconds 300
    python benchmarks/gpu_training.py denoiser --inputs FOLDER --out FOLDER --vae FOLDER/vae --seconds 300

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
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors.torch import load

from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.core.protocols import SilentProgress
from sefi.core.threads import count_usable_cores
from sefi.world import fifth
from sefi.world.autoencoder_training import SERIES, StageTraining, new_autoencoder
from sefi.world.captioned_series import CaptionedRange, caption_range, join_labels, label_range, read_range
from sefi.world.captured import SplitLoss
from sefi.world.data import MODEL_SEED
from sefi.world.diffusion_training import set_scaling
from sefi.world.drawn_series import CHUNK, POINTS, draw_range, draw_series
from sefi.world.latent_data import encode_images
from sefi.world.latent_reader import LatentLabels, store_latents, train_latent_reader
from sefi.world.lesson import NOWHERE, Lesson, new_captured_steps, save_whole
from sefi.world.train import Run
from sefi.world.versions import WorldVersion

BEGUN = time.monotonic()
DEVICE = "cuda"
# Each stage's share of the time.
SHARES = {"small-crops": 0.05, "crops": 0.45, "whole": 0.25, "sharpening": 0.20, "decoder": 0.05}
SAVING = 10.0  # seconds


def report_line(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGUN:6.1f}] {text}", flush=True)


def train_by_clock(lesson: Lesson, loss: SplitLoss, seconds: float, rate: Callable[[float, int], float]) -> int:
    """Take steps for so many seconds; return how many.

    Args:
        rate: returns the learning rate of a share of the time and a step.
    """
    captured = new_captured_steps(lesson, loss)
    if captured is None:
        sys.exit("This needs a GPU.")
    begun, step, value = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begun) / seconds) < 1:
        torch.manual_seed(int(np.random.default_rng([lesson.seed, step]).integers(2**62)))  # noqa: TID251
        value = captured.take(step, rate(share, step))
        step += 1
        if not np.isfinite(value):
            sys.exit(f"{lesson.label}: the loss of step {step} is {value}")
        if step in (100, 500) or step % 2000 == 0:
            took = (time.monotonic() - begun) / step * 1e3
            report_line(f"{lesson.label}: step {step}, {took:.1f} ms, loss {value:.4f}")
    report_line(f"{lesson.label}: {step} steps, loss {value:.4f}")
    return step


def train_stage(training: StageTraining, seconds: float) -> int:
    """Train a stage for so many seconds, its rate falling by the clock; return the steps."""
    stage = training.stage

    def rate(share: float, step: int) -> float:
        falling = 0.02 + 0.49 * (1 + math.cos(math.pi * share)) if stage.falling else 1.0
        return stage.learning_rate * min(1.0, (step + 1) / stage.warm) * falling

    steps = train_by_clock(training.lesson(), SplitLoss(training.inputs, training.compute), seconds, rate)
    if training.averages is not None:
        training.averages.copy_to(training.vae, 0)
    return steps


def train_autoencoder(run: Run, plan: fifth.FifthPlan, seconds: float) -> dict[str, int]:
    """Train all stages and write `vae`; return the steps of each."""
    series = draw_series(run.folder, MODEL_SEED, plan.stored, plan.version, SilentProgress())
    report_line(f"{plan.stored} drawings")
    source = fifth.store_images(series, plan.version.cell, DEVICE)
    features = fifth.load_features(run).to(DEVICE).eval().requires_grad_(requires_grad=False)
    torch.manual_seed(run.seed)  # noqa: TID251
    vae = new_autoencoder(plan.autoencoder.shape, plan.version).to(DEVICE, memory_format=torch.channels_last)
    steps, left = dict[str, int](), seconds - SAVING - (time.monotonic() - BEGUN)
    for number, stage in enumerate(plan.autoencoder.stages):
        training = StageTraining(vae, stage, number * SERIES, run.seed, plan.version, features, source)
        steps[stage.name] = train_stage(training, SHARES[stage.name] * left)
    vae = vae.eval().to("cpu", memory_format=torch.contiguous_format)
    set_scaling(vae, np.array(series.images[: plan.scaled]))
    vae.half().save_pretrained(run.folder / "vae")
    return steps


def draw_and_label(files: list[Path], seed: int, version: WorldVersion, numbers: range) -> bytes:
    """Draw some numbers of a seed; return their labels as bytes."""
    draw_range(files, seed, version, numbers)
    return label_range(seed, version, numbers)


def encode_while_drawing(
    run: Run, plan: fifth.FifthPlan, pool: ProcessPoolExecutor
) -> tuple[np.ndarray, LatentLabels, list[Future[bytes]]]:
    """Return latents and labels of the series, and the captions, which other processes are still writing."""
    side, ranges = plan.version.side, [range(s, min(s + CHUNK, plan.drawings)) for s in range(0, plan.drawings, CHUNK)]
    files = [run.folder / "drawings.npy", run.folder / "faces.npy"]
    open_memmap(files[0], "w+", np.uint8, (plan.drawings, side, side, 3))
    open_memmap(files[1], "w+", np.float32, (plan.drawings, POINTS, 2))
    drawing = [pool.submit(draw_and_label, files, MODEL_SEED, plan.version, numbers) for numbers in ranges]
    given = (run.folder / "tokenizer", MODEL_SEED, plan.captions, plan.denoiser, plan.version)
    captions = [pool.submit(caption_range, *given, numbers) for numbers in ranges]
    vae, images = fifth.load_vae(run), np.load(files[0], mmap_mode="r")
    latents, labels = list[np.ndarray](), list[LatentLabels]()
    for numbers, job in zip(ranges, drawing, strict=True):
        labels.append(LatentLabels.of(load(job.result())))
        block = torch.from_numpy(np.array(images[numbers.start : numbers.stop])).to(DEVICE)
        latents.append(encode_images(vae, block.permute(0, 3, 1, 2).float() / 127.5 - 1))
    return np.concatenate(latents), join_labels(labels), captions


def prepare_denoiser(run: Run, plan: fifth.FifthPlan) -> list[CaptionedRange]:
    """Write latents and the latent reader; return the captions."""
    with ProcessPoolExecutor(count_usable_cores(), initializer=os.nice, initargs=(10,)) as pool:
        latents, labels, captions = encode_while_drawing(run, plan, pool)
        report_line(f"{plan.drawings} latents, deviation {latents.astype(np.float32).std():.3f}")
        source = store_latents(latents, labels, plan.reader, DEVICE)
        reader = train_latent_reader(
            source, plan.reader, run.seed, run.progress, NOWHERE, version=plan.version, device=DEVICE
        )
        report_line("latent reader")
        parts = [read_range(job.result()) for job in captions]
    report_line("captions")
    np.save(run.folder / fifth.LATENTS, latents)
    save_whole(reader.state_dict(), run.folder / fifth.READER)
    return parts


def train_denoiser(run: Run, plan: fifth.FifthPlan, seconds: float) -> dict[str, int]:
    """Train reader and denoiser; write every average to `unet-DECAY`; return the steps."""
    recipe = plan.denoiser
    training = fifth.start_denoiser(run, plan, recipe, prepare_denoiser(run, plan))
    report_line("texts")
    lesson = Lesson("denoiser", recipe, run.seed, 1, {}, training.optimiser, lambda _: 0.0, 1.0)

    def rate(share: float, step: int) -> float:
        return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm, (1 - share) / recipe.fall_share)

    left = seconds - SAVING - (time.monotonic() - BEGUN)
    steps = train_by_clock(lesson, SplitLoss(training.inputs, training.compute), left, rate)
    unet = fifth.new_denoiser(plan.shape, plan.version)
    for number, decay in enumerate(recipe.averages):
        training.averages.copy_to(training.unet, number)
        unet.load_state_dict(training.unet.state_dict())
        unet.half().save_pretrained(run.folder / f"unet-{decay}")
    return {"denoiser": steps}


def read_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("autoencoder", "denoiser"))
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--channels", type=int, default=fifth.CUDA_PLAN.version.channels)
    parser.add_argument("--drawings", type=int, default=fifth.CUDA_PLAN.drawings)
    return parser.parse_args()


def main() -> None:
    """Train one part."""
    asked = read_arguments()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    version = replace(fifth.CUDA_PLAN.version, channels=asked.channels)
    autoencoder = replace(fifth.CUDA_PLAN.autoencoder, version=version)
    plan = replace(fifth.CUDA_PLAN, version=version, autoencoder=autoencoder, drawings=asked.drawings)
    shutil.copytree(asked.inputs, asked.out)
    run = Run(asked.out, resume=False, seed=0, progress=SilentProgress(), device=DEVICE)
    if asked.part == "denoiser":
        shutil.copytree(asked.vae, asked.out / "vae")
    steps = (train_autoencoder if asked.part == "autoencoder" else train_denoiser)(run, plan, asked.seconds)
    known = {"steps": steps, "seconds": time.monotonic() - BEGUN, "device": torch.cuda.get_device_name()}
    write_text(asked.out / "report.json", dump_json(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
