"""How far the batch size and the number of threads change results on the embedded model.

Run it as `python experiments/reproducibility.py`; it takes a minute or two, prints its record and writes it.
"""

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import sys
from pathlib import Path

import numpy as np
import torch

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.core.config import override
from sefi.core.text import dump_json
from sefi.methods import PRESETS

RECORD = Path(__file__).parent / "records" / "reproducibility.json"
BATCH_SIZES, THREADS = (1, 3), (1, 2)
GENERATION_STEPS, LEARNING_STEPS = 10, 12


def compare_batch_sizes(backbone: Backbone) -> dict[str, object]:
    """Draw three images in batches of each size; return how many of their values differ, and by how much."""
    arrays: list[np.ndarray] = []
    for size in BATCH_SIZES:
        settings = [f"generate.steps={GENERATION_STEPS}", "generate.count=3", f"generate.batch_size={size}"]
        config = override(PRESETS["scratch"], settings)
        images = sefi.generate("a photo of person at the beach", backbone=backbone, config=config, seed=1)
        arrays.append(np.stack([np.asarray(image.pixels, np.int16) for image in images]))
    change = np.abs(arrays[0] - arrays[1])
    return {
        "batch_sizes": BATCH_SIZES,
        "steps": GENERATION_STEPS,
        "values": int(change.size),
        "values_that_differ": int((change > 0).sum()),
        "largest_difference_in_grey_levels": int(change.max()),
    }


def compare_threads(backbone: Backbone) -> dict[str, object]:
    """Learn one photo with each number of threads; return the largest difference of a token's value."""
    tokens: list[torch.Tensor] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        config = override(PRESETS["scratch"], [f"learn.steps={LEARNING_STEPS}", "views.latent_pool=4"])
        made = sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=backbone, config=config, seed=1)
        tokens.append(made.tensors["tokens"])
    return {
        "threads": THREADS,
        "steps": LEARNING_STEPS,
        "largest_value": float(tokens[0].abs().max()),
        "largest_difference": float((tokens[0] - tokens[1]).abs().max()),
    }


def main() -> None:
    """Compare both, write the record, print it."""
    backbone = sefi.open_backbone()
    record = {"batch size": compare_batch_sizes(backbone), "number of threads": compare_threads(backbone)}
    text = dump_json(record, indent=1) + "\n"
    RECORD.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
