"""Folders of images that another program made: what each image is of, in whichever layout they lie.

A layout is recognised by what lies in the folder: DreamBench++'s (`tgt_image`, `text`), a list in JSON lines, or names
of files `PROMPT-SEED.png` with the `records.json` that `sefi generate` writes, with or without a folder for each
subject. Nothing is guessed: what does not say its subject and its prompt is refused, with what was expected.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sefi.benchmark.records import CONTROLS, MOST_LISTED, ListedFolder, ListedImage
from sefi.benchmark.suite import Suite, hash_pixels, list_image_files, make_subject_key
from sefi.core.errors import ConfigError, PhotoError, PromptError
from sefi.core.files import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sefi.core.progress import Progress, SilentProgress
from sefi.core.prompts import PLACEHOLDER, strip_weights
from sefi.core.reading import (
    LARGEST_RECORDS,
    RECORDS,
    InvalidFileError,
    is_inside,
    parse_object,
    read_json,
    read_user_text,
    translate_file_errors,
)
from sefi.core.text import SLUG_LENGTH, escape_surrogates, format_names, is_utf8, make_file_name, make_slug
from sefi.photo.augment import convert_to_bytes
from sefi.photo.read import read_photo

LARGEST_LIST = 64 * 2**20  # bytes
LONGEST_PROMPT = 2000
LONGEST_FILE_NAME = 300  # letters, from the folder, in a record
IMAGES, TEXTS, PHOTOS = "tgt_image", "text", "src_image"  # DreamBench++'s folders
GRID = re.compile(r"grid(-\d+)?")  # what `sefi generate` adds to its images
NUMBERED = re.compile(r"(.+)-(\d{1,18})")
OTHER_NAMES = "Rename one of them: the first 64 of its letters a to z and digits must differ."
CUT_LENGTHS = (SLUG_LENGTH - 1, SLUG_LENGTH)  # of a prompt's beginning: a dash at the end of it is left out
GIVE_PROMPTS = (
    "Give the sentences with --prompts FILE, or put the records.json of `sefi generate` back into the folder."
)
LAYOUTS = (
    "Name the files PROMPT-SEED.png (as `sefi generate` does), put a list images.jsonl with "
    '{"image": ..., "prompt": ..., "subject": ..., "seed": ...} lines beside them, or use DreamBench++\'s folders '
    f"{IMAGES} and {TEXTS}."
)


@dataclass(frozen=True)
class FolderHints:
    """What is known of a folder before it is read.

    Attributes:
        subjects: keys of the subjects; images of others are left out. Empty takes all that the folder names.
        prompts: sentences that names of files are matched with.
        class_word: what the subjects are.
        subject_words: other words that stand for the subject in a prompt, such as `sks person`.
        only: subjects whose names match this pattern (`live_subject_human_*`).
    """

    subjects: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    class_word: str = "person"
    subject_words: tuple[str, ...] = ()
    only: str = "*"


@dataclass(frozen=True)
class FoundImage:
    """An image and what it is of.

    Attributes:
        file: from the folder, with `/`.
        subject: its key.
        prompt: the sentence, `{}` in the place of the subject; without one where it names none.
        seed: None where nothing says it.
        name: what the layout calls the subject; None where it says nothing.
    """

    file: str
    subject: str
    prompt: str
    seed: int | None
    name: str | None = None


@dataclass(frozen=True)
class FoundFolder:
    """The images of a folder.

    Attributes:
        layout: which one was found, in words.
        photos: a photo of each subject, where the layout has them.
        other_subjects: whose images were left out, as they were not asked for.
        unreadable: files with names that no record holds, which are escaped and cut here.
    """

    root: Path
    layout: str
    images: tuple[FoundImage, ...]
    photos: Mapping[str, Path] = field(default_factory=dict[str, Path])
    other_subjects: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder by the prompts and seeds of a suite, each of which can be read.

    Attributes:
        unreadable: files that cannot be read.
        unmatched: how many images were left out, as the suite has not their prompt, or fewer seeds.
    """

    root: Path
    images: tuple[ListedImage, ...]
    unreadable: tuple[str, ...] = ()
    unmatched: int = 0

    def describe(self) -> ListedFolder:
        """Return what `run.json` says of the folder."""
        return ListedFolder(images=self.images, unreadable=self.unreadable)

    def locate_files(self, subject: str) -> dict[tuple[int, int], Path]:
        """Return the files of a subject's images by prompt and seed."""
        return {(one.prompt, one.seed): self.root / one.file for one in self.images if one.subject == subject}


def find_images(path: Path, hints: FolderHints) -> FoundFolder:
    """Find the images of a folder, or of a list in JSON lines, and what each is of.

    Raises:
        ConfigError: there is no such folder, no layout is recognised, an image says no prompt or subject, two say the
            same prompt, subject and seed, or two names of subjects would be one.
    """
    found = read_layout_files(path, hints)
    of_subjects = name_only_subject(path, found.images, hints)
    names = {one.subject for one in of_subjects}
    chosen = {name for name in hints.subjects or names if fnmatchcase(name, hints.only)} & names
    wanted = [one for one in of_subjects if one.subject in chosen]
    if not wanted:
        problem = f"'{path}' has no image of a subject that was asked for; it has {', '.join(sorted(names)[:5])}."
        remedy = f"Name the subject as the folder does, such as --subject {min(names)}=photo.png."
        if not any(fnmatchcase(name, hints.only) for name in names):
            remedy = f"None of them matches --only {hints.only!r}: give another pattern."
        raise ConfigError(problem, remedy)
    if len(wanted) > MOST_LISTED:
        raise ConfigError(f"'{path}' has {len(wanted):,} images; at most {MOST_LISTED:,}.", "Score them in parts.")
    check_namesakes(path, wanted)
    images = number_missing_seeds(wanted)
    [(first, count)] = Counter((one.subject, one.prompt, one.seed) for one in images).most_common(1)
    if count > 1:
        files = [one.file for one in images if (one.subject, one.prompt, one.seed) == first]
        problem = f"'{path}': {files[0]} and {files[1]} are both of {first[0]!r}, {first[1]!r} and seed {first[2]}."
        raise ConfigError(problem, "Put the images of each method into a folder of its own.")
    return replace(found, images=tuple(images), other_subjects=tuple(sorted(names - chosen)))


def name_only_subject(path: Path, images: Sequence[FoundImage], hints: FolderHints) -> list[FoundImage]:
    """Return the images with the only subject that is asked for where nothing says that they are of another.

    All prompts may call it by another name, as `<sks>`; where they have several names, each is of its own subject.

    Raises:
        ConfigError: several subjects are named, and an image names none.
    """
    if len(hints.subjects) != 1:
        return list(images)
    names = sorted({one.subject for one in images if one.subject})
    silent = [one.file for one in images if not one.subject]
    if silent and len(names) > 1:
        problem = f"'{path}': {silent[0]} does not say of whom it is; other images are of {', '.join(names[:5])}."
        raise ConfigError(problem, LAYOUTS)
    alone = len(names) == 1 and all(one.name is None for one in images)
    return [replace(one, subject=hints.subjects[0]) if alone or not one.subject else one for one in images]


def check_namesakes(path: Path, images: Iterable[FoundImage]) -> None:
    """Refuse two names of subjects in a folder that would be one key: images of two people would be mixed.

    Raises:
        ConfigError: there are two such names.
    """
    names = dict[str, str]()
    for one in images:
        if one.name is None:
            continue
        before = names.setdefault(one.subject.lower(), one.name)  # case does not count, as on some disks
        if before != one.name:
            problem = f"'{path}' has the subjects {before!r} and {one.name!r}, which would both be {one.subject!r}."
            raise ConfigError(problem, OTHER_NAMES)


def check_names_agree(folders: Iterable[FoundFolder]) -> None:
    """Refuse folders that give one key to subjects of different names; other marks, cases and accents are one name.

    Raises:
        ConfigError: two folders do.
    """
    names = dict[str, tuple[str, Path]]()
    for found in folders:
        for one in found.images:
            if one.name is None:
                continue
            before, root = names.setdefault(one.subject, (one.name, found.root))
            if normalise_name(before) != normalise_name(one.name):
                problem = f"{before!r} of '{root}' and {one.name!r} of '{found.root}' would both be {one.subject!r}."
                raise ConfigError(problem, OTHER_NAMES)


def normalise_name(name: str) -> str:
    """Return a name's letters and digits of any alphabet in small letters, without accents.

    >>> normalise_name("Zoë_B"), normalise_name("zoe b")
    ('zoe b', 'zoe b')
    """
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", "".join(letters).casefold()))


def read_layout_files(path: Path, hints: FolderHints) -> FoundFolder:
    """Read a folder by the layout that it has."""
    with translate_file_errors(f"'{path}'", ConfigError, "cannot be scored", LAYOUTS):
        if path.is_file():
            return read_image_list(path, hints)
        if not path.is_dir():
            raise ConfigError(f"There is no folder of images '{path}'.", LAYOUTS)
        if (path / IMAGES).is_dir():
            return read_dreambench(path, hints)
        lists = sorted(path.glob("*.jsonl"))
        if len(lists) > 1:
            problem = f"'{path}' has {len(lists)} lists, {format_names([one.name for one in lists])}."
            raise ConfigError(problem, f"Name one of them in place of the folder, such as {lists[0]}.")
        return read_image_list(lists[0], hints) if lists else read_named_images(path, hints)


def number_missing_seeds(images: Iterable[FoundImage]) -> list[FoundImage]:
    """Return the images with a seed: 0, 1, 2 in the order of files for those of a subject and prompt without one."""
    counts, numbered = Counter[tuple[str, str]](), list[FoundImage]()
    for one in images:
        case = (one.subject, one.prompt)
        numbered.append(one if one.seed is not None else replace(one, seed=counts[case]))
        counts[case] += 1
    return numbered


class ImageEntry(BaseModel):
    """A line of a list of images; other keys are not read. Lists of Hugging Face's image folders have `file_name`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    image: Annotated[
        str, Field(min_length=1, max_length=LONGEST_FILE_NAME, validation_alias=AliasChoices("image", "file_name"))
    ]
    prompt: Annotated[
        str, Field(min_length=1, max_length=LONGEST_PROMPT, validation_alias=AliasChoices("prompt", "text", "caption"))
    ]
    subject: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


def read_image_list(path: Path, hints: FolderHints) -> FoundFolder:
    """Return the images of a list in JSON lines; their files lie in its folder."""
    if path.suffix.lower() != ".jsonl":
        raise ConfigError(f"'{path}' is no folder and no .jsonl list of images.", LAYOUTS)
    images = list[FoundImage]()
    with translate_file_errors(path, ConfigError, "is no list of images", LAYOUTS):
        # JSON may hold what `splitlines` takes for the end of a line, as U+2028.
        for number, line in enumerate(read_user_text(path, LARGEST_LIST).split("\n"), start=1):
            if not line.strip():
                continue
            with translate_file_errors(f"Line {number} of {path}", ConfigError, "is no image", LAYOUTS):
                entry = ImageEntry.model_validate(parse_object(line, integers=2**63))
                if not is_inside(path.parent / entry.image, path.parent) or not (path.parent / entry.image).is_file():
                    raise InvalidFileError(f"there is no file {entry.image!r} in its folder")
                if change_strange_name(entry.image):
                    raise InvalidFileError(f"the name {entry.image!r} has a control character")
                subject, template = (
                    choose_subject(entry.subject, entry.prompt, hints),
                    make_template(entry.prompt, hints),
                )
                images.append(FoundImage(entry.image, subject, template, entry.seed, entry.subject))
        if not images:
            raise InvalidFileError("it is empty")
        [((file, *_), count)] = Counter((one.file, one.subject, one.prompt) for one in images).most_common(1)
        if count > 1:  # it would count twice in the means
            raise InvalidFileError(f"it names {file!r} {count} times with one prompt")
    return FoundFolder(path.parent, f"the list {path.name}", tuple(images))


def read_dreambench(folder: Path, hints: FolderHints) -> FoundFolder:
    """Return the images of DreamBench++'s layout: `tgt_image/SUBJECT/PROMPT_NUMBER.jpg`, its sentence in `text`.

    `src_image` has the subject's photo once for each image. The number counts the images of a prompt: their seed.
    """
    images, photos, unreadable = list[FoundImage](), dict[str, Path](), list[str]()
    for inner in sorted(one for one in (folder / IMAGES).iterdir() if one.is_dir()):
        subject = choose_subject(inner.name, "", hints)
        unreadable += list_lost_files(inner, folder)
        for file in list_image_files(inner):
            path = f"{IMAGES}/{inner.name}/{file.name}"
            if strange := change_strange_name(path):
                unreadable.append(strange)
                continue
            sentence = folder / TEXTS / inner.name / f"{file.stem}.txt"
            with translate_file_errors(f"'{sentence}'", ConfigError, "is no prompt", LAYOUTS):
                template = make_template(read_user_text(sentence, 4 * LONGEST_PROMPT), hints)
            name, _, number = file.stem.rpartition("_")
            seed = int(number) if name and number.isdecimal() and len(number) < 19 else None
            images.append(FoundImage(path, subject, template, seed, inner.name))
        sources = list_image_files(folder / PHOTOS / inner.name) if (folder / PHOTOS / inner.name).is_dir() else []
        if sources:
            photos[subject] = sources[0]
    if not images:
        raise InvalidFileError(f"its folder {IMAGES} has no images{name_unreadable(unreadable)}")
    return FoundFolder(folder, "DreamBench++'s folders", tuple(images), photos, unreadable=tuple(unreadable))


class GeneratedEntry(BaseModel):
    """An image in the record of `sefi generate`."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    file: Annotated[str, Field(min_length=1, max_length=10_000)]
    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


def read_named_images(folder: Path, hints: FolderHints) -> FoundFolder:
    """Return images by their names `PROMPT-SEED.png`, or by `records.json`, with or without a folder for a subject."""
    folders = [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name[0] != "."]
    inner = [one for one in folders if list_image_files(one) or list_lost_files(one, folder)]
    images, unreadable = list[FoundImage](), list[str]()
    for place, named in [(folder, None), *((one, one.name) for one in inner)]:
        unreadable += list_lost_files(place, folder)
        records = read_generation_records(place / RECORDS)
        for file in list_image_files(place):
            path = file.relative_to(folder).as_posix()
            if GRID.fullmatch(file.stem):
                continue
            if strange := change_strange_name(path):
                unreadable.append(strange)
                continue
            text, seed = records.get(file.name) or read_name(file, hints)
            subject = choose_subject(named, text, hints)
            spoken = () if file.name in records or hints.prompts else list_spoken_names(subject or hints.subjects[0])
            template = make_template(text, replace(hints, subject_words=(*spoken, *hints.subject_words)))
            images.append(FoundImage(path, subject, template, seed, named))
    if not images:
        raise InvalidFileError(f"it has no images ({', '.join(IMAGE_SUFFIXES)}){name_unreadable(unreadable)}")
    return FoundFolder(folder, "names of files", tuple(images), unreadable=tuple(unreadable))


def list_lost_files(place: Path, root: Path) -> list[str]:
    """Return what has the name of an image and cannot be read, as records name it.

    It is a link to a file that is gone, or a file of a format that is not read.
    """
    names = [one for one in place.iterdir() if one.name[0] != "." and not one.is_dir()]
    lost = [one for one in names if one.suffix.lower() in (UNREAD_SUFFIXES if one.is_file() else IMAGE_SUFFIXES)]
    paths = [one.relative_to(root).as_posix() for one in lost]
    return sorted(change_strange_name(path) or path for path in paths)


def change_strange_name(name: str) -> str:
    r"""Return a name that no record holds as one that it holds, escaped and cut; nothing for every other name.

    >>> change_strange_name("ada\x1b.png"), change_strange_name("ada.png")
    ('ada\\x1b.png', '')
    """
    if is_utf8(name) and len(name) <= LONGEST_FILE_NAME and not CONTROLS.search(name):
        return ""
    escaped = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], escape_surrogates(name))
    return escaped if len(escaped) <= LONGEST_FILE_NAME else f"{escaped[: LONGEST_FILE_NAME - 4]} ..."


def name_unreadable(unreadable: Sequence[str]) -> str:
    """Return the end of a sentence on a folder that has no images but those of other formats or strange names."""
    return f" that can be read, with names that a record can hold, unlike '{unreadable[0]}'" if unreadable else ""


def list_spoken_names(subject: str) -> tuple[str, ...]:
    """Return a subject's key as names of files may have it: as it is, or the words of its slug.

    >>> list_spoken_names("Ada_Lovelace")
    ('Ada_Lovelace', 'ada lovelace')
    """
    words = make_slug(subject).replace("-", " ")
    return (subject, words) if words else (subject,)


def read_generation_records(path: Path) -> dict[str, tuple[str, int]]:
    """Return prompt and seed by the name of the file, as `sefi generate` recorded them; nothing without a record."""
    if not path.is_file():
        return {}
    with translate_file_errors(f"'{path}'", ConfigError, "is no record of generated images", "Remove it."):
        tree = read_json(path, LARGEST_RECORDS, integers=2**63)
        runs = tree.get("runs", [tree])
        if not isinstance(runs, list) or not all(isinstance(one, dict) for one in runs):
            raise InvalidFileError("it has no list of runs")
        if not all(isinstance(one["images"], list) for one in runs):
            raise InvalidFileError("its images are no list")
        entries = [GeneratedEntry.model_validate(entry) for one in runs for entry in one["images"]]
    return {Path(entry.file).name: (entry.prompt, entry.seed) for entry in entries}


def read_name(file: Path, hints: FolderHints) -> tuple[str, int]:
    """Return prompt and seed of a file named `PROMPT-SEED.png`; the words of its name where no prompts are given.

    Raises:
        InvalidFileError: it has no seed, or none of the prompts.
        ConfigError: no prompts are given, and the name may be the beginning of one only.
    """
    match = NUMBERED.fullmatch(file.stem)
    if match is None:
        raise InvalidFileError(f"the name {file.name!r} is not PROMPT-SEED")
    slug, seed = match[1], int(match[2])
    if not hints.prompts:
        if len(slug) in CUT_LENGTHS:
            problem = f"'{file.name}': names are cut after {SLUG_LENGTH} letters: the end of its prompt is not known."
            raise ConfigError(problem, GIVE_PROMPTS)
        return slug.replace("-", " "), seed
    fitting = [text for text in hints.prompts if slug in name_with_subjects(text, hints)]
    if len(fitting) != 1:
        many = "several of the prompts" if fitting else "none of the prompts"
        raise InvalidFileError(f"the name {file.name!r} has the words of {many}")
    return fitting[0], seed


def name_with_subjects(text: str, hints: FolderHints) -> set[str]:
    """Return the names that files of a prompt may have, with each subject, or the class word, in the place `{}`."""
    return {make_file_name(text.replace("{}", word)) for word in ("", hints.class_word, *hints.subjects)}


def choose_subject(named: str | None, text: str, hints: FolderHints) -> str:
    """Return the key of an image's subject; empty where nothing says it and only one is asked for.

    Args:
        named: what the layout says, if it says it.
        text: the prompt; its `<name>` counts where the layout says nothing.

    Raises:
        InvalidFileError: nothing says it and several may be meant, or the prompt names two.
    """
    names = list(dict.fromkeys(PLACEHOLDER.findall(text)))
    if len(names) > 1:
        raise InvalidFileError(f"the prompt {text[:80]!r} names two subjects; only images of one are scored")
    if named is not None:
        return make_subject_key(named)
    if not names and len(hints.subjects) != 1:
        raise InvalidFileError("an image does not say of which of the subjects it is")
    return names[0] if names else ""


def make_template(text: str, hints: FolderHints) -> str:
    """Return a prompt with `{}` in the place of the subject: of `<name>`, other words for it, or the class word.

    Further `<name>` become the class word. A text that names no subject stays as it is. Parentheses that are no weights
    as ours are words.

    Raises:
        InvalidFileError: it is empty or too long, or has braces.
    """
    plain = " ".join(text.split())
    if not plain or len(plain) > LONGEST_PROMPT:
        raise InvalidFileError(f"a prompt has {len(plain)} letters; from 1 to {LONGEST_PROMPT}")
    plain = PLACEHOLDER.sub("{}", plain)
    try:
        strip_weights(plain)
    except PromptError:  # parentheses of another program, which are words
        plain = re.sub(r"(?<!\\)([()])", r"\\\1", plain)
    for word in (*hints.subject_words, hints.class_word):
        if "{}" not in plain:
            plain = re.sub(rf"\b{re.escape(word)}\b", "{}", plain, count=1, flags=re.IGNORECASE)
    first, place, rest = plain.partition("{}")
    template = first + place + rest.replace("{}", hints.class_word)
    if {"{", "}"} & set(template.replace("{}", "")):
        raise InvalidFileError(f"the prompt {text[:80]!r} has braces")
    return template


def collect_prompts(folders: Iterable[FoundFolder]) -> list[str]:
    """Return every prompt of some folders once, in the order in which they come."""
    return list(dict.fromkeys(image.prompt for folder in folders for image in folder.images))


def collect_seeds(folders: Sequence[FoundFolder]) -> list[int]:
    """Return the seeds of some folders; 0, 1, 2 ... where folders differ in them, as other programs' mean nothing."""
    seeds = [{image.seed for image in folder.images} for folder in folders]
    if all(some == seeds[0] for some in seeds):
        return sorted(seed for seed in seeds[0] if seed is not None)
    cases = [Counter((image.subject, image.prompt) for image in folder.images) for folder in folders]
    return list(range(max(max(counts.values()) for counts in cases)))


def assign_images(
    found: FoundFolder, prompts: Sequence[str], seeds: Sequence[int], progress: Progress | None = None
) -> ImageFolder:
    """Return the images of a folder by the prompts and seeds of a suite; those that cannot be read are listed.

    Where a seed is none of the suite's, the images of each subject and prompt get the suite's seeds in order.

    Raises:
        ConfigError: no image has a prompt of the suite, or none can be read.
    """
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    fitting = [image for image in found.images if image.prompt in numbers]
    if not fitting:
        problem = f"No image of '{found.root}' has a prompt of the suite; one of its own is {found.images[0].prompt!r}."
        raise ConfigError(problem, f"Generate the suite's prompts, such as {prompts[0]!r}.")
    known = fitting if all(one.seed in seeds for one in fitting) else list(take_seeds(fitting, seeds))
    images, unreadable = list[ListedImage](), list[str]()
    progress = progress or SilentProgress()
    progress.start(len(known), "reading images")
    for one in known:
        try:
            digest = hash_pixels(read_scored_image(found.root / one.file))
        except PhotoError:
            unreadable.append(one.file)
        else:
            case = {"prompt": numbers[one.prompt], "seed": one.seed or 0}
            images.append(ListedImage(subject=one.subject, file=one.file, sha256=digest, **case))
        progress.advance()
    progress.finish()
    if not images:
        raise ConfigError(f"No image of '{found.root}' can be read, such as {unreadable[0]!r}.", "Copy them again.")
    listed = (*found.unreadable, *unreadable)[:MOST_LISTED]
    return ImageFolder(found.root, tuple(images), listed, len(found.images) - len(known))


def drop_unread_cases(
    suite: Suite, folders: Mapping[str, ImageFolder]
) -> tuple[Suite, dict[str, ImageFolder], frozenset[str]]:
    """Return a suite without the prompts and seeds of which no image could be read, the folders, and their subjects.

    The prompts that stay get new numbers, in the suite and in the folders.
    """
    images = [one for folder in folders.values() for one in folder.images]
    prompts, seeds = sorted({one.prompt for one in images}), {one.seed for one in images}
    numbers = {before: number for number, before in enumerate(prompts)}
    changes = {
        "prompts": tuple(suite.prompts[number] for number in prompts),
        "seeds": tuple(seed for seed in suite.seeds if seed in seeds),
    }
    numbered = {
        label: replace(
            folder, images=tuple(one.model_copy(update={"prompt": numbers[one.prompt]}) for one in folder.images)
        )
        for label, folder in folders.items()
    }
    return suite.model_copy(update=changes), numbered, frozenset(one.subject for one in images)


def open_suite_folders(suite: Suite, subjects: Sequence[str], progress: Progress) -> dict[str, ImageFolder]:
    """Open the folder of every variant of a suite whose images another program made.

    Args:
        subjects: keys of the run's subjects.

    Raises:
        ConfigError: as in `find_images` and `assign_images`.
    """
    texts = [prompt.text for prompt in suite.prompts]
    hints = FolderHints(tuple(subjects), tuple(texts), suite.class_word)
    found = {v.label: find_images(Path(v.images), hints) for v in suite.variants if v.images is not None}
    check_names_agree(found.values())
    return {label: assign_images(one, texts, suite.seeds, progress) for label, one in found.items()}


def take_seeds(images: Iterable[FoundImage], seeds: Sequence[int]) -> Iterator[FoundImage]:
    """Yield images with the given seeds, in the order of their own; those of a subject and prompt beyond are left."""
    counts = Counter[tuple[str, str]]()
    for one in sorted(images, key=lambda one: one.seed or 0):
        number = counts[one.subject, one.prompt]
        counts[one.subject, one.prompt] += 1
        if number < len(seeds):
            yield replace(one, seed=seeds[number])


def read_scored_image(path: Path) -> NDArray[np.uint8]:
    """Return an image of another program as `[height, width, 3]`, uint8 RGB.

    Raises:
        PhotoError: as in `read_photo`.
    """
    return convert_to_bytes(read_photo(path).pixels)
