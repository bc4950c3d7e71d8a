"""`sefi batch`: a folder of photos to a folder of identities, overnight."""

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options

if TYPE_CHECKING:
    from sefi.batch.plan import BatchItem, BatchPlan, BatchSettings, ItemProblem, ModelSource
    from sefi.batch.run import Standing, WorkQueue
    from sefi.cli.loading import ModelOptions
    from sefi.core.own_files import OwnFiles
    from sefi.report.pages import BatchContent, BatchEntry

PAGE, FAILURES = "index.html", "failures.csv"
PAGE_LOCK = ".index.html.lock"  # by its stem alone it would be the lock of whoever is called index
MOST_PREVIEWS = 400  # on the page; each takes some 20 KB of it
NOT_LEARNED = 1


class Engine(StrEnum):
    """Who does the work."""

    AUTO = "auto"
    IN_PROCESS = "in-process"
    PROCESSES = "processes"
    RAY = "ray"


Photos = Annotated[
    Path,
    typer.Argument(metavar="PHOTOS", help="A folder; each photo, or each subfolder of photos, is one subject."),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder of identities.")]
Table = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A CSV table instead: columns name, photo; optional class_word, consent, seed, face. Several photos: "
        "separate them with ; or use several rows.",
    ),
]
ClassWord = Annotated[
    str | None, typer.Option("--class-word", help="Class word for rows that state none: person, dog ...")
]
ConsentText = Annotated[
    str | None,
    typer.Option(
        "--consent",
        metavar="TEXT",
        help='Consent for rows that state none: "by=Jane Doe; for=permission; scope=calendar".',
    ),
]
NoCrop = Annotated[bool, typer.Option("--no-crop", help="Use each photo's middle square, face or not.")]
AnyStyle = Annotated[
    bool, typer.Option("--any-style", help="Learn photographs on the embedded model, or drawings on another.")
]
Preview = Annotated[
    str, typer.Option("--preview", metavar="PROMPT", help="What each preview shows; {} is the subject.")
]
NoPreviews = Annotated[bool, typer.Option("--no-previews", help="Make no previews.")]
EngineName = Annotated[
    Engine, typer.Option("--engine", help="Who does the work; auto: one process, or --jobs processes.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Address of a Ray cluster, or auto; else one is started on this machine alone."),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, max=1024, help="Workers, each with its own model; GPUs are assigned in turn."),
]
Tries = Annotated[int, typer.Option("--tries", min=1, max=100, help="Tries of a subject before it is put aside.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try again what was put aside or refused.")]


def run_batch(
    photos: Photos,
    out: Out = Path("identities"),
    table: Table = None,
    model: options.Model = options.EMBEDDED,
    method: options.MethodName = None,
    preset: options.MethodPreset = None,
    class_word: ClassWord = None,
    steps: options.LearningSteps = None,
    settings: options.Settings = None,
    consent: ConsentText = None,
    seed: options.Seed = 0,
    detector: options.Detector = None,
    evaluators: options.Evaluators = None,
    no_crop: NoCrop = False,
    any_style: AnyStyle = False,
    preview: Preview = "a photo of {}",
    no_previews: NoPreviews = False,
    engine: EngineName = Engine.AUTO,
    address: Address = None,
    jobs: Jobs = None,
    tries: Tries = 3,
    retry: Retry = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    no_mark: options.NoMark = False,
    as_json: options.AsJson = False,
) -> None:
    """Learn everybody in a folder of photos; the same command goes on after a kill. Exit code 1 if anybody fails."""
    from sefi.batch.plan import BatchSettings
    from sefi.cli import loading
    from sefi.cli.learn import prepare_method
    from sefi.cli.output import print_answer
    from sefi.core.own_files import hold_output_lock

    started = time.monotonic()
    overrides = [*(settings or []), *loading.format_settings(learn__steps=steps, learn__class_word=class_word)]
    chosen = loading.choose_preset(method, preset)
    config = loading.load_config(chosen, overrides)
    check_batch_options(detector, evaluators, consent, preview)
    engine = choose_engine(engine, jobs, address)
    source = make_model_source(prepare_method(config, loading.ModelOptions(model, download, device, dtype), evaluators))
    shown, crop, mark = None if no_previews else preview, not no_crop, not no_mark
    same = seed, consent, evaluators, detector, any_style, crop, shown, mark, tries
    batch = BatchSettings(photos, out, source, config, chosen, *same)
    check_batch_folders(photos, out)
    if table is None:  # rows may have other class words: each is checked with its own
        from sefi.api import check_learning_settings  # late: it loads torch

        check_learning_settings(config)
    with hold_output_lock(out / PAGE, out / PAGE_LOCK):
        list_own_pages(out).check()
        plan, standing, failed = learn_all(batch, table, engine, jobs, address, retry=retry)
        write_batch_pages(plan, batch, failed)
    record = describe_batch(batch, plan, standing, failed)
    record |= {"engine": engine.value, "jobs": jobs or 1, "seconds": round(time.monotonic() - started, 1)}
    text = format_batch(record, failed, worked=bool(standing.pending))
    print_answer(record, text, as_json=as_json, command="batch")
    if failed:
        raise typer.Exit(NOT_LEARNED)


def describe_batch(
    batch: "BatchSettings", plan: "BatchPlan", standing: "Standing", failed: "Sequence[ItemProblem]"
) -> dict[str, object]:
    """Return what was learned, what was there, and what failed, for JSON."""
    return {
        "folder": str(batch.folder),
        "learned": sorted({one.name for one in standing.pending} - {one.name for one in failed}),
        "finished": sorted(one.name for one in standing.finished),
        "failed": [describe_failed(one) for one in failed],
        "ignored": list(plan.ignored),
        "page": str(batch.folder / PAGE),
        "failures": str(batch.folder / FAILURES),
    }


def check_batch_options(detector: Path | None, evaluators: Path | None, consent: str | None, preview: str) -> None:
    """Refuse networks that are not there, a consent that cannot be read, and previews without the subject.

    Raises:
        FaceError, ConfigError, PromptError: what is wrong.
    """
    from sefi.cli.learn import check_consent_text
    from sefi.cli.loading import check_detector, check_evaluators
    from sefi.core.errors import PromptError
    from sefi.core.prompts import check_prompts

    check_detector(detector)
    check_evaluators(evaluators)
    check_consent_text(consent)
    if "{}" not in preview:
        raise PromptError(f"The preview {preview!r} does not show the subject.", "Write {} where it is.")
    check_prompts([preview.replace("{}", "<subject>")], {"subject": "person"})


def check_batch_folders(photos: Path, out: Path) -> None:
    """Refuse to write identities among the photos, or where nothing can be written; make the folders.

    Raises:
        OutputError: as above, or a folder of its own is a link out of it.
        PhotoError: there is no folder of photos.
    """
    from sefi.batch.plan import NO_PHOTOS, PREVIEWS
    from sefi.core.errors import OutputError, PhotoError
    from sefi.core.files import check_link, describe_missing_folder, is_folder, prepare_folder
    from sefi.core.reading import is_inside
    from sefi.provenance.forget_records import BATCH_RECORDS

    if not is_folder(photos):
        raise PhotoError(describe_missing_folder(photos), NO_PHOTOS)
    if is_inside(out, photos):
        raise OutputError(f"'{out}' is in the folder of photos.", "Choose another folder with -o.")
    prepare_folder(out)
    for folder in (out / PREVIEWS, out / BATCH_RECORDS):
        check_link(folder)
        prepare_folder(folder)


def choose_engine(engine: Engine, jobs: int | None, address: str | None) -> Engine:
    """Return who does the work; refuse options that contradict each other with `ConfigError`."""
    from sefi.core.errors import ConfigError

    if address is not None and engine is not Engine.RAY:
        raise ConfigError("--address is of a Ray cluster.", "Add --engine ray.")
    if engine is Engine.IN_PROCESS and (jobs or 1) > 1:
        raise ConfigError("One process has one job.", "Leave out --engine, or --jobs.")
    if engine is Engine.AUTO:
        return Engine.PROCESSES if (jobs or 1) > 1 else Engine.IN_PROCESS
    return engine


def make_model_source(model_options: "ModelOptions") -> "ModelSource":
    """Return the model as workers open it."""
    from sefi.batch.plan import ModelSource
    from sefi.cli.loading import choose_device

    device = choose_device() if model_options.device == "auto" else model_options.device
    name = model_options.name
    return ModelSource(name, name == options.EMBEDDED, model_options.download, device, model_options.dtype)


def learn_all(
    batch: "BatchSettings", table: Path | None, engine: Engine, jobs: int | None, address: str | None, *, retry: bool
) -> "tuple[BatchPlan, Standing, list[ItemProblem]]":
    """Learn what is not finished; return the plan, how its items stood before, and what is not learned.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; it says how far the batch is.
    """
    from sefi.batch.plan import make_plan
    from sefi.batch.run import WorkQueue, begin_batch, list_problems, sort_items
    from sefi.cli.progress import TerminalProgress
    from sefi.core.errors import Interrupted, make_interrupted

    with TerminalProgress() as progress:
        plan = make_plan(batch, table, progress)
        check_consent_of_anybody(plan)
        standing = begin_batch(plan.items, batch, retry=retry)
        try:
            if standing.pending:
                progress.start(len(standing.pending), "learning")
                run_engine(WorkQueue(standing.pending, batch, progress), engine, jobs, address)
                progress.finish()
        except (KeyboardInterrupt, Interrupted) as stop:
            done = len(sort_items(plan.items, batch).finished)
            problem = f"Interrupted: {done} of {len(plan.items)} identities are in '{batch.folder}'."
            words = problem, "Run the same command again."
            raise (type(stop)(*words) if isinstance(stop, Interrupted) else make_interrupted(stop, *words)) from None
    return plan, standing, [*plan.problems, *list_problems(plan.items, batch)]


def check_consent_of_anybody(plan: "BatchPlan") -> None:
    """Refuse a batch in which nobody can be learned, with the first reason: a consent that all lack, for one."""
    from sefi.core.errors import ConfigError

    if not plan.items:
        first = plan.problems[0]
        raise ConfigError(f"None of {len(plan.problems)} can be learned; {first.name!r}: {first.problem}", first.remedy)


def run_engine(queue: "WorkQueue", engine: Engine, jobs: int | None, address: str | None) -> None:
    """Let an engine learn what waits in a queue."""
    from sefi.batch.run import assign_devices, learn_alone, load_model
    from sefi.cli.output import print_remark
    from sefi.core.process import count_usable_cores

    def note(text: str) -> None:
        print_remark(f"note: {text}")

    model = queue.settings.model
    if engine is Engine.RAY:
        from sefi.batch.ray_engine import learn_on_ray

        learn_on_ray(queue, address, jobs, note)
    elif engine is Engine.PROCESSES:
        from sefi.batch.workers import learn_in_processes

        count = jobs or 1
        learn_in_processes(queue, assign_devices(model.device, count), max(1, count_usable_cores() // count), note)
    else:
        learn_alone(queue, load_model(model))


def list_own_pages(folder: Path) -> "OwnFiles":
    """Return the page and the table of failures as files that a batch may write again."""
    from sefi.core.files import FileKind
    from sefi.core.own_files import OwnFiles

    return OwnFiles(folder, {PAGE: FileKind.HTML, FAILURES: FileKind.TEXT})


def write_batch_pages(plan: "BatchPlan", batch: "BatchSettings", failed: "Sequence[ItemProblem]") -> None:
    """Write the page and the table of failures, where they are not there already."""
    from sefi.batch.plan import format_failures
    from sefi.core.files import make_text_writer
    from sefi.report.pages import render_batch_page

    texts = {
        PAGE: render_batch_page(collect_batch_content(plan.items, batch, failed)),
        FAILURES: format_failures(failed),
    }
    files = list_own_pages(batch.folder)
    for name, text in texts.items():
        path = batch.folder / name
        if not (path.is_file() and path.read_bytes() == text.encode()):
            files.write(name, make_text_writer(text))


def collect_batch_content(
    items: "Sequence[BatchItem]", batch: "BatchSettings", failed: "Sequence[ItemProblem]"
) -> "BatchContent":
    """Return everything that the page shows."""
    from sefi.report.pages import BatchContent

    names = {one.name for one in failed}
    learned = sorted((item for item in items if item.name not in names), key=lambda item: item.name)
    entries = [make_batch_entry(item, batch, shown=number < MOST_PREVIEWS) for number, item in enumerate(learned)]
    learn = batch.config.learn
    facts = {"model": Path(batch.model.name).name, "method": batch.config.method, "preset": batch.preset}
    facts |= {"steps": str(learn.steps), "class word": learn.class_word}
    failures = sorted((one.name, "; ".join(one.photos), one.problem, one.remedy) for one in failed)
    return BatchContent(entries, failures, facts, batch.mark)


def make_batch_entry(item: "BatchItem", batch: "BatchSettings", *, shown: bool) -> "BatchEntry":
    """Return a learned subject as the page shows it."""
    from PIL import Image

    from sefi.batch.plan import locate_preview, read_item_record
    from sefi.report.pages import BatchEntry

    record = read_item_record(batch.folder, item.name)
    assert record is not None
    preview = None
    path = locate_preview(batch.folder, item.name)
    if shown and batch.preview is not None and path.is_file():
        with Image.open(path, formats=("PNG",)) as image:
            preview = image.convert("RGB")
    facts = {"seed": str(item.seed), "seconds": f"{record.seconds:.0f}", "photos": str(len(item.photos))}
    return BatchEntry(item.name, preview, facts, record.remarks, record.identity)


def describe_failed(one: "ItemProblem") -> dict[str, object]:
    """Return why an item is not learned, for JSON."""
    return {
        "name": one.name,
        "photos": list(one.photos),
        "problem": one.problem,
        "try": one.remedy,
        "tries": one.tries,
        "put_aside": one.put_aside,
    }


def format_batch(record: dict[str, object], failed: "Sequence[ItemProblem]", *, worked: bool) -> str:
    """Return what was learned, what was there, and what failed, as a text.

    Args:
        worked: somebody waited to be learned, whether or not that ended well.
    """
    from sefi.batch.plan import describe_deep_folders
    from sefi.core.files import describe_unread

    learned, finished = record["learned"], record["finished"]
    assert isinstance(learned, list)
    assert isinstance(finished, list)
    done = f"learned {len(learned)}, {len(finished)} were there"
    if not worked:
        done = f"nothing to do: {len(finished)} are there"
    lines = [f"{done}: {record['page']}"]
    ignored = record["ignored"]
    assert isinstance(ignored, list)
    if left_out := describe_unread(ignored) + describe_deep_folders(ignored):
        lines.append(f"left out{left_out}")
    lines += [f"not learned: {one.name or ', '.join(one.photos)}: {one.problem}" for one in failed[:20]]
    lines += [f"... {len(failed) - 20} more" for _ in failed[20:21]]
    return "\n".join([*lines, *([f"all of them: {record['failures']}"] if failed else [])])
