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
CAPTION = 11  # font size under a picture, in pixels

Count = Annotated[int, typer.Option("--count", min=1, help="How many drawings.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]
Part = Annotated[str, typer.Argument(metavar="PART", help="What to train; a wrong name lists them.")]
Parts = Annotated[list[str] | None, typer.Option("--part", help="Only this; may be given again.")]
Pictures = Annotated[int, typer.Option("--count", min=1, help="Pictures of every attribute, action, scene, style.")]
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
Version = Annotated[
    int | None,
    typer.Option("--version", metavar="N", help="Version of the model to train: 5, or with --start 4, as it ships."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]

BeginAgain = Annotated[bool, typer.Option("--overwrite", help="Begin again, in the place of an earlier training.")]


@app.command("draw")
def draw(
    count: Count = 16,
    seed: options.Seed = 0,
    out: Folder = Path("drawings"),
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write drawings (PNG) with their captions and what is true of them (JSON)."""
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import check_folder, make_folder
    from sefi.world.draw import check_drawings, write_drawings

    folder = make_folder(check_folder(out))
    check_drawings(count, folder, overwrite=overwrite)
    with TerminalProgress() as progress:
        write_drawings(count, seed, folder, progress, overwrite=overwrite)
    answer({"out": str(folder), "count": count}, f"{count} drawings in {folder}", as_json=as_json, command="world draw")


@app.command("train")
def train(
    part: Part,
    resume: Resume = False,
    overwrite: BeginAgain = False,
    start: Start = None,
    version: Version = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: Folder = Path("runs/world"),
    as_json: options.AsJson = False,
) -> None:
    """Train one part of the embedded model, or all; kill it at any time and go on with --resume."""
    from sefi.backbone.open import MODELS
    from sefi.cli.opening import chosen_device
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import check_folder, make_folder
    from sefi.world.fifth import train_part as train_fifth
    from sefi.world.part_files import check_untrained
    from sefi.world.train import Run, train as train_fourth
    from sefi.world.versions import FIFTH, FOURTH, get_version

    wanted = get_version(version or (FIFTH.number if start is None else FOURTH.number))
    folder = make_folder(check_folder(out))
    if not resume and not overwrite:
        check_untrained(folder, part)
    beginning = None if start is None else MODELS / start if (MODELS / start).is_dir() else Path(start)
    place = chosen_device() if device == "auto" else device
    with TerminalProgress() as progress:
        train_part = train_fourth if wanted == FOURTH else train_fifth
        train_part(part, Run(folder, resume, seed, progress, beginning, place))
    answer({"out": str(folder), "part": part}, f"{part} is trained: {folder}", as_json=as_json, command="world train")


@app.command("check")
def check(
    model: options.Model = options.EMBEDDED,
    parts: Parts = None,
    count: Pictures = 6,
    as_json: options.AsJson = False,
) -> None:
    """Score the embedded model against its judges, and the judges against the truth."""
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress
    from sefi.world.check import PARTS, check as check_model

    with TerminalProgress() as progress:
        figures = check_model(model, parts=tuple(parts or PARTS), count=count, progress=progress)
    records = [figure.record() for figure in figures]
    answer({"figures": records}, "\n".join(map(figure_line, records)), as_json=as_json, command="world check")


def figure_line(record: dict[str, object]) -> str:
    """One figure as a line of text.

    >>> figure_line({"name": "face found", "value": 0.5, "target": 0.97, "met": False, "n": 8})
    'face found                                               0.500  wanted 0.97: no  (n = 8)'
    """
    target = "" if record["target"] is None else f"wanted {record['target']}: {'yes' if record['met'] else 'no'}"
    return f"{record['name']:<55} {record['value']:6.3f}  {target:<16} (n = {record['n']})"


@app.command("grid")
def grid(
    kind: Kind,
    out: Sheet,
    model: options.Model = options.EMBEDDED,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw a grid of the embedded model's pictures from seeded prompts, none picked."""
    from sefi.cli.opening import chosen_config, opened
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import Kind, check_output, write_output
    from sefi.world.grids import fits_in, kind_named, pictures, prompts_of, resized, save_small, tiled

    chosen, path = kind_named(kind), check_output(out, Kind.PNG, inputs=[model], overwrite=overwrite)
    config = chosen_config("default", settings or [])
    backbone = opened(model, download=False, device="auto", dtype="float32")
    prompts = prompts_of(chosen, seed, fits_in(backbone))
    with TerminalProgress() as progress:
        made = pictures(backbone, prompts, seed, config.generate, progress)
    tiles = [resized(image, chosen.side) for image in made]
    page = tiled(captioned(tiles, prompts) if chosen.captioned else tiles, chosen.columns)
    write_output(path, Kind.PNG, lambda partial: save_small(page, partial), inputs=[model], overwrite=overwrite)
    record: dict[str, object] = {"out": str(path), "kind": kind, "seed": seed, "prompts": prompts}
    answer(record, f"{len(made)} pictures in {path}", as_json=as_json, command="world grid")


@app.command("words")
def words(as_json: options.AsJson = False) -> None:
    """List the words that the embedded model knows, by what they say; it ignores all others."""
    from sefi.cli.output import answer
    from sefi.conditioning.known_words import read_names, read_word_groups

    groups, names = read_word_groups(), list(read_names())
    lines = [f"{group}: {'; '.join(phrases)}" for group, phrases in groups.items()]
    lines.append(f"names: {'; '.join(names[:NAMES_SHOWN])} ... ({len(names)}; --json lists all)")
    answer({"groups": groups, "names": names}, "\n".join(lines), as_json=as_json, command="world words")


def captioned(images: "Sequence[Image.Image]", texts: "Sequence[str]") -> "list[Image.Image]":
    """Pictures of one size, each with its text under it; all of them stay of one size."""
    from PIL import Image, ImageDraw, ImageFont

    from sefi.report.sheet import INK, TITLE_LINES, text_height
    from sefi.report.wrapping import wrap_text
    from sefi.world.grids import BACKGROUND

    font = ImageFont.load_default(CAPTION)
    side = images[0].width
    told = [wrap_text(text, side - 4, font.getlength, TITLE_LINES) for text in texts]
    tiles: list[Image.Image] = []
    for image, text in zip(images, told, strict=True):
        tile = Image.new("RGB", (side, image.height + text_height(told, font)), BACKGROUND)
        tile.paste(image)
        ImageDraw.Draw(tile).multiline_text((2, image.height + 1), text, INK, font, spacing=2)
        tiles.append(tile)
    return tiles


@app.command("card")
def card(
    record: Record,
    out: CardFolder = None,
    docs: DocsFolder = None,
    only_check: OnlyCheck = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the embedded model's card (README.md) from its figures and its files."""
    from sefi.backbone.open import EMBEDDED, MODELS
    from sefi.cli.output import answer
    from sefi.core.files import Kind, check_folder, check_output, make_folder, text_writer, write_output
    from sefi.world.card import CARD, DOCS, DOCS_CARD, card as card_of, check_card, read_facts, read_record

    model = MODELS / EMBEDDED
    told, facts = read_record(record), read_facts(model)
    cards = {(out or model) / CARD: card_of(told, facts, DOCS)}
    if docs is not None:
        cards[docs / DOCS_CARD] = card_of(told, facts, ".")
    differing: dict[Path, str] = {}
    for path, text in cards.items():
        if only_check:
            check_card(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            check_output(
                make_folder(check_folder(path.parent)) / path.name, Kind.TEXT, inputs=[record], overwrite=overwrite
            )
            differing[path] = text
    for path, text in differing.items():
        write_output(path, Kind.TEXT, text_writer(text), inputs=[record], overwrite=overwrite)
    named = " and ".join(map(str, cards))
    said = f"{named}: what the record gives" if only_check else f"the card: {named}"
    answer({"cards": [str(path) for path in cards]}, said, as_json=as_json, command="world card")
