"""`sefi study`: a page that asks people which pictures they prefer, and what their answers say."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL import Image

    from sefi.bench.preference import Preference, Verdict
    from sefi.bench.statistics import Interval

app = typer.Typer(no_args_is_help=True, help="Ask people which pictures of a benchmark run they prefer.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished `sefi bench run`.")]
Page = Annotated[Path, typer.Option("--out", metavar="FILE", help="The page, one HTML file that works offline.")]
Ways = Annotated[
    list[str] | None,
    typer.Option("--ways", metavar="LABEL", help="A way to compare; two to six, repeatable. Else all but anchors."),
]
Count = Annotated[int, typer.Option("--count", min=1, help="Comparisons of each of the three questions.")]
Checks = Annotated[int, typer.Option("--checks", min=0, help="Attention checks in each of two questions.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="The answers.json of every rater.")]
Draws = Annotated[int, typer.Option("--draws", min=100, max=10_000, help="Resamples behind the intervals.")]


@app.command("build")
def build(
    run: Run,
    out: Page = Path("study.html"),
    overwrite: options.Overwrite = False,
    ways: Ways = None,
    count: Count = 20,
    checks: Checks = 6,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Write a page that asks for the best picture by prompt, by likeness and by looks, and saves the answers."""
    from sefi.bench.run_folder import RunFolder
    from sefi.bench.study import Asking, design
    from sefi.cli.output import answer
    from sefi.core.files import Kind, check_output, text_writer, write_output
    from sefi.report.study_page import study_page

    folder = RunFolder(run)
    study = design(folder.read_info(), folder.read_samples(), Asking(tuple(ways or ()), count, checks, seed))
    files = {file for one in study.comparisons for file in one.files}
    inputs = [folder.info_file, folder.samples_file, *(run / file for file in files)]
    path = check_output(out, Kind.HTML, inputs=inputs, overwrite=overwrite)
    pictures = opened_pictures(files, run)
    write_output(path, Kind.HTML, text_writer(study_page(study, pictures)), inputs=inputs, overwrite=overwrite)
    asked = {name: sum(one.question == name for one in study.comparisons) for name in study.questions}
    record: dict[str, object] = {
        "page": str(path),
        "study": study.name,
        "ways": list(study.ways.values()),
        "comparisons": asked,
        "checks": len(study.checks),
        "bytes": path.stat().st_size,
    }
    told = ", ".join(f"{number} of {name}" for name, number in asked.items())
    text = f"{told}; {len(study.checks)} of them are attention checks\n{path} ({path.stat().st_size / 1e6:.1f} MB)"
    answer(record, text, as_json=as_json, command="study build")


def opened_pictures(files: "Iterable[str]", run: Path) -> "dict[str, Image.Image]":
    """Pictures of a run by their files.

    Raises:
        PhotoError: One is missing, is no picture, or lies outside the run's folder.
    """
    from PIL import Image

    from sefi.bench.cells import lies_in, read_picture
    from sefi.core.errors import PhotoError

    found: dict[str, Image.Image] = {}
    for file in files:
        if not lies_in(run, file):
            name = file if file.isprintable() else ascii(file)
            raise PhotoError(f"The run has no picture {name}.", "Let `sefi bench run` make it again.")
        found[file] = Image.fromarray(read_picture(run / file))
    return found


@app.command("analyse")
def analyse(files: Files, draws: Draws = 2000, seed: options.Seed = 0, as_json: options.AsJson = False) -> None:
    """Shares, Bradley-Terry strengths and agreement of the raters, from the files that the page saved."""
    from sefi.bench.answers import read_sheets
    from sefi.bench.preference import verdict
    from sefi.cli.output import answer

    found = verdict(read_sheets(files), draws, seed)
    answer(verdict_record(found), verdict_text(found), as_json=as_json, command="study analyse")


def verdict_record(found: "Verdict") -> dict[str, object]:
    """The outcome as plain values; what cannot be told is null."""
    return {
        "study": found.study,
        "raters": len(found.raters),
        "left_out": len(found.excluded),
        "excluded": [{"rater": rater, "reason": reason} for rater, reason in found.excluded.items()],
        "questions": {name: preference_record(one) for name, one in found.questions.items()},
    }


def preference_record(one: "Preference") -> dict[str, object]:
    """One question's outcome as plain values."""
    return {
        "answers": one.answers,
        "seconds": one.seconds,
        "resampled": one.resampled,
        "alpha": one.alpha,
        "shares": interval_records(one.shares),
        "strengths": interval_records(one.strengths),
    }


def interval_records(by_way: "Mapping[str, Interval]") -> dict[str, dict[str, float | None]]:
    """Values with their 95 % intervals as plain numbers."""
    return {way: {"value": x.mean, "low": known(x.low), "high": known(x.high)} for way, x in by_way.items()}


def known(value: float) -> float | None:
    """None for a number that could not be told, since JSON has no nan."""
    return None if math.isnan(value) else value


def verdict_text(found: "Verdict") -> str:
    """The outcome for people."""
    raters = "1 rater" if len(found.raters) == 1 else f"{len(found.raters)} raters"
    head = f"study {found.study}: {raters}" + (f"; {len(found.excluded)} left out" if found.excluded else "")
    reasons = [f"  {rater}: {reason}" for rater, reason in found.excluded.items()]
    return "\n".join(
        [head, *reasons, *(line for name, one in found.questions.items() for line in preference_lines(name, one))]
    )


def preference_lines(name: str, one: "Preference") -> list[str]:
    """One question: a head line and a line for every way, the most chosen first."""
    agreement = "no agreement can be told" if one.alpha is None else f"agreement (alpha) {one.alpha:.2f}"
    head = f"{name}: {one.answers} answers, {one.seconds:.1f} s each; {agreement}; intervals over {one.resampled}"
    width = max(map(len, one.shares))
    ways = sorted(one.shares, key=lambda way: -one.shares[way].mean)
    rows = [
        f"  {way:<{width}}  share {interval_text(one.shares[way])}  strength {interval_text(one.strengths[way], '+')}"
        for way in ways
    ]
    return ["", head, *rows]


def interval_text(one: "Interval", sign: str = "") -> str:
    """A value and its interval.

    >>> from sefi.bench.statistics import Interval
    >>> interval_text(Interval(0.5, 0.25, 0.75, 3))
    '0.50 [0.25, 0.75]'
    """
    if math.isnan(one.low):
        return f"{one.mean:{sign}.2f} [unknown]"
    return f"{one.mean:{sign}.2f} [{one.low:{sign}.2f}, {one.high:{sign}.2f}]"
