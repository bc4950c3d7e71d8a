"""The attention maps of a run to figures: one prompt of one subject, drawn by lot, for every way."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sefi.bench.attended import KeptMaps, read_maps
from sefi.bench.cells import lies_in, read_picture
from sefi.bench.records import Sample
from sefi.bench.suite import slug
from sefi.core.errors import OutputError
from sefi.core.files import write_file
from sefi.report.figures import MapRow, attention_figure, save_figure


def draw_attention(samples: Sequence[Sample], run: Path, seed: int = 0) -> list[Path]:
    """Write `attention/WAY.png` for every way whose maps are on record; all show the same prompt of the same subject.

    Figures of an earlier report are removed: it may have drawn another lot.

    Returns:
        The files, in the order of the record.

    Raises:
        OutputError: A folder is in the place of a figure, or a figure cannot be removed or written.
    """
    for way in {sample.variant for sample in samples}:
        remove_figure(figure_path(run, way))
    kept = [sample for sample in samples if lies_in(run, sample.maps) and lies_in(run, sample.image)]
    if not kept:
        return []
    places = sorted({(sample.subject, sample.prompt, sample.seed) for sample in kept})
    chosen = places[int(np.random.default_rng(seed).integers(len(places)))]
    shown = [sample for sample in kept if (sample.subject, sample.prompt, sample.seed) == chosen]
    return [draw_one(sample, run / sample.maps, run) for sample in shown if sample.maps is not None]


def figure_path(run: Path, way: str) -> Path:
    """Return the file of a way's figure in a run's folder."""
    return run / "attention" / f"{slug(way)}.png"


def remove_figure(path: Path) -> None:
    """Remove the figure of an earlier report, if there is one; `OutputError` where that cannot be done."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:  # a file is in the place of the folder: there is no figure
        return
    except OSError as error:
        raise OutputError(f"'{path}' cannot be removed: {error.strerror}.", "Remove it, and report again.") from error


def draw_one(sample: Sample, file: Path, run: Path) -> Path:
    """The figure of one picture: the maps in a file with the identity, and below with the class word."""
    maps = read_maps(file)
    picture = Image.fromarray(read_picture(run / sample.image))
    title = f"{sample.variant}: {sample.subject}, {sample.text}"
    path = figure_path(run, sample.variant)
    figure = attention_figure(rows_of(maps, picture, sample), title=title)
    write_file(path, lambda partial: save_figure(figure, partial))
    return path


def rows_of(maps: KeptMaps, picture: Image.Image, sample: Sample) -> list[MapRow]:
    """The two rows of the figure; the shares inside the face are the record's."""
    plain = tuple(sample.class_word if i in maps.placeholders else w for i, w in enumerate(maps.words))
    own, known = shares_of(maps, sample.focus), shares_of(maps, sample.focus_plain)
    return [
        MapRow("with the identity", maps.words, maps.maps, picture, maps.placeholders, {}, own),
        MapRow("with the class word", plain, maps.reference, picture, maps.placeholders, {}, known),
    ]


def shares_of(maps: KeptMaps, share: float | None) -> dict[int, float]:
    """Share of each placeholder's attention inside the face; nothing without a face."""
    return {} if share is None else dict.fromkeys(maps.placeholders, share)
