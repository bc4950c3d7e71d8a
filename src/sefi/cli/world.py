"""`sefi world`: draw the embedded model's world, train its parts, score them."""

from pathlib import Path
from typing import Annotated

import typer

from sefi.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="Draw the embedded model's world, train its parts, score them.",
)

Count = Annotated[int, typer.Option("--count", min=1, help="How many drawings.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.")]
Part = Annotated[str, typer.Argument(metavar="PART", help="What to train; a wrong name lists them.")]
Parts = Annotated[list[str] | None, typer.Option("--part", help="Only this; may be given again.")]
Pictures = Annotated[int, typer.Option("--count", min=1, help="Pictures of every attribute, action, scene, style.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


@app.command("draw")
def draw(
    count: Count = 16,
    seed: options.Seed = 0,
    out: Folder = Path("drawings"),
    as_json: options.AsJson = False,
) -> None:
    """Write drawings (PNG) with their captions and what is true of them (JSON)."""
    from sefi.cli.output import answer, checked_folder
    from sefi.cli.progress import TerminalProgress
    from sefi.world.draw import write_drawings

    folder = checked_folder(out)
    with TerminalProgress() as progress:
        write_drawings(count, seed, folder, progress)
    answer({"out": str(folder), "count": count}, f"{count} drawings in {folder}", as_json=as_json)


@app.command("train")
def train(
    part: Part,
    resume: Resume = False,
    seed: options.Seed = 0,
    out: Folder = Path("runs/world"),
    as_json: options.AsJson = False,
) -> None:
    """Train one part of the embedded model; kill it at any time and go on with --resume."""
    from sefi.cli.output import answer, checked_folder
    from sefi.cli.progress import TerminalProgress
    from sefi.world.train import train as train_part

    folder = checked_folder(out)
    with TerminalProgress() as progress:
        train_part(part, folder, resume=resume, seed=seed, progress=progress)
    answer({"out": str(folder), "part": part}, f"{part} is trained: {folder}", as_json=as_json)


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
    answer({"figures": records}, "\n".join(map(figure_line, records)), as_json=as_json)


def figure_line(record: dict[str, object]) -> str:
    """One figure as a line of text.

    >>> figure_line({"name": "face found", "value": 0.5, "target": 0.97, "met": False, "n": 8})
    'face found                                               0.500  wanted 0.97: no  (n = 8)'
    """
    target = "" if record["target"] is None else f"wanted {record['target']}: {'yes' if record['met'] else 'no'}"
    return f"{record['name']:<55} {record['value']:6.3f}  {target:<16} (n = {record['n']})"
