"""`sefi world`: draw the embedded model's world, train its parts, score them, show them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

app = typer.Typer(
    no_args_is_help=True,
    help="Draw the embedded model's world, train its parts, score them, show them.",
)
NAMES_SHOWN = 3  # of the many named characters
CAPTION = 11  # font size under an image, in pixels

Count = Annotated[int, typer.Option("--count", min=1, max=1_000_000, help="How many drawings.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]
Part = Annotated[str, typer.Argument(metavar="PART", help="What to train; a wrong name lists them.")]
Parts = Annotated[list[str] | None, typer.Option("--part", help="Only this part of the figures; repeatable.")]
Images = Annotated[
    int, typer.Option("--count", min=1, max=1000, help="Images of each attribute, action, scene, style.")
]
Kind = Annotated[str, typer.Option("--kind", metavar="KIND", help="Which prompts; a wrong name lists them.")]
Sheet = Annotated[Path, typer.Option("--out", metavar="FILE", help="The grid, a PNG.")]
Record = Annotated[Path, typer.Option("--record", metavar="FILE", help="What `sefi world check --json` printed.")]
CardFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where README.md goes; else the model's.")
]
DocsFolder = Annotated[
    Path | None, typer.Option("--docs", metavar="DIR", help="Also write DIR/model-card.md, for the documents.")
]
OnlyCheck = Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if the card differs.")]
Start = Annotated[
    str | None,
    typer.Option("--start", metavar="MODEL", help="Go on from this finished model: a folder, or tiny-portraits."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]

BeginAgain = Annotated[bool, typer.Option("--overwrite", help="Begin again, in the place of an earlier training.")]


@app.command("draw")
def run_draw(
    count: Count = 16,
    seed: options.Seed = 0,
    out: Folder = Path("drawings"),
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write drawings (PNG) with their captions and what is true of them (JSON)."""
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import prepare_folder
    from tiny_portraits.text.captions import check_drawings, write_drawings

    folder = prepare_folder(out)
    check_drawings(count, folder, overwrite=overwrite)
    with TerminalProgress() as progress:
        write_drawings(count, seed, folder, progress, overwrite=overwrite)
    print_answer(
        {"out": str(folder), "count": count}, f"{count} drawings in {folder}", as_json=as_json, command="world draw"
    )


@app.command("train")
def run_train(
    part: Part,
    resume: Resume = False,
    overwrite: BeginAgain = False,
    start: Start = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: Folder = Path("runs/world"),
    as_json: options.AsJson = False,
) -> None:
    """Train one part of the embedded model, or all; kill it at any time and go on with --resume."""
    from sefi.backbone.open import MODELS
    from sefi.cli.loading import choose_device
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import prepare_folder
    from tiny_portraits.training.runs import Run
    from tiny_portraits.training.train import check_untrained, train_part

    folder = prepare_folder(out)
    if not resume and not overwrite:
        check_untrained(folder, part)
    beginning = None if start is None else MODELS / start if (MODELS / start).is_dir() else Path(start)
    training_device = choose_device() if device == "auto" else device
    with TerminalProgress() as progress:
        train_part(part, Run(folder, resume, seed, progress, beginning, training_device))
    print_answer(
        {"out": str(folder), "part": part}, f"{part} is trained: {folder}", as_json=as_json, command="world train"
    )


@app.command("check")
def run_check(
    model: options.Model = options.EMBEDDED,
    parts: Parts = None,
    count: Images = 6,
    as_json: options.AsJson = False,
) -> None:
    """Score the embedded model against its evaluators, and the evaluators against the truth."""
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from tiny_portraits.evaluation.check import PARTS, check as check_model

    with TerminalProgress() as progress:
        figures = check_model(model, parts=tuple(parts or PARTS), count=count, progress=progress)
    records = [figure.make_record() for figure in figures]
    print_answer({"figures": records}, "\n".join(map(format_figure, records)), as_json=as_json, command="world check")


def format_figure(record: dict[str, object]) -> str:
    """Return one figure as a line of text.

    >>> format_figure({"name": "face found", "value": 0.5, "target": 0.97, "met": False, "n": 8})
    'face found                                               0.500  wanted 0.97: no  (n = 8)'
    """
    target = "" if record["target"] is None else f"wanted {record['target']}: {'yes' if record['met'] else 'no'}"
    return f"{record['name']:<55} {record['value']:6.3f}  {target:<16} (n = {record['n']})"


@app.command("grid")
def run_grid(
    kind: Kind,
    out: Sheet,
    model: options.Model = options.EMBEDDED,
    settings: options.GenerationSettings = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    no_mark: options.NoMark = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw a grid of the embedded model's images from seeded prompts, none picked."""
    from sefi.cli.loading import load_backbone, load_config
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import FileKind, check_output, write_output
    from sefi.provenance.save import encode_image
    from tiny_portraits.evaluation.grids import (
        arrange_tiles,
        convert_to_palette,
        draw_prompts,
        get_kind,
        make_prompts,
        resize_tile,
    )
    from tiny_portraits.text.tokenizing import fits_in

    chosen = get_kind(kind)
    check_output(out, FileKind.PNG, inputs=[model], overwrite=overwrite)
    config = load_config("default", settings or [])
    backbone = load_backbone(model, download=False, device="auto", dtype="float32")
    prompts = make_prompts(chosen, seed, fits_in(backbone))
    with TerminalProgress() as progress:
        made = draw_prompts(backbone, prompts, seed, config.generate, progress)
    tiles = [resize_tile(image, chosen.side) for image in made]
    page = arrange_tiles(add_captions(tiles, prompts) if chosen.captioned else tiles, chosen.columns)
    encoded = encode_image(page, mark=not no_mark, optimize=True, convert=convert_to_palette)
    write_output(out, FileKind.PNG, encoded.write, inputs=[model], overwrite=overwrite)
    record: dict[str, object] = {"out": str(out), "kind": kind, "seed": seed, "mark": not no_mark, "prompts": prompts}
    print_answer(record, f"{len(made)} images in {out}", as_json=as_json, command="world grid")


@app.command("words")
def list_words(as_json: options.AsJson = False) -> None:
    """List the words that the embedded model knows, by what they say; it ignores all others."""
    from sefi.cli.output import print_answer
    from sefi.core.prompts import read_names, read_word_groups

    groups, names = read_word_groups(), list(read_names())
    lines = [f"{group}: {'; '.join(phrases)}" for group, phrases in groups.items()]
    lines.append(f"names: {'; '.join(names[:NAMES_SHOWN])} ... ({len(names)}; --json lists all)")
    print_answer({"groups": groups, "names": names}, "\n".join(lines), as_json=as_json, command="world words")


def add_captions(images: "Sequence[Image.Image]", texts: "Sequence[str]") -> "list[Image.Image]":
    """Return images of one size, each with its text under it; all of them stay of one size."""
    from PIL import Image, ImageDraw, ImageFont

    from sefi.report.contact_sheet import TEXT_COLOUR, TITLE_LINES, measure_height, wrap_text
    from tiny_portraits.evaluation.grids import BACKGROUND

    font = ImageFont.load_default(CAPTION)
    side = images[0].width
    lines = [wrap_text(text, side - 4, font.getlength, TITLE_LINES) for text in texts]
    tiles: list[Image.Image] = []
    for image, text in zip(images, lines, strict=True):
        tile = Image.new("RGB", (side, image.height + measure_height(lines, font)), BACKGROUND)
        tile.paste(image)
        ImageDraw.Draw(tile).multiline_text((2, image.height + 1), text, TEXT_COLOUR, font, spacing=2)
        tiles.append(tile)
    return tiles


@app.command("card")
def run_card(
    record: Record,
    out: CardFolder = None,
    docs: DocsFolder = None,
    only_check: OnlyCheck = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the embedded model's card (README.md) from its figures and its files."""
    from sefi.backbone.kinds import EMBEDDED
    from sefi.backbone.open import MODELS
    from sefi.cli.output import print_answer
    from sefi.core.files import FileKind, check_output, make_text_writer, prepare_folder, write_output
    from tiny_portraits.evaluation.card import (
        CARD,
        DOCS,
        DOCS_CARD,
        check_card,
        format_card as card_of,
        read_facts,
        read_record,
    )

    model = MODELS / EMBEDDED
    figures, facts = read_record(record), read_facts(model)
    cards = {(out or model) / CARD: card_of(figures, facts, DOCS)}
    if docs is not None:
        cards[docs / DOCS_CARD] = card_of(figures, facts, ".")
    differing: dict[Path, str] = {}
    for path, text in cards.items():
        if only_check:
            check_card(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            check_output(
                prepare_folder(path.parent) / path.name,
                FileKind.TEXT,
                inputs=[record],
                overwrite=overwrite,
                follow=False,
            )
            differing[path] = text
    for path, text in differing.items():
        write_output(path, FileKind.TEXT, make_text_writer(text), inputs=[record], overwrite=overwrite, follow=False)
    named = " and ".join(map(str, cards))
    said = f"{named}: what the record gives" if only_check else f"the card: {named}"
    print_answer({"cards": [str(path) for path in cards]}, said, as_json=as_json, command="world card")
