"""`sefi study`: a page that asks people which images they prefer, and what their answers say."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL import Image

    from sefi.benchmark.statistics import Interval
    from sefi.user_study.preference import Preference, StudyResult

app = typer.Typer(no_args_is_help=True, help="Ask people which images of a benchmark run they prefer.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished `sefi bench run`.")]
Page = Annotated[Path, typer.Option("--out", metavar="FILE", help="The page, one HTML file that works offline.")]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variants",
        "--ways",  # its name before
        metavar="LABEL",
        help="A variant to compare; two to six, repeatable. By default all but the reference rows.",
    ),
]
Count = Annotated[int, typer.Option("--count", min=1, help="Comparisons of each of the three questions.")]
Checks = Annotated[int, typer.Option("--checks", min=0, help="Attention checks in each of two questions.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="The answers.json of every rater.")]
Draws = Annotated[int, typer.Option("--draws", min=100, max=10_000, help="Resamples behind the intervals.")]


@app.command("build")
def build_study(
    run: Run,
    out: Page = Path("study.html"),
    overwrite: options.Overwrite = False,
    variants: Variants = None,
    count: Count = 20,
    checks: Checks = 6,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Write a page that asks for the best image by prompt, by likeness and by looks, and saves the answers."""
    from sefi.benchmark.run import RunFolder
    from sefi.cli.output import print_answer, print_remark
    from sefi.core.files import FileKind, check_output, make_text_writer, write_output
    from sefi.provenance.save import read_marking, read_named_identities
    from sefi.report.pages import render_study_page
    from sefi.user_study.study import CHECK_MAKERS, StudyOptions, design_study

    folder = RunFolder(run)
    study = design_study(
        folder.read_info(), folder.read_samples(), StudyOptions(tuple(variants or ()), count, checks, seed)
    )
    files = {file for one in study.comparisons for file in one.files}
    inputs = [folder.info_file, folder.samples_file, *(run / file for file in files)]
    check_output(out, FileKind.HTML, inputs=inputs, overwrite=overwrite)
    images = open_images(files, run)
    # Whatever was shown for a photo beside it was generated, and its file says so.
    generated = {file: mark for file in files if (mark := read_marking(run / file)) is not None}
    digests = {digest for file in files for digest in read_named_identities(run / file)}
    page = render_study_page(study, images, generated, sorted(digests))
    write_output(out, FileKind.HTML, make_text_writer(page), inputs=inputs, overwrite=overwrite)
    comparison_counts = {name: sum(one.question == name for one in study.comparisons) for name in study.questions}
    record: dict[str, object] = {
        "page": str(out),
        "study": study.name,
        "variants": list(study.variants.values()),
        "comparisons": comparison_counts,
        "checks": len(study.checks),
        "bytes": out.stat().st_size,
    }
    counts = ", ".join(f"{number} of {name}" for name, number in comparison_counts.items())
    wanted = checks * sum(name in CHECK_MAKERS for name in study.questions)
    if len(study.checks) < wanted:
        few = f"note: {len(study.checks)} attention checks, not {wanted}: the run has no images for more."
        print_remark(f"{few} Fewer tell blind raters from honest ones less surely.")
    text = f"{counts}; {len(study.checks)} of them are attention checks\n{out} ({out.stat().st_size / 1e6:.1f} MB)"
    print_answer(record, text, as_json=as_json, command="study build")


def open_images(files: "Iterable[str]", run: Path) -> "dict[str, Image.Image]":
    """Open images of a run by their files.

    Raises:
        PhotoError: One is missing, is no image, or lies outside the run's folder.
    """
    from PIL import Image

    from sefi.benchmark.samples import contains_file, read_image
    from sefi.core.errors import PhotoError

    images: dict[str, Image.Image] = {}
    for file in files:
        if not contains_file(run, file):
            name = file if file.isprintable() else ascii(file)
            raise PhotoError(f"The run has no image {name}.", "Let `sefi bench run` make it again.")
        images[file] = Image.fromarray(read_image(run / file))
    return images


@app.command("analyse")
def analyse_answers(files: Files, draws: Draws = 2000, seed: options.Seed = 0, as_json: options.AsJson = False) -> None:
    """Compute shares, Bradley-Terry strengths and agreement of the raters from the files that the page saved."""
    from sefi.cli.output import print_answer
    from sefi.user_study.preference import analyse_study
    from sefi.user_study.study import read_answer_files

    result = analyse_study(read_answer_files(files), draws, seed)
    print_answer(describe_result(result), format_result(result), as_json=as_json, command="study analyse")


def describe_result(result: "StudyResult") -> dict[str, object]:
    """Return the outcome as plain values; what is not known is null."""
    return {
        "study": result.study,
        "raters": len(result.raters),
        "left_out": len(result.excluded),
        "excluded": [{"rater": rater, "reason": reason} for rater, reason in result.excluded.items()],
        "questions": {name: describe_preference(one) for name, one in result.questions.items()},
    }


def describe_preference(one: "Preference") -> dict[str, object]:
    """Return one question's outcome as plain values."""
    return {
        "answers": one.answers,
        "seconds": one.seconds,
        "resampled": one.resampled,
        "alpha": one.alpha,
        "shares": describe_intervals(one.shares),
        "strengths": describe_intervals(one.strengths),
    }


def describe_intervals(by_variant: "Mapping[str, Interval]") -> dict[str, dict[str, float | None]]:
    """Return values with their 95 % intervals as plain numbers."""
    return {
        variant: {"value": x.mean, "low": replace_nan(x.low), "high": replace_nan(x.high), "n": x.n}
        for variant, x in by_variant.items()
    }


def replace_nan(value: float) -> float | None:
    """Return None for a number that is not known, since JSON has no nan."""
    return None if math.isnan(value) else value


def format_result(result: "StudyResult") -> str:
    """Return the outcome for people."""
    from sefi.benchmark.statistics import FEWEST_TO_TELL

    raters = "1 rater" if len(result.raters) == 1 else f"{len(result.raters)} raters"
    head = f"study {result.study}: {raters}" + (f"; {len(result.excluded)} left out" if result.excluded else "")
    reasons = [f"  {rater}: {reason}" for rater, reason in result.excluded.items()]
    lines = [head, *reasons]
    lines += [line for name, one in result.questions.items() for line in format_preference(name, one)]
    if 1 < len(result.raters) < FEWEST_TO_TELL:
        lines += ["", f"Intervals of fewer than {FEWEST_TO_TELL} raters are too narrow."]
    return "\n".join(lines)


def format_preference(name: str, one: "Preference") -> list[str]:
    """Return one question: a head line and a line for every variant, the most chosen first."""
    agreement = "no agreement can be computed" if one.alpha is None else f"agreement (alpha) {one.alpha:.2f}"
    resampled = next(iter(one.shares.values())).n
    head = f"{name}: {one.answers} answers, {one.seconds:.1f} s each; {agreement}; "
    head += f"intervals over {resampled} {one.resampled if resampled > 1 else one.resampled.removesuffix('s')}"
    width = max(map(len, one.shares))
    variants = sorted(one.shares, key=lambda variant: -one.shares[variant].mean)
    rows = [
        f"  {label:<{width}}  share {format_interval(one.shares[label])}"
        f"  strength {format_interval(one.strengths[label], '+')}"
        for label in variants
    ]
    return ["", head, *rows]


def format_interval(one: "Interval", sign: str = "") -> str:
    """Return a value and its interval.

    >>> from sefi.benchmark.statistics import Interval
    >>> format_interval(Interval(0.5, 0.25, 0.75, 3))
    '0.50 [0.25, 0.75]'
    """
    if math.isnan(one.low):
        return f"{one.mean:{sign}.2f} [unknown]"
    return f"{one.mean:{sign}.2f} [{one.low:{sign}.2f}, {one.high:{sign}.2f}]"
