"""What `sefi bench run` names, opened: suite, model, subjects and judges."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sefi.cli.options import EMBEDDED
from sefi.core.errors import ConfigError, OutputError
from sefi.core.protocols import RunProgress, SilentProgress

if TYPE_CHECKING:
    from sefi.bench.judging import JudgeFiles
    from sefi.bench.opened import Bench
    from sefi.bench.records import RunInfo
    from sefi.bench.subject import Subject
    from sefi.bench.suite import Suite
    from sefi.core.protocols import FaceDetector

# The paper's threshold; it belongs to the paper's CLIP.
PAPER_TAU = 0.23
PHOTO_SIDE = 512


@dataclass(frozen=True)
class Asked:
    """What a run was asked to do; opens the same in every process."""

    suite: "Suite"
    out: Path
    model: str
    photos: Path | None
    detector: Path | None
    recogniser: Path | None
    clip: Path | None
    judges: Path | None
    download: bool
    device: str
    dtype: str

    def embedded(self) -> bool:
        """Whether the drawn world is asked: its judges know no photographs."""
        return self.model == EMBEDDED and self.photos is None


@dataclass(frozen=True)
class Thresholds:
    """Those that were given; None is found on drawings, or not at all."""

    tau: float | None
    far: float | None


def check_run_folder(out: Path, photos: Path | None) -> Path:
    """Return the run's folder; the run creates it if it is missing.

    Raises:
        OutputError: it has files that are no run's, the photos lie in it or where the run writes, or nothing can be
            written.
    """
    from sefi.bench.run_folder import RunFolder
    from sefi.core.files import check_folder
    from sefi.core.reading import is_inside

    run = RunFolder(check_folder(out))
    run.check()
    if photos is not None:
        with suppress(OSError):  # a folder that is missing has its own message
            if photos.samefile(out):
                problem = f"The photos and the run have one folder, '{out}': its own pictures would become subjects."
                raise OutputError(problem, "Choose another --out.")
        for place in run.places():
            if is_inside(photos, place):
                raise OutputError(f"The photos in '{photos}' lie where the run writes.", "Choose another --out.")
    return out


def open_bench(asked: Asked, progress: RunProgress | None = None) -> "Bench":
    """Everything that a run needs.

    Raises:
        SefiError: the model, a photo or a judge cannot be opened, the suite wants what no reader knows, or a
            method cannot learn with what it is given.
    """
    from sefi.bench.judging import Judging
    from sefi.bench.opened import Bench
    from sefi.bench.run_folder import RunFolder
    from sefi.cli.opening import note_remarks, opened
    from sefi.methods import get_method

    if asked.photos is None and asked.model != EMBEDDED:
        raise ConfigError("This model knows no drawn people.", "Name a folder of photographs with --photos.")
    if asked.photos is not None and asked.suite.kind == "person" and asked.detector is None:
        raise ConfigError("People are cut out by their faces.", "Name a YuNet face detector (ONNX) with --detector.")
    judging = Judging(judge_files(asked))
    judging.check(pair for prompt in asked.suite.prompts for pair in prompt.wanted)
    subjects = tuple(subjects_of(asked, judging.detect if asked.suite.kind == "person" else None))
    if len(subjects) < asked.suite.together:
        raise ConfigError("There are too few subjects to share a picture.", "Give more of them.")
    backbone = opened(asked.model, download=asked.download, device=asked.device, dtype=asked.dtype)
    for way in asked.suite.learners():
        config = asked.suite.config(way)
        get_method(config.method).check(backbone, config, asked.judges or backbone.judges)
    if progress is not None:  # the first process says it for all
        sentences = [prompt.text.replace("{}", asked.suite.kind) for prompt in asked.suite.prompts]
        note_remarks(backbone, sentences, asked.suite.config(asked.suite.ways[0]))
    told = progress or SilentProgress()
    return Bench(asked.suite, subjects, backbone, judging, RunFolder(asked.out), told, told.nested(), asked.judges)


def judge_files(asked: Asked) -> "JudgeFiles":
    """The judges that are named; the embedded model brings all of its own."""
    from sefi.bench.judging import JudgeFiles

    if not asked.embedded():
        return JudgeFiles(detector=asked.detector, recogniser=asked.recogniser, clip=asked.clip)
    from sefi.api import embedded_judges
    from sefi.metrics.faces import DETECTOR, RECOGNISER
    from sefi.world.clip_training import CLIP
    from sefi.world.judges import HEAD_READER, SCENE_READER

    folder = embedded_judges()
    return JudgeFiles(
        asked.detector or folder / DETECTOR,
        asked.recogniser or folder / RECOGNISER,
        folder / SCENE_READER,
        folder / HEAD_READER,
        asked.clip or folder / CLIP,
    )


def subjects_of(asked: Asked, detector: "FaceDetector | None") -> "list[Subject]":
    """The photographs, or as many drawn subjects as the suite says; people are cut out by their faces."""
    from sefi.bench.subject import Subject, drawn_square, photographs

    if asked.photos is not None:
        found = photographs(asked.photos, detector)
        if asked.model == EMBEDDED:
            refuse_photographs(found)
        return found
    from sefi.world.drawing import draw
    from sefi.world.subjects import pet_portrait, photo_in_scene, portrait, subject

    suite, drawn = asked.suite, list["Subject"]()
    for n in range(suite.first, suite.first + suite.subjects):
        person = photo_in_scene if suite.photos == "scene" else portrait
        views = (
            [person(subject(n), n, view) for view in (0, 1)]
            if suite.kind == "person"
            else [pet_portrait(suite.kind, n, view) for view in (0, 1)]
        )
        squares = [drawn_square(draw(view, PHOTO_SIDE), detector) for view in views]
        drawn.append(Subject(f"{suite.kind[0]}{n}", squares[0], squares[1]))
    return drawn


def refuse_photographs(subjects: "list[Subject]") -> None:
    """Refuse subjects of photographs on the embedded model, with `PhotoError`: it knows drawings only."""
    from PIL import Image

    from sefi.core.errors import PhotoError
    from sefi.core.nouns import Photo
    from sefi.photo.drawn import RESOLUTION, check_drawn
    from sefi.photo.read import pixels_of
    from sefi.photo.views import whole_square

    for subject in subjects:
        try:
            check_drawn(whole_square(Photo(pixels_of(Image.fromarray(subject.photo)), subject.key), RESOLUTION))
        except PhotoError as error:
            problem = f"Subject {subject.key!r}: {error.problem}"
            raise PhotoError(problem, "Name a Stable Diffusion model with --model.") from None


def description(asked: Asked, bench: "Bench", given: Thresholds) -> "RunInfo":
    """What `run.json` says. Thresholds that an earlier start of this run found are kept: they cost a minute."""
    from sefi.bench.opened import describe_run

    found = thresholds(asked, bench.run.read_info() if bench.run.info_file.is_file() else None)
    tau = found.tau if given.tau is None else given.tau
    far = found.far if given.far is None else given.far
    return describe_run(bench, judge_files(asked).told(), tau, far)


def thresholds(asked: Asked, before: "RunInfo | None") -> Thresholds:
    """Tau and the recogniser's threshold: found on drawings for the embedded model's own judges.

    Other judges get the paper's tau, which fits a CLIP like the paper's only, and no threshold of likeness. Animals
    get neither: the face judges do not know them.
    """
    if before is not None:
        return Thresholds(before.tau, before.far_threshold)
    if asked.suite.kind != "person":
        return Thresholds(None, None)
    if not asked.embedded():
        return Thresholds(PAPER_TAU, None)
    from sefi.api import embedded_judges
    from sefi.world.calibration import drawn_far_threshold, drawn_tau

    folder = embedded_judges()
    return Thresholds(
        drawn_tau(folder) if asked.clip is None else PAPER_TAU,
        drawn_far_threshold(folder) if asked.recogniser is None else None,
    )
