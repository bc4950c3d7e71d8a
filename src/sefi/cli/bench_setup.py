"""Open what `sefi bench run` names: suite, model, subjects and evaluators."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sefi.cli.options import EMBEDDED
from sefi.core.errors import ConfigError, OutputError
from sefi.core.progress import RunProgress, SilentProgress
from sefi.core.prompts import is_person

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sefi.backbone.bundle import Backbone
    from sefi.benchmark.evaluators import EvaluatorFiles, Evaluators
    from sefi.benchmark.records import RunInfo
    from sefi.benchmark.run import OpenRun
    from sefi.benchmark.scored_folder import ImageFolder
    from sefi.benchmark.suite import BenchmarkSubject, Suite
    from sefi.photo.detect import FaceDetector

# The paper's threshold; it belongs to the paper's CLIP.
PAPER_TAU = 0.23
PHOTO_SIDE = 512
MOST_PROMPTS = 3  # that a note names


@dataclass(frozen=True)
class BenchOptions:
    """The options of a run; opens the same in every process."""

    suite: "Suite"
    out: Path
    model: str
    photos: Path | None
    detector: Path | None
    recogniser: Path | None
    clip: Path | None
    evaluator_folder: Path | None
    download: bool
    device: str
    dtype: str
    dino: Path | None = None
    mark: bool = True

    def is_of_drawings(self) -> bool:
        """Return whether the embedded model's drawings are learned: its evaluators know no photographs."""
        return self.model == EMBEDDED and self.photos is None


@dataclass(frozen=True)
class Thresholds:
    """Those that were given; None is found on drawings, or not at all."""

    tau: float | None
    far: float | None


def check_run_folder(out: Path, photos: Path | None) -> None:
    """Refuse a folder that a run cannot be made in; the run creates it if it is missing.

    Raises:
        OutputError: it has files that are no run's, the photos lie in it or where the run writes, or nothing can be
            written.
    """
    from sefi.benchmark.run import RunFolder
    from sefi.core.files import check_folder
    from sefi.core.reading import is_inside

    check_folder(out)
    run_folder = RunFolder(out)
    run_folder.check()
    if photos is not None:
        with suppress(OSError):  # a folder that is missing has its own message
            if photos.samefile(out):
                problem = f"The photos and the run have one folder, '{out}': its own images would become subjects."
                raise OutputError(problem, "Choose another --out.")
        for folder in run_folder.list_folders():
            if is_inside(photos, folder):
                raise OutputError(
                    f"The run would write into '{photos}', the folder of the photos.", "Choose another --out."
                )


def open_run(bench_options: BenchOptions, progress: RunProgress | None = None) -> "OpenRun":
    """Open everything that a run needs.

    Raises:
        SefiError: the model, a photo or an evaluator cannot be opened, the suite wants what no reader knows, or a
            method cannot learn with what it is given.
    """
    from sefi.cli.loading import ModelOptions, check_evaluators, check_model, import_libraries, load_backbone

    import_libraries()
    from sefi.benchmark.evaluators import Evaluators
    from sefi.benchmark.run import OpenRun, RunFolder
    from sefi.benchmark.scored_folder import open_suite_folders
    from sefi.benchmark.suite import group_image_files

    model_options = ModelOptions(bench_options.model, bench_options.download, bench_options.device, bench_options.dtype)
    if bench_options.photos is None and bench_options.model != EMBEDDED:
        raise ConfigError("This model knows no drawn people.", "Name a folder of photographs with --photos.")
    evaluators = Evaluators(find_evaluator_files(bench_options))
    evaluators.check(pair for prompt in bench_options.suite.prompts for pair in prompt.wanted)
    check_evaluators(bench_options.evaluator_folder)
    if bench_options.photos is not None:
        group_image_files(bench_options.photos)
    check_model(model_options)
    check_suite_settings(bench_options.suite)
    of_people = is_person(bench_options.suite.class_word)
    detector = evaluators.detector if of_people else None
    subjects = tuple(load_subjects(bench_options, detector))
    if len(subjects) < bench_options.suite.together:
        raise ConfigError("There are too few subjects to share an image.", "Give more of them.")
    folders = open_suite_folders(
        bench_options.suite, [subject.key for subject in subjects], progress or SilentProgress()
    )
    backbone = load_backbone(
        bench_options.model, download=bench_options.download, device=bench_options.device, dtype=bench_options.dtype
    )
    check_variants(bench_options, backbone)
    if progress is not None:  # the first process says it for all
        note_prompts(backbone, bench_options.suite)
        note_scored(evaluators, bench_options.suite, bench_options.photos)
        note_folders(bench_options.suite, folders, len(subjects))
    progress = progress or SilentProgress()
    return OpenRun(
        bench_options.suite,
        subjects,
        backbone,
        evaluators,
        RunFolder(bench_options.out),
        progress,
        progress.nested(),
        bench_options.evaluator_folder,
        folders=folders,
        mark=bench_options.mark,
        detector=bench_options.detector if of_people else None,
    )


def note_prompts(backbone: "Backbone", suite: "Suite") -> None:
    """Say on stderr what there is to say of a suite's prompts, with the settings of its first variant."""
    from sefi.cli.loading import note_remarks

    sentences = [prompt.text.replace("{}", suite.class_word) for prompt in suite.prompts]
    note_remarks(backbone, sentences, suite.make_config(suite.variants[0]))


def note_scored(
    evaluators: "Evaluators", suite: "Suite", photos: Path | None, subjects: "Iterable[Path]" = ()
) -> list[str]:
    """Say on stderr which prompts CLIP reads the beginning of, and which photos are not read; return the prompts.

    Args:
        photos: a folder of photos and of folders of them.
        subjects: folders of photos alone; a photo itself has none.
    """
    from sefi.benchmark.suite import list_unread_files
    from sefi.cli.output import print_remark
    from sefi.core.files import describe_unread
    from sefi.core.text import format_names

    cut = evaluators.find_cut_prompts((prompt.text for prompt in suite.prompts), suite.class_word)
    if cut and evaluators.clip is not None:
        named, length = format_names([repr(prompt) for prompt in cut], MOST_PROMPTS), evaluators.clip.text_length - 2
        reason = f"longer than the {length} tokens that CLIP reads, or with a character that it does not know"
        print_remark(f"note: {reason}, so scored by the beginning: {named}")
    unread = {} if photos is None else {photos: list_unread_files(photos)}
    unread |= {folder: list_unread_files(folder, inside=False) for folder in subjects if folder not in unread}
    for folder, names in unread.items():
        if names:
            print_remark(f"note: '{folder}'{describe_unread(names)}; save them as PNG")
    return cut


def check_suite_settings(suite: "Suite") -> None:
    """Refuse a variant whose method cannot learn with its settings, whatever the model; errors as `check_variants`."""
    from sefi.api import check_learning_settings

    for variant in suite.list_learning_variants():
        check_learning_settings(suite.make_config(variant))


def check_variants(bench_options: BenchOptions, backbone: "Backbone") -> None:
    """Refuse a variant whose method cannot learn with what it is given, or whose images cannot be generated so.

    Raises:
        SefiError: the first fault.
    """
    from sefi.api import find_evaluators
    from sefi.core.config import check_guidance
    from sefi.methods import get_method
    from sefi.methods.base import check_method

    suite, folder = bench_options.suite, bench_options.evaluator_folder or find_evaluators(backbone)
    for variant in suite.list_learning_variants():
        config = suite.make_config(variant)
        check_method(get_method(config.method), backbone, config, folder)
    for variant in suite.variants:
        check_guidance(suite.make_config(variant).generate, embeds_guidance=backbone.embeds_guidance)


def note_folders(suite: "Suite", folders: "Mapping[str, ImageFolder]", subjects: int) -> None:
    """Say on stderr what of the folders of other programs' images is not compared, and what the run lacks."""
    from sefi.cli.output import print_remark
    from sefi.core.text import format_names

    planned = subjects * len(suite.prompts) * len(suite.seeds)
    for label, folder in folders.items():
        lacking = planned - len(folder.images)
        if folder.unmatched:
            print_remark(f"note: {label}: {folder.unmatched} images have another prompt or too many seeds")
        if folder.unreadable:
            print_remark(f"note: {label}: cannot be read: {format_names(folder.unreadable)}")
        if lacking:
            print_remark(f"note: {label}: {lacking} of {planned} images are missing; the run cannot be finished")


def find_evaluator_files(bench_options: BenchOptions) -> "EvaluatorFiles":
    """Return the evaluators that are named; the embedded model brings all of its own.

    Of others the detector of photographs is in the package, and SFace is taken where it was downloaded.
    """
    from sefi.benchmark.evaluators import EvaluatorFiles
    from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS, RECOGNISER, find_sface
    from sefi.photo.detect import PHOTOGRAPH_DETECTOR

    if not bench_options.is_of_drawings():
        default_detector = EMBEDDED_EVALUATORS / DETECTOR if bench_options.model == EMBEDDED else PHOTOGRAPH_DETECTOR
        recogniser = bench_options.recogniser or find_sface(allow_download=bench_options.download)
        return EvaluatorFiles(
            bench_options.detector or default_detector, recogniser, clip=bench_options.clip, dino=bench_options.dino
        )
    from tiny_portraits.training.clip import CLIP
    from tiny_portraits.training.evaluators import HEAD_READER, SCENE_READER

    folder = EMBEDDED_EVALUATORS
    return EvaluatorFiles(
        bench_options.detector or folder / DETECTOR,
        bench_options.recogniser or folder / RECOGNISER,
        folder / SCENE_READER,
        folder / HEAD_READER,
        bench_options.clip or folder / CLIP,
        bench_options.dino,
        find_second_recogniser(bench_options.out),
    )


def find_second_recogniser(run_folder: Path) -> Path | None:
    """Return the weights of the second recogniser; None for a run that an earlier version began without it."""
    from sefi.benchmark.run import RunFolder
    from sefi.evaluation.second_recogniser import SHIPPED_RECOGNISER

    begun = RunFolder(run_folder)
    if begun.info_file.is_file() and "second_recogniser" not in begun.read_info().evaluators:
        return None
    return SHIPPED_RECOGNISER


def load_subjects(bench_options: BenchOptions, detector: "FaceDetector | None") -> "list[BenchmarkSubject]":
    """Return the photographs, or as many drawn subjects as the suite says; people are cut out by their faces.

    Raises:
        ConfigError: nothing is drawn of what the suite's class word says.
    """
    from sefi.benchmark.suite import BenchmarkSubject, crop_drawing, read_subjects

    if bench_options.photos is not None:
        subjects = read_subjects(bench_options.photos, detector)
        if bench_options.model == EMBEDDED:
            refuse_photographs(subjects)
        return subjects
    from tiny_portraits.drawing.image import draw
    from tiny_portraits.drawing.sampling import make_pet_portrait, make_portrait, make_scene_photo, make_test_person
    from tiny_portraits.drawing.traits import ANIMALS

    suite, drawings = bench_options.suite, list["BenchmarkSubject"]()
    of_people, kind = is_person(suite.class_word), suite.class_word.strip().lower()
    if not of_people and kind not in ANIMALS:
        remedy = f"Take person, {', '.join(ANIMALS)}, or name a folder of photographs with --photos and their --model."
        raise ConfigError(f"The package draws no subjects of the class word {suite.class_word!r}.", remedy)
    letter = "p" if of_people else kind[0]
    for n, kind_of_photo in enumerate(suite.list_photo_kinds(), suite.first):
        person = make_scene_photo if kind_of_photo == "scene" else make_portrait
        views = (
            [person(make_test_person(n), n, view) for view in (0, 1)]
            if of_people
            else [make_pet_portrait(kind, n, view) for view in (0, 1)]
        )
        squares = [crop_drawing(draw(view, PHOTO_SIDE), detector) for view in views]
        drawings.append(BenchmarkSubject(f"{letter}{n}", squares[0], squares[1]))
    return drawings


def refuse_photographs(subjects: "list[BenchmarkSubject]") -> None:
    """Refuse subjects of photographs on the embedded model, with `PhotoError`: it knows drawings only."""
    from PIL import Image

    from sefi.core.errors import PhotoError
    from sefi.photo.augment import crop_middle
    from sefi.photo.read import CLASSIFIER_RESOLUTION, Photo, convert_to_pixels, refuse_photograph

    for subject in subjects:
        photo = Photo(convert_to_pixels(Image.fromarray(subject.photo)), subject.key)
        try:
            refuse_photograph(crop_middle(photo, CLASSIFIER_RESOLUTION))
        except PhotoError as error:
            problem = f"Subject {subject.key!r}: {error.problem}"
            raise PhotoError(problem, "Name a Stable Diffusion model with --model.") from None


def collect_run_info(bench_options: BenchOptions, run: "OpenRun", thresholds: Thresholds) -> "RunInfo":
    """Return what `run.json` says. Thresholds that an earlier start of this run found stay: they cost a minute."""
    from sefi.benchmark.run import describe_run

    defaults = thresholds
    if thresholds.tau is None or thresholds.far is None:
        defaults = find_thresholds(bench_options, run.folder.read_info() if run.folder.info_file.is_file() else None)
    tau = defaults.tau if thresholds.tau is None else thresholds.tau
    far = defaults.far if thresholds.far is None else thresholds.far
    return describe_run(run, find_evaluator_files(bench_options).describe(), tau, far)


def find_thresholds(bench_options: BenchOptions, before: "RunInfo | None") -> Thresholds:
    """Return tau and the recogniser's threshold, found on drawings for the embedded model's own evaluators.

    Other evaluators get the paper's tau, which fits a CLIP like the paper's only, and no threshold of likeness. Animals
    get neither: the face evaluators do not know them.
    """
    if before is not None:
        return Thresholds(before.tau, before.far_threshold)
    if not is_person(bench_options.suite.class_word):
        return Thresholds(None, None)
    if not bench_options.is_of_drawings():
        return Thresholds(PAPER_TAU, None)
    from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
    from tiny_portraits.evaluation.evaluator_scores import find_drawing_far_threshold, find_drawing_tau

    folder = EMBEDDED_EVALUATORS
    return Thresholds(
        find_drawing_tau(folder) if bench_options.clip is None else PAPER_TAU,
        find_drawing_far_threshold(folder) if bench_options.recogniser is None else None,
    )
