"""`sefi bench`: compare variants of learning a subject, image by image, and report them on one page."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from sefi.benchmark.run import OpenRun

app = typer.Typer(no_args_is_help=True, help="Compare variants to learn a subject; report it on one page.")

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A bundled suite (`sefi bench list`) or a TOML file.")]
RunFolderName = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; naming it again goes on with it.")]
Photos = Annotated[
    Path | None, typer.Option("--photos", metavar="DIR", help="Photographs, or a folder of them for every person.")
]
Recogniser = Annotated[
    Path | None,
    typer.Option("--recogniser", metavar="FILE", help="An SFace ONNX file; OpenCV's is fetched by --download."),
]
Clip = Annotated[Path | None, typer.Option("--clip", metavar="DIR", help="Folder of a CLIP model (safetensors).")]
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
Subjects = Annotated[int | None, typer.Option("--subjects", min=1, max=10_000, help="Another number of drawings.")]
ReportFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the page goes; else RUN/report.")
]


@app.command("list")
def list_suites(as_json: options.AsJson = False) -> None:
    """Name the bundled suites."""
    from sefi.benchmark.suite import list_bundled
    from sefi.cli.output import print_answer

    suites = list_bundled()
    text = "\n".join(f"{name:14} {about}" for name, about in suites.items())
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
    evaluators: options.Evaluators = None,
    tau: Tau = None,
    far_threshold: FarThreshold = None,
    jobs: Jobs = 1,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Make and score every image of a SUITE; kill it at any time, the same command goes on."""
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
        chosen, out, model, photos, detector, recogniser, clip, evaluators, download, device, dtype
    )
    with TerminalProgress() as progress:
        run = open_run(bench_options, progress)
        with run.folder.lock() as lock:
            run.folder.begin(collect_run_info(bench_options, run, Thresholds(tau, far_threshold)))
            made = make_missing(partial(open_run, bench_options), run, jobs, lock)
    record: dict[str, object] = {"run": str(out), "made": made, "images": len(run.folder.read_samples())}
    text = f"{made} images made, {record['images']} in '{out}'\nnext: sefi bench report {out}"
    print_answer(record, text, as_json=as_json, command="bench run")


def make_missing(open_again: "Callable[[], OpenRun]", run: "OpenRun", jobs: int, lock: int) -> int:
    """Make what is missing; Ctrl-C says how far the run is."""
    from sefi.benchmark.plan import measure_completeness
    from sefi.benchmark.workers import run_shared
    from sefi.core.errors import Interrupted

    try:
        return run_shared(open_again, run, jobs, lock)
    except KeyboardInterrupt:
        completeness = measure_completeness(run.folder.read_info(), run.folder.read_samples())
        problem = f"Interrupted: {completeness.made} of {completeness.planned} images are in '{run.folder.path}'."
        raise Interrupted(problem, "Run the same command again.") from None


@app.command("report")
def report_bench(
    run_folder: RunFolderName,
    out: ReportFolder = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write one page, CSV and JSON of a RUN, finished or not; an earlier report in RUN/report is replaced."""
    from sefi.benchmark.plan import measure_completeness
    from sefi.benchmark.run import RunFolder
    from sefi.benchmark.table_files import format_tables_csv, format_tables_json
    from sefi.cli.output import print_answer
    from sefi.core.errors import ConfigError
    from sefi.core.files import FileKind, make_text_writer, prepare_folder
    from sefi.core.own_files import OwnFiles
    from sefi.report.attention_figure import draw_attention
    from sefi.report.bench_page import render_bench_page

    folder = RunFolder(run_folder)
    info, samples = folder.read_info(), folder.read_samples()
    if not samples:
        raise ConfigError(f"{run_folder} has no images yet.", "Run `sefi bench run` first.")
    kinds = {"index.html": FileKind.HTML, "tables.csv": FileKind.TEXT, "tables.json": FileKind.JSON}
    inputs = (folder.info_file, folder.samples_file)
    report_folder = prepare_folder(out or folder.report)
    own_files = OwnFiles(report_folder, kinds, inputs=inputs, overwrite=overwrite, renew=out is None)
    own_files.check()
    draw_attention(samples, run_folder)
    texts = {
        "index.html": render_bench_page(info, samples, run_folder),
        "tables.csv": format_tables_csv(samples, info),
        "tables.json": format_tables_json(samples, info),
    }
    files = [str(own_files.write(name, make_text_writer(text))) for name, text in texts.items()]
    completeness = measure_completeness(info, samples)
    record: dict[str, object] = {
        "files": files,
        "images": len(samples),
        "planned": completeness.planned,
        "finished": completeness.finished,
    }
    print_answer(
        record, "\n".join(filter(None, [completeness.banner, *files])), as_json=as_json, command="bench report"
    )
