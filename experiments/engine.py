"""What a learning step and an image cost, as ratios of CPU time to the bare denoiser and to diffusers' own loops.

    python experiments/engine.py learning               # minutes; the embedded model
    python experiments/engine.py learning --size sd14   # Stable Diffusion 1.4's size, random weights, bfloat16
    python experiments/engine.py peak                   # what a process holds that learns at that size
    python experiments/engine.py parts                  # where the time of a step goes, and docs/pictures/engine.png
    python experiments/engine.py sums                   # what the same sums would take
    python experiments/engine.py generation
    python experiments/engine.py single                 # one image, as many steps as the preset takes
    python experiments/engine.py many                   # 16 identities in a batch, as many steps as the preset takes
    python experiments/engine.py together
    python experiments/engine.py compile                # steps by torch.compile, after its gradients are checked
    python experiments/engine.py channels               # channels last in memory against the order of the files
    python experiments/engine.py autoencoder            # images encoded and decoded in one pass and in several
    python experiments/engine.py memory                 # freed memory reused, against what the C library does
    python experiments/engine.py start
    python experiments/engine.py command                # how long a user waits for `sefi learn`

Everything runs in one process with one thread, the variants in turn, so that whatever else the machine does meets all
of them alike; ratios are of the medians. Freed memory stays with the process, for all variants: how long the system
takes to clear new pages depends on what else it does. Each command writes its part of experiments/records/engine.json.
"""
# diffusers annotates optional arguments and parts of its pipelines as required.
# pyright: reportArgumentType=false

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded

import sefi

# isort: split

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sefi.backbone.bundle import Backbone, copy_part, set_channel_order
from sefi.backbone.open import MODELS
from sefi.core.config import Config, choose_start, override
from sefi.core.files import write_text
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.core.text import dump_json
from sefi.diffusion.attention import LossOptions
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import sample_images
from sefi.diffusion.schedulers import create_scheduler
from sefi.diffusion.text import tokenize_text
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens, get_stages
from sefi.methods import PRESETS
from sefi.methods.base import create_header, get_class_row
from sefi.photo.augment import PhotoViews
from sefi.photo.read import convert_to_pixels
from sefi.training.loop import IdentityTrainer
from sefi.training.together import TrainingGroup
from sefi.training.token_inversion import TokenTask, draw_batch, encode_key_value_texts

RECORD = Path(__file__).parent / "records" / "engine.json"
PORTRAIT = MODELS / "demo" / "portrait.png"
SEED = 0
STEPS = 4  # of each variant a turn; a single one is too short for the clock of a busy machine

Step = Callable[[int], object]
Seconds = dict[str, list[float]]


# ------------------------------------------------------------------ measuring


def measure_in_turn(
    variants: Mapping[str, Step], rounds: int, steps: int = STEPS, read_clock: Callable[[], float] = time.process_time
) -> Seconds:
    """Return the seconds of a step of each variant in each round, after one round that warms up.

    Args:
        read_clock: seconds of the CPU, if not those of another clock.
    """
    seconds: Seconds = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, step in variants.items():
            started = read_clock()
            for number in range(steps):
                step(turn * steps + number)
            if turn:
                seconds[name].append((read_clock() - started) / steps)
    return seconds


def compare(seconds: Seconds, pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the median milliseconds of each variant, and the ratios of pairs with their range over the rounds."""
    ratios: dict[str, Any] = {}
    for name, (above, below) in pairs.items():
        each = [one / other for one, other in zip(seconds[above], seconds[below], strict=True)]
        ratio = median(seconds[above]) / median(seconds[below])
        ratios[name] = {"ratio": round(ratio, 3), "lowest": round(min(each), 3), "highest": round(max(each), 3)}
    times = {name: round(1000 * median(found), 1) for name, found in seconds.items()}
    return {"cpu_ms": times, "ratios": ratios, "rounds": len(next(iter(seconds.values())))}


def describe_machine() -> dict[str, Any]:
    """Return what the times depend on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(one, 1) for one in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "sefi": sefi.__version__,
    }


def write_part(name: str, part: Mapping[str, Any]) -> None:
    """Write one part of the record; the others stay."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[name] = {**part, "machine": describe_machine()}
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record[name], indent=1) + "\n")


# ------------------------------------------------------------------ learning


def make_views(backbone: Backbone, config: Config) -> PhotoViews:
    """Return the views of the portrait that the package brings, as large as the model's images."""
    image = Image.open(PORTRAIT).convert("RGB").resize((backbone.resolution, backbone.resolution))
    return PhotoViews(convert_to_pixels(image), config.views)


def make_trainer(backbone: Backbone, config: Config) -> IdentityTrainer:
    """Return the trainer of SeFi-IDE's tokens for some settings."""
    tokens = IdentityTokens(get_class_row(backbone, config), config.learn, SEED)
    return IdentityTrainer(TokenTask(backbone, make_views(backbone, config), config, SEED, tokens), config)


def make_floor(backbone: Backbone, batch: int) -> Step:
    """Return the least that can be done: the stock frozen UNet there, and back to the text that it reads."""
    random = torch.Generator().manual_seed(SEED)
    shape = (batch, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    device, dtype = backbone.device, backbone.dtype
    noisy, noise = (torch.randn(shape, generator=random).to(device, dtype) for _ in range(2))
    width = int(backbone.unet.config["cross_attention_dim"])
    context = torch.randn(batch, backbone.text_length, width, generator=random).to(device, dtype).requires_grad_()
    timesteps = torch.randint(0, backbone.num_train_timesteps, (batch,), generator=random).to(device)

    def take_step(_: int) -> None:
        prediction = backbone.unet(noisy, timesteps, context).sample
        context.grad = None
        F.mse_loss(prediction.float(), noise.float()).backward()

    return take_step


class DiffusersLoop:
    """Textual inversion as diffusers' example describes it, without its launcher.

    The photo is resized, flipped by chance and encoded in every step; the text encoder runs in single precision with
    its whole token table trainable, which AdamW moves; afterwards all rows but the placeholder's are put back; the loss
    is read at the end of every step.
    """

    def __init__(self, backbone: Backbone, batch: int) -> None:
        self.backbone, self.batch = backbone, batch
        self.photo = Image.open(PORTRAIT).convert("RGB")
        self.encoder: Any = copy_part(backbone.text_encoder)
        table = self.encoder.get_input_embeddings()
        table.weight = torch.nn.Parameter(table.weight.detach().float().clone())
        if backbone.dtype != torch.float32:
            self.encoder = type(backbone.text_encoder)(backbone.text_encoder.config).to(backbone.device, torch.float32)
            self.encoder.requires_grad_(requires_grad=False)
            table = self.encoder.get_input_embeddings().requires_grad_()
        self.table: Any = table
        self.original = self.table.weight.detach().clone()
        self.row = tokenize_text(backbone, "person")[0][0]
        self.optimiser = torch.optim.AdamW([self.table.weight], lr=5e-4, weight_decay=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda _: 1.0)
        self.random = torch.Generator().manual_seed(SEED)
        words = tokenize_text(backbone, "a photo of a person")
        ids = torch.full((backbone.text_length,), int(backbone.tokenizer.eos_token_id))
        ids[0] = int(backbone.tokenizer.bos_token_id)
        ids[1 : 1 + len(words)] = torch.tensor([word[0] for word in words])
        self.ids = ids.repeat(batch, 1).to(backbone.device)

    def read_photo(self) -> Tensor:
        """Return the photo as the example's data set gives it, `[3, side, side]` in [-1, 1]."""
        side = self.backbone.resolution
        image = self.photo.resize((side, side), Image.Resampling.BICUBIC)
        if torch.rand((), generator=self.random) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return convert_to_pixels(image)

    def __call__(self, _: int) -> float:
        """Take a step; return its loss."""
        backbone = self.backbone
        device = backbone.device
        pixels = torch.stack([self.read_photo() for _ in range(self.batch)]).to(device, backbone.vae.dtype)
        with torch.no_grad():
            encoded: Any = backbone.vae.encode(pixels)
            latents = encoded.latent_dist.sample(self.random) * backbone.vae.config["scaling_factor"]
        noise = torch.randn(latents.shape, generator=self.random).to(latents)
        timesteps = torch.randint(0, backbone.num_train_timesteps, (self.batch,), generator=self.random).to(device)
        noisy = backbone.scheduler.add_noise(latents, noise, timesteps)
        states = self.encoder(self.ids)[0].to(backbone.dtype)
        prediction = backbone.unet(noisy, timesteps, states).sample
        loss = F.mse_loss(prediction.float(), noise.float())
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            others = torch.ones(len(self.original), dtype=torch.bool, device=device)
            others[self.row] = False
            self.table.weight[others] = self.original[others]
        return float(loss.detach())


LEARNING_PAIRS = {
    "default / floor": ("default", "floor of 5"),
    "default / diffusers' loop": ("default", "diffusers' loop of 5"),
    "scratch / floor": ("scratch", "floor of 5"),
    "paper / floor": ("paper", "floor of 1"),
    "scratch / diffusers' loop": ("scratch", "diffusers' loop of 5"),
    "paper / diffusers' loop": ("paper", "diffusers' loop of 1"),
    "paper, view bank / floor": ("paper, view bank", "floor of 1"),
    "paper, view bank / diffusers' loop": ("paper, view bank", "diffusers' loop of 1"),
}
# What the default does from where the name encoder starts; where that is changes no step's time.
DEFAULT_FROM_ENCODER = override(choose_start(PRESETS["default"], encoder=True), ["learn.start=class"])
BANK = ("views.latent_pool=64", "views.pool_noise=fresh")
# How many views are in the bank changes no step; at the real size encoding them takes minutes.
SMALL_BANK = ("views.latent_pool=4", "views.pool_noise=fresh")


def list_learning_variants(backbone: Backbone, *, large: bool) -> dict[str, Step]:
    """Return a step of each way to learn; at the real size only those of one sample."""
    paper = PRESETS["paper"]
    variants: dict[str, Step] = {"floor of 1": make_floor(backbone, 1)}
    if not large:
        variants |= {"floor of 5": make_floor(backbone, 5)}
        variants |= {"default": make_trainer(backbone, DEFAULT_FROM_ENCODER).take_step}
        variants |= {"scratch": make_trainer(backbone, PRESETS["scratch"]).take_step}
        variants |= {"diffusers' loop of 5": DiffusersLoop(backbone, 5)}
    bank = SMALL_BANK if large else BANK
    variants |= {"paper": make_trainer(backbone, paper).take_step}
    variants |= {"paper, view bank": make_trainer(backbone, override(paper, bank)).take_step}
    variants |= {"diffusers' loop of 1": DiffusersLoop(backbone, 1)}
    return variants


def make_large_backbone(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Backbone:
    """Return a model of Stable Diffusion 1.4's size with random weights."""
    from real_size import make_random_parts  # noqa: PLC0415  pyright: ignore[reportMissingImports]

    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = make_random_parts(tiny=False)
    finally:
        torch.set_default_dtype(torch.float32)
    set_channel_order(parts.unet, parts.vae)  # as a model that is opened has them
    return Backbone(**vars(parts), fingerprint="sd1:768:random", resolution=512, source="random weights")


def measure_learning(options: argparse.Namespace) -> None:
    """Measure a step of learning."""
    large = options.size == "sd14"
    backbone = make_large_backbone() if large else sefi.open_backbone()
    variants = list_learning_variants(backbone, large=large)
    seconds = measure_in_turn(variants, options.rounds, 1 if large else STEPS)
    pairs = {name: pair for name, pair in LEARNING_PAIRS.items() if set(pair) <= set(variants)}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    write_part("learning" + " sd14" * large, {**compare(seconds, pairs), "peak_gib": peak})


def measure_peak(_: argparse.Namespace) -> None:
    """Measure what a process holds at the most that only learns at the real size: the weights and steps of `paper`."""
    backbone = make_large_backbone()
    trainer = make_trainer(backbone, override(PRESETS["paper"], SMALL_BANK))
    for step in range(STEPS):
        trainer.take_step(step)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    write_part("peak sd14", {"peak_gib": peak, "steps": STEPS})


# ------------------------------------------------------------------ parts of a step

PARTS = ("views and noise", "text, forward", "denoiser, forward", "denoiser, backward", "text, backward", "update")
FIGURE = Path(__file__).parents[1] / "docs" / "pictures" / "engine.png"


def time_parts(trainer: IdentityTrainer, step: int) -> list[float]:
    """Take a step with the sums of `take_step`, and return the CPU seconds of each of its parts."""
    task, settings = trainer.task, trainer.task.config.learn  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(task, TokenTask)
    clock = [time.process_time()]
    batch = draw_batch(task.backbone, task.latent_source, settings, SEED, step)
    clock.append(time.process_time())
    trainer.optimiser.zero_grad(set_to_none=True)
    tokens = task.tokens(create_generator(SEED, "dropout", step))
    stage = get_stages(batch.timesteps, len(tokens), task.backbone.num_train_timesteps)
    text = encode_key_value_texts(task.model.backbone, task.texts, batch.template_index, tokens[stage])
    clock.append(time.process_time())
    context = replace(text, states=text.states.detach().requires_grad_())
    side = int(batch.latents.shape[-1])
    words = task.texts.compared_words[batch.template_index]
    options = LossOptions(words, (side, side), settings.attention_reduction, settings.detach_query)
    prediction, target, attention = task.model.predict(batch, context, options)
    loss = F.mse_loss(prediction, target)
    if attention is not None:
        loss = loss + settings.attention_weight * attention.mean()
    clock.append(time.process_time())
    loss.backward()
    clock.append(time.process_time())
    text.states.backward(context.states.grad)
    clock.append(time.process_time())
    trainer.optimiser.step()
    task.after_step()
    clock.append(time.process_time())
    return [after - before for before, after in pairwise(clock)]


def measure_parts(options: argparse.Namespace) -> None:
    """Measure the parts of a step of each preset against the bare denoiser, and draw them."""
    backbone, paper = sefi.open_backbone(), PRESETS["paper"]
    configs = {
        "default": DEFAULT_FROM_ENCODER,
        "scratch": PRESETS["scratch"],
        "paper": paper,
        "paper, view bank": override(paper, BANK),
    }
    trainers = {name: make_trainer(backbone, config) for name, config in configs.items()}
    floors = {name: make_floor(backbone, config.learn.batch) for name, config in configs.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in configs}
    floor: Seconds = {name: [] for name in configs}
    for turn in range(options.rounds + 1):
        for name, trainer in trainers.items():
            started = time.process_time()
            floors[name](turn)
            middle = time.process_time()
            found = time_parts(trainer, turn)
            if turn:
                floor[name].append(middle - started)
                times[name].append(found)
    shares: dict[str, dict[str, float]] = {}
    for name in configs:
        medians = [median(one) for one in zip(*times[name], strict=True)]
        unit = median(floor[name])
        shares[name] = {part: round(one / unit, 3) for part, one in zip(PARTS, medians, strict=True)}
    write_part("parts", {"in floors": shares, "rounds": options.rounds})
    draw_parts(shares)


def draw_parts(shares: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the parts of a step of each preset, in multiples of the bare denoiser's time."""
    from matplotlib.figure import Figure  # noqa: PLC0415  not for those who measure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    colours = ("#b8b8b8", "#8fbcd4", "#2f6f9f", "#174a6e", "#5d9cc0", "#d08a3c")
    for row, parts in enumerate(shares.values()):
        left = 0.0
        for colour, (part, share) in zip(colours, parts.items(), strict=True):
            axes.barh(row, share, left=left, color=colour, label=part if row == 0 else None)
            left += share
        axes.text(left + 0.02, row, f"{left:.2f}", va="center")
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of a step; 1 is the bare frozen denoiser, forward and backward")
    axes.margins(x=0.08)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS) // 2, frameon=False)
    figure.savefig(FIGURE, dpi=120)


def count_sums(options: argparse.Namespace) -> None:
    """Count the floating-point operations of a step of each preset and of the bare denoiser: the limit of an engine."""
    del options
    backbone, found = sefi.open_backbone(), dict[str, dict[str, float]]()
    # The module's own are counted too; those of its optimiser, which multiplies no matrices, are not.
    configs = {
        "default": DEFAULT_FROM_ENCODER,
        "scratch": PRESETS["scratch"],
        "paper, view bank": override(PRESETS["paper"], BANK),
    }
    for name, config in configs.items():
        trainer = make_trainer(backbone, override(config, FEW_VIEWS))
        counts: list[float] = []
        for step in (make_floor(backbone, config.learn.batch), trainer.take_step):
            with FlopCounterMode(display=False) as counter:
                step(1)
            counts.append(counter.get_total_flops() / 1e9)
        found[name] = {"floor_gflop": round(counts[0], 2), "step_gflop": round(counts[1], 2)}
        found[name]["ratio"] = round(counts[1] / counts[0], 3)
    write_part("sums", found)


def compute_gradient(trainer: IdentityTrainer, step: int) -> Tensor:
    """Return the gradients of a step, all in one row, in the CPU's memory."""
    trainer.compute_step(step)
    return torch.cat([p.grad.flatten().cpu() for p in trainer.task.weights.parameters() if p.grad is not None])


def compile_trainers(
    backbone: Backbone, configs: Mapping[str, Config]
) -> tuple[dict[str, Step], dict[str, tuple[str, str]], dict[str, dict[str, float]]]:
    """Return steps with the denoiser compiled and as it is, their pairs, and of each setting what compiling did.

    The first step of a compiled one, by the wall clock as the compiler has processes of its own, and how far the
    gradient of the next is from that of the denoiser as it is.
    """
    variants, pairs, found = dict[str, Step](), dict[str, tuple[str, str]](), dict[str, dict[str, float]]()
    for name, config in configs.items():
        plain, compiled = (
            make_trainer(backbone, override(config, [*FEW_VIEWS, f"learn.compile={value}"]))
            for value in ("false", "true")
        )
        started = time.perf_counter()
        compiled.compute_step(1)  # step 0 computes the gradient of each loss apart, by the denoiser as it is
        seconds = time.perf_counter() - started
        wanted = compute_gradient(plain, 2)
        error = (compute_gradient(compiled, 2) - wanted).norm() / wanted.norm()
        found[name] = {"first_step_seconds": round(seconds, 1), "gradient_error": float(f"{float(error):.2g}")}
        pairs[name] = (f"{name}, compiled", f"{name}, as it is")
        variants |= dict(zip(pairs[name], (compiled.take_step, plain.take_step), strict=True))
    return variants, pairs, found


def measure_compile(options: argparse.Namespace) -> None:
    """Measure steps with the denoiser by torch.compile against those without, and what compiling costs at first."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing of an earlier run
        configs = {"default": DEFAULT_FROM_ENCODER, "scratch": PRESETS["scratch"]}
        variants, pairs, found = compile_trainers(sefi.open_backbone(), configs)
        seconds = measure_in_turn(variants, options.rounds)
    write_part("compile", {"compiling": found, **compare(seconds, pairs)})


# ------------------------------------------------------------------ many identities


def measure_together(options: argparse.Namespace) -> None:
    """Measure a step of 16 identities in one pass against the same steps one by one, and the floors of both.

    What one pass of the bare denoiser saves of as many small ones is what the machine allows.
    """
    backbone = sefi.open_backbone(dtype=getattr(torch, options.dtype))
    variants: dict[str, Step] = {}
    configs = {"default": DEFAULT_FROM_ENCODER, "one sample": override(DEFAULT_FROM_ENCODER, ONE_SAMPLE)}
    for name, config in configs.items():
        trainers = [make_trainer(backbone, override(config, FEW_VIEWS)) for _ in range(IDENTITIES)]
        group, samples = TrainingGroup(trainers, [None] * IDENTITIES), config.learn.batch
        variants[f"{name}, one by one"] = lambda _, some=trainers: [one.take_step(one.done) for one in some]
        variants[f"{name}, together"] = lambda _, one=group, some=trainers: one.take_step(some)
        alone = make_floor(backbone, samples)
        variants[f"{name}, floors one by one"] = lambda step, one=alone: [one(step) for _ in range(IDENTITIES)]
        variants[f"{name}, floor together"] = make_floor(backbone, IDENTITIES * samples)
    seconds = measure_in_turn(variants, options.rounds, 1)
    pairs = {name: (f"{name}, together", f"{name}, one by one") for name in configs}
    pairs |= {f"{name}, floor": (f"{name}, floor together", f"{name}, floors one by one") for name in configs}
    write_part(f"together {options.dtype}", {"identities": IDENTITIES, **compare(seconds, pairs)})


IDENTITIES = 16
ONE_SAMPLE = ["learn.batch=1", "learn.stage_sampling=uniform"]
FEW_VIEWS = ["views.latent_pool=1"]  # the steps are measured, not the pool


# ------------------------------------------------------------------ images

PROMPT = "a photo of {} at the beach"
IMAGE_STEPS = 10


def make_identity(backbone: Backbone, number: int) -> Identity:
    """Return an identity of random tokens near the class word."""
    config = PRESETS["scratch"]
    random = torch.Generator().manual_seed(number)
    row = get_class_row(backbone, config)
    tokens = row + 0.3 * row.std() * torch.randn(config.learn.stages, 2, len(row), generator=random)
    return Identity({"tokens": tokens}, create_header(f"a{number}", backbone, config, number))


def generate(backbone: Backbone, names: list[int], steps: int) -> None:
    """Generate one image of each of these identities, in one batch."""
    identities = [make_identity(backbone, number) for number in sorted(set(names))]
    settings = override(PRESETS["scratch"], [f"generate.batch_size={len(names)}", f"generate.steps={steps}"]).generate
    prompts = [PROMPT.format(f"<a{number}>") for number in names]
    conditioner = IdentityConditioner(backbone, identities)
    list(sample_images(backbone, conditioner, prompts, list(range(len(names))), settings, SilentProgress()))


def make_stock_pipeline(backbone: Backbone, steps: int) -> StableDiffusionPipeline:
    """Return diffusers' own pipeline of the model, with the same sampler."""
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=create_scheduler(backbone, "ddim", steps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


GENERATION_PAIRS = {
    "sefi / stock, batch 1": ("sefi, batch 1", "stock, batch 1"),
    "sefi / stock, batch 8": ("sefi, batch 8", "stock, batch 8"),
    "16 identities / one": ("16 identities", "16 of one identity"),
}


def list_stock_variants(backbone: Backbone, steps: int, counts: Sequence[int] = (1, 8)) -> dict[str, Step]:
    """Return batches of images with one identity, and by the stock pipeline."""
    stock, guidance = make_stock_pipeline(backbone, steps), PRESETS["default"].generate.guidance_scale

    def draw_stock(count: int) -> None:
        random = [torch.Generator().manual_seed(number) for number in range(count)]
        text = [PROMPT.format("person")] * count
        stock(text, num_inference_steps=steps, guidance_scale=guidance, generator=random)

    variants: dict[str, Step] = {}
    for count in counts:
        variants[f"stock, batch {count}"] = lambda _, count=count: draw_stock(count)
        variants[f"sefi, batch {count}"] = lambda _, count=count: generate(backbone, [0] * count, steps)
    return variants


def list_many_variants(backbone: Backbone, steps: int) -> dict[str, Step]:
    """Return 16 images of one identity in a batch, and one of each of 16."""
    return {
        "16 of one identity": lambda _: generate(backbone, [0] * IDENTITIES, steps),
        "16 identities": lambda _: generate(backbone, list(range(IDENTITIES)), steps),
    }


def list_generation_variants(backbone: Backbone) -> dict[str, Step]:
    """Return images with one identity and by the stock pipeline, and 16 in a batch of one identity and of as many."""
    return list_stock_variants(backbone, IMAGE_STEPS) | list_many_variants(backbone, IMAGE_STEPS)


def measure_images(part: str, variants: Mapping[str, Step], steps: int, rounds: int) -> None:
    """Measure images of so many steps, and write the ratios of the pairs among them."""
    seconds = measure_in_turn(variants, rounds, 1)
    pairs = {name: pair for name, pair in GENERATION_PAIRS.items() if set(pair) <= set(seconds)}
    write_part(part, {"steps": steps, **compare(seconds, pairs)})


def measure_generation(options: argparse.Namespace) -> None:
    """Measure images with one identity against the stock pipeline, and with 16 against one."""
    variants = list_generation_variants(sefi.open_backbone())
    measure_images("generation", variants, IMAGE_STEPS, options.rounds)


def measure_single(options: argparse.Namespace) -> None:
    """Measure one image against the stock pipeline, at the number of steps of the default preset.

    What the texts of an identity's stages cost is paid once a prompt, so its share depends on the steps.
    """
    steps = PRESETS["default"].generate.steps
    measure_images("single", list_stock_variants(sefi.open_backbone(), steps, [1]), steps, options.rounds)


def measure_many(options: argparse.Namespace) -> None:
    """Measure 16 identities in a batch against 16 images of one, at the number of steps of the default preset."""
    steps = PRESETS["default"].generate.steps
    measure_images("many", list_many_variants(sefi.open_backbone(), steps), steps, options.rounds)


# ------------------------------------------------------------------ order of memory


def open_in_usual_order() -> Backbone:
    """Open the embedded model with the weights of its convolutions in the order that the files have."""
    backbone = sefi.open_backbone()
    for network in (backbone.unet, backbone.vae):
        cast(torch.nn.Module, network).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return backbone


def measure_channels(options: argparse.Namespace) -> None:
    """Measure a step and images with channels last, as models are opened, against the usual order."""
    variants: dict[str, Step] = {}
    for name, backbone in (("last", sefi.open_backbone()), ("usual", open_in_usual_order())):
        variants[f"step, {name}"] = make_trainer(backbone, override(DEFAULT_FROM_ENCODER, FEW_VIEWS)).take_step
        for count in (1, 8):
            variants[f"batch {count}, {name}"] = lambda _, one=backbone, count=count: generate(
                one, [0] * count, IMAGE_STEPS
            )
    seconds = measure_in_turn(variants, options.rounds, 1)
    pairs = {name: (f"{name}, last", f"{name}, usual") for name in ("step", "batch 1", "batch 8")}
    write_part("channels", {"steps": IMAGE_STEPS, **compare(seconds, pairs)})


# ------------------------------------------------------------------ autoencoder


def make_passes(compute: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Step:
    """Return a step that computes one part after the other."""

    def take_step(_: int) -> None:
        for part in parts:
            compute(part)

    return take_step


def measure_autoencoder(options: argparse.Namespace) -> None:
    """Measure eight images encoded and decoded at once, against one to four at once; memory is freed as by a user."""
    backbone = sefi.open_backbone()
    random = create_generator(SEED, "autoencoder")
    images = torch.rand((8, 3, backbone.resolution, backbone.resolution), generator=random) * 2 - 1
    latents = backbone.encode_image(images)
    variants: dict[str, Step] = {}
    for count in (1, 2, 4, 8):
        variants[f"encode {count} at once"] = make_passes(backbone.encode_image, images.split(count))
        variants[f"decode {count} at once"] = make_passes(backbone.decode, latents.split(count))
    seconds = measure_in_turn(variants, options.rounds, 1)
    pairs = {
        f"{verb} {count} / 8 at once": (f"{verb} {count} at once", f"{verb} 8 at once")
        for verb in ("encode", "decode")
        for count in (1, 2, 4)
    }
    write_part("autoencoder", compare(seconds, pairs))


# ------------------------------------------------------------------ memory

# The variable of glibc, its number for `mallopt`, bytes.
REUSE = (("MALLOC_MMAP_THRESHOLD_", -3, 32 << 20), ("MALLOC_TRIM_THRESHOLD_", -1, 512 << 20))


def reuse_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors, where the C library is glibc."""
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is not None:
        for _, number, size in REUSE:
            set_parameter(number, size)


def run_process(command: list[str], environment: Mapping[str, str] | None = None) -> bytes:
    """Run a program to its end, in this process's environment if not in another, and return what it printed."""
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout  # noqa: S603


def read_ended_processes_clock() -> float:
    """Return the CPU seconds of all programs that this process started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_memory(options: argparse.Namespace) -> None:
    """Measure `sefi generate` of a batch of eight with glibc's variables set to reuse freed memory, and without.

    Each is a process of its own, so start and model count too.
    """
    program, count = str(Path(sys.executable).parent / "sefi"), 8
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "generate", "a photo of a person at the beach", "--count", str(count)]
        command += ["--set", f"generate.batch_size={count}", "--out", folder]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        reuse = {name: str(size) for name, _, size in REUSE}
        variants: dict[str, Step] = {
            "reused": lambda _: run_process(command, environment | reuse),
            "given back": lambda _: run_process(command, environment),
        }
        seconds = measure_in_turn(variants, options.rounds, 1, read_ended_processes_clock)
    write_part("memory", compare(seconds, {"reused / given back": ("reused", "given back")}))


# ------------------------------------------------------------------ start

IMPORTS = """
import torch, PIL.Image, cv2, numpy, pydantic, safetensors.torch, typer
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel
"""


def measure_start(options: argparse.Namespace) -> None:
    """Measure `sefi learn --steps 1` against the imports of what it needs, each in a process of its own."""
    program = str(Path(sys.executable).parent / "sefi")
    with tempfile.TemporaryDirectory() as folder:
        learn = [program, "learn", str(PORTRAIT), "--name", "ada", "--steps", "1", "--out", f"{folder}/ada.safetensors"]
        few = [*learn, "--overwrite", "--set", "views.latent_pool=5"]
        variants: dict[str, Step] = {
            "imports": lambda _: run_process([sys.executable, "-c", IMPORTS]),
            "learn": lambda _: run_process([*learn, "--overwrite"]),
            "learn, pool of 5": lambda _: run_process(few),
            "help": lambda _: run_process([program, "--help"]),
        }
        seconds = measure_in_turn(variants, options.rounds, 1, read_ended_processes_clock)
    pairs = {"learn / imports": ("learn", "imports"), "learn, pool of 5 / imports": ("learn, pool of 5", "imports")}
    write_part("start", compare(seconds, pairs))


def measure_command(options: argparse.Namespace) -> None:
    """Measure how long a user waits for `sefi learn` with the default preset, and for the imports alone: wall clock.

    Learning is what the command says of itself; the rest is start-up: the interpreter, the libraries and the model.
    """
    program = str(Path(sys.executable).parent / "sefi")
    learning: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        learn = [program, "learn", str(PORTRAIT), "--name", "ada", "--out", f"{folder}/ada.safetensors", "--overwrite"]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

        def learn_and_read(_: int) -> None:
            learning.append(json.loads(run_process([*learn, "--json"], environment))["seconds"])

        variants: dict[str, Step] = {
            "imports": lambda _: run_process([sys.executable, "-c", IMPORTS], environment),
            "learn": learn_and_read,
        }
        seconds = measure_in_turn(variants, options.rounds, 1, time.perf_counter)
    seconds["learning"] = learning[1:]  # the first round warms up
    seconds["start-up"] = [whole - part for whole, part in zip(seconds["learn"], seconds["learning"], strict=True)]
    wall = {name: [round(one, 2) for one in (median(found), min(found), max(found))] for name, found in seconds.items()}
    write_part("command", {"wall_seconds_median_least_most": wall, "rounds": options.rounds})


# ------------------------------------------------------------------ the command

COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "learning": measure_learning,
    "peak": measure_peak,
    "parts": measure_parts,
    "sums": count_sums,
    "together": measure_together,
    "compile": measure_compile,
    "generation": measure_generation,
    "single": measure_single,
    "many": measure_many,
    "channels": measure_channels,
    "autoencoder": measure_autoencoder,
    "memory": measure_memory,
    "start": measure_start,
    "command": measure_command,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=list(COMMANDS))
    parser.add_argument("--size", choices=("embedded", "sd14"), default="embedded")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of `together`")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # The first measures what clearing memory costs, the others processes of their own.
    if options.what not in {"autoencoder", "memory", "start", "command"}:
        reuse_freed_memory()
    COMMANDS[options.what](options)


if __name__ == "__main__":
    main()
