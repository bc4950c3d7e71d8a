"""`sefi attend`: where every word of a prompt looks, as one figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from sefi.backbone.bundle import Backbone
    from sefi.core.config import Config
    from sefi.core.nouns import Identity
    from sefi.core.protocols import Progress
    from sefi.generate.attend import AttendResult
    from sefi.report.figures import Box, MapRow

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help='E.g. "a photo of <ada> smiling".')]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the figure goes (PNG).")]


def attend(
    prompt: Prompt,
    identity: options.Identities = None,
    model: options.Model = options.EMBEDDED,
    preset: options.Preset = "default",
    steps: Steps = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    out: Out = Path("maps.png"),
    overwrite: options.Overwrite = False,
    detector: options.Detector = None,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Draw one heat map per word, for the identity and for the plain class word."""
    from sefi.cli.opening import assigned, check_detector, drawing_config, identities_for, note_remarks, opened
    from sefi.cli.output import answer
    from sefi.core.files import Kind, check_output, write_output

    inputs = [*(identity or []), model, detector]
    path = check_output(out, Kind.PNG, inputs=inputs, overwrite=overwrite)
    config = drawing_config(preset, [*(settings or []), *assigned(generate__steps=steps)])
    check_detector(detector)
    identities = identities_for([prompt], identity or [], config)
    from sefi.cli.progress import TerminalProgress
    from sefi.conditioning.known_words import find_unknown_words
    from sefi.generate.attend import check_guided
    from sefi.methods import check_tokens_only

    check_guided(config.generate)
    check_tokens_only(identities)
    backbone = opened(model, download=download, device=device, dtype=dtype)
    note_remarks(backbone, [prompt], config, identities)
    with TerminalProgress() as progress:
        rows = attention_rows(prompt, identities, backbone, config, seed, progress, detector)
    write_output(path, Kind.PNG, figure_writer(rows, prompt), inputs=inputs, overwrite=overwrite)
    unknown = find_unknown_words(backbone, [prompt, config.generate.negative_prompt])
    answer(record(rows, path) | {"unknown_words": unknown}, told(rows, path), as_json=as_json, command="attend")


def attention_rows(
    prompt: str,
    identities: "Sequence[Identity]",
    backbone: "Backbone",
    config: "Config",
    seed: int,
    progress: "Progress",
    detector: Path | None = None,
) -> "list[MapRow]":
    """The maps of the prompt with its identities, and of the same prompt with the class words.

    Both belong to the same picture: the class word's maps are taken from the same image features.

    Raises:
        PromptError: A placeholder without identity, or the other way round.
        IdentityError: An identity that is more than tokens.
    """
    from sefi.conditioning.conditioner import IdentityConditioner
    from sefi.core.prompt_syntax import check_used
    from sefi.generate.attend import attend as attend_to
    from sefi.methods import check_tokens_only

    check_tokens_only(identities)
    check_used([prompt], [one.name for one in identities])
    conditioner = IdentityConditioner(backbone, identities, config.generate.identity_strength)
    found = attend_to(backbone, conditioner, prompt, seed, config.generate, progress)
    boxes = face_boxes(found.image, backbone, detector)
    plain = tuple(conditioner.class_words.get(word.strip("<>"), word) for word in found.words)
    return [
        map_row("with the identity", found.words, found.maps, found, boxes),
        map_row("with the class word", plain, found.reference_maps, found, boxes),
    ]


def map_row(
    label: str,
    words: "Sequence[str]",
    maps: "Tensor",
    found: "AttendResult",
    boxes: "Sequence[Box]",
) -> "MapRow":
    """One row of the figure; each placeholder is measured in the face that it looks at most."""
    from sefi.generate.attend import share_inside
    from sefi.report.figures import MapRow

    faces: dict[int, Box] = {}
    shares: dict[int, float] = {}
    for place in found.placeholders if boxes else ():
        inside = [float(share_inside(maps[place][None], box)) for box in boxes]
        shares[place] = max(inside)
        faces[place] = boxes[inside.index(shares[place])]
    heat = maps.float().cpu().numpy()
    return MapRow(label, words, heat, found.image, found.placeholders, faces, shares)


def face_boxes(image: "Image", backbone: "Backbone", detector: Path | None) -> "list[Box]":
    """Every face in a generated picture: left, top, right, bottom in fractions of its sides."""
    import numpy as np

    from sefi.api import embedded_judges
    from sefi.bench.judging import box_of
    from sefi.metrics.faces import DETECTOR
    from sefi.photo.detect import YuNetDetector

    path = detector or (backbone.judges or embedded_judges()) / DETECTOR
    if detector is None and not path.is_file():
        return []
    rgb = np.asarray(image.convert("RGB"))
    return [box_of(face, rgb) for face in YuNetDetector(path)(rgb)]


def figure_writer(rows: "Sequence[MapRow]", title: str) -> "Callable[[Path], None]":
    """Draw the rows; return what writes them as one PNG."""
    from sefi.report.figures import attention_figure, save_figure

    figure = attention_figure(rows, title=title)
    return lambda path: save_figure(figure, path)


def record(rows: "Sequence[MapRow]", path: Path) -> dict[str, object]:
    """The numbers behind the figure."""
    mean = [
        [round(float(heat.mean()), 5) for heat in row.maps]  # sums to 1 over all words and padding
        for row in rows
    ]
    return {
        "figure": str(path),
        "words": list(rows[0].words),
        "reference_words": list(rows[1].words),
        "mean_attention": mean[0],
        "reference_mean_attention": mean[1],
        "share_in_face": shares_by_name(rows[0], rows[0].words),
        "reference_share_in_face": shares_by_name(rows[1], rows[0].words),
    }


def shares_by_name(row: "MapRow", names: "Sequence[str]") -> dict[str, float]:
    """Share of each name's attention in the face; of a name that stands for several words, their mean."""
    of_name: dict[str, list[float]] = {}
    for place, share in row.shares.items():
        of_name.setdefault(names[place], []).append(share)
    return {name: round(sum(shares) / len(shares), 4) for name, shares in of_name.items()}


def told(rows: "Sequence[MapRow]", path: Path) -> str:
    """Where the figure is, and the title of each of its rows."""
    from sefi.report.figures import row_title

    return "\n".join([*(row_title(row) for row in rows), str(path)])
