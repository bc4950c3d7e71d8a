"""Learn and generate at Stable Diffusion 1.4's real size, with random weights, on this machine.

Shows that the real code path fits and how long it takes; images mean nothing. Builds a model
folder and a single-file checkpoint of the same weights (4.3 GB of disk), runs `sefi.learn` and
`sefi.generate` for two steps each on both, every phase in its own process, and writes seconds and
peak memory as JSON.

    python experiments/real_size.py --dir /big/disk            # minutes
    python experiments/real_size.py --dir /tmp/tiny --tiny     # seconds: checks the script itself
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from skimage import data
from transformers import CLIPTextConfig, CLIPTextModel

from sefi.api import generate, learn
from sefi.backbone import checkpoint
from sefi.backbone.bundle import ModelParts
from sefi.backbone.checkpoint import CONFIGS, write_checkpoint
from sefi.backbone.open import open_backbone, read_shipped_config
from sefi.backbone.tokenizer import create_clip_tokenizer
from sefi.core.config import override
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.methods import PRESETS

RECORD = Path(__file__).parent / "records" / "real_size.json"
SETTINGS = ("learn.steps=2", "learn.batch=1", "views.latent_pool=0", "generate.steps=2")
PUBLISHED = {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}
# Small in every direction that the file format lets be small; text stays 768 wide, 77 long.
TINY: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 32, 32, 32], "sample_size": 16},
    "vae": {"block_out_channels": [32, 32, 32, 32], "sample_size": 128},
    "text_encoder": {"num_hidden_layers": 1, "intermediate_size": 64},
}


def main() -> None:
    """Run every phase in a fresh process and write the record."""
    options = read_arguments()
    if options.phase:
        result = run_phase(options)
        write_text(Path(options.result), dump_json(result))
        return
    options.dir.mkdir(parents=True, exist_ok=True)
    phases = {name: run_in_process(name, options) for name in ("build", "folder", "file")}
    if phases["folder"]["fingerprint"] != phases["file"]["fingerprint"]:
        sys.exit("The folder and the file were opened as different models.")
    record = {"machine": describe_machine(), "tiny": options.tiny, "settings": SETTINGS, **phases}
    path: Path = options.dir / "record.json" if options.tiny else options.record
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, dump_json(record, indent=2) + "\n")
    sys.stdout.write(dump_json(record, indent=2) + "\n")


def read_arguments() -> argparse.Namespace:
    """Return the command line; `--phase` and `--result` are for the script's own child processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the models are built")
    parser.add_argument("--tiny", action="store_true", help="a small model: test of the script")
    parser.add_argument("--record", type=Path, default=RECORD, help="not with --tiny")
    parser.add_argument("--keep", action="store_true", help="do not build what is already there")
    parser.add_argument("--phase", choices=("build", "folder", "file"), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_in_process(phase: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a phase in its own process, so that its peak memory is its own."""
    result = options.dir / f"{phase}.json"
    command = [sys.executable, __file__, "--dir", options.dir, "--phase", phase, "--result", result]
    command += ["--tiny"] * options.tiny + ["--keep"] * options.keep
    subprocess.run([str(part) for part in command], check=True)  # noqa: S603
    return json.loads(result.read_text())


def run_phase(options: argparse.Namespace) -> dict[str, Any]:
    """Build, or measure one of the two models."""
    folder, file = options.dir / "model", options.dir / "model.safetensors"
    if options.phase == "build":
        if options.keep and file.exists():
            return json.loads(Path(options.result).read_text())
        return build_models(folder, file, tiny=options.tiny)
    if options.tiny:
        use_tiny_configurations(options.dir)
    return measure_model(folder if options.phase == "folder" else file, options.dir)


def build_models(folder: Path, file: Path, *, tiny: bool) -> dict[str, Any]:
    """Write the same random bfloat16 weights as a folder and as a single file."""
    seconds: dict[str, float] = {}
    torch.default_generator.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with time_block(seconds, "initialise"):
        parts = make_random_parts(tiny=tiny)
    counts = {name: count_weights(getattr(parts, name)) for name in PUBLISHED}
    if not tiny and counts != PUBLISHED:
        sys.exit(f"Not Stable Diffusion 1.4's sizes: {counts}")
    with time_block(seconds, "write_folder"):
        shutil.rmtree(folder, ignore_errors=True)
        make_pipeline(parts).save_pretrained(folder)
    with time_block(seconds, "write_file"):
        write_checkpoint(parts, file)
    return {"weights": counts, "seconds": seconds, "peak_gib": read_peak_gib()}


def make_random_parts(*, tiny: bool) -> ModelParts:
    """Return untrained parts from the configurations that ship with the package."""
    config = {name: read_shipped_config(name) | (TINY[name] if tiny else {}) for name in PUBLISHED}
    return ModelParts(
        tokenizer=create_clip_tokenizer(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
        vae=AutoencoderKL.from_config(config["vae"]),
        unet=UNet2DConditionModel.from_config(config["unet"]),
        scheduler=DDPMScheduler.from_pretrained(CONFIGS / "sd1", subfolder="scheduler"),
        family="tiny" if tiny else "sd1",
    )


def make_pipeline(parts: ModelParts) -> StableDiffusionPipeline:
    """Return the parts as diffusers saves them."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=PNDMScheduler.from_pretrained(CONFIGS / "sd1", subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def measure_model(source: Path, work: Path) -> dict[str, Any]:
    """Open, learn two steps from a photograph, generate two steps."""
    seconds: dict[str, float] = {}
    config = override(PRESETS["paper"], SETTINGS)
    photo = work / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    with time_block(seconds, "open"):
        backbone = open_backbone(str(source), dtype=torch.bfloat16)
    with time_block(seconds, "learn"):
        identity = learn(photo, name="ada", backbone=backbone, config=config, crop=False)
    with time_block(seconds, "generate"):
        (image,) = generate(["a photo of <ada> on the beach"], [identity], backbone=backbone, config=config)
    return {
        "fingerprint": backbone.fingerprint,
        "picture": image.pixels.size,
        "picture_sha256": hashlib.sha256(image.pixels.tobytes()).hexdigest(),
        "seconds": seconds,
        "peak_gib": read_peak_gib(),
    }


def use_tiny_configurations(work: Path) -> None:
    """Read single files with the tiny model's own configurations."""
    checkpoint.CONFIGS = work / "configs"
    shutil.copytree(CONFIGS / "sd1", checkpoint.CONFIGS / "sd1", dirs_exist_ok=True)
    for name in PUBLISHED:
        shutil.copy(work / "model" / name / "config.json", checkpoint.CONFIGS / "sd1" / name)


@contextmanager
def time_block(seconds: dict[str, float], name: str) -> Generator[None]:
    """Measure the wall time of a block, to a hundredth of a second."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def count_weights(model: torch.nn.Module) -> int:
    """Return the number of weights."""
    return sum(weight.numel() for weight in model.parameters())


def read_peak_gib() -> float:
    """Return the largest resident memory of this process so far (Linux counts in KiB)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def describe_machine() -> dict[str, Any]:
    """Return what the times depend on."""
    return {
        "processor": find_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def find_processor() -> str:
    """Return the processor's name, where Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
