"""`sefi bench`: compare variants of learning a subject, image by image, and report them on one page."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sefi.benchmark.records import RunInfo, Sample
    from sefi.benchmark.run import OpenRun, RunFolder
    from sefi.benchmark.workers import RunOutcome
    from sefi.core.own_files import OwnFiles

NOT_FINISHED = 1
MOST_SHOWN = 20  # failures in the answer for people

app = typer.Typer(no_args_is_help=True, help="Compare variants to learn a subject; report it on one page.")

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A bundled suite (`sefi bench list`) or a TOML file.")]
RunFolderName = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; an existing run is resumed.")]
Photos = Annotated[
    Path | None, typer.Option("--photos", metavar="DIR", help="Photographs, or a folder of them for every person.")
]
Recogniser = Annotated[
    Path | None,
    typer.Option("--recogniser", metavar="FILE", help="An SFace ONNX file; OpenCV's is fetched by --download."),
]
Clip = Annotated[Path | None, typer.Option("--clip", metavar="DIR", help="Folder of a CLIP model (safetensors).")]
Dino = Annotated[Path | None, typer.Option("--dino", metavar="DIR", help="Folder of a DINOv2 model (safetensors).")]
Tau = Annotated[
    float | None, typer.Option("--tau", min=-1, max=1, help="Prompt score from which likeness counts in ID(Prompt).")
]
FarThreshold = Annotated[
    float | None,
    typer.Option(
        "--far-threshold", min=-1, max=1, help="Likeness that passes as the same person, for your recogniser."
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes that share the work.")]
Subjects = Annotated[
    int | None,
    typer.Option("--subjects", min=1, max=10_000, help="How many drawn subjects, instead of the suite's number."),
]
ReportFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the page goes; else RUN/report.")
]


@app.command("list")
def list_suites(as_json: options.AsJson = False) -> None:
    """Name the bundled suites."""
    from sefi.benchmark.suite import list_bundled
    from sefi.cli.output import print_answer

    suites = list_bundled()
    width = max(map(len, suites))
    text = "\n".join(f"{name:{width}} {about}" for name, about in suites.items())
    print_answer({"suites": suites}, text, as_json=as_json, command="bench list")


@app.command("run")
def run_bench(
    suite: SuiteName,
    out: Out = Path("runs/bench"),
    subjects: Subjects = None,
    settings: options.Settings = None,
    model: options.Model = options.EMBEDDED,
    photos: Photos = None,
    detector: options.Detector = None,
    recogniser: Recogniser = None,
    clip: Clip = None,
    dino: Dino = None,
    evaluators: options.Evaluators = None,
    tau: Tau = None,
    far_threshold: FarThreshold = None,
    jobs: Jobs = 1,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    no_mark: options.NoMark = False,
    as_json: options.AsJson = False,
) -> None:
    """Make and score each image of a SUITE; kill it at any time, the same command goes on. Exit code 1 if one fails."""
    from sefi.benchmark.plan import measure_completeness
    from sefi.benchmark.suite import open_suite
    from sefi.cli.bench_setup import BenchOptions, Thresholds, check_run_folder, collect_run_info, open_run
    from sefi.cli.output import print_answer
    from sefi.cli.progress import TerminalProgress

    chosen = open_suite(suite)
    if subjects is not None and photos is None:
        chosen = chosen.model_copy(update={"subjects": subjects})
    chosen = chosen.add_settings(settings or [])
    check_run_folder(out, photos)
    bench_options = BenchOptions(
        chosen, out, model, photos, detector, recogniser, clip, evaluators, download, device, dtype, dino, not no_mark
    )
    with TerminalProgress() as progress:
        run = open_run(bench_options, progress)
        with run.folder.lock() as lock:
            run.folder.begin(collect_run_info(bench_options, run, Thresholds(tau, far_threshold)))
            outcome = make_missing(partial(open_run, bench_options), run, jobs, lock)
    samples = run.folder.read_samples()
    completeness = measure_completeness(run.folder.read_info(), samples)
    record: dict[str, object] = {"run": str(out), "made": outcome.made, "images": len(samples)}
    record |= {"planned": completeness.planned, "failed": describe_unit_failures(outcome), "mark": not no_mark}
    of_all = "" if completeness.finished else f" of {completeness.planned}"
    lines = [f"{outcome.made} images made, {len(samples)}{of_all} in '{out}'", *format_unit_failures(outcome)]
    print_answer(record, "\n".join([*lines, f"next: sefi bench report {out}"]), as_json=as_json, command="bench run")
    if outcome.failures:
        raise typer.Exit(NOT_FINISHED)


def describe_unit_failures(outcome: "RunOutcome") -> list[dict[str, str]]:
    """Return why images are missing, for JSON."""
    return [
        {"subject": one.subject, "variant": one.variant, "problem": one.problem, "try": one.remedy}
        for one in outcome.failures
    ]


def format_unit_failures(outcome: "RunOutcome") -> list[str]:
    """Return why images are missing and what to do, a line each; nothing where none is."""
    from sefi.benchmark.workers import format_place

    if not outcome.failures:
        return []
    shown, rest = outcome.failures[:MOST_SHOWN], len(outcome.failures) - MOST_SHOWN
    lines = [f"not made: {format_place(one)}: {one.problem} {one.remedy}" for one in shown]
    more = [f"... {rest} more: --json has all"] if rest > 0 else []
    return [*lines, *more, "The same command tries again what is missing, and nothing else."]


def make_missing(open_again: "Callable[[], OpenRun]", run: "OpenRun", jobs: int, lock: int) -> "RunOutcome":
    """Make what is missing, as far as it can be; Ctrl-C and SIGTERM say how far the run is."""
    from sefi.benchmark.plan import measure_completeness
    from sefi.benchmark.workers import run_shared
    from sefi.cli.output import print_remark
    from sefi.core.errors import make_interrupted

    try:
        return run_shared(open_again, run, jobs, lock, lambda text: print_remark(f"note: {text}"))
    except KeyboardInterrupt as stop:
        completeness = measure_completeness(run.folder.read_info(), run.folder.read_samples())
        problem = f"Interrupted: {completeness.made} of {completeness.planned} images are in '{run.folder.path}'."
        raise make_interrupted(stop, problem, "Run the same command again.") from None


@app.command("report")
def report_bench(
    run_folder: RunFolderName,
    out: ReportFolder = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a page and tables (CSV, JSON, LaTeX, Every Eval Ever) of a RUN; one in RUN/report is replaced."""
    from sefi.benchmark.plan import describe_unequal_cases, explain_unequal_cases, measure_completeness
    from sefi.benchmark.run import RunFolder
    from sefi.cli.output import print_answer

    folder = RunFolder(run_folder)
    info, samples = read_run(folder)
    files = write_report(folder, info, samples, out, overwrite=overwrite)
    completeness = measure_completeness(info, samples)
    record: dict[str, object] = {
        "files": files,
        "images": len(samples),
        "planned": completeness.planned,
        "finished": completeness.finished,
        "not_comparable": describe_unequal_cases(info),
    }
    lines = [completeness.banner, *explain_unequal_cases(info), *files]
    print_answer(record, "\n".join(filter(None, lines)), as_json=as_json, command="bench report")


@app.command("publish")
def publish_bench(
    run_folder: RunFolderName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the card and the tables.")],
    title: Annotated[str | None, typer.Option("--title", help="The card's; else the suite's name.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Also upload the folder to this data set.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may see what --push uploads.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a data set's card, tables and scores of a RUN into a folder; nothing is uploaded without --push."""
    from sefi.benchmark.run import RunFolder
    from sefi.benchmark.table_files import format_card_text, format_samples
    from sefi.cli.output import print_answer
    from sefi.core.errors import ConfigError
    from sefi.core.files import prepare_folder
    from sefi.identity.hub import make_dataset_card, upload_dataset
    from sefi.report.bench_page import list_conventions, list_limits

    if public and push is None:
        raise ConfigError("--public says who may see an upload.", "Name the data set with --push OWNER/NAME.")
    folder = RunFolder(run_folder)
    info, samples = read_run(folder)
    heading = " ".join((title or f"Results of the suite {info.suite.name}").split())
    sentences = [*list_conventions(info), *list_limits(samples)]
    texts = {
        "README.md": make_dataset_card(heading, format_card_text(samples, info, sentences)),
        "samples.jsonl": format_samples(samples),
        **format_tables(folder, info, samples),
    }
    own_files = open_own_files(folder, prepare_folder(out), texts, overwrite=overwrite, renew=True)
    files = write_texts(own_files, texts)
    address = None if push is None else upload_dataset(out, list(texts), push, private=not public)
    record: dict[str, object] = {"files": files, "images": len(samples), "pushed": address}
    print_answer(record, "\n".join([*files, *filter(None, [address])]), as_json=as_json, command="bench publish")


def read_run(folder: "RunFolder") -> "tuple[RunInfo, list[Sample]]":
    """Return what a run is and its images.

    Raises:
        ConfigError: it has none yet, or is no run.
    """
    from sefi.core.errors import ConfigError

    info, samples = folder.read_info(), folder.read_samples()
    if not samples:
        raise ConfigError(f"{folder.path} has no images yet.", "Run `sefi bench run` first.")
    return info, samples


def write_report(
    folder: "RunFolder", info: "RunInfo", samples: "Sequence[Sample]", out: Path | None, *, overwrite: bool
) -> list[str]:
    """Write page and tables of a run, and return the files; where they may not be written, nothing is drawn.

    Args:
        folder: the run's.
        out: where they go; None is the run's own folder, where earlier ones are replaced.
        overwrite: replace those in another folder too.
    """
    from sefi.core.files import prepare_folder
    from sefi.report.attention_figure import draw_attention
    from sefi.report.bench_page import render_bench_page

    folder.check_places()
    tables = format_tables(folder, info, samples)
    names = ["index.html", *tables]
    own_files = open_own_files(
        folder, prepare_folder(out or folder.report), names, overwrite=overwrite, renew=out is None
    )
    draw_attention(samples, folder.path)
    return write_texts(own_files, {"index.html": render_bench_page(info, samples, folder.path), **tables})


def open_own_files(
    folder: "RunFolder", out: Path, names: "Iterable[str]", *, overwrite: bool, renew: bool
) -> "OwnFiles":
    """Return the files of texts on a run in a folder, whose other files stay; refuse those that may not be written.

    Args:
        renew: replace what an earlier call wrote and nobody changed.
    """
    from sefi.core.files import FileKind
    from sefi.core.own_files import OwnFiles

    suffixes = {".html": FileKind.HTML, ".json": FileKind.JSON, ".jsonl": FileKind.JSON}
    kinds = {name: suffixes.get(Path(name).suffix, FileKind.TEXT) for name in names}
    inputs = (folder.info_file, folder.samples_file)
    own_files = OwnFiles(out, kinds, inputs=inputs, overwrite=overwrite, renew=renew)
    own_files.check()
    return own_files


def write_texts(own_files: "OwnFiles", texts: "Mapping[str, str]") -> list[str]:
    """Write texts by the names of their files, and return the files."""
    from sefi.core.files import make_text_writer

    return [str(own_files.write(name, make_text_writer(text))) for name, text in texts.items()]


def format_tables(folder: "RunFolder", info: "RunInfo", samples: "Sequence[Sample]") -> dict[str, str]:
    """Return the tables of a run in every format, by the names of their files."""
    from sefi.benchmark.table_files import (
        format_every_eval_ever,
        format_latex,
        format_tables_csv,
        format_tables_json,
    )
    from sefi.benchmark.tables import make_table

    seconds = int(folder.samples_file.stat().st_mtime)  # when it was made: writing it again changes nothing
    evaluations = format_every_eval_ever(samples, info, seconds)
    return {
        "tables.csv": format_tables_csv(samples, info),
        "tables.json": format_tables_json(samples, info),
        "tables.tex": format_latex(make_table(samples, info)),
        **{f"every-eval-ever-{name}": text for name, text in evaluations.items()},
    }
