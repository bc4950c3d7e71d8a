"""`sefi score`: the evaluators, tables and pages of `sefi bench` for images that any program made."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import bench, options
from sefi.cli.output import print_answer, print_remark
from sefi.core.errors import ConfigError
from sefi.core.prompts import is_person
from sefi.core.text import format_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sefi.benchmark.records import RunInfo
    from sefi.benchmark.run import OpenRun, RunFolder
    from sefi.benchmark.scored_folder import FolderHints, FoundFolder
    from sefi.benchmark.suite import BenchmarkSubject, Suite, SuitePrompt
    from sefi.benchmark.tables import Table
    from sefi.cli.bench_setup import BenchOptions
    from sefi.core.progress import RunProgress
    from sefi.photo.detect import FaceDetector

LARGEST_PROMPTS = 2**20  # bytes of a file of prompts
REFERENCES = {"photo pasted": "photo", "same subject": "same", "other subject": "other"}

Folders = Annotated[
    list[str],
    typer.Argument(metavar="[NAME=]IMAGES", help="Folders of images, or .jsonl lists of them, one for each method."),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option("--subject", metavar="[NAME=]PHOTO", help="A photo of a subject; repeatable, with its name."),
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="The prompts, one a line, if file names are made from them."),
]
ClassWord = Annotated[str, typer.Option("--class-word", metavar="WORD", help="What the subjects are: person, dog ...")]
SubjectWords = Annotated[
    list[str] | None,
    typer.Option("--subject-word", metavar="WORDS", help='Words for the subject in prompts, as "sks person".'),
]
Only = Annotated[str, typer.Option("--only", metavar="PATTERN", help="Subjects whose names match, with * and ?.")]
Drawings = Annotated[
    bool | None,
    typer.Option("--drawings/--photographs", help="What the images are; by default decided from the subjects' photos."),
]
References = Annotated[
    bool, typer.Option("--references", help="Also rows for the photo, another photo and another subject.")
]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; an existing run is resumed.")]


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored and with what; opens the same in every process.

    Attributes:
        folders: of each variant the folder or list of its images.
        photos: of each subject its photos, the first of which is compared with.
        photo_folder: with the photos of all, if one was named.
        subject_folders: with those of one, or the photo itself.
    """

    folders: "Mapping[str, Path]"
    hints: "FolderHints"
    photos: "Mapping[str, list[Path]]"
    drawings: bool | None
    references: bool
    bench: "BenchOptions"
    photo_folder: Path | None = None
    subject_folders: "tuple[Path, ...]" = ()


def run_score(
    images: Folders,
    subject: Subjects = None,
    photos: bench.Photos = None,
    prompts: Prompts = None,
    out: Out = Path("runs/score"),
    class_word: ClassWord = "person",
    subject_word: SubjectWords = None,
    only: Only = "*",
    drawings: Drawings = None,
    references: References = False,
    detector: options.Detector = None,
    recogniser: bench.Recogniser = None,
    clip: bench.Clip = None,
    dino: bench.Dino = None,
    tau: bench.Tau = None,
    far_threshold: bench.FarThreshold = None,
    jobs: bench.Jobs = 1,
    download: options.Download = False,
    as_json: options.AsJson = False,
) -> None:
    """Score IMAGES that any program made of a subject, as `sefi bench` scores its own; write page and tables."""
    from sefi.benchmark.scored_folder import FolderHints
    from sefi.benchmark.tables import make_table
    from sefi.cli.bench_setup import BenchOptions, Thresholds, check_run_folder, collect_run_info
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import is_folder

    folders = {name or Path(os.path.realpath(path)).name: path for name, path in map(split_name, images)}
    if len(folders) < len(images):
        raise ConfigError("Two folders of images have the same name.", "Give each its own name: NAME=IMAGES.")
    for folder in folders.values():
        check_run_folder(out, folder if is_folder(folder) else folder.parent)
    named = list_subject_photos(subject or [], photos)
    hints = FolderHints(tuple(named), read_prompts(prompts), class_word, tuple(subject_word or ()), only)
    suite = make_suite(folders, [], [0], hints, references=references)
    asked = BenchOptions(suite, out, "none", None, detector, recogniser, clip, None, download, "cpu", "float32", dino)
    places = tuple(split_name(text)[1] for text in subject or [])
    score_options = ScoreOptions(folders, hints, named, drawings, references, asked, photos, places)
    with TerminalProgress() as progress:
        run, bench_options, cut = open_scoring(score_options, progress)
        with run.folder.lock() as lock:
            run.folder.begin(collect_run_info(bench_options, run, Thresholds(tau, far_threshold)))
            outcome = bench.make_missing(partial(restore_scoring, score_options), run, jobs, lock)
    info, samples = bench.read_run(run.folder)
    files = bench.write_report(run.folder, info, samples, None, overwrite=False)
    table = make_table(samples, info)
    record = describe_scoring(run, info, bench_options, table, cut) | {"images": len(samples), "files": files}
    record["failed"] = bench.describe_unit_failures(outcome)
    text = "\n".join([*bench.format_unit_failures(outcome), format_scoring(run.folder, info, table, len(samples))])
    print_answer(record, text, as_json=as_json, command="score")
    if outcome.failures:
        raise typer.Exit(bench.NOT_FINISHED)


def split_name(text: str) -> tuple[str, Path]:
    """Return name and path of `NAME=PATH`; no name for a path alone, also for one that has a `=` itself.

    >>> split_name("ada=photos/ada.png")
    ('ada', PosixPath('photos/ada.png'))
    """
    from sefi.core.files import is_there

    name, equals, path = text.partition("=")
    if not equals or is_there(Path(text)) or "/" in name:
        return "", Path(text)
    return name, Path(path)


def list_subject_photos(subjects: "Sequence[str]", photos: Path | None) -> dict[str, list[Path]]:
    """Return the photos of each subject that is named, from `--subject` and `--photos`.

    Raises:
        ConfigError: two have one name.
        PhotoError: there is no such photo, or a folder has none.
    """
    from sefi.benchmark.suite import group_image_files, list_image_files, list_unread_files, make_subject_key
    from sefi.core.errors import PhotoError
    from sefi.core.files import describe_unread, is_folder, is_there

    named = {} if photos is None else group_image_files(photos)
    for text in subjects:
        name, path = split_name(text)
        files = list_image_files(path) if is_folder(path) else [path]
        if not files or not is_there(path):
            unread = describe_unread(list_unread_files(path, inside=False))
            raise PhotoError(
                f"There is no photo '{path}'{unread}.", "Name a photo, or a folder of photos, of the subject."
            )
        key = make_subject_key(name or path.stem)
        if key in named:
            raise ConfigError(f"Two subjects are called {key!r}.", "Write --subject NAME=PHOTO.")
        named[key] = files
    return named


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Return the prompts of a file, one a line; empty lines are left out.

    Raises:
        ConfigError: it cannot be read.
    """
    from sefi.core.reading import read_user_text, translate_file_errors

    if path is None:
        return ()
    with translate_file_errors(f"'{path}'", ConfigError, "is no list of prompts", "Write one prompt a line."):
        lines = [" ".join(line.split()) for line in read_user_text(path, LARGEST_PROMPTS).splitlines()]
    return tuple(dict.fromkeys(line for line in lines if line))


def restore_scoring(score_options: ScoreOptions) -> "OpenRun":
    """Open what is scored again, in another process."""
    return open_scoring(score_options, None)[0]


def open_scoring(
    score_options: ScoreOptions, progress: "RunProgress | None"
) -> "tuple[OpenRun, BenchOptions, list[str]]":
    """Open folders, evaluators and photos; return also the prompts that CLIP cuts, which the first process looks for.

    Raises:
        SefiError: a folder has no known layout, a subject no photo, or a file cannot be read.
    """
    from sefi.cli.loading import import_libraries

    import_libraries()
    from sefi.benchmark.evaluators import Evaluators
    from sefi.benchmark.run import OpenRun, RunFolder
    from sefi.benchmark.scored_folder import (
        assign_images,
        check_names_agree,
        collect_prompts,
        collect_seeds,
        drop_unread_cases,
        find_images,
    )
    from sefi.cli.bench_setup import find_evaluator_files, note_scored
    from sefi.core.progress import SilentProgress

    hints, shown = score_options.hints, progress or SilentProgress()
    found = {label: find_images(path, hints) for label, path in score_options.folders.items()}
    check_names_agree(found.values())
    photos = choose_photos(score_options, list(found.values()))
    bench_options = choose_evaluators(score_options, [files[0] for files in photos.values()])
    drawings = bench_options.is_of_drawings()
    templates, seeds = collect_prompts(found.values()), collect_seeds(list(found.values()))
    prompts = describe_prompts(templates, drawings=drawings)
    suite = make_suite(found, prompts, seeds, hints, references=score_options.references)
    evaluators = Evaluators(find_evaluator_files(bench_options))  # before all images are read
    folders = {label: assign_images(one, templates, seeds, shown) for label, one in found.items()}
    suite, folders, read = drop_unread_cases(suite, folders)
    cut = list[str]()
    if progress is not None:
        note_found(found, drawings=drawings)
        note_unknown_words(find_words_unknown_to_clip(suite.prompts, bench_options))
        cut = note_scored(evaluators, suite, score_options.photo_folder, score_options.subject_folders)
    photos = {subject: files for subject, files in photos.items() if subject in read}
    subjects = load_scored_subjects(photos, evaluators.detector if is_person(hints.class_word) else None)
    run_folder = RunFolder(score_options.bench.out)
    run = OpenRun(suite, subjects, None, evaluators, run_folder, shown, shown.nested(), folders=folders)
    return run, bench_options, cut


def choose_photos(score_options: ScoreOptions, found: "Sequence[FoundFolder]") -> dict[str, list[Path]]:
    """Return the photos of every subject that has images: those that are named, else those in the folders.

    Raises:
        PhotoError: a subject has none.
    """
    from sefi.core.errors import PhotoError

    in_folders = {subject: [photo] for one in found for subject, photo in one.photos.items()}
    photos = in_folders | dict(score_options.photos)
    subjects = dict.fromkeys(image.subject for one in found for image in one.images)
    lacking = [subject for subject in subjects if subject not in photos]
    if lacking:
        raise PhotoError(f"There is no photo of {lacking[0]!r}.", f"Name it: --subject {lacking[0]}=PHOTO.")
    return {subject: photos[subject] for subject in subjects}


def choose_evaluators(score_options: ScoreOptions, photos: "Sequence[Path]") -> "BenchOptions":
    """Return the options that name the evaluators: the embedded model's for drawings, others for photographs."""
    from dataclasses import replace

    from sefi.photo.augment import crop_middle
    from sefi.photo.read import CLASSIFIER_RESOLUTION, read_photo, score_photograph

    drawings = score_options.drawings
    if drawings is None:
        drawings = all(score_photograph(crop_middle(read_photo(one), CLASSIFIER_RESOLUTION)) <= 0 for one in photos)
    return replace(score_options.bench, model=options.EMBEDDED if drawings else "none")


def load_scored_subjects(
    photos: "Mapping[str, list[Path]]", detector: "FaceDetector | None"
) -> "tuple[BenchmarkSubject, ...]":
    """Return the subjects, cut out of their photos as `sefi bench` cuts them.

    Raises:
        FaceError: a photo shows no face, or several.
    """
    from sefi.benchmark.suite import read_subject
    from sefi.core.errors import FaceError

    try:
        return tuple(read_subject(key, files, detector) for key, files in photos.items())
    except FaceError as error:
        remedy = "Use a photo with one clear face; --class-word dog is for animals, --only leaves subjects out."
        raise FaceError(error.problem, remedy) from error


def make_suite(
    folders: "Mapping[str, object]",
    prompts: "Sequence[SuitePrompt]",
    seeds: "Sequence[int]",
    hints: "FolderHints",
    *,
    references: bool = False,
) -> "Suite":
    """Return the suite that some folders are the result of.

    Args:
        references: also the reference rows that are photos; a row that no subject has stays empty.

    Raises:
        ConfigError: they have more prompts or seeds than a suite, or names that are no names of files, or that two
            folders, or a folder and a reference row, would share.
    """
    from sefi.benchmark.suite import Suite
    from sefi.core.reading import translate_file_errors

    rows = [{"label": label, "control": control} for label, control in REFERENCES.items()]
    values = {
        "name": "score",
        "about": "Images that other programs made.",
        "prompts": list(prompts) or [{"text": "{}", "kind": "plain"}],
        "variants": [{"label": label, "images": label} for label in folders] + (rows if references else []),
        "seeds": list(seeds),
        "class_word": hints.class_word,
    }
    remedy = "Score them in parts, or write NAME=IMAGES."
    with translate_file_errors("These images", ConfigError, "cannot be scored together", remedy):
        return Suite.model_validate(values)


def describe_prompts(templates: "Sequence[str]", *, drawings: bool) -> "list[SuitePrompt]":
    """Return prompts with what the embedded readers must see in their images, where they understand all of it."""
    from sefi.benchmark.suite import SuitePrompt
    from sefi.core.prompts import strip_weights
    from tiny_portraits.text.words import parse_wanted

    prompts: list[SuitePrompt] = []
    for text in templates:
        wanted = parse_wanted(strip_weights(text)) if drawings else None
        kinds = {"own"} if wanted is None else {kind for kind, _ in wanted} or {"plain"}
        kind = kinds.pop() if len(kinds) == 1 else "combination"
        prompts.append(SuitePrompt.model_validate({"text": text, "kind": kind, "wanted": wanted or ()}))
    return prompts


def note_found(found: "Mapping[str, FoundFolder]", *, drawings: bool) -> None:
    """Say on stderr what was recognised, and what is left out."""
    kind = "the embedded model's, for drawings" if drawings else "those for photographs"
    print_remark(f"evaluators: {kind} (--drawings or --photographs changes it)")
    for label, one in found.items():
        print_remark(f"{label}: {len(one.images)} images by {one.layout}")
        if one.other_subjects:
            print_remark(f"note: {label}: left out, as not asked for: {format_names(one.other_subjects)}")


def find_words_unknown_to_clip(prompts: "Sequence[SuitePrompt]", bench_options: "BenchOptions") -> list[str]:
    """Find the words of prompts that the embedded model's CLIP was not trained with; none where another CLIP scores."""
    from sefi.benchmark.evaluators import make_sentence
    from sefi.core.prompts import find_untrained_words

    if not bench_options.is_of_drawings() or bench_options.clip is not None:
        return []
    return find_untrained_words(make_sentence(one.text, bench_options.suite.class_word) for one in prompts)


def note_unknown_words(words: "Sequence[str]") -> None:
    """Say on stderr which words the prompt score says nothing of."""
    if words:
        listed = format_names([repr(word) for word in words])
        problem = f"the embedded model's CLIP does not know {listed}: the prompt score says nothing of what it means"
        print_remark(f"note: {problem}; `sefi world words` lists what it knows")


def describe_scoring(
    run: "OpenRun", info: "RunInfo", bench_options: "BenchOptions", table: "Table", cut: "Sequence[str]"
) -> dict[str, object]:
    """Return the outcome as plain values, with the prompts that CLIP cuts."""
    from sefi.benchmark.plan import describe_unequal_cases
    from sefi.benchmark.table_files import convert_table

    read = sum(bool(prompt.wanted) for prompt in run.suite.prompts)
    converted = convert_table(table)
    return {
        "run": str(run.folder.path),
        "subjects": run.list_group_keys(),
        "unreadable": {label: list(folder.unreadable) for label, folder in run.folders.items()},
        "evaluators": "drawings" if bench_options.is_of_drawings() else "photographs",
        "prompts": {"read": read, "clip_only": len(run.suite.prompts) - read},
        "cut_prompts": list(cut),
        "unknown_words": find_words_unknown_to_clip(run.suite.prompts, bench_options),
        "values": converted["values"],
        "not_computed": converted["not_computed"],
        "not_comparable": describe_unequal_cases(info),
    }


def format_scoring(folder: "RunFolder", info: "RunInfo", table: "Table", images: int) -> str:
    """Return the outcome for people."""
    from sefi.benchmark.plan import explain_unequal_cases
    from sefi.benchmark.table_files import format_text
    from sefi.benchmark.table_metrics import METRICS

    lines = [format_text(table), ""]
    if len(info.subjects) == 1:
        lines.append("One subject: nothing is known of the spread over subjects, so there are no intervals.")
    lines += explain_unequal_cases(info)
    lines.append(format_prompt_measures(info))
    missing = [metric for metric in METRICS if metric.part == "main" and metric.name in table.missing]
    lines += [f"{metric.label}: not computed, {table.missing[metric.name]}" for metric in missing]
    for label, one in info.folders.items():
        if one.unreadable:
            lines.append(f"{label}: cannot be read: {format_names(one.unreadable)}")
    return "\n".join([*lines, f"{images} images in '{folder.path}'; page: {folder.report}/index.html"])


def format_prompt_measures(info: "RunInfo") -> str:
    """Return how it was measured whether prompts are followed."""
    read, count = sum(bool(prompt.wanted) for prompt in info.suite.prompts), len(info.suite.prompts)
    if read:  # of drawings, which always have a CLIP
        return f"Prompts: readers looked for what {read} of {count} prompts ask (shown); CLIP scored all of them."
    if info.evaluators.get("clip") is None:
        return "Prompts: nothing says whether they are followed, as there is neither a reader for them nor a CLIP."
    if info.evaluators.get("scene_reader") is None:
        return "Prompts: CLIP's score alone, as the embedded readers know drawings only."
    return "Prompts: CLIP's score alone, as none asks for something that the embedded readers know."
