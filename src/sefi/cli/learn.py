"""`sefi learn`: one photo to one identity file."""

import shlex
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sefi.cli import options
from sefi.core.errors import ConfigError, OutputError
from sefi.core.text import parse_memory

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sefi.backbone.bundle import Backbone
    from sefi.cli.loading import ModelOptions
    from sefi.core.config import Config
    from sefi.core.prompts import Box
    from sefi.identity.file import Identity
    from sefi.photo.augment import CropFace, SubjectCrop
    from sefi.photo.read import Photo
    from sefi.provenance.consent import Consent

PhotoFiles = Annotated[
    list[Path],
    typer.Argument(metavar="PHOTO", help="A photo of the subject, or several of the same; one is enough."),
]
Name = Annotated[str, typer.Option("--name", help="The word for it in prompts: <ada>.")]
ClassWord = Annotated[
    str | None,
    typer.Option("--class-word", help="What it is, in a word or a few: person, woman, dog, golden retriever ..."),
]
FaceIndex = Annotated[
    int | None, typer.Option("--face", min=1, metavar="N", help="Which face, from the left; for people only.")
]
SubjectBox = Annotated[
    str | None,
    typer.Option(
        "--box",
        metavar="LEFT,TOP,WIDTH,HEIGHT",
        help="Where the subject is, in pixels: for pets, things, and a face that is not found.",
    ),
]
ShowCrop = Annotated[
    Path | None, typer.Option("--show-crop", metavar="FILE", help="Write what is learned to this PNG before learning.")
]
NoCrop = Annotated[bool, typer.Option("--no-crop", help="Use the photo's middle square, face or not.")]
AnyStyle = Annotated[
    bool,
    typer.Option(
        "--any-style",
        "--anyway",  # its names before
        "--allow-photograph",
        help="Learn a photograph on the embedded model, which knows drawings only, or a drawing on another model.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option("--init", metavar="FILE", help="Start from this identity: learned before, or from `sefi import`."),
]
ConsentText = Annotated[
    str | None,
    typer.Option(
        "--consent",
        metavar="TEXT",
        help='Who consents; required except on the embedded model: "by=Jane Doe; for=self; scope=private use".',
    ),
]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        show_default=False,
        help="--resume: fail unless there is an unfinished training to resume; --no-resume: remove it and start again. "
        "Default: resume it if there is one.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=parse_memory,
        help="Memory limit for learning, such as 6GB: samples are split to fit. Estimated from one sample.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: NAME.safetensors.")]


def run_learn(
    photos: PhotoFiles,
    name: Name,
    model: options.Model = options.EMBEDDED,
    method: options.MethodName = None,
    preset: options.MethodPreset = None,
    class_word: ClassWord = None,
    steps: options.LearningSteps = None,
    settings: options.Settings = None,
    face: FaceIndex = None,
    box: SubjectBox = None,
    show_crop: ShowCrop = None,
    no_crop: NoCrop = False,
    detector: options.Detector = None,
    evaluators: options.Evaluators = None,
    any_style: AnyStyle = False,
    init: Init = None,
    consent: ConsentText = None,
    seed: options.Seed = 0,
    resume: Resume = None,
    memory: Memory = None,
    out: Out = None,
    overwrite: options.Overwrite = False,
    download: options.Download = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Learn the person (or pet) in a photo; the result is a small file for `sefi generate -i`."""
    from sefi.cli import loading
    from sefi.cli.output import print_answer
    from sefi.core.files import FileKind, check_output
    from sefi.core.own_files import hold_output_lock
    from sefi.core.prompts import check_name

    check_name(name)
    path = out or Path(f"{name}.safetensors")
    inputs = (*photos, model, detector, evaluators, init, *(setting.partition("=")[2] for setting in settings or []))
    check_output(path, FileKind.IDENTITY, inputs=inputs, overwrite=overwrite, name=name)
    overrides = [*(settings or []), *loading.format_settings(learn__steps=steps, learn__class_word=class_word)]
    chosen = loading.choose_preset(method, preset)
    config = loading.load_config(chosen, overrides)
    placement = Placement(face, None if box is None else parse_box(box), no_crop, detector, show_crop)
    placement.check(config, len(photos), inputs, overwrite=overwrite)
    loading.check_evaluators(evaluators)
    check_consent_text(consent)
    start = None if init is None else load_start(init)
    wanted = LearnOptions(
        name, config, seed, placement, evaluators, any_style, start, inputs, overwrite, consent, resume, memory
    )
    model_options = prepare_method(config, loading.ModelOptions(model, download, device, dtype), evaluators)
    from sefi.api import check_learning_settings, record_run  # late: it loads torch

    check_learning_settings(config, start, memory)
    with hold_output_lock(path):
        identity, summary = learn_and_save(photos, path, wanted, model_options)
    next_command = make_next_command(name, path, model_options, chosen, overrides)
    text = f"learned in {summary['seconds']:.0f} s: {path}\ntry: {next_command}"
    run = record_run(identity, chosen, model, init).dump()
    record = make_learn_record(identity, path) | summary | {"run": run, "next": next_command}
    print_answer(record, text, as_json=as_json, command="learn")


def load_start(file: Path) -> "Identity":
    """Return the identity that learning goes on from; `IdentityError` where the file holds none."""
    from sefi.core.process import import_quickly

    import_quickly("torch")
    from sefi.identity.file import Identity

    return Identity.load(file)


def prepare_method(config: "Config", model_options: "ModelOptions", evaluators: Path | None) -> "ModelOptions":
    """Return the model's options as the method needs them; fetch the face recogniser of one that reads faces.

    A model that is not there is refused first. Methods that train the model's own weights do so in float32, where no
    dtype is named. OpenCV's recogniser is fetched with `--download` only, and where no folder of evaluators is named.
    """
    from sefi.cli.loading import check_model, import_libraries

    check_model(model_options)
    import_libraries()
    from sefi.evaluation.encoders import find_sface
    from sefi.methods import get_method

    info = get_method(config.method).info
    if info.reads_faces and model_options.download and evaluators is None and model_options.name != options.EMBEDDED:
        find_sface(allow_download=True)
    if info.trains_model and model_options.dtype == options.AUTO:
        return replace(model_options, dtype="float32")
    return model_options


def parse_box(text: str) -> "Box":
    """Return left, top, width and height of a box as typed.

    Raises:
        ConfigError: it is not four whole numbers.
    """
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 4 or not all(number.isdecimal() and len(number) < 7 for number in numbers):
        raise ConfigError(f"{text!r} is no box.", "Give left, top, width and height in pixels: --box 40,20,300,300.")
    left, top, width, height = map(int, numbers)
    return left, top, width, height


@dataclass(frozen=True)
class Placement:
    """Where the subject is in its photos, as typed."""

    face: int | None
    box: "Box | None"
    no_crop: bool
    detector: Path | None
    show_crop: Path | None

    def check(
        self, config: "Config", photo_count: int, inputs: "Sequence[Path | str | None]", *, overwrite: bool
    ) -> None:
        """Refuse what contradicts itself, a detector that is not there, and a file for the crop that exists.

        Raises:
            ConfigError, FaceError, OutputError: what is wrong.
        """
        from sefi.cli.loading import check_detector
        from sefi.core.files import FileKind, check_output, is_regular_file
        from sefi.core.prompts import check_crop_options, check_photo_count

        check_crop_options(
            config.learn.class_word,
            crop=not self.no_crop,
            face=self.face,
            box=self.box,
            detector=self.detector,
            reads_face=config.reads_face,
        )
        check_photo_count(photo_count, face=self.face, box=self.box)
        if self.show_crop is not None:
            # One of an interrupted training is compared once there is another.
            again = is_regular_file(self.show_crop) and is_of_unfinished_training(self.show_crop)
            with name_crop_option():
                check_output(self.show_crop, FileKind.PNG, inputs=inputs, overwrite=overwrite or again)
        check_detector(self.detector)


@contextmanager
def name_crop_option() -> "Generator[None]":
    """Let errors on the picture of the crop name its own option; those of `core/files.py` name the result's."""
    try:
        yield
    except OutputError as error:
        raise OutputError(error.problem, error.remedy.replace("--out", "--show-crop")) from error


@dataclass(frozen=True)
class LearnOptions:
    """What is to be learned, and how."""

    name: str
    config: "Config"
    seed: int
    placement: Placement
    evaluator_folder: Path | None
    any_style: bool
    init: "Identity | None"
    inputs: "Sequence[Path | str | None]"
    overwrite: bool
    consent: str | None
    resume: bool | None
    memory: int | None = None

    def check_output(self, path: Path) -> None:
        """Refuse a path where the identity may not be written; `OutputError`."""
        from sefi.core.files import FileKind, check_output

        check_output(path, FileKind.IDENTITY, inputs=self.inputs, overwrite=self.overwrite, name=self.name)


def check_consent_text(text: str | None) -> None:
    """Refuse a statement of consent that cannot be read or has expired, before any work."""
    from datetime import date

    from sefi.provenance.consent import require_consent

    if text is not None:
        require_consent(text, date.today())  # noqa: DTZ011 the day where the user is


def collect_consent(text: str | None, *, is_embedded: bool) -> "Consent | None":
    """Return the stated consent; a person at a terminal is asked for it, unless the model is the embedded one.

    Raises:
        ConfigError: none is stated and nobody can be asked.
    """
    import sys
    from datetime import date

    from sefi.provenance.consent import SUBJECTS, require_consent

    if text is None and is_embedded:
        return None
    if text is None and sys.stdin.isatty() and sys.stderr.isatty():
        by = typer.prompt("Consent: your name", err=True)
        subjects = "; ".join(f"{word}: {meaning}" for word, meaning in SUBJECTS.items())
        subject = typer.prompt(f"Whose likeness ({subjects})", err=True)
        scope = typer.prompt("What it may be used for", default="private use", err=True)
        expires = typer.prompt("Last day, as 2027-12-31 (empty: without end)", default="", err=True)
        text = f"by={by}; for={subject}; scope={scope}" + (f"; expires={expires}" if expires else "")
    return require_consent(text, date.today())  # noqa: DTZ011 the day where the user is


def learn_and_save(
    files: "Sequence[Path]", path: Path, learn_options: LearnOptions, model_options: "ModelOptions"
) -> "tuple[Identity, dict[str, object]]":
    """Learn the subject of photo files and write its identity; say how long it took."""
    from sefi.api import check_photo_styles, learn, list_training_remarks, list_training_sentences
    from sefi.cli.loading import load_backbone
    from sefi.cli.output import print_remark
    from sefi.cli.progress import TerminalProgress
    from sefi.core.files import remove_file
    from sefi.diffusion.conditioning import list_identity_remarks
    from sefi.diffusion.text import find_unknown_words
    from sefi.identity.file import write_identity
    from sefi.photo.read import read_photo
    from sefi.training.loop import list_recovery_remarks

    learn_options.check_output(path)  # another process may have made it until this one got the lock
    photos = [read_photo(file) for file in files]
    if not learn_options.any_style:
        check_photo_styles(photos, for_drawings=model_options.name == options.EMBEDDED)
    backbone = load_backbone(
        model_options.name, download=model_options.download, device=model_options.device, dtype=model_options.dtype
    )
    started_from = [] if learn_options.init is None else list_identity_remarks(backbone, [learn_options.init])
    # After the model is open: nobody attests anything for a mistyped folder.
    consent = collect_consent(learn_options.consent, is_embedded=backbone.is_embedded)
    for remark in [*list_training_remarks(backbone, learn_options.config), *started_from]:
        print_remark(f"note: {remark}")
    crops = crop_all(photos, backbone, learn_options)
    config, faces = choose_learning_start(crops, backbone, learn_options)
    unfinished, resumed_at = find_checkpoint(path, crops, faces, backbone, replace(learn_options, config=config))
    started = time.monotonic()
    with TerminalProgress() as progress:
        identity = learn(
            crops,
            name=learn_options.name,
            backbone=backbone,
            config=config,
            seed=learn_options.seed,
            detector=learn_options.placement.detector,
            evaluators=learn_options.evaluator_folder,
            init=learn_options.init,
            consent=consent,
            progress=progress,
            checkpoint=unfinished,
            memory=learn_options.memory,
        )
    learn_options.check_output(path)  # somebody may have put a file there meanwhile
    write_identity(identity, path, replace=learn_options.overwrite)
    remove_file(unfinished)
    name_crop_sheet(learn_options.placement.show_crop, photos, crops, identity)
    for remark in list_recovery_remarks(identity.header.metrics):
        print_remark(f"note: {remark}")
    return identity, {
        "seconds": round(time.monotonic() - started, 1),
        "resumed_at": resumed_at,
        "unknown_words": find_unknown_words(backbone, list_training_sentences(learn_options.config)),
        "photos": [make_crop_record(crop) for crop in crops],
    }


def crop_all(photos: "Sequence[Photo]", backbone: "Backbone", learn_options: LearnOptions) -> "list[SubjectCrop]":
    """Crop the subject out of every photo, make the remarks on it, and write the picture of it that is wanted."""
    from sefi.api import crop_photo
    from sefi.cli.output import print_remark
    from sefi.core.files import FileKind, write_output
    from sefi.provenance.metadata import NOT_LEARNED_YET
    from sefi.provenance.save import encode_photo
    from sefi.report.contact_sheet import draw_crop_sheet

    placement = learn_options.placement
    crops = [
        crop_photo(
            photo,
            backbone,
            learn_options.config,
            placement.face,
            placement.box,
            crop=not placement.no_crop,
            detector=placement.detector,
        )
        for photo in photos
    ]
    for crop in crops:
        for remark in crop.remarks:
            print_remark(f"note: {crop.source}: {remark}")
    if placement.show_crop is not None:
        sheet = encode_photo(draw_crop_sheet(photos, crops), [NOT_LEARNED_YET])
        if not is_same_content(placement.show_crop, sheet.content):  # an interrupted training wrote it
            inputs, overwrite = learn_options.inputs, learn_options.overwrite
            with name_crop_option():
                write_output(placement.show_crop, FileKind.PNG, sheet.write, inputs=inputs, overwrite=overwrite)
        print_remark(f"crop: {placement.show_crop}")
    return crops


def choose_learning_start(
    crops: "Sequence[SubjectCrop]", backbone: "Backbone", learn_options: LearnOptions
) -> "tuple[Config, tuple[CropFace, ...]]":
    """Return settings with where learning starts, and the faces that they ask for; make the remarks on it."""
    from sefi.api import find_start
    from sefi.cli.output import print_remark

    begun = find_start(crops, backbone, learn_options.config, learn_options.placement.detector, learn_options.init)
    for remark in begun.remarks:
        print_remark(f"note: {remark}")
    return begun.config, begun.faces


def is_of_unfinished_training(path: Path) -> bool:
    """Return whether a file is the picture of what a training that has no result yet learns."""
    from sefi.provenance.metadata import NOT_LEARNED_YET, shorten_digests
    from sefi.provenance.save import read_named_identities

    return shorten_digests([NOT_LEARNED_YET]) in read_named_identities(path)


def is_same_content(path: Path, content: bytes) -> bool:
    """Return whether a regular file has these bytes."""
    from sefi.core.files import is_regular_file

    return is_regular_file(path) and path.stat().st_size == len(content) and path.read_bytes() == content


def name_crop_sheet(
    path: Path | None, photos: "Sequence[Photo]", crops: "Sequence[SubjectCrop]", identity: "Identity"
) -> None:
    """Write the identity's SHA-256 into the picture of what was learned, if it was wanted and is still there.

    So `sefi forget` finds it; before learning there was no identity to name.
    """
    from sefi.core.files import FileKind, write_output
    from sefi.identity.file import compute_identity_digest
    from sefi.provenance.metadata import NOT_LEARNED_YET
    from sefi.provenance.save import encode_photo
    from sefi.report.contact_sheet import draw_crop_sheet

    if path is None:
        return
    sheet = draw_crop_sheet(photos, crops)
    if is_same_content(path, encode_photo(sheet, [NOT_LEARNED_YET]).content):
        named = encode_photo(sheet, [compute_identity_digest(identity)])
        write_output(path, FileKind.PNG, named.write, overwrite=True)


def make_crop_record(crop: "SubjectCrop") -> dict[str, object]:
    """Return what of a photo was learned: the square in the pixels of its original."""
    square = crop.original_square
    return {"photo": crop.source, "left": square.left, "top": square.top, "side": square.side, "notes": crop.remarks}


def make_next_command(
    name: str, path: Path, model_options: "ModelOptions", preset: str, settings: "Sequence[str]"
) -> str:
    """Return the command that generates what was learned: on the same model, with the same settings of generation."""
    words = ["-i", str(path), *model_options.list_options()]
    if preset != "default":
        words += ["--preset", preset]
    for setting in settings:
        if setting.startswith("generate."):
            words += ["--set", setting]
    return f'sefi generate "a photo of <{name}>" {shlex.join(words)}'


def make_learn_record(identity: "Identity", path: Path) -> dict[str, object]:
    """Return a summary of what was learned."""
    from sefi.provenance.run_record import compute_file_digest

    header = identity.header
    return {
        "identity": str(path),
        "name": header.name,
        "base_model": header.base_model,
        "bytes": path.stat().st_size,
        "sha256": compute_file_digest(path),
        "seed": header.seed,
        "metrics": dict(header.metrics),
    }


def describe_start(backbone: "Backbone", learn_options: LearnOptions) -> dict[str, str]:
    """Return what a method adds to the key of such a training, as `describe_training_start` says it."""
    from sefi.api import find_evaluators
    from sefi.evaluation.encoders import hash_face_networks
    from sefi.methods import get_method
    from sefi.methods.base import TrainingOptions, describe_training_start
    from sefi.methods.name_encoder import hash_encoder

    config, folder = learn_options.config, learn_options.evaluator_folder or find_evaluators(backbone)
    reads_faces = get_method(config.method).info.reads_faces
    options = TrainingOptions(
        init=learn_options.init,
        encoder_digest=hash_encoder(config) if config.learn.start == "encoder" else None,
        networks_digest=hash_face_networks(folder) if reads_faces else None,
    )
    return describe_training_start(options)


def find_checkpoint(
    path: Path,
    crops: "Sequence[SubjectCrop]",
    faces: "tuple[CropFace, ...]",
    backbone: "Backbone",
    learn_options: LearnOptions,
) -> tuple[Path, int]:
    """Return the checkpoint of this training and the step that it goes on at; say what else is unfinished there.

    Args:
        faces: where the face is in each crop, where the settings ask for it.
        learn_options: with `learn.start` as `find_start` resolves it.
    """
    from sefi.cli.output import print_remark
    from sefi.photo.augment import PhotoViews
    from sefi.training.checkpoint import find_unfinished, list_read_files, name_checkpoint
    from sefi.training.token_inversion import collect_training_key

    config, seed = learn_options.config, learn_options.seed
    first, *rest = [crop.pixels for crop in crops]
    views = PhotoViews(first, config.views, tuple(rest), faces)
    key = collect_training_key(backbone, views, config, seed) | describe_start(backbone, learn_options)
    training = [config.model_dump_json(), key["model"], key["signature"], seed, *list_read_files(key)]
    checkpoint = name_checkpoint(path, [first, *rest], training)
    step, remarks = find_unfinished(path, checkpoint, key, resume=learn_options.resume)
    for remark in remarks:
        print_remark(f"note: {remark}")
    return checkpoint, step
