"""`sefi bench`: compare ways to learn a subject, picture by picture, and tell it on one page."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from sefi.bench.opened import Bench

app = typer.Typer(no_args_is_help=True, help="Compare ways to learn a subject; report it on one page.")

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A bundled suite (`sefi bench list`) or a TOML file.")]
RunFolderName = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; naming it again goes on with it.")]
Photos = Annotated[
    Path | None, typer.Option("--photos", metavar="DIR", help="Photographs, or a folder of them for every person.")
]
Recogniser = Annotated[Path | None, typer.Option("--recogniser", metavar="FILE", help="An SFace ONNX file.")]
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
Subjects = Annotated[int | None, typer.Option("--subjects", min=1, help="Another number of drawn subjects.")]
ReportFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the page goes; else RUN/report.")
]


@app.command("list")
def list_suites(as_json: options.AsJson = False) -> None:
    """Name the bundled suites."""
    from sefi.bench.suite import bundled
    from sefi.cli.output import answer

    found = bundled()
    text = "\n".join(f"{name:14} {about}" for name, about in found.items())
    answer({"suites": found}, text, as_json=as_json, command="bench list")


@app.command("run")
def run(
    suite: SuiteName,
    out: Out = Path("runs/bench"),
    subjects: Subjects = None,
    settings: options.Settings = None,
    model: options.Model = options.EMBEDDED,
    photos: Photos = None,
    detector: options.Detector = None,
    recogniser: Recogniser = None,
    clip: Clip = None,
    judges: options.Judges = None,
    tau: Tau = None,
    far_threshold: FarThreshold = None,
    jobs: Jobs = 1,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Make and score every picture of a SUITE; kill it at any time, the same command goes on."""
    from sefi.bench.suite import open_suite
    from sefi.cli.benching import Asked, Thresholds, check_run_folder, description, open_bench
    from sefi.cli.output import answer
    from sefi.cli.progress import TerminalProgress

    chosen = open_suite(suite)
    if subjects is not None and photos is None:
        chosen = chosen.model_copy(update={"subjects": subjects})
    chosen = chosen.with_settings(settings or [])
    folder = check_run_folder(out, photos)
    asked = Asked(chosen, folder, model, photos, detector, recogniser, clip, judges, download, device, dtype)
    with TerminalProgress() as progress:
        bench = open_bench(asked, progress)
        with bench.run.alone() as lock:
            bench.run.begin(description(asked, bench, Thresholds(tau, far_threshold)))
            made = all_made(partial(open_bench, asked), bench, jobs, lock)
    record: dict[str, object] = {"run": str(out), "made": made, "pictures": len(bench.run.read_samples())}
    text = f"{made} pictures made, {record['pictures']} in '{out}'\nnext: sefi bench report {out}"
    answer(record, text, as_json=as_json, command="bench run")


def all_made(open_again: "Callable[[], Bench]", bench: "Bench", jobs: int, lock: int) -> int:
    """Make what is missing; Ctrl-C says how far the run is."""
    from sefi.bench.plan import completeness
    from sefi.bench.workers import run_shared
    from sefi.core.errors import Interrupted

    try:
        return run_shared(open_again, bench, jobs, lock)
    except KeyboardInterrupt:
        there = completeness(bench.run.read_info(), bench.run.read_samples())
        problem = f"Interrupted: {there.made} of {there.planned} images are in '{bench.run.path}'."
        raise Interrupted(problem, "Run the same command again.") from None


@app.command("report")
def report(
    run_folder: RunFolderName,
    out: ReportFolder = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write one page, CSV and JSON of a RUN, finished or not; an earlier report in RUN/report is replaced."""
    from sefi.bench.plan import completeness
    from sefi.bench.run_folder import RunFolder
    from sefi.bench.table_files import tables_csv, tables_json
    from sefi.cli.output import answer
    from sefi.core.errors import ConfigError
    from sefi.core.files import Kind, check_folder, make_folder, text_writer
    from sefi.core.own_files import OwnFiles
    from sefi.report.attention_rows import draw_attention
    from sefi.report.bench_page import bench_page

    folder = RunFolder(run_folder)
    info, samples = folder.read_info(), folder.read_samples()
    if not samples:
        raise ConfigError(f"{run_folder} has no pictures yet.", "Run `sefi bench run` first.")
    kinds = {"index.html": Kind.HTML, "tables.csv": Kind.TEXT, "tables.json": Kind.JSON}
    inputs = (folder.info_file, folder.samples_file)
    place = make_folder(check_folder(out or folder.report))
    own = OwnFiles(place, kinds, inputs=inputs, overwrite=overwrite, renew=out is None)
    own.check()
    draw_attention(samples, run_folder)
    texts = {
        "index.html": bench_page(info, samples, run_folder),
        "tables.csv": tables_csv(samples, info),
        "tables.json": tables_json(samples, info),
    }
    files = [str(own.write(name, text_writer(text))) for name, text in texts.items()]
    there = completeness(info, samples)
    record: dict[str, object] = {
        "files": files,
        "pictures": len(samples),
        "planned": there.planned,
        "finished": there.finished,
    }
    answer(record, "\n".join(filter(None, [there.banner, *files])), as_json=as_json, command="bench report")
