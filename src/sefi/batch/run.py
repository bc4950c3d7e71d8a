"""Learn the items of a batch: one item from its photos to its preview, the queue of all, and the run in one process.

Each part of the work is on record before its file takes its name, so that after a kill at any moment the next try goes
on: a training at its last checkpoint, an identity that is there is not learned again.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from sefi.api import (
    CropModel,
    check_photo_styles,
    crop_photo,
    find_start,
    generate,
    learn,
    record_run,
)
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.batch.plan import (
    PREVIEWS,
    BatchItem,
    BatchSettings,
    ItemProblem,
    ItemRecord,
    ItemState,
    ModelSource,
    count_tries,
    describe_problem,
    find_problem,
    has_identity_of,
    hash_large_identity,
    is_finished,
    locate_identity_file,
    locate_preview,
    read_item_record,
    write_item_record,
)
from sefi.benchmark.identities import Stopwatch
from sefi.core.config import Config
from sefi.core.errors import (
    ConfigError,
    FaceError,
    IdentityError,
    Interrupted,
    OutputError,
    PhotoError,
    PromptError,
    SefiError,
    is_out_of_memory,
    join_message,
    print_trace,
    release_memory,
    shorten_reason,
)
from sefi.core.files import LONGEST_STEM, check_link, remove_file, write_file
from sefi.core.own_files import hash_own_file, hold_output_lock, locate_lock, refuse_other_file
from sefi.core.progress import Progress, RunProgress
from sefi.core.prompts import needs_face
from sefi.identity.file import Identity, compute_identity_digest, write_identity
from sefi.photo.augment import SubjectCrop, convert_to_bytes
from sefi.photo.read import read_photo
from sefi.provenance.consent import parse_consent
from sefi.provenance.forget_records import BATCH_RECORDS
from sefi.provenance.leftovers import TEMPORARY
from sefi.provenance.metadata import hide_names
from sefi.provenance.save import encode_image
from sefi.report.contact_sheet import SheetRow, draw_contact_sheet
from sefi.training.checkpoint import name_checkpoint, read_unfinished
from sefi.training.finetuning import ClassImages
from sefi.training.loop import list_recovery_remarks

# What fails in the same way each time: another try would only cost time.
LASTING = (PhotoError, FaceError, PromptError, IdentityError, ConfigError)
MOST_WRITTEN = 7  # SHA-256 of earlier files of an item that are remembered
PREVIEW_STEPS = 25
SECONDS_FOR_LOCK = 30.0  # in which a worker that was killed is gone
KILLED = "The worker that learned it was killed, perhaps for want of memory."
RETRY = "Look at the photo and at the memory; --retry tries it again."


@dataclass(frozen=True)
class PreparedPhotos:
    """The photos of an item, read and cut, or the error that says why they are not; it goes from process to process."""

    crops: tuple[SubjectCrop, ...] = ()
    error: SefiError | None = None

    def require(self) -> tuple[SubjectCrop, ...]:
        """Return the crops; raises the error."""
        if self.error is not None:
            raise self.error
        return self.crops


# ------------------------------------------------------------------ one item


def learn_item(
    item: BatchItem,
    settings: BatchSettings,
    backbone: Backbone,
    progress: Progress | None = None,
    prepared: PreparedPhotos | None = None,
    *,
    class_images: ClassImages | None = None,
    alone: bool = False,
) -> ItemRecord:
    """Do what is left of an item, and return its record, which says how that ended.

    Args:
        prepared: its photos, where somebody else has read them.
        class_images: that this process drew for other items.
        alone: this is the process of the batch itself.

    Raises:
        Interrupted, KeyboardInterrupt: the user stopped it; the try does not count.
        OutputError: not even a record can be written, as on a full disk.
    """
    folder = settings.folder
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_item_lock(locate_identity_file(folder, item.name)))
        except OutputError as error:  # somebody else learns it
            return record_failed_try(item, settings, error, alone=alone)
        remove_partials(folder, item.name)
        before = read_item_record(folder, item.name)
        if before is not None and before.key != item.key:  # nobody goes on with one of the earlier photo or settings
            remove_file(locate_training(folder, before))
        record = None
        try:
            record = begin_try(item, settings, alone=alone)
            record, crops = learn_item_identity(item, record, settings, backbone, progress, prepared, class_images)
            record = make_preview(item, record, settings, backbone, crops)
            return write_item_record(folder, record.change(state=ItemState.LEARNED, tries=0))
        except (Interrupted, KeyboardInterrupt):
            written = read_item_record(folder, item.name)  # also where the stop came as `begin_try` returned
            if written is not None and written != before:
                release_try(written, settings)
            raise
        except Exception as error:
            if record is None:
                return record_failed_try(item, settings, error, alone=alone)
            return record_failure(read_item_record(folder, item.name) or record, settings, error)


def release_try(record: ItemRecord, settings: BatchSettings) -> None:
    """Record that a try was stopped on purpose and does not count, unless it had ended as its last write returned."""
    if record.state is not ItemState.LEARNED:
        write_item_record(settings.folder, record.change(state=ItemState.WAITING, tries=record.tries - 1))


def record_failed_try(item: BatchItem, settings: BatchSettings, error: Exception, *, alone: bool) -> ItemRecord:
    """Record a try that failed before it was begun; return the record.

    Nothing but the last record is read: what keeps a try from beginning does not keep it from being recorded, and
    from counting, or it would end the batch each time.
    """
    before, tries = read_item_record(settings.folder, item.name), 0
    record = start_record(item, before)
    if before is not None and before.key == item.key:
        record, tries = before, count_tries(before, before.step)
    facts = {"any_style": settings.any_style, "photos": item.photo_names}
    return record_failure(record.change(tries=tries + 1, alone=alone, **facts), settings, error)


def record_failure(record: ItemRecord, settings: BatchSettings, error: Exception) -> ItemRecord:
    """Record how a try failed; return the record."""
    lasting = isinstance(error, LASTING) and not error.lacks_memory
    state = ItemState.REFUSED if lasting else ItemState.FAILED
    print_trace(error)
    problem, remedy = describe_failure(error)
    return write_item_record(settings.folder, record.change(state=state, problem=problem, remedy=remedy))


@contextmanager
def hold_item_lock(path: Path) -> Generator[None]:
    """Hold the lock of an identity, so that nobody else learns it; a worker that was just killed is waited for."""
    check_link(path)  # the lock would be in the folder that it leads to
    refuse_other_file(locate_lock(path), path)
    deadline = time.monotonic() + SECONDS_FOR_LOCK
    while True:
        lock = hold_output_lock(path)
        try:
            lock.__enter__()
            break
        except OutputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def remove_partials(folder: Path, name: str) -> None:
    """Remove what a killed try was writing of an item; its lock is held, so that nobody else writes it.

    A name that is too long for its temporary files to show whose they are is left to `sefi forget --leftovers`: theirs
    begin with the same letters as those of every longer name.
    """
    if len(name) >= LONGEST_STEM:
        return
    for part in (folder, folder / PREVIEWS, folder / BATCH_RECORDS):
        for path in part.glob("*.partial*"):
            match = TEMPORARY.fullmatch(path.name)
            if match is not None and (match["stem"] == name or match["stem"].startswith(f".{name}.")):
                remove_file(path)


def begin_try(item: BatchItem, settings: BatchSettings, *, alone: bool) -> ItemRecord:
    """Record a try before it begins; what is finished of the item stays on record."""
    before, step = read_item_record(settings.folder, item.name), read_step(settings.folder, item)
    fresh, tries = start_record(item, before), 0
    if before is not None:
        tries = count_tries(before, step) if before.key == item.key else 0
        if has_identity_of(before, item, settings.folder):
            fresh = before
    record = fresh.change(
        state=ItemState.STARTED,
        tries=tries + 1,
        step=step,
        alone=alone,
        any_style=settings.any_style,
        photos=item.photo_names,
        problem="",
        remedy="",
    )
    return write_item_record(settings.folder, record)


def start_record(item: BatchItem, before: ItemRecord | None) -> ItemRecord:
    """Return a record of an item of which nothing is done; of the one before it has the files that are the item's."""
    fresh = ItemRecord(name=item.name, key=item.key, state=ItemState.STARTED, tries=0, step=0, seconds=0.0)
    return fresh if before is None else fresh.change(written=before.written)


def read_step(folder: Path, item: BatchItem | ItemRecord) -> int:
    """Return the step that the training of an item goes on at; 0 for a new one, and for one that cannot be read."""
    with suppress(ConfigError):
        checkpoint = locate_training(folder, item)
        return read_unfinished(checkpoint)[0] if checkpoint.exists() else 0
    return 0


def locate_training(folder: Path, item: BatchItem | ItemRecord) -> Path:
    """Return the checkpoint of an item's training, which `sefi forget` knows by its name; of a record its last one."""
    return name_checkpoint(locate_identity_file(folder, item.name), [], [item.key])


def describe_failure(error: Exception) -> tuple[str, str]:
    """Return problem and remedy of what went wrong with an item."""
    if isinstance(error, SefiError):
        return error.problem, error.remedy
    if is_out_of_memory(error):
        release_memory(shorten_reason(error))
        return "There is not enough memory.", "Use fewer --jobs, or a smaller model; --retry tries it again."
    return f"Unexpected {type(error).__name__}: {join_message(error)}", "Report it, please; --retry tries it again."


def prepare_photos(item: BatchItem, settings: BatchSettings, model: CropModel) -> PreparedPhotos:
    """Read and cut the photos of an item; needs no open model, and raises nothing that a photo causes."""
    try:
        return PreparedPhotos(tuple(read_crops(item, settings, model)))
    except SefiError as error:
        return PreparedPhotos(error=error)


def read_crops(item: BatchItem, settings: BatchSettings, model: CropModel) -> list[SubjectCrop]:
    """Return what is learned of each photo of an item; errors as of `crop_photo` and `check_photo_styles`."""
    photos = [read_photo(photo) for photo in item.photos]
    if not settings.any_style:
        check_photo_styles(photos, for_drawings=model.is_embedded)
    detector, crop = choose_detector(item, settings), settings.crop
    return [crop_photo(photo, model, item.config, item.face, crop=crop, detector=detector) for photo in photos]


def choose_detector(item: BatchItem, settings: BatchSettings) -> Path | None:
    """Return the face detector that is named, for an item in whose photos a face is looked for."""
    config = item.config
    has_use = config.reads_face or needs_face(config.learn.class_word, crop=settings.crop)
    return settings.detector if has_use else None


def learn_item_identity(
    item: BatchItem,
    record: ItemRecord,
    settings: BatchSettings,
    backbone: Backbone,
    progress: Progress | None,
    prepared: PreparedPhotos | None,
    class_images: ClassImages | None,
) -> tuple[ItemRecord, Sequence[SubjectCrop]]:
    """Learn and write the identity of an item, unless that is done; return its record and what was cut of the photos.

    Raises:
        SefiError: of the photos, the training or the place.
    """
    path = locate_identity_file(settings.folder, item.name)
    if has_identity_of(record, item, settings.folder):
        remove_file(locate_training(settings.folder, item))  # where a kill came before it was
        if is_finished(record, item, settings):
            return record, ()
        return record, read_crops(item, settings, backbone) if prepared is None else prepared.require()
    check_place(path, record)
    crops = read_crops(item, settings, backbone) if prepared is None else prepared.require()
    started, detector = time.monotonic(), choose_detector(item, settings)
    begun = find_start(crops, backbone, item.config, detector, None)
    identity = learn(
        crops,
        name=item.name,
        backbone=backbone,
        config=begun.config,
        seed=item.seed,
        detector=detector,
        evaluators=settings.evaluators,
        consent=None if item.consent is None else parse_consent(item.consent, date.today()),  # noqa: DTZ011
        progress=progress,
        checkpoint=locate_training(settings.folder, item),
        class_images=class_images,
    )
    digest = compute_identity_digest(identity)
    record = record.change(
        identity=digest,
        written=add_written(record, digest),
        preview="",
        preview_key="",
        seconds=round(time.monotonic() - started, 2),
        remarks=(
            *(remark for crop in crops for remark in crop.remarks),
            *begun.remarks,
            *list_recovery_remarks(identity.header.metrics),
        ),
        run=record_run(identity, settings.preset, settings.model.name, None).dump(),
    )
    write_item_record(settings.folder, record)
    check_place(path, record)
    write_identity(identity, path)
    remove_file(locate_training(settings.folder, item))
    return record, crops


def make_preview(
    item: BatchItem, record: ItemRecord, settings: BatchSettings, backbone: Backbone, crops: Sequence[SubjectCrop]
) -> ItemRecord:
    """Write what was learned beside an image of it, unless that is done or not wanted; return the record.

    Raises:
        SefiError: the image cannot be made, or something else is in its place.
    """
    if settings.preview is None or is_finished(record, item, settings):
        return record
    path = locate_preview(settings.folder, item.name)
    check_place(path, record)
    identity = Identity.load(locate_identity_file(settings.folder, item.name))
    prompt = settings.preview.replace("{}", f"<{item.name}>")
    images = generate(prompt, identity, backbone=backbone, config=make_preview_config(item.config), seed=item.seed)
    learned = [Image.fromarray(convert_to_bytes(crop.pixels)) for crop in crops[:1]]
    row = SheetRow("", [*learned, *(image.pixels for image in images)])
    titles = ["what was learned", *[hide_names(prompt)] * len(images)]
    sheet = draw_contact_sheet([row], titles[-len(row.images) :])
    encoded = encode_image(sheet, mark=settings.mark, identities=[record.identity])
    digest = hash_content(encoded.content)
    record = record.change(
        preview=digest, preview_key=settings.compute_preview_key(), written=add_written(record, digest)
    )
    write_item_record(settings.folder, record)
    write_file(path, encoded.write)
    return record


def make_preview_config(config: Config) -> Config:
    """Return settings for a preview: at most `PREVIEW_STEPS` denoising steps, half of the usual.

    On a processor all of them take longer than the default learns.
    """
    steps = min(config.generate.steps, PREVIEW_STEPS)
    return config.model_copy(update={"generate": config.generate.model_copy(update={"steps": steps})})


def check_place(path: Path, record: ItemRecord) -> None:
    """Refuse to replace a file that the batch did not write, or that was changed since, and links; `OutputError`."""
    check_link(path)
    if hash_own_file(path) in (None, *record.written):
        return
    if path.suffix == ".safetensors" and hash_large_identity(path) in record.written:
        return  # of a very large identity the SHA-256 is not the file's
    raise OutputError(
        f"'{path}' exists and was not written by this batch, or was changed since.",
        "Move it away, and run the batch again with --retry.",
    )


def add_written(record: ItemRecord, digest: str) -> tuple[str, ...]:
    """Return the SHA-256 of the files that are an item's own, with one more; the identity and preview that are there.

    Earlier ones go: their files are replaced.
    """
    return tuple(dict.fromkeys([*record.written[-MOST_WRITTEN:], digest]))


def hash_content(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------ all items


@dataclass(frozen=True)
class Standing:
    """How the items of a plan stand.

    Attributes:
        pending: to be learned.
        finished: of which nothing is left to do.
        problems: of items that are not tried, or that failed.
    """

    pending: tuple[BatchItem, ...]
    finished: tuple[BatchItem, ...]
    problems: tuple[ItemProblem, ...]


def sort_items(items: Sequence[BatchItem], settings: BatchSettings, *, retry: bool = False) -> Standing:
    """Return how items stand by what is on record of them; one whose record cannot be read is a problem.

    Args:
        retry: try again what was put aside or refused.
    """
    pending, finished, problems = list[BatchItem](), list[BatchItem](), list[ItemProblem]()
    for item in items:
        record = find_record(item, settings)
        if isinstance(record, ItemProblem):
            problems.append(record)
            continue
        problem = None if retry else find_problem(record, item, settings, read_step(settings.folder, item))
        if is_finished(record, item, settings):
            finished.append(item)
        elif problem is not None:
            problems.append(problem)
        else:
            pending.append(item)
    return Standing(tuple(pending), tuple(finished), tuple(problems))


def find_record(item: BatchItem, settings: BatchSettings) -> ItemRecord | ItemProblem | None:
    """Return the record of an item, None where there is none, or why it is not tried: its record cannot be read.

    Nobody knows then what its identity was learned from, so that nothing of it is written again.
    """
    try:
        return read_item_record(settings.folder, item.name)
    except OutputError as error:
        remedy = f"Remove it to learn {item.name!r} again; an identity that is there has to be moved away first."
        return ItemProblem(item.name, item.photo_names, error.problem, remedy)


def remove_stale_files(items: Sequence[BatchItem], settings: BatchSettings) -> None:
    """Remove what a kill left of finished items, their locks and what was being written: nobody works on them again."""
    for item in items:
        path = locate_identity_file(settings.folder, item.name)
        if locate_lock(path).exists():
            with suppress(OutputError), hold_output_lock(path):  # refused: somebody is at work
                remove_partials(settings.folder, item.name)


def begin_batch(items: Sequence[BatchItem], settings: BatchSettings, *, retry: bool = False) -> Standing:
    """Return how items stand, remove what a kill left of finished ones, and count tries anew if asked to.

    Raises:
        OutputError: a record cannot be written.
    """
    standing = sort_items(items, settings, retry=retry)
    remove_stale_files(standing.finished, settings)
    if retry:
        reset_tries(standing.pending, settings)
    return standing


def list_problems(items: Sequence[BatchItem], settings: BatchSettings) -> list[ItemProblem]:
    """List why items are not learned that were tried, or whose record cannot be read."""
    problems = list[ItemProblem]()
    for item in items:
        record = find_record(item, settings)
        if isinstance(record, ItemProblem):
            problems.append(record)
        elif record is not None and record.key == item.key and not is_finished(record, item, settings):
            lasting = record.state is ItemState.REFUSED or record.tries >= settings.tries
            problems.append(describe_problem(record, put_aside=lasting))
    return problems


def reset_tries(items: Sequence[BatchItem], settings: BatchSettings) -> None:
    """Begin to count tries anew, as --retry asks for; errors as of `write_item_record`."""
    for item in items:
        record = read_item_record(settings.folder, item.name)
        if record is not None and record.key == item.key and record.tries:
            write_item_record(settings.folder, record.change(state=ItemState.WAITING, tries=0))


def close_killed_try(item: BatchItem, folder: Path) -> ItemRecord | None:
    """Return the record of an item that nobody works on; a try that was killed waits from now on.

    So the record of a try that is begun never equals the one before.
    """
    record = read_item_record(folder, item.name)
    if record is None or record.state is not ItemState.STARTED:
        return record
    tries = count_tries(record, read_step(folder, record))
    return write_item_record(folder, record.change(state=ItemState.WAITING, tries=tries))


class WorkQueue:
    """Hands out the items that wait, to whoever has nothing to do; one that failed waits again at the end.

    Args:
        progress: is advanced once an item is learned, refused or put aside.
    """

    def __init__(self, items: Sequence[BatchItem], settings: BatchSettings, progress: RunProgress) -> None:
        self.waiting, self.settings, self.progress = deque(items), settings, progress
        self.before: dict[str, ItemRecord | None] = {}  # the record of each item when it was handed out
        self.not_begun = Counter[str]()  # how often the worker of each item was killed before it began

    def take(self) -> BatchItem | None:
        """Return the next item; None if none waits."""
        if not self.waiting:
            return None
        item = self.waiting.popleft()
        self.before[item.name] = close_killed_try(item, self.settings.folder)
        return item

    def finish(self, item: BatchItem, _result: object = None, /) -> None:
        """Take back an item that was worked on: its record says how that ended."""
        record = read_item_record(self.settings.folder, item.name)
        failed = record is not None and record.state is ItemState.FAILED
        if failed and record is not None and record.tries < self.settings.tries:
            self.waiting.append(item)
        else:
            self.progress.advance()

    def fail(self, item: BatchItem, error: Exception) -> None:
        """Take back an item that failed before anybody could put it on record."""
        record_failed_try(item, self.settings, error, alone=False)
        self.finish(item)

    def take_back(self, item: BatchItem, _exit_code: int | None = None, /) -> None:
        """Take back an item whose worker was killed, unless it was finished by then."""
        folder = self.settings.folder
        record = read_item_record(folder, item.name)
        if record is None or record == self.before.get(item.name):
            self.not_begun[item.name] += 1
            if self.not_begun[item.name] < self.settings.tries:
                self.waiting.append(item)
                return
            record = begin_try(item, self.settings, alone=False).change(tries=self.settings.tries)
        if record.state is ItemState.STARTED:
            # One that came further than the try before is not to blame.
            tries = record.tries - (read_step(folder, item) > record.step)
            facts = {"state": ItemState.FAILED, "tries": tries, "problem": KILLED, "remedy": RETRY}
            write_item_record(folder, record.change(**facts))
        self.finish(item)


def learn_alone(queue: WorkQueue, backbone: Backbone) -> None:
    """Learn every item in this process.

    Raises:
        Interrupted, KeyboardInterrupt, OutputError: as of `learn_item`.
    """
    class_images = ClassImages()
    while (item := queue.take()) is not None:
        steps = Stopwatch(queue.progress.nested(), f"{item.name}: ")
        learn_item(item, queue.settings, backbone, steps, class_images=class_images, alone=True)
        queue.finish(item)


def load_model(model: ModelSource, device: str | None = None) -> Backbone:
    """Open the model of a batch, on a device of its own.

    Raises:
        BackboneError: it is not there, or cannot be used.
    """
    dtype = None if model.dtype == "auto" else getattr(torch, model.dtype)
    return open_backbone(model.name, allow_download=model.download, device=device or model.device, dtype=dtype)


def assign_devices(device: str, jobs: int) -> list[str]:
    """Return the device of each worker: one after the other where there are several of a kind.

    >>> assign_devices("cpu", 2), assign_devices("cuda:1", 2)
    (['cpu', 'cpu'], ['cuda:1', 'cuda:1'])
    """
    count = torch.cuda.device_count() if device == "cuda" else 0
    return [f"cuda:{number % count}" if count else device for number in range(jobs)]
