"""Learn one step at SDXL's real size, with random weights in bfloat16, on this machine.

Shows that the real code path fits and what it takes; the identity means nothing. Takes minutes and up to 20 GiB of
memory, and writes seconds and peak memory as JSON. The preset `default`: the expansion module of `paper` has 210
million weights at SDXL's width, and Adam needs 3 GiB for them.

    python experiments/sdxl_step.py
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

import torch
from PIL import Image
from real_size import describe_machine, read_peak_gib
from torch import nn

from sefi.api import learn
from sefi.backbone.bundle import Backbone, set_channel_order
from sefi.backbone.open import create_empty_stable_diffusion
from sefi.core.config import override
from sefi.core.files import write_text
from sefi.core.rng import create_generator
from sefi.core.text import dump_json
from sefi.methods import PRESETS

RECORD = Path(__file__).parent / "records" / "sdxl_step.json"
SETTINGS = ("learn.steps=1", "learn.batch=1", "views.latent_pool=0")


def main() -> None:
    """Learn one step and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--limit", type=int, default=0, metavar="GIB", help="give up above so much memory")
    options = parser.parse_args()
    if options.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (options.limit << 30,) * 2)
    backbone = create_random_sdxl()
    start = time.perf_counter()
    config = override(PRESETS["scratch"], SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        Image.radial_gradient("L").convert("RGB").resize((1100, 1100)).save(photo)
        identity = learn(photo, name="ada", backbone=backbone, config=config, crop=False)
    record: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": SETTINGS,
        "weights": {name: sum(w.numel() for w in part.parameters()) for name, part in backbone.networks.items()},
        "tokens": list(identity.tokens.shape),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": read_peak_gib(),
    }
    write_text(options.record, dump_json(record, indent=2) + "\n")
    sys.stdout.write(dump_json(record, indent=2) + "\n")


def create_random_sdxl() -> Backbone:
    """Create SDXL with random weights of a usual scale, each filled where it lies: nothing is there twice."""
    empty = create_empty_stable_diffusion("sdxl")
    parts = {name: fill_with_noise(part, name) for name, part in empty.networks.items()}
    others = {name: getattr(empty, name) for name in ("tokenizer", "tokenizer_2", "scheduler", "family", "resolution")}
    set_channel_order(parts["unet"], parts["vae"])  # as a model that is opened has them
    return Backbone(**parts, **others, fingerprint=empty.fingerprint, source="random weights")


@torch.no_grad()
def fill_with_noise(part: nn.Module, name: str) -> nn.Module:
    """Return a part of a model without values with random ones, bfloat16; norms are ones and biases zeros."""
    filled = nn.Module.to(part, torch.bfloat16).to_empty(device="cpu")
    random = create_generator(0, name)
    for key, weight in filled.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, 0.02 if "embedding" in key else 0.7 * weight[0].numel() ** -0.5, generator=random)
        else:
            weight.fill_(float(key.endswith("weight")))
    for buffer in filled.buffers():
        buffer.copy_(torch.arange(buffer.shape[-1]))  # the positions of CLIP's text
    return filled


if __name__ == "__main__":
    main()
