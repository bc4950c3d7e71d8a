"""How far batch size and number of threads change results on the embedded model; prints two lines."""

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import numpy as np
import torch

from sefi.backbone.open import MODELS
from sefi.core.config import override
from sefi.core.presets import PRESETS


def main() -> None:
    """Print the largest difference of pixels by batch size, and of tokens by number of threads."""
    backbone, preset = sefi.open_backbone(), PRESETS["default"]
    drawn = []
    for size in (1, 3):
        config = override(preset, ["generate.steps=10", "generate.count=3", f"generate.batch_size={size}"])
        images = sefi.generate("a photo of person at the beach", backbone=backbone, config=config, seed=1)
        drawn.append(np.stack([np.asarray(image.pixels, np.int16) for image in images]))
    change = np.abs(drawn[0] - drawn[1])
    print(f"batch of 1 or 3: {int((change > 0).sum())} of {change.size} values differ, by at most {int(change.max())}")
    tokens = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        config = override(preset, ["learn.steps=12", "views.latent_pool=4"])
        made = sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=backbone, config=config, seed=1)
        tokens.append(made.tensors["tokens"])
    print(f"1 or 2 threads, 12 steps: tokens differ by at most {float((tokens[0] - tokens[1]).abs().max()):.1e}")


if __name__ == "__main__":
    main()
