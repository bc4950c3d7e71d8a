"""What a batch is to learn, and what is on record of it: a folder of photos or a table of people, item by item.

The record of an item is one small file, replaced atomically before and after each part of the work. So a batch that is
killed at any moment knows what is finished; what it knows of an item is found by the item's name and key.
"""

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from sefi.core.config import Config, override
from sefi.core.errors import ConfigError, IdentityError, OutputError, PhotoError, SefiError
from sefi.core.files import IMAGE_SUFFIXES, describe_missing_folder, describe_unread, write_text
from sefi.core.own_files import hash_own_file
from sefi.core.progress import Progress
from sefi.core.prompts import NAME, check_crop_options, check_name, check_photo_count
from sefi.core.reading import InvalidFileError, is_inside, read_json, read_user_text, translate_file_errors
from sefi.core.rng import require_seed
from sefi.core.text import dump_json, escape_controls, escape_formula, escape_surrogates, format_names
from sefi.evaluation.encoders import hash_face_networks
from sefi.methods import get_method
from sefi.provenance.consent import require_consent
from sefi.provenance.forget_records import BATCH_RECORDS, BATCH_SCHEMA
from sefi.provenance.run_record import (
    Digest,
    RecordPart,
    compute_file_digest,
    hash_input_files,
    hash_named_files,
    shorten_source,
)

COLUMNS = ("name", "photo", "class_word", "consent", "seed", "face")
NEEDED = ("name", "photo")
LARGEST_TABLE = 16 << 20  # bytes
MOST_ITEMS = 100_000
MOST_FILES_OF_MODEL = 1000
PREVIEWS = "previews"
SMALL_IDENTITY = 32 << 20  # bytes of a file up to which an identity is known by the file's SHA-256
NO_PHOTOS = "Name a folder of photos: one file, or one folder of files, for each person."
UNREADABLE = "Allow it to be read, or move it away."
TABLE_FORM = (
    f"Write UTF-8 text with commas between the cells: first a line of column names, name,photo (besides "
    f"{', '.join(COLUMNS[2:])} are known), then a line for each photo."
)


@dataclass(frozen=True)
class ModelSource:
    """The model of a batch, and how each worker opens it."""

    name: str
    is_embedded: bool
    download: bool = False
    device: str = "cpu"
    dtype: str = "auto"


@dataclass(frozen=True)
class BatchSettings:
    """How every item of a batch is learned.

    Attributes:
        photos: the folder of photos.
        folder: where identities, previews and records go.
        preset: that the settings started from, for records.
        consent: of whoever has none of their own.
        crop: cut faces out, where the class word means a person.
        preview: the prompt of the preview, `{}` for the subject; None for no previews.
        mark: previews get the invisible mark.
        tries: after so many an item is put aside.
    """

    photos: Path
    folder: Path
    model: ModelSource
    config: Config
    preset: str = "default"
    seed: int = 0
    consent: str | None = None
    evaluators: Path | None = None
    detector: Path | None = None
    any_style: bool = False
    crop: bool = True
    preview: str | None = "a photo of {}"
    mark: bool = True
    tries: int = 3

    def compute_preview_key(self) -> str:
        """Compute what says whether a preview is the wanted one; empty for none."""
        return "" if self.preview is None else hash_values([self.preview, self.mark])


@dataclass(frozen=True)
class BatchItem:
    """One subject to learn.

    Attributes:
        config: with the item's own class word.
        consent: as typed.
        key: SHA-256 of everything that decides what is learned, the photos' content included.
        photo_names: of the photos in the folder of photos, for people to read.
    """

    name: str
    photos: tuple[Path, ...]
    config: Config
    seed: int = 0
    face: int | None = None
    consent: str | None = None
    key: str = ""
    photo_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ItemProblem:
    """Why an item is not learned.

    Attributes:
        photos: names of its files.
        tries: how often it was tried; 0 where it cannot be tried at all.
        put_aside: it is not tried again by itself.
    """

    name: str
    photos: tuple[str, ...]
    problem: str
    remedy: str
    tries: int = 0
    put_aside: bool = True


@dataclass(frozen=True)
class BatchPlan:
    """Everything that a folder or a table asks for.

    Attributes:
        items: what can be tried.
        problems: what cannot.
        ignored: files that are no photos, from the folder; folders in folders, which are not read, end with a slash.
    """

    items: tuple[BatchItem, ...]
    problems: tuple[ItemProblem, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass
class NamedSubject:
    """A subject as a table or a folder names it: texts, not checked yet.

    Attributes:
        fault: what is wrong with what names it, and what to do.
    """

    name: str
    photos: list[str] = field(default_factory=list[str])
    values: dict[str, str] = field(default_factory=dict[str, str])
    fault: SefiError | None = None


# ------------------------------------------------------------------ folder and table


def make_plan(settings: BatchSettings, table: Path | None, progress: Progress) -> BatchPlan:
    """Return what is to be learned; an item that cannot be is a problem and stops nothing.

    Args:
        table: of people, `name,photo,...`; None takes each photo, and each folder of photos, of the folder.
        progress: is advanced after each item, whose photos are read once to be known again.

    Raises:
        PhotoError: there is no such folder, or nothing in it.
        ConfigError: the table cannot be read, has a column that is not known or lacks one, or there are too many items.
    """
    if not settings.photos.is_dir():
        raise PhotoError(describe_missing_folder(settings.photos), NO_PHOTOS)
    subjects, ignored = (read_people(table), ()) if table is not None else find_subjects(settings.photos)
    if not subjects:
        where = (
            f"'{settings.photos}' has no photos{describe_unread(ignored)}{describe_deep_folders(ignored)}"
            if table is None
            else f"'{table}' names nobody"
        )
        raise PhotoError(f"{where}.", NO_PHOTOS if table is None else "Write a line for each photo.")
    if len(subjects) > MOST_ITEMS:
        raise ConfigError(f"There are {len(subjects):,} subjects; a batch has at most {MOST_ITEMS:,}.", "Divide them.")
    items, problems, names = list[BatchItem](), list[ItemProblem](), set[str]()
    source = describe_source(settings)
    progress.start(len(subjects), "reading photos")
    for subject in subjects:
        try:
            items.append(make_item(subject, settings, source, names))
        except SefiError as error:
            words = fit_line(error.problem), fit_line(error.remedy)
            problems.append(ItemProblem(subject.name, tuple(subject.photos), *words))
        progress.advance()
    progress.finish()
    return BatchPlan(tuple(items), tuple(problems), tuple(ignored))


def find_subjects(folder: Path) -> tuple[list[NamedSubject], list[str]]:
    """Return a subject for each photo of a folder and for each folder of photos in it, and what else is there.

    A folder or a file that cannot be read is a subject with a fault: it stops no other.

    Raises:
        PhotoError: the folder itself cannot be read.
    """
    subjects, ignored = list[NamedSubject](), list[str]()
    with translate_file_errors(f"'{folder}'", PhotoError, "cannot be read", NO_PHOTOS):
        paths = sorted(one for one in folder.iterdir() if one.name[0] != ".")
    for path in paths:
        try:
            with translate_file_errors(f"'{path}'", PhotoError, "cannot be read", UNREADABLE):
                photos, others = list_photo_files(path), list_other_files(path)
        except PhotoError as error:
            subjects.append(NamedSubject(make_item_name(path.name), [escape_surrogates(path.name)], fault=error))
            continue
        ignored += [escape_surrogates(str(one.relative_to(folder))) + "/" * one.is_dir() for one in others]
        if photos:
            listed = [escape_surrogates(str(photo.relative_to(folder))) for photo in photos]
            name = make_item_name(path.stem if photos == [path] else path.name)
            subjects.append(NamedSubject(name, listed, fault=None if name else make_nameless_error(path.name)))
    return subjects, ignored


def make_nameless_error(name: str) -> SefiError:
    """Return the error for a file or a folder whose name has no letter that a name in prompts may have."""
    problem = f"'{escape_surrogates(name)}' has no letter a to z and no digit, so no name can be made of it."
    return IdentityError(problem, "Rename it, or write a name for it in a table (--from).")


def describe_deep_folders(names: Iterable[str]) -> str:
    """Return the end of a sentence on a folder: which folders in its folders are not read.

    >>> describe_deep_folders(["cy/2026/", "cy/notes.txt"]), describe_deep_folders(["cy/notes.txt"])
    ('; folders in folders, which are not read: cy/2026', '')
    """
    deep = [name.removesuffix("/") for name in names if name.endswith("/")]
    return f"; folders in folders, which are not read: {format_names(deep)}" if deep else ""


def list_photo_files(path: Path) -> list[Path]:
    """Return a photo, or the photos of a folder, which may be none; `OSError`."""
    return sorted(one for one in (path.iterdir() if path.is_dir() else [path]) if is_photo_file(one))


def list_other_files(path: Path) -> list[Path]:
    """Return a file that is no photo, or what in a folder is none, folders too, hidden ones left out; `OSError`."""
    found = path.iterdir() if path.is_dir() else [path]
    return sorted(one for one in found if one.name[0] != "." and not is_photo_file(one))


def is_photo_file(path: Path) -> bool:
    """Return whether a file is called as photos are, and is none of a system's hidden files."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file()


def make_item_name(text: str) -> str:
    """Return the name of a file or a folder in the letters that a name in prompts may have; empty if it has none.

    >>> make_item_name("Zoë & co.")
    'Zoe-co'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = "".join(letter if letter.isalnum() or letter in "_-" else " " for letter in plain).split()
    return "-".join(words).strip("-")[:64]


def read_people(table: Path) -> list[NamedSubject]:
    """Read a table of people; several rows of one name are several photos of it.

    Raises:
        ConfigError: it is no table with the columns of `COLUMNS`, of which name and photo are needed.
    """
    with translate_file_errors(f"'{table}'", ConfigError, "is no table of people", TABLE_FORM, also=(csv.Error,)):
        try:
            text = read_user_text(table, LARGEST_TABLE)
        except FileNotFoundError:
            raise ConfigError(f"There is no table '{table}'.", "Name a CSV file with --from.") from None
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [cell.strip() for cell in next(rows, [])]
        check_header(header)
        subjects: dict[str, NamedSubject] = {}
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise InvalidFileError(f"row {number} has {len(row)} cells, and there are {len(header)} columns")
            cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
            add_row(subjects.setdefault(cells["name"], NamedSubject(cells["name"])), cells)
    return list(subjects.values())


def check_header(header: Sequence[str]) -> None:
    """Refuse a table whose columns are not known, missing or named twice; `InvalidFileError`."""
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in NEEDED if name not in header]
    if unknown:
        raise InvalidFileError(f"it has a column '{escape_controls(unknown[0])[:40]}'")
    if missing or len(set(header)) < len(header):
        raise InvalidFileError(f"it has no column {missing[0]!r}" if missing else "it names a column twice")


def add_row(subject: NamedSubject, cells: dict[str, str]) -> None:
    """Add a row of a table to its subject; an empty cell says nothing, one that contradicts an earlier row is noted."""
    subject.photos += [name for name in (part.strip() for part in cells["photo"].split(";")) if name]
    for column in COLUMNS[2:]:
        value = cells.get(column, "")
        if value and subject.values.setdefault(column, value) != value:
            problem = f"Rows of {subject.name!r} have a different {column}."
            subject.fault = ConfigError(problem, "Write it in one row only.")


# ------------------------------------------------------------------ items


def make_item(subject: NamedSubject, settings: BatchSettings, source: object, names: set[str]) -> BatchItem:
    """Return an item with its key, everything about it checked that needs no model.

    Args:
        source: what stands in keys for the model and the settings of all, of `describe_source`.
        names: of the items before, in small letters; gets this one's.

    Raises:
        SefiError: what is wrong with its name, photos, settings or consent.
    """
    from sefi.api import check_learning_settings  # noqa: PLC0415  it loads torch

    if subject.fault is not None:
        raise subject.fault
    check_name(subject.name)
    if subject.name.lower() in names:  # as some disks do
        raise IdentityError(f"Another photo is called {subject.name!r} too.", "Rename one of the files or rows.")
    names.add(subject.name.lower())
    values = subject.values
    config = settings.config
    if "class_word" in values:
        config = override(config, [f"learn.class_word={values['class_word']}"])
    check_learning_settings(config)
    class_word = config.learn.class_word
    face = None if "face" not in values else parse_whole_number("face", values["face"], 1)
    check_face_column(class_word, face, len(subject.photos), crop=settings.crop)
    seed = require_seed(parse_whole_number("seed", values["seed"], 0)) if "seed" in values else settings.seed
    consent = values.get("consent") or settings.consent
    if consent is not None or not settings.model.is_embedded:
        require_consent(consent, date.today())  # noqa: DTZ011 the day where the user is
    photos = tuple(locate_photo_file(settings.photos, name) for name in subject.photos)
    if not photos:
        raise PhotoError(f"No photo of {subject.name!r} is named.", "Name one in the column photo.")
    digests = [hash_photo(photo) for photo in photos]
    key = hash_values([subject.name, digests, config.model_dump(mode="json"), seed, face, consent, source])
    photo_names = tuple(shorten_photo_name(settings.photos, name) for name in subject.photos)
    return BatchItem(subject.name, photos, config, seed, face, consent, key, photo_names)


def check_face_column(class_word: str, face: int | None, photos: int, *, crop: bool) -> None:
    """Refuse a face that has no effect or belongs to one of several photos; `ConfigError` that names the column."""
    try:
        check_crop_options(class_word, crop=crop, face=face)
        check_photo_count(photos, face=face, box=None)
    except ConfigError as error:
        words = (text.replace("--face", "the column face") for text in (error.problem, error.remedy))
        raise ConfigError(*words) from None


def parse_whole_number(column: str, text: str, least: int) -> int:
    """Return a whole number of a table; `ConfigError` if it is none or too small."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) >= least):
        raise ConfigError(f"{column} is {text[:40]!r}.", f"Write a whole number, {least} or more, or nothing.")
    return int(text)


def locate_photo_file(folder: Path, name: str) -> Path:
    """Return a photo by its name in the folder of photos.

    Raises:
        PhotoError: it is not there, or leads out of the folder.
    """
    with suppress(OSError, ValueError):  # a name that no file can have
        path = folder / name
        if not is_inside(path, folder):
            raise PhotoError(f"'{name}' leads out of the folder of photos.", "Copy the photo itself into the folder.")
        if path.is_file():
            return path
    raise PhotoError(f"There is no photo '{name}' in the folder of photos.", "Correct the name, or copy it there.")


def shorten_photo_name(folder: Path, name: str) -> str:
    """Return the name of a photo of the folder as given; of a whole path what follows the folder, both without links.

    The folder itself may be typed from the current folder, or be a link: then no whole path begins with it.
    """
    if not Path(name).is_absolute():
        return name
    return escape_surrogates(os.path.relpath(os.path.realpath(name), os.path.realpath(folder)))


def hash_photo(photo: Path) -> str:
    """Return the SHA-256 of a photo's file; `PhotoError` if it cannot be read."""
    try:
        return compute_file_digest(photo)
    except OSError as error:
        raise PhotoError(f"'{photo.name}' cannot be read: {error.strerror}.", "Check its permissions.") from error


def describe_source(settings: BatchSettings) -> list[object]:
    """Return what stands in every key for the model, the other files and the way of cutting out.

    Of a model's folder its files' names and sizes, so that another one in its place is noticed without being read; of
    what settings name, and of networks, the contents too. Without such files the keys are those of earlier versions.

    Raises:
        ConfigError, BackboneError: one of them cannot be read.
    """
    model = settings.model
    networks = [None if one is None else list_file_sizes(one) for one in (settings.detector, settings.evaluators)]
    files = [] if model.is_embedded else list_file_sizes(Path(model.name))
    read = hash_named_files(settings.config) | hash_input_files({"detector": settings.detector})
    if settings.evaluators is not None and get_method(settings.config.method).info.reads_faces:
        read["networks"] = hash_face_networks(settings.evaluators)
    return [shorten_source(model.name), files, model.dtype, settings.crop, networks, *([read] if read else [])]


def list_file_sizes(path: Path) -> list[tuple[str, int]]:
    """Return names and sizes of the files of a folder, or of a file; none of a name that is no path."""
    with suppress(OSError, ValueError):
        if path.is_file():
            return [(path.name, path.stat().st_size)]
        files = sorted(one for one in path.rglob("*") if one.is_file())[:MOST_FILES_OF_MODEL]
        return [(str(one.relative_to(path)), one.stat().st_size) for one in files]
    return []


def hash_values(values: object) -> str:
    """Return the SHA-256 of plain values, in hex."""
    return hashlib.sha256(dump_json(values, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------ what is on record of an item


class ItemState(StrEnum):
    """How far an item is: each state is written before what follows it begins."""

    STARTED = "started"
    WAITING = "waiting"  # interrupted on purpose
    LEARNED = "learned"
    REFUSED = "refused"  # it fails in the same way each time
    FAILED = "failed"


LONGEST_LINE = 10_000  # letters
Line = Annotated[str, Field(max_length=LONGEST_LINE)]


def fit_line(text: str) -> str:
    r"""Return a text that a record can hold: one that can be written, and not too long.

    An error quotes what a table or a library gave, at any length; it must not keep itself from being recorded.

    >>> fit_line("zo\udceb"), len(fit_line("x" * 20_000))
    ('zo\\udceb', 10000)
    """
    plain = escape_surrogates(text)
    return plain if len(plain) <= LONGEST_LINE else f"{plain[: LONGEST_LINE - 1]}…"


class ItemRecord(RecordPart):
    """What is known of an item.

    Attributes:
        key: of the item when it was tried last.
        tries: how often it was begun and not finished.
        step: at which the last try began.
        alone: the last try was made in the process of the batch itself, which an item may kill.
        any_style: the last try allowed photographs and drawings alike.
        written: SHA-256 of the identity and the preview, before they take their names; earlier ones too.
        identity: SHA-256 of the identity; empty until it is learned.
        preview_key: what the preview was made of.
        preview: SHA-256 of it.
        remarks: what a user should know of the photos and the training.
        run: what explains the identity, a run record.
    """

    schema_name: Annotated[Literal["sefi-batch-item/1"], Field(alias="schema")] = BATCH_SCHEMA
    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    key: Digest
    state: ItemState
    tries: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    alone: bool = False
    any_style: bool = False
    photos: tuple[Line, ...] = ()
    written: tuple[Digest, ...] = ()
    identity: Digest | Literal[""] = ""
    preview_key: Line = ""
    preview: Digest | Literal[""] = ""
    problem: Line = ""
    remedy: Line = ""
    seconds: float = Field(0.0, ge=0)
    remarks: tuple[Line, ...] = ()
    run: dict[str, Any] = Field(default_factory=dict[str, Any])

    def change(self, **facts: object) -> "ItemRecord":
        """Return the record with other facts, which are checked; texts are cut to the length of a line."""
        fitted = {name: fit_fact(value) for name, value in facts.items()}
        return type(self).model_validate({**{name: getattr(self, name) for name in FACTS}, **fitted})


def fit_fact(value: object) -> object:
    """Return a fact of a record, its text or texts as of `fit_line`."""
    if isinstance(value, ItemState):
        return value
    if isinstance(value, str):
        return fit_line(value)
    return tuple(map(fit_fact, cast(tuple[object, ...], value))) if isinstance(value, tuple) else value


FACTS = tuple(name for name in ItemRecord.model_fields if name != "schema_name")


def locate_identity_file(folder: Path, name: str) -> Path:
    """Return where the identity of an item is, or will be."""
    return folder / f"{name}.safetensors"


def locate_preview(folder: Path, name: str) -> Path:
    """Return where the preview of an item is, or will be."""
    return folder / PREVIEWS / f"{name}.png"


def locate_item_record(folder: Path, name: str) -> Path:
    """Return where the record of an item is, or will be."""
    return folder / BATCH_RECORDS / f"{name}.json"


def read_item_record(folder: Path, name: str) -> ItemRecord | None:
    """Read what is on record of an item; None if there is nothing.

    Raises:
        OutputError: what is there cannot be read, or is something else.
    """
    path = locate_item_record(folder, name)
    if not path.exists():
        return None
    with translate_file_errors(f"'{path}'", OutputError, "is no record of a batch", "Remove it."):
        return ItemRecord.model_validate(read_json(path))


def write_item_record(folder: Path, record: ItemRecord) -> ItemRecord:
    """Write the record of an item, atomically, and return it; `OutputError` where that fails."""
    content = record.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content = {"schema": BATCH_SCHEMA, **content}
    write_text(locate_item_record(folder, record.name), dump_json(content, indent=1) + "\n")
    return record


def has_identity_of(record: ItemRecord | None, item: BatchItem, folder: Path) -> bool:
    """Return whether the identity of an item is learned: its file is the one on record."""
    if record is None or record.key != item.key or not record.identity:
        return False
    path = locate_identity_file(folder, item.name)
    if hash_own_file(path) == record.identity:
        return True
    return path.is_file() and path.stat().st_size > SMALL_IDENTITY and hash_large_identity(path) == record.identity


def hash_large_identity(path: Path) -> str:
    """Return the SHA-256 by which a very large identity is known, which is not its file's; empty if it is none."""
    from sefi.identity.file import Identity, compute_identity_digest  # noqa: PLC0415  it loads torch

    with suppress(SefiError):
        return compute_identity_digest(Identity.load(path))
    return ""


def is_finished(record: ItemRecord | None, item: BatchItem, settings: BatchSettings) -> bool:
    """Return whether nothing is left to do of an item."""
    if record is None or not has_identity_of(record, item, settings.folder):
        return False
    wanted = settings.compute_preview_key()
    if not wanted:
        return True
    return record.preview_key == wanted and (
        hash_own_file(locate_preview(settings.folder, item.name)) == record.preview != ""
    )


def find_problem(record: ItemRecord | None, item: BatchItem, settings: BatchSettings, step: int) -> ItemProblem | None:
    """Return why an item is not to be tried; None if it is.

    Args:
        step: that its training would go on at. A try that was killed, and came further than the one before, counts
            for nothing; as does one that was killed with the whole batch.
    """
    if record is None or record.key != item.key:
        return None
    if record.state is ItemState.REFUSED and (record.any_style or not settings.any_style):
        return describe_problem(record, put_aside=True)
    if record.state in (ItemState.STARTED, ItemState.FAILED) and count_tries(record, step) >= settings.tries:
        return describe_problem(record, put_aside=True)
    return None


def count_tries(record: ItemRecord, step: int) -> int:
    """Return how many tries of an item count, of which the last may have been killed."""
    excused = record.state is ItemState.STARTED and (step > record.step or not record.alone)
    return max(0, record.tries - excused)


def describe_problem(record: ItemRecord, *, put_aside: bool) -> ItemProblem:
    """Return why an item is not learned, as its record has it."""
    problem = record.problem or "The program was killed each time that it learned this."
    remedy = record.remedy or "Look at the photo and at the memory; --retry tries it again."
    return ItemProblem(record.name, record.photos, problem, remedy, record.tries, put_aside)


def format_failures(problems: Iterable[ItemProblem]) -> str:
    """Format the table of what could not be learned, sorted by name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "photo", "tries", "put_aside", "problem", "try"])
    writer.writerows(list_failure_cells(problems))
    return text.getvalue()


def list_failure_cells(problems: Iterable[ItemProblem]) -> Iterator[list[str]]:
    """Yield the cells of each row of the table of failures; none begins as a formula of a spreadsheet does."""
    for one in sorted(problems, key=lambda problem: (problem.name, problem.photos)):
        cells = [one.name, ";".join(one.photos), str(one.tries), "yes" if one.put_aside else "no"]
        plain = [escape_controls(text) for text in (*cells, one.problem, one.remedy)]
        yield [escape_formula(text) for text in plain]
