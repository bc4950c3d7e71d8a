"""A benchmark run: its folder, which is only ever added to, and what is open while its images are made.

`RunFolder.begin` writes `run.json` once: suite, model, evaluators and thresholds (tau, false-accept threshold) are
fixed from then on. Each image adds one line to `cells.jsonl`, with its scores, which are fixed when the image is made;
an interrupted run goes on with the images that have no line.
"""

import errno
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path

from pydantic import ValidationError

from sefi.api import find_evaluators
from sefi.backbone.bundle import Backbone
from sefi.benchmark.evaluators import Evaluation, Evaluators, describe_file
from sefi.benchmark.plan import list_planned_keys
from sefi.benchmark.records import (
    MOST_IMAGES,
    PHOTOS_FOLDER,
    RUN_SCHEMA,
    EvaluatorInfo,
    Key,
    LearningFiles,
    ListedFolder,
    ModelInfo,
    RunInfo,
    Sample,
    SuiteInfo,
    check_samples,
    make_group_key,
    name_photo,
    parse_run_info,
    parse_sample,
)
from sefi.benchmark.scored_folder import ImageFolder
from sefi.benchmark.suite import SIDE, BenchmarkSubject, Suite, Variant, hash_pixels
from sefi.core.config import Config, choose_start, dump_config, find_named_files
from sefi.core.errors import ConfigError, OutputError, describe_first_fault
from sefi.core.files import is_folder, is_regular_file, take_lock, write_text
from sefi.core.progress import Progress, RunProgress
from sefi.core.reading import (
    LARGEST_RUN_INFO,
    InvalidFileError,
    is_inside,
    measure_file,
    read_text,
    translate_file_errors,
)
from sefi.core.text import dump_json, make_slug
from sefi.evaluation.encoders import DETECTOR, RECOGNISER, find_face_networks
from sefi.methods import get_method
from sefi.methods.name_encoder import can_read_tokens
from sefi.provenance.run_record import ModelRecord, RunRecord, collect_versions, hash_input_files, shorten_source
from sefi.training.finetuning import ClassImages

# An image has about 1 KB, and 10 bytes for each number of CLIP's vector: 6 KB where that has 512, 11 KB where 1,024.
LONGEST_LINE = 2**18
LARGEST_RECORD = MOST_IMAGES * LONGEST_LINE  # whatever is planned can be read: line by line, each bounded by itself
CLIP = "clip"  # its folder in a folder of evaluators
CHUNK = 2**20  # bytes that are read at once where lines are counted
REMOVE_LINE = "Remove that line, and let `sefi bench run` make the image again."


class RunFolder:
    """Reads and adds to one run.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info_file, self.samples_file, self.lock_file = (path / n for n in ("run.json", "cells.jsonl", ".lock"))
        self.images, self.photos, self.identities = (path / n for n in ("pictures", PHOTOS_FOLDER, "identities"))
        self.attention, self.report = path / "attention", path / "report"

    def list_folders(self) -> tuple[Path, ...]:
        """Return the folders that a run and its report write into."""
        return self.images, self.photos, self.identities, self.attention, self.report

    def locate_photo(self, subject: str) -> Path:
        """Return the file of a subject's photo."""
        return self.path / name_photo(subject)

    def locate_identity(self, subject: str, variant: Variant) -> Path:
        """Return the file of the identity that a variant learns of a subject."""
        return self.identities / f"{subject}--{make_slug(variant.label)}.safetensors"

    def locate_image(self, group: str, variant: Variant, prompt: int, seed: int) -> Path:
        """Return the file of an image; one of the class word is the same for every group of subjects."""
        slug = make_slug(variant.label)
        stem = slug if variant.control == "class word" else f"{group}--{slug}"
        return self.images / f"{stem}--{prompt}--{seed}.png"

    def locate_maps(self, image: Path) -> Path:
        """Return the file of an image's attention maps."""
        return self.attention / f"{image.name.removesuffix('.png')}.safetensors"

    def shorten(self, path: Path) -> str:
        """Return a file of the run as the records name it: from the run's folder."""
        return path.relative_to(self.path).as_posix()

    def begin(self, info: RunInfo) -> None:
        """Create the folders and `run.json`, or check that `run.json` describes the same run.

        Raises:
            ConfigError: the folder holds another run, or this one names more than could be read again.
            OutputError: the folder holds other files where a run would write.
        """
        self.check()
        text = info.dump(indent=1) + "\n"
        if len(text) > LARGEST_RUN_INFO:  # it is ASCII
            problem = f"The record of this run would have {len(text):,} bytes; at most {LARGEST_RUN_INFO:,} are read."
            raise ConfigError(problem, "Give fewer folders of images, or fewer subjects, in one run.")
        for folder in (self.images, self.photos, self.identities):
            folder.mkdir(parents=True, exist_ok=True)
        if self.info_file.is_file():
            differing = self.read_info().list_differences(info)
            if differing:
                problem = f"{self.path} holds another run, which differs in {', '.join(differing)}."
                raise ConfigError(problem, "Choose another --out.")
            return
        write_text(self.info_file, text)

    def check(self) -> None:
        """Refuse a folder without `run.json` that has files where a run writes its own, and what leads elsewhere.

        Raises:
            OutputError: it has; or as of `check_places`.
        """
        self.check_places()
        if self.info_file.is_file():
            return
        for path in (*self.list_folders(), self.samples_file):
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise OutputError(f"'{path}' exists and belongs to no run.", "Choose another --out.")

    def check_places(self) -> None:
        """Refuse links out of the folder, and pipes and the like, in the places of the run's files and folders.

        Raises:
            OutputError: there is one; a run from somebody else must not change this machine's other files.
        """
        files = dict.fromkeys((self.info_file, self.samples_file, self.lock_file), ("file", is_regular_file))
        folders = dict.fromkeys(self.list_folders(), ("folder", is_folder))
        for path, (kind, is_of_kind) in (files | folders).items():
            if os.path.lexists(path) and not (is_of_kind(path) and is_inside(path, self.path)):
                raise OutputError(
                    f"'{path}' is no {kind} of a run.",
                    "Remove it: what a run writes stays in its folder, which may itself be a link.",
                )

    def read_info(self) -> RunInfo:
        """Return what was asked.

        Raises:
            ConfigError: there is no `run.json`, it is damaged, or of a newer version.
        """
        if not is_regular_file(self.info_file):
            raise ConfigError(f"{self.path} is no benchmark run.", "Make one with `sefi bench run SUITE --out DIR`.")
        with translate_file_errors(
            self.info_file, ConfigError, "is damaged", "Run the benchmark again with another --out."
        ):
            return parse_run_info(read_text(self.info_file, LARGEST_RUN_INFO), self.path)

    def read_samples(self) -> list[Sample]:
        """Return every finished sample, once; a line that a kill cut short is not one.

        Raises:
            ConfigError: a whole line is no sample, or one of another run.
        """
        if not self.samples_file.is_file():
            return []
        with translate_file_errors(
            self.samples_file, ConfigError, "cannot be read", "Make another run with `sefi bench run`."
        ):
            measure_file(self.samples_file, LARGEST_RECORD)
        first: dict[Key, Sample] = {}
        with translate_file_errors(self.samples_file, ConfigError, "is damaged", REMOVE_LINE):
            for offset, line in read_lines(self.samples_file):
                sample = parse_at(self.samples_file, offset, line)
                if sample is not None:
                    first.setdefault(sample.key, sample)
                if len(first) > MOST_IMAGES:
                    problem = f"{self.samples_file} has more than {MOST_IMAGES:,} images."
                    raise ConfigError(problem, "Make another run with `sefi bench run`.")
        samples = list(first.values())
        if self.info_file.is_file():
            info = self.read_info()
            remedy = "Remove the lines of such images, and let `sefi bench run` make the rest."
            with translate_file_errors(self.samples_file, ConfigError, "is damaged", remedy):
                check_samples(info, samples)
        return samples

    def measure_size(self) -> int:
        """Return the length of the record in bytes."""
        return self.samples_file.stat().st_size if self.samples_file.is_file() else 0

    def read_samples_after(self, offset: int) -> tuple[list[Sample], int]:
        """Return the samples recorded after an offset of the record, in bytes, and the offset after them; for progress.

        Args:
            offset: 0, or what an earlier call returned: it is the beginning of a line.

        Raises:
            ConfigError: a whole line is no sample; the message has its number in the file.
        """
        samples: list[Sample] = []
        # The workers of the run go on adding: lines must not move under them.
        with translate_file_errors(self.samples_file, ConfigError, "is damaged", f"Stop the run. {REMOVE_LINE}"):
            for start, line in read_lines(self.samples_file, offset) if self.measure_size() > offset else ():
                if not line.endswith(b"\n") and len(line) <= LONGEST_LINE:
                    break  # half written
                sample = parse_at(self.samples_file, start, line)
                samples += [] if sample is None else [sample]
                offset = start + len(line)
        return samples, offset

    @contextmanager
    def lock(self) -> Generator[int]:
        """Lock the folder, so that one run at a time works in it; a system without such locks is not checked.

        Yields:
            The file descriptor of the lock: a process that inherits it holds the lock too.

        Raises:
            ConfigError: another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a") as file:  # what is there already stays
            try:
                take_lock(file.fileno(), wait=False)
            except BlockingIOError:
                raise ConfigError(
                    f"Another run is at work in {self.path}.", "Wait for it, or choose another --out."
                ) from None
            except OSError:  # a file system without locks
                pass
            yield file.fileno()

    def add(self, sample: Sample) -> None:
        """Add one line, whole or not at all; the workers of a run share the file.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self.samples_file.open("ab", buffering=0) as file:
                with suppress(OSError):  # a file system without locks
                    take_lock(file.fileno())
                append_line(file, sample.dump().encode(), self.samples_file)
        except OSError as error:
            problem = f"{self.samples_file} cannot be written: {error.strerror}."
            raise OutputError(problem, "Free some space, and run the same command again.") from error


def append_line(file: RawIOBase, line: bytes, path: Path) -> None:
    """Append a line and wait until it is on the disk; where that fails, the file is as long as before.

    Raises:
        OSError: it cannot be written.
    """
    before = file.seek(0, os.SEEK_END)
    # A kill may have left half a line; this one must not be joined to it.
    ragged = before > 0 and not has_newline_at_end(path)
    content = (b"\n" if ragged else b"") + line + b"\n"
    try:
        if file.write(content) != len(content):  # what a disk does that is full by then
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            file.truncate(before)
        raise


def has_newline_at_end(path: Path) -> bool:
    """Return whether a file that is not empty ends a line."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its offset in bytes; what is too long for a line comes cut."""
    with path.open("rb") as file:
        file.seek(offset)
        while line := file.readline(LONGEST_LINE + 1):
            yield offset, line
            offset += len(line)


def parse_at(path: Path, offset: int, line: bytes) -> Sample | None:
    """Return the line that begins at an offset of a file as a sample; None as in `parse_sample`.

    Raises:
        InvalidFileError: it is too long, or whole and no sample; the message has its number in the file.
    """
    try:
        if len(line) > LONGEST_LINE:
            raise InvalidFileError(f"it has more than {LONGEST_LINE:,} bytes")
        return parse_sample(line)
    except InvalidFileError as error:
        raise InvalidFileError(f"line {count_lines(path, offset) + 1}: {error}") from error


def count_lines(path: Path, offset: int) -> int:
    """Return how many lines end before an offset in bytes."""
    lines = 0
    with path.open("rb") as file:
        while offset > 0 and (part := file.read(min(offset, CHUNK))):
            lines += part.count(b"\n")
            offset -= len(part)
    return lines


NO_MODEL = ModelInfo(name="none: images of other programs", fingerprint="none")


@dataclass(frozen=True)
class OpenRun:
    """A run that images can be made for: suite, subjects, model and evaluators in memory, and its folder.

    Attributes:
        model: None where every image comes from a folder or a photo.
        progress: of the images; learning has one of its own, `learning_progress`.
        evaluator_folder: folder of networks that methods learn with; None takes the model's own.
        detector: a YuNet ONNX file that finds the face in what is learned; None takes the package's own.
        folders: by the label of their variant, the images that other programs made.
        mark: generated images get the invisible mark.
        class_images: that methods draw to learn with, once for all subjects that this process learns.
    """

    suite: Suite
    subjects: tuple[BenchmarkSubject, ...]
    model: Backbone | None
    evaluators: Evaluators
    folder: RunFolder
    progress: RunProgress
    learning_progress: Progress
    evaluator_folder: Path | None = None
    mark: bool = True
    evaluations: dict[str, tuple[Evaluation, Evaluation | None]] = field(
        default_factory=dict[str, tuple[Evaluation, "Evaluation | None"]]
    )
    folders: Mapping[str, ImageFolder] = field(default_factory=dict[str, ImageFolder])
    class_images: ClassImages = field(default_factory=ClassImages)
    detector: Path | None = None

    @property
    def backbone(self) -> Backbone:
        """The model that learns and generates.

        Raises:
            ConfigError: this run has none.
        """
        if self.model is None:
            raise ConfigError("This run has no model to generate with.", "Name one with --model in `sefi bench run`.")
        return self.model

    @property
    def image_side(self) -> int:
        """Side of the images of reference rows, in pixels: that of the model's, or of the subjects' squares."""
        return SIDE if self.model is None else self.model.resolution

    def list_groups(self) -> list[tuple[BenchmarkSubject, ...]]:
        """Return the subjects that share an image: everybody alone, or neighbours in twos."""
        size = self.suite.together
        starts = range(0, len(self.subjects) - size + 1, size)
        return [self.subjects[start : start + size] for start in starts]

    def plan_keys(self) -> list[Key]:
        """Return every image of this run, in the order of the suite."""
        folders = self.describe_folders()
        return list_planned_keys(describe_suite(self.suite), self.list_group_keys(), self.hash_photos(), folders)

    def describe_folders(self) -> dict[str, ListedFolder]:
        """Return what the record of a run says of the folders."""
        return {label: folder.describe() for label, folder in self.folders.items()}

    def list_group_keys(self) -> list[str]:
        """Return the key of each group of subjects."""
        return [make_group_key(s.key for s in group) for group in self.list_groups()]

    def hash_photos(self) -> dict[str, tuple[str, ...]]:
        """Return the hash of every subject's photo and, where there is one, other image."""
        return {s.key: tuple(hash_pixels(p) for p in (s.photo, s.other_photo) if p is not None) for s in self.subjects}

    def evaluate_photos(self, subject: BenchmarkSubject) -> tuple[Evaluation, Evaluation | None]:
        """Evaluate a subject's photo and other image; each subject once."""
        if subject.key not in self.evaluations:
            other = None if subject.other_photo is None else self.evaluators.evaluate(subject.other_photo)
            self.evaluations[subject.key] = self.evaluators.evaluate(subject.photo), other
        return self.evaluations[subject.key]

    def list_others(self, group: Sequence[BenchmarkSubject], count: int) -> list[BenchmarkSubject]:
        """Return so many subjects who are not in the group, the next ones in turn; fewer if there are no others."""
        keys = [s.key for s in self.subjects]
        start = keys.index(group[-1].key) + 1
        turned = [*self.subjects[start:], *self.subjects[:start]]
        group_keys = {s.key for s in group}
        return [s for s in turned if s.key not in group_keys][:count]


def describe_suite(suite: Suite) -> SuiteInfo:
    """Return a suite as the record of a run has it.

    Raises:
        ConfigError: a text in it is one that no record holds.
    """
    with translate_record_errors():
        return SuiteInfo.parse(suite.model_dump_json())


def describe_run(
    run: OpenRun, evaluators: dict[str, EvaluatorInfo | None], tau: float | None, far_threshold: float | None
) -> RunInfo:
    """Return what `run.json` says: everything that decides a run's figures.

    Raises:
        ConfigError: a text in it is one that no record holds.
    """
    suite, model = run.suite, run.model
    learned = suite.list_method_variants()
    with translate_record_errors():
        return RunInfo(
            schema_number=RUN_SCHEMA,
            suite=describe_suite(suite),
            subjects=tuple(run.list_group_keys()),
            photos=run.hash_photos(),
            model=NO_MODEL
            if model is None
            else ModelInfo(name=shorten_source(model.source), fingerprint=model.fingerprint),
            device="cpu" if model is None else model.device.type,
            dtype="float32" if model is None else str(model.dtype).removeprefix("torch."),
            evaluators=evaluators,
            versions=collect_versions(),
            # As JSON has them, lists for tuples, so that they equal those that are read again.
            settings=json.loads(
                dump_json(
                    {variant.label: dump_config(choose_learning_config(suite, variant, model)) for variant in learned}
                )
            ),
            tau=tau,
            far_threshold=far_threshold,
            folders=run.describe_folders(),
            mark=run.mark,
            learning_files=describe_learning_files(run),
            record=record_benchmark(model),
        )


def describe_learning_files(run: OpenRun) -> LearningFiles:
    """Return the SHA-256 of the files that methods learn with: another file of the same name is another run.

    Raises:
        ConfigError: one cannot be read.
    """
    if run.model is None:
        return LearningFiles()
    suite = run.suite
    configs = {variant.label: suite.make_config(variant) for variant in suite.list_method_variants()}
    files = {
        label: {setting: Path(named) for setting, named in find_named_files(config).items()}
        for label, config in configs.items()
    }
    reads_faces = any(get_method(config.method).info.reads_faces for config in configs.values())
    folder = run.evaluator_folder or find_evaluators(run.model)
    networks = find_learning_networks(folder, reads_faces=reads_faces) if configs else {}
    with translate_file_errors("A file to learn with", ConfigError, "cannot be read", "Make it readable."):
        return LearningFiles(
            settings={label: hash_input_files(named) for label, named in files.items() if named},
            evaluators={name: describe_file(path).sha256 for name, path in networks.items()},
        )


def find_learning_networks(folder: Path | None, *, reads_faces: bool) -> dict[str, Path]:
    """Return the networks that methods are given, by their names in a folder of evaluators.

    Args:
        folder: of evaluators; without one there are those of faces alone.
        reads_faces: a method reads faces, which then are read without a folder too.
    """
    if folder is not None:
        return {name: folder / name for name in (DETECTOR, RECOGNISER, CLIP) if (folder / name).exists()}
    networks = find_face_networks(None) if reads_faces else None
    return {} if networks is None else dict(zip((DETECTOR, RECOGNISER), networks, strict=True))


def choose_learning_config(suite: Suite, variant: Variant, backbone: Backbone | None) -> Config:
    """Return the settings of a variant as learning resolves them where a face is found."""
    config = suite.make_config(variant)
    return config if backbone is None else choose_start(config, encoder=can_read_tokens(backbone, config))


def record_benchmark(backbone: Backbone | None) -> RunRecord:
    """Record the machine and the model of a run; versions and settings are in its other fields."""
    if backbone is None:
        return RunRecord.describe_machine("bench", "cpu", "float32").add(versions={})
    machine = RunRecord.describe_machine("bench", str(backbone.device), str(backbone.dtype))
    signature = backbone.signature.compute_digest() if backbone.signature else ""
    source = shorten_source(backbone.source)
    return machine.add(
        versions={}, model=ModelRecord(source=source, fingerprint=backbone.fingerprint, signature=signature)
    )


@contextmanager
def translate_record_errors() -> Generator[None]:
    """Raise `ConfigError` for what no record holds."""
    try:
        yield
    except ValidationError as error:
        problem = f"This run cannot be put on record: {describe_first_fault(error)}."
        raise ConfigError(problem, "Change it in the suite, or rename the photographs.") from error
