"""COMPOSER: numbered pictures to files: drawing, caption and truth."""

from pathlib import Path

import numpy as np
from PIL import Image

from sefi.core.json_text import dump_json
from sefi.core.protocols import Progress
from sefi.world.captions import caption, nameless
from sefi.world.data import picture_at
from sefi.world.drawing import draw, truth

# Written drawings are four times as large as the model's: they serve as photos.
FILE_SIDE = 512


def write_drawings(count: int, seed: int, out: Path, progress: Progress, side: int = FILE_SIDE) -> None:
    """Write `NNNNN.png` and `NNNNN.json` (caption and truth) for the first pictures of a seed's series.

    Args:
        count: how many.
        seed: of the series; the same seed always gives the same drawings.
        out: an existing folder.
        side: side of the drawings in pixels.
    """
    progress.start(count, "drawing")
    for index in range(count):
        picture = picture_at(seed, index)
        told = nameless(caption(picture, np.random.default_rng([seed, index, 1])).text)
        Image.fromarray(draw(picture, side)).save(out / f"{index:05d}.png")
        text = dump_json({"caption": told, **truth(picture)}, indent=1)
        (out / f"{index:05d}.json").write_text(text, encoding="utf-8")
        progress.advance()
    progress.finish()
