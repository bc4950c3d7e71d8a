"""Measure on a CUDA device what experiments/engine.py measures on a CPU, by the wall clock, in less than nine minutes.

    python experiments/gpu.py                    # all but compile; writes experiments/records/gpu.json
    python experiments/gpu.py check learning     # these parts only; the others stay in the record
    python experiments/gpu.py --out FILE         # where the record goes, if it is another one

    check        gradients, images, a resumed training and two people learned together against the CPU;
                 and on the device a training that is resumed, and one that is repeated, against one that is not
    learning     a step of the presets against the bare denoiser and diffusers' loop; embedded model, and 1.4's size
    together     16 identities in one pass against one by one
    compile      steps by torch.compile with CUDA graphs against those without; compiling takes minutes
    generation   images against diffusers' pipeline, and 16 identities in one batch against one
    whole        `sefi.learn` with the default preset, from the photo to the identity
    profile      of a step: how long the device computes, how many kernels it is given, who waits for it

Every reading of the clock waits until the device is done. Ratios are of medians of rounds in turn, as in engine.py.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sefi

# isort: split

import numpy as np
import torch
from engine import (
    BANK,
    DEFAULT_FROM_ENCODER,
    FEW_VIEWS,
    GENERATION_PAIRS,
    IDENTITIES,
    IMAGE_STEPS,
    LEARNING_PAIRS,
    PORTRAIT,
    STEPS,
    Seconds,
    Step,
    compare,
    compile_trainers,
    compute_gradient,
    describe_machine,
    list_generation_variants,
    list_learning_variants,
    make_large_backbone,
    make_trainer,
    measure_in_turn,
)
from torch.profiler import ProfilerActivity, profile

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, override
from sefi.core.files import write_text
from sefi.core.progress import SilentProgress
from sefi.core.text import dump_json
from sefi.methods import PRESETS
from sefi.training.loop import Task
from sefi.training.together import TrainingGroup

RECORD = Path(__file__).parent / "records" / "gpu.json"
DEVICE = "cuda"
ROUNDS = 7
WARM = 3  # steps before any is timed; the first measures the gradients' shares, which takes longer
SYNCHRONISING = "called a synchronizing"  # torch's warning of an operation that waits
PROMPT = "a photo of <ada> at the beach"
FEW_STEPS = [*FEW_VIEWS, "learn.steps=4"]
MODELS: dict[str, Callable[[], Backbone]] = {
    "embedded, float32": lambda: sefi.open_backbone(device=DEVICE),
    "embedded, bfloat16": lambda: sefi.open_backbone(device=DEVICE, dtype=torch.bfloat16),
    "sd14, bfloat16": lambda: make_large_backbone(DEVICE),
}


def read_clock() -> float:
    """Return the seconds of a clock once the device is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(variants: dict[str, Step], pairs: dict[str, tuple[str, str]], steps: int = STEPS) -> dict[str, Any]:
    """Return milliseconds and ratios of the wall clock of variants in turn."""
    seconds: Seconds = measure_in_turn(variants, ROUNDS, steps, read_clock)
    found = compare(seconds, {name: pair for name, pair in pairs.items() if set(pair) <= set(variants)})
    return {"ms": found.pop("cpu_ms"), **found}


def compare_with_and_without_tf32() -> dict[str, Any]:
    """Compare the device's results with the CPU's in single precision, with TF32 as torch has it, and without."""
    found: dict[str, Any] = {"TF32 in convolutions": compare_with_cpu()}
    torch.backends.cudnn.allow_tf32 = False
    try:
        return found | {"no TF32": compare_with_cpu()}
    finally:
        torch.backends.cudnn.allow_tf32 = True


def compare_with_cpu() -> dict[str, Any]:
    """Compare gradients of a step, tokens of a resumed training and of two people learned together, and images."""
    backbones = [sefi.open_backbone(device=device) for device in ("cpu", DEVICE)]
    found: dict[str, Any] = {}
    for name, config in {"default": DEFAULT_FROM_ENCODER, "paper": PRESETS["paper"]}.items():
        trainers = [make_trainer(backbone, override(config, FEW_VIEWS)) for backbone in backbones]
        gradients = [compute_gradient(trainer, 0) for trainer in trainers]
        difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
        found[f"{name}, gradient, relative difference"] = round(float(difference), 7)
    tokens = [learn_resumed_and_together(backbone) for backbone in backbones]
    for name, of_cpu in tokens[0].items():
        difference = (of_cpu - tokens[1][name]).norm() / of_cpu.norm()
        found[f"tokens, {name}, relative difference"] = round(float(difference), 7)
    identity = sefi.learn(PORTRAIT, name="ada", backbone=backbones[0])
    images = [
        np.asarray(sefi.generate([PROMPT], [identity], backbone=backbone, seed=1)[0].pixels, np.float32)
        for backbone in backbones
    ]
    found["image, mean difference in grey levels"] = round(float(np.abs(images[0] - images[1]).mean()), 4)
    found["image, largest difference in grey levels"] = float(np.abs(images[0] - images[1]).max())
    return found


def compare_all() -> dict[str, Any]:
    """Compare the device's results with the CPU's, and trainings on the device with each other."""
    return {**compare_with_and_without_tf32(), "on the device": compare_repeated(sefi.open_backbone(device=DEVICE))}


def compare_repeated(backbone: Backbone) -> dict[str, float]:
    """Compare the tokens of a resumed and of a repeated training with those of one; 0 says the same bits."""
    found: dict[str, float] = {}
    for name, config in {"default": DEFAULT_FROM_ENCODER, "paper": PRESETS["paper"]}.items():
        short = override(config, FEW_STEPS)
        whole, repeated = (learn_whole(backbone, short) for _ in range(2))
        for kind, tokens in {"resumed": learn_resumed(backbone, short), "repeated": repeated}.items():
            difference = (tokens - whole).norm() / whole.norm()
            found[f"{name}, {kind}, relative difference"] = float(f"{float(difference):.2g}")
    return found


def learn_whole(backbone: Backbone, config: Config) -> torch.Tensor:
    """Return the tokens of a training that nobody interrupts."""
    trainer = make_trainer(backbone, config)
    trainer.run(SilentProgress(), None)
    return trainer.get_result()["tokens"]


def learn_resumed(backbone: Backbone, config: Config) -> torch.Tensor:
    """Return the tokens of two steps, a checkpoint and the other steps."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, first = Path(folder) / "training", make_trainer(backbone, config)
        for step in range(2):
            first.take_step(step)
        first.save(checkpoint)
        again = make_trainer(backbone, config)
        again.resume(checkpoint)
        again.run(SilentProgress(), None)
    return again.get_result()["tokens"]


def learn_resumed_and_together(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return tokens of two steps, a checkpoint and two more, and of two steps together with somebody else."""
    config = override(DEFAULT_FROM_ENCODER, FEW_STEPS)
    pair = [make_trainer(backbone, config) for _ in range(2)]
    group = TrainingGroup(pair, [None, None])
    for _ in range(2):
        group.take_step(pair)
    return {"resumed": learn_resumed(backbone, config), "together": pair[1].get_result()["tokens"]}


def measure_learning() -> dict[str, Any]:
    """Measure a step of learning on every model, and the peak of memory with all its variants at once."""
    found: dict[str, Any] = {}
    for size, open_model in MODELS.items():
        torch.cuda.reset_peak_memory_stats()
        variants = list_learning_variants(open_model(), large=size.startswith("sd14"))
        found[size] = measure(variants, LEARNING_PAIRS)
        found[size]["peak_gib_of_all"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        del variants
        torch.cuda.empty_cache()
    return found


def measure_compile() -> dict[str, Any]:
    """Measure steps with the denoiser compiled, with CUDA graphs, against those without."""
    found: dict[str, Any] = {}
    bank = override(PRESETS["paper"], ("views.pool_noise=fresh",))  # with few views, as all here
    for size, open_model in MODELS.items():
        configs = {"paper, view bank": bank}
        if not size.startswith("sd14"):
            configs["default"] = DEFAULT_FROM_ENCODER
        variants, pairs, compiling = compile_trainers(open_model(), configs)
        found[size] = {"compiling": compiling, **measure(variants, pairs)}
        del variants
        torch.cuda.empty_cache()
    return found


def measure_together() -> dict[str, Any]:
    """Measure a step of 16 identities in one pass against the same steps one by one."""
    backbone = MODELS["embedded, float32"]()
    trainers = [make_trainer(backbone, override(DEFAULT_FROM_ENCODER, FEW_VIEWS)) for _ in range(IDENTITIES)]
    group = TrainingGroup(trainers, [None] * IDENTITIES)
    variants: dict[str, Step] = {
        "one by one": lambda _: [one.take_step(one.done) for one in trainers],
        "together": lambda _: group.take_step(trainers),
    }
    pairs = {"together / one by one": ("together", "one by one")}
    return {"identities": IDENTITIES, **measure(variants, pairs, 1)}


def measure_generation() -> dict[str, Any]:
    """Measure images with one identity against the stock pipeline, and with 16 against one."""
    found: dict[str, Any] = {"steps": IMAGE_STEPS}
    for size, open_model in MODELS.items():
        found[size] = measure(list_generation_variants(open_model()), GENERATION_PAIRS, 1)
        torch.cuda.empty_cache()
    return found


def measure_whole() -> dict[str, Any]:
    """Measure learning from the photo to the identity, in a process that has the model open."""
    backbone = MODELS["embedded, float32"]()
    seconds: list[float] = []
    for number in range(4):
        started = read_clock()
        sefi.learn(PORTRAIT, name="ada", backbone=backbone, seed=number)
        seconds.append(read_clock() - started)
    return {"seconds": round(median(seconds[1:]), 3), "first": round(seconds[0], 3)}


def list_profiled() -> dict[str, tuple[Backbone, Config]]:
    """Return models and settings whose steps are looked into."""
    embedded, large, paper = MODELS["embedded, bfloat16"](), MODELS["sd14, bfloat16"](), PRESETS["paper"]
    bank = override(paper, BANK)
    few = override(paper, ("views.latent_pool=4", "views.pool_noise=fresh"))
    return {
        "default": (embedded, DEFAULT_FROM_ENCODER),
        "paper, view bank": (embedded, bank),
        "paper, view bank, sd14": (large, few),
    }


def measure_profiles() -> dict[str, Any]:
    """Measure the device's share of a step's time and its kernels, and list who waits for it before backward."""
    found: dict[str, Any] = {}
    for name, (backbone, config) in list_profiled().items():
        trainer = make_trainer(backbone, config)
        for step in range(WARM):
            trainer.take_step(step)
        started = read_clock()
        for step in range(WARM, WARM + STEPS):
            trainer.take_step(step)
        wall = (read_clock() - started) / STEPS
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            trainer.take_step(WARM + STEPS)
            torch.cuda.synchronize()
        kernels = [event for event in profiled.events() or () if is_on_device(event)]
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        found[name] = {
            "step_ms": round(1000 * wall, 2),
            "device_ms": round(1000 * busy, 2),
            "device_share": round(busy / wall, 3),
            "kernels_and_copies": len(kernels),
            "waits": list_waits(partial(compute_gradients, trainer.task, WARM + STEPS + 1)),
            "longest": list_longest(profiled),
        }
    return found


def is_on_device(event: Any) -> bool:  # noqa: ANN401  torch does not type its events
    """Return whether an event is a kernel or a copy: an annotation spans those that are counted already."""
    return str(event.device_type).endswith("CUDA") and not event.is_user_annotation


def compute_gradients(task: Task, step: int) -> None:
    """Compute the loss of a step and its gradients."""
    task.compute_loss(step)[0].backward()


def list_waits(take: Callable[[], object]) -> list[str]:
    """Return where the CPU waits for the device during a call, by file and line."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(one.filename).name}:{one.lineno}" for one in caught if SYNCHRONISING in str(one.message)})


def list_longest(profiled: profile) -> dict[str, float]:
    """Return the milliseconds of the ten operations on which the device spends most of its time."""
    rows = [event for event in profiled.key_averages() if str(event.device_type).endswith("CPU")]
    events = [(float(row.self_device_time_total) / 1000, str(row.key)) for row in rows if not row.is_user_annotation]
    return {name: round(milliseconds, 3) for milliseconds, name in sorted(events, reverse=True)[:10]}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "check": compare_all,
    "learning": measure_learning,
    "together": measure_together,
    "compile": measure_compile,
    "generation": measure_generation,
    "whole": measure_whole,
    "profile": measure_profiles,
}


def main() -> None:
    """Measure what was asked for; where a part fails, the others follow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; experiments/engine.py measures a CPU.")
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    failed: list[str] = []
    for name in options.parts or [part for part in PARTS if part != "compile"]:
        started = time.perf_counter()
        try:
            part = PARTS[name]()
        except Exception:  # a device is lent for minutes: the other parts are measured
            traceback.print_exc()
            failed.append(name)
            continue
        about = {**describe_machine(), "device": torch.cuda.get_device_name()}
        record[name] = {**part, "machine": about, "seconds": round(time.perf_counter() - started, 1)}
        write_text(options.out, dump_json(record, indent=1) + "\n")
        sys.stdout.write(f"{name}: {dump_json(part)}\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
