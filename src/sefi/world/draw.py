"""COMPOSER: numbered pictures to files: drawing, caption and truth."""

from pathlib import Path

import numpy as np
from PIL import Image

from sefi.core.files import Kind, check_output, text_writer, write_output
from sefi.core.json_text import dump_json
from sefi.core.protocols import Progress
from sefi.world.captions import nameless, say
from sefi.world.data import picture_at
from sefi.world.drawing import draw, truth
from sefi.world.versions import SHIPPED

# Written drawings are larger than the model's: they serve as photos.
FILE_SIDE = 512


def check_drawings(count: int, out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is not asked to be replaced.

    Raises:
        OutputError: a file that `write_drawings` would write is there.
    """
    for index in range(count):
        check_output(out / f"{index:05d}.png", Kind.PNG, overwrite=overwrite)
        check_output(out / f"{index:05d}.json", Kind.JSON, overwrite=overwrite)


def write_drawings(
    count: int, seed: int, out: Path, progress: Progress, side: int = FILE_SIDE, *, overwrite: bool = False
) -> None:
    """Write `NNNNN.png` and `NNNNN.json` (caption and truth) for the first pictures of a seed's series.

    Args:
        count: how many.
        seed: of the series; the same seed always gives the same drawings.
        out: an existing folder.
        side: side of the drawings in pixels.
        overwrite: replace earlier drawings.

    Raises:
        OutputError: a file is there and must not be replaced, or it cannot be written.
    """
    progress.start(count, "drawing")
    for index in range(count):
        picture = picture_at(seed, index, SHIPPED)
        told = nameless(say(picture, np.random.default_rng([seed, index, 1]), SHIPPED)[0].text)
        save = Image.fromarray(draw(picture, side)).save
        write_output(out / f"{index:05d}.png", Kind.PNG, save, overwrite=overwrite)
        text = dump_json({"caption": told, **truth(picture)}, indent=1)
        write_output(out / f"{index:05d}.json", Kind.JSON, text_writer(text), overwrite=overwrite)
        progress.advance()
    progress.finish()
