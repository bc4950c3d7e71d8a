"""`sefi attend`: the attention maps of every word of a prompt, as one figure."""

from dataclasses import replace
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
    from sefi.core.progress import Progress
    from sefi.diffusion.attention_maps import PromptAttention
    from sefi.identity.file import Identity
    from sefi.report.attention_figure import Box, MapRow

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help='E.g. "a photo of <ada> smiling".')]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the figure goes (PNG).")]
TOKENS_REMEDY = "Attention is shown for tokens: learn it with another method (`sefi methods`), or leave it out."


def run_attend(
    prompt: Prompt,
    identity: options.Identities = None,
    model: options.Model = options.EMBEDDED,
    preset: options.Preset = "default",
    steps: Steps = None,
    width: options.Width = None,
    height: options.Height = None,
    settings: options.GenerationSettings = None,
    seed: options.Seed = 0,
    out: Out = Path("maps.png"),
    overwrite: options.Overwrite = False,
    detector: options.Detector = None,
    no_mark: options.NoMark = False,
    expired_consent: options.ExpiredConsent = False,
    no_safety_checker: options.NoSafetyChecker = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Draw one heat map per word, for the identity and for the plain class word."""
    from sefi.cli.loading import (
        check_detector,
        format_settings,
        load_backbone,
        load_generation_config,
        load_identities,
        note_remarks,
    )
    from sefi.cli.output import print_answer
    from sefi.core.files import FileKind, check_output, write_output

    inputs = [*(identity or []), model, detector]
    check_output(out, FileKind.PNG, inputs=inputs, overwrite=overwrite)
    overrides = format_settings(generate__steps=steps, generate__width=width, generate__height=height)
    config = load_generation_config(preset, [*(settings or []), *overrides])
    check_detector(detector)
    identities = load_identities([prompt], identity or [], config, expired_consent=expired_consent)
    from sefi.cli.progress import TerminalProgress
    from sefi.identity.file import check_tokens_alone

    check_tokens_alone(identities, TOKENS_REMEDY)
    backbone = load_backbone(model, download=download, device=device, dtype=dtype)
    from sefi.diffusion.text import find_unknown_words

    note_remarks(backbone, [prompt], config, identities)
    with TerminalProgress() as progress:
        shown = replace(backbone, safety_checker=None) if no_safety_checker else backbone
        rows = compute_attention_rows(prompt, identities, shown, config, seed, progress, detector)
    figure = make_figure_writer(rows, prompt, mark=not no_mark, identities=identities)
    write_output(out, FileKind.PNG, figure, inputs=inputs, overwrite=overwrite)
    checked = None if backbone.safety_checker is None else not no_safety_checker
    unknown = find_unknown_words(backbone, [prompt, config.generate.negative_prompt])
    print_answer(
        make_attend_record(rows, out) | {"unknown_words": unknown, "mark": not no_mark, "safety_checker": checked},
        format_attend_answer(rows, out),
        as_json=as_json,
        command="attend",
    )


def compute_attention_rows(
    prompt: str,
    identities: "Sequence[Identity]",
    backbone: "Backbone",
    config: "Config",
    seed: int,
    progress: "Progress",
    detector: Path | None = None,
) -> "list[MapRow]":
    """Return the maps of the prompt with its identities, and of the same prompt with the class words.

    Both belong to the same image: the class word's maps are taken from the same image features.

    Args:
        identities: Of tokens alone, each with its name in the prompt.
    """
    from PIL import Image

    from sefi.cli.output import print_remark
    from sefi.diffusion.attention_maps import record_attention
    from sefi.diffusion.conditioning import IdentityConditioner, apply_text_settings
    from sefi.diffusion.sampling import FLAGGED, is_flagged

    backbone = backbone.skip_layers(config.generate.clip_skip)
    conditioner = IdentityConditioner(backbone, identities, config.generate.identity_strength)
    bent = apply_text_settings(conditioner, config.generate)
    attention = record_attention(backbone, bent, prompt, seed, config.generate, progress)
    if is_flagged(backbone, attention.image):
        print_remark(f"note: {FLAGGED.format(prompt, seed)}")
        attention = replace(attention, image=Image.new("RGB", attention.image.size))
    boxes = detect_face_boxes(attention.image, backbone, detector)
    plain = tuple(conditioner.class_words.get(word.strip("<>"), word) for word in attention.words)
    return [
        make_map_row("with the identity", attention.words, attention.maps, attention, boxes),
        make_map_row("with the class word", plain, attention.reference_maps, attention, boxes),
    ]


def make_map_row(
    label: str,
    words: "Sequence[str]",
    maps: "Tensor",
    attention: "PromptAttention",
    boxes: "Sequence[Box]",
) -> "MapRow":
    """Return one row of the figure; each placeholder is measured in the face that has most of its attention."""
    from sefi.evaluation.metrics import measure_share_inside
    from sefi.report.attention_figure import MapRow

    faces: dict[int, Box] = {}
    shares: dict[int, float] = {}
    heat = maps.float().cpu().numpy()
    for token_index in attention.placeholders if boxes else ():
        inside = [float(measure_share_inside(heat[token_index], box)) for box in boxes]
        shares[token_index] = max(inside)
        faces[token_index] = boxes[inside.index(shares[token_index])]
    return MapRow(label, words, heat, attention.image, attention.placeholders, faces, shares)


def detect_face_boxes(image: "Image", backbone: "Backbone", detector: Path | None) -> "list[Box]":
    """Return every face in a generated image: left, top, right, bottom in fractions of its sides."""
    import numpy as np

    from sefi.api import open_detector
    from sefi.benchmark.evaluators import compute_face_box

    rgb = np.asarray(image.convert("RGB"))
    return [compute_face_box(face, rgb) for face in open_detector(backbone, detector)(rgb)]


def make_figure_writer(
    rows: "Sequence[MapRow]",
    title: str,
    *,
    mark: bool = True,
    identities: "Sequence[Identity]" = (),
    names: bool = False,
) -> "Callable[[Path], None]":
    """Draw the rows; return what writes them as one PNG, which names the SHA-256 of the identities.

    Args:
        names: write the subjects' names in title and words, where `<subject>` stands otherwise.
    """
    from sefi.identity.file import compute_identity_digest
    from sefi.provenance.metadata import hide_names
    from sefi.report.attention_figure import draw_attention_figure, encode_figure

    if not names:
        title, rows = hide_names(title), [hide_names_of_row(row) for row in rows]
    digests = [compute_identity_digest(identity) for identity in identities]
    return encode_figure(draw_attention_figure(rows, title=title), mark=mark, identities=digests).write


def hide_names_of_row(row: "MapRow") -> "MapRow":
    """Return a row of the figure with `<subject>` for every name; other words in angle brackets stay, as `<start>`."""
    from sefi.provenance.metadata import hide_names

    words = [hide_names(word) if index in row.placeholders else word for index, word in enumerate(row.words)]
    return replace(row, words=words)


def make_attend_record(rows: "Sequence[MapRow]", path: Path) -> dict[str, object]:
    """Return the numbers behind the figure."""
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
        "share_in_face": average_shares(rows[0], rows[0].words),
        "reference_share_in_face": average_shares(rows[1], rows[0].words),
    }


def average_shares(row: "MapRow", names: "Sequence[str]") -> dict[str, float]:
    """Return the share of each name's attention in the face; of a name that stands for several words, their mean."""
    of_name: dict[str, list[float]] = {}
    for token_index, share in row.shares.items():
        of_name.setdefault(names[token_index], []).append(share)
    return {name: round(sum(shares) / len(shares), 4) for name, shares in of_name.items()}


def format_attend_answer(rows: "Sequence[MapRow]", path: Path) -> str:
    """Return the title of each row of the figure, and its file."""
    from sefi.report.attention_figure import format_row_title

    return "\n".join([*(format_row_title(row) for row in rows), str(path)])
