"""What a benchmark's folder has of one of its subjects, by the exact names that `sefi bench run` gives its files."""

import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.core.files import LONGEST_STEM, SHARD_END, is_plain_file, take_lock, write_file, write_text
from sefi.core.own_files import hash_own_file, read_digests
from sefi.core.reading import LARGEST_RUN_INFO, InvalidFileError, list_mappings, read_json, read_mapping
from sefi.core.text import dump_json, make_slug
from sefi.provenance.forget_records import SAYS_WHOSE, Run, is_mapping, translate_unread
from sefi.provenance.forget_tables import SampleKey, read_label, read_sample_keys
from sefi.provenance.leftovers import TEMPORARY, Trace, list_regular_files

RUN_INFO, RUN_SAMPLES = "run.json", "cells.jsonl"
PIXEL_DIGITS = 16  # of the SHA-256 of pixels, as a benchmark's records have it
WITHOUT_IDENTITY = ("control", "images", "learned_by")  # of a variant that learns none
# Controls of rows whose images do not show the subject of their name: one image for all, and another subject's photo.
PLAIN_WORD, ANOTHER_PERSON = "class word", "other"
# The identity, a further file of a large one, what it cost, and its unfinished training.
IDENTITY_FILES = tuple(
    re.compile(rf"(.+){end}", re.DOTALL) for end in (SHARD_END, r"\.safetensors", r"\.costs\.json", r"\.checkpoint")
)
MOST_CUT = 3  # bytes that a name is cut by too much, so that no letter is halved
RUN_FOLDERS = ("photos", "identities", "pictures", "attention")
OF_RUN = "of the same subject in this benchmark's folder"
REDRAWN = "may show the subject; `sefi bench report` writes it again"
MADE_AGAIN = "shows another subject's photo, perhaps this one's; `sefi bench run` makes it again"


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is that of a benchmark run."""
    return bool(read_run_info(folder))


def read_run_info(folder: Path) -> Run:
    """Return what a benchmark's `run.json` says; nothing where it is no run that this package wrote.

    Raises:
        OutputError: the disk does not give it, and nobody knows whose images are in its folder.
    """
    path = folder / RUN_INFO
    with suppress(InvalidFileError, ValueError, RecursionError), translate_unread(path, SAYS_WHOSE):
        info = read_json(path, LARGEST_RUN_INFO)
        if is_mapping(info.get("suite")) and isinstance(info.get("subjects"), list):
            return info
    return {}


@dataclass(frozen=True)
class RunNames:
    """Says whose a file in a benchmark's folder is, by the exact names that `sefi bench run` gives its files.

    Attributes:
        groups: keys of the subjects that share an image: `ada`, or `ada+bob`.
        subjects: keys of the subjects, also of those whose groups were taken out.
        variants: labels of all variants, as names of files have them.
        learning: of those that learn an identity.
        numbers: prompt and seed of each image, as names of files have them.
        showing_others: labels of the variants whose images show another subject's photo. Whose it is depends on the
            order of the subjects when it was made, which changes with each that is taken out.
    """

    groups: frozenset[str]
    subjects: frozenset[str]
    variants: frozenset[str]
    learning: frozenset[str]
    numbers: frozenset[tuple[str, str]]
    showing_others: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path) -> "RunNames":
        """Read what a run's names are made of; errors as in `read_run_info`."""
        info = read_run_info(folder)
        suite = info.get("suite", {})
        variants = {make_slug(one["label"]): one for one in list_variants_on_record(info)}
        groups = list_groups(info)
        prompts, seeds = (one if isinstance(one, list) else [] for one in (suite.get("prompts"), suite.get("seeds")))
        listed = [(str(one.get("prompt")), str(one.get("seed"))) for _, one in list_listed_images(info)]
        return cls(
            frozenset(groups),
            frozenset([*(one for group in groups for one in group.split("+")), *read_mapping(info, "photos")]),
            frozenset(variants),
            frozenset(name for name, one in variants.items() if not any(map(one.get, WITHOUT_IDENTITY))),
            frozenset([*((str(n), str(seed)) for n in range(len(prompts)) for seed in seeds), *listed]),
            frozenset(name for name, one in variants.items() if one.get("control") == ANOTHER_PERSON),
        )

    def find_owner(self, path: Path) -> str | None:
        """Find the subject, or the subjects that share an image, of a file in the run's folders; None for others'.

        A temporary file is whose the whole one would be. Where its name is cut, only one of all may have been meant.
        """
        match = TEMPORARY.fullmatch(path.name)
        if match is None:
            return self.find_exact_owner(path.parent.name, path.name)
        stem, suffix = match["stem"], match["suffix"] or ""
        if match["kind"] != "partial":
            return None
        if len(os.fsencode(stem)) <= LONGEST_STEM - MOST_CUT:
            return self.find_exact_owner(path.parent.name, stem + suffix)
        owners = {owner for owner, one in self.list_beginnings(path.parent.name) if one.startswith(stem)}
        if path.parent.name != "photos":
            owners |= {owner for owner, one in self.list_beginnings(path.parent.name) if stem.startswith(one)}
        return owners.pop() if len(owners) == 1 else None

    def find_exact_owner(self, folder: str, name: str) -> str | None:
        """Find whose a file of a name is in one of the run's folders."""
        if folder == "photos":
            stem = name.removesuffix(".png")
            return stem if stem != name and stem in self.subjects else None
        if folder == "identities":
            stems = [match[1] for one in IDENTITY_FILES if (match := one.fullmatch(name))]
            parts = [stem.rpartition("--") for stem in stems]
            return next((one for one, _, label in parts if one in self.subjects and label in self.learning), None)
        parts = self.split_image_name(folder, name)
        return None if parts is None else parts[0]

    def split_image_name(self, folder: str, name: str) -> tuple[str, str] | None:
        """Return group and variant of an image or its attention maps; None where a name is none that a run gives."""
        suffix = {"pictures": ".png", "attention": ".safetensors"}.get(folder, "/")
        match name.removesuffix(suffix).rsplit("--", 3):
            case group, label, prompt, seed if name.endswith(suffix) and group in self.groups:
                return (group, label) if label in self.variants and (prompt, seed) in self.numbers else None
            case _:
                return None

    def shows_another(self, path: Path) -> bool:
        """Return whether a file is an image of a row that shows another subject's photo.

        A temporary file is what the whole one would be. Where its name is cut, all that may have been meant are.
        """
        match = TEMPORARY.fullmatch(path.name)
        if path.parent.name != "pictures" or (match is not None and match["kind"] != "partial"):
            return False
        if match is not None and len(os.fsencode(match["stem"])) > LONGEST_STEM - MOST_CUT:
            labels = self.list_labels_of(match["stem"])
            return bool(labels) and labels <= self.showing_others
        name = path.name if match is None else match["stem"] + (match["suffix"] or "")
        parts = self.split_image_name("pictures", name)
        return parts is not None and parts[1] in self.showing_others

    def list_labels_of(self, stem: str) -> set[str]:
        """Return the variants whose images may have a name that was cut to a stem."""
        names = ((label, f"{group}--{label}--") for group in self.groups for label in self.variants)
        return {label for label, one in names if one.startswith(stem) or stem.startswith(one)}

    def is_figure(self, path: Path) -> bool:
        """Return whether a file is a variant's attention figure, which shows one or another subject."""
        return path.parent.name == "attention" and path.suffix == ".png" and path.stem in self.variants

    def list_beginnings(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield how the names of files in one of the run's folders begin, each with whose they are."""
        if folder == "photos":
            yield from ((one, one) for one in self.subjects)
        else:
            owners, labels = (self.subjects, self.learning) if folder == "identities" else (self.groups, self.variants)
            yield from ((owner, f"{owner}--{label}") for owner in owners for label in labels)

    def list_groups_of(self, subjects: Iterable[str]) -> list[str]:
        """List the groups that subjects are in, or that are named themselves."""
        named = set(subjects)
        return sorted(group for group in self.groups if named & {group, *group.split("+")})


def list_variants_on_record(info: Run) -> list[Run]:
    """List what a run says of its variants, of those with a label."""
    suite = info.get("suite", {})
    return list(filter(has_label, list_mappings(suite.get("variants", suite.get("ways")))))  # as earlier versions say


def has_label(variant: Run) -> bool:
    """Return whether a variant on record has a label that names of files can have."""
    return isinstance(variant.get("label"), str) and bool(make_slug(variant["label"]))


def list_groups(info: Run) -> list[str]:
    """List the groups of subjects of a run, `ada+bob` where two share an image."""
    return [group for group in info.get("subjects", []) if isinstance(group, str)]


def list_listed_images(info: Run) -> list[tuple[str, Run]]:
    """List what a run says of images that other programs made, each with the subject."""
    folders = list_mappings(list(read_mapping(info, "folders").values()))
    images = [one for folder in folders for one in list_mappings(folder.get("images"))]
    return [(one["subject"], one) for one in images if isinstance(one.get("subject"), str)]


def find_run_subjects(folder: Path, traced: Iterable[Path], name: str, pixels: frozenset[str]) -> list[str]:
    """Find the subjects of a benchmark run that an identity is of.

    Args:
        traced: files that are known to be of the identity.
        name: its name.
        pixels: SHA-256 of the pixels of images that it made.
    """
    names, found = RunNames.read(folder), dict[str, None]()
    for path in (one for one in traced if one.parent.parent == folder):
        owner = names.find_exact_owner(path.parent.name, path.name)
        if owner is not None and path.parent.name == "identities":
            found[owner] = None
        if owner is not None and path.parent.name == "pictures":
            found[name if name in owner.split("+") else owner] = None
    short = {one[:PIXEL_DIGITS] for one in pixels}
    listed = list_listed_images(read_run_info(folder))
    found |= dict.fromkeys(subject for subject, one in listed if str(one.get("sha256")) in short)
    return [one for one in found if one in names.subjects | names.groups]


def list_variants_of_subject(identity: Path) -> list[Path]:
    """List the other identities that a benchmark learned of the subject of one; none where it is in no benchmark."""
    if identity.parent.name != "identities" or not is_run_folder(identity.parent.parent):
        return []
    names = RunNames.read(identity.parent.parent)
    owner = names.find_exact_owner("identities", identity.name)
    others = [one for one in list_plain_files(identity.parent) if one.suffix == ".safetensors" and one != identity]
    return [one for one in others if owner is not None and owner == names.find_exact_owner("identities", one.name)]


def explain_namesake(folder: Path, name: str) -> str | None:
    """Return how to forget the subject of a name in a benchmark; None where there is none."""
    names = RunNames.read(folder)
    if name not in names.subjects:
        return None
    learned = (one for one in list_plain_files(folder / "identities") if one.suffix == ".safetensors")
    file = next((one for one in learned if names.find_exact_owner("identities", one.name) == name), None)
    how = f"forget '{file}' too" if file else "remove the folder"
    return f"this benchmark has a subject of this name; if it is the same, {how}"


def list_run_samples(folder: Path, subjects: Sequence[str]) -> frozenset[SampleKey]:
    """List what a benchmark's samples say of the images that show some subjects; nothing where they cannot be read.

    An image of the plain word is the same in every run with its prompt and seed: it shows nobody.
    """
    names, listed = RunNames.read(folder), list_variants_on_record(read_run_info(folder))
    labels = {one["label"] for one in listed if one.get("control") not in (PLAIN_WORD, ANOTHER_PERSON)}
    groups = {*subjects, *names.list_groups_of(subjects)}
    with suppress(OSError):  # what takes the lines out says so
        keys = read_sample_keys(folder / RUN_SAMPLES)
        return frozenset(one for one in keys if one.subject in groups and one.variant in labels)
    return frozenset()


def list_run_traces(folder: Path, subjects: Sequence[str]) -> Iterator[Trace]:
    """Yield what a benchmark's folder has of some subjects, its records last.

    Images of rows that show another subject's photo are all among it: nothing says whose photo each of them shows.
    """
    names = RunNames.read(folder)
    owners = {*subjects, *names.list_groups_of(subjects)}
    for path in (one for name in RUN_FOLDERS for one in list_plain_files(folder / name)):
        if names.find_owner(path) in owners:
            yield Trace(path, OF_RUN)
        elif names.shows_another(path):
            yield Trace(path, MADE_AGAIN)
        elif names.is_figure(path):
            yield Trace(path, REDRAWN)
    yield from (Trace(path, REDRAWN) for path in list_report_files(folder / "report"))
    # `run.json` is last: it says which groups the subjects are in, also to the command that follows a killed one.
    if (folder / RUN_SAMPLES).is_file():  # a run that was killed at once has none
        take_out = partial(take_lines_out, folder, subjects)
        yield Trace(folder / RUN_SAMPLES, "its lines of the subject are taken out", take_out)
    yield Trace(folder / RUN_INFO, "the subject is taken out", partial(take_subjects_out, folder, subjects))


def list_run_doubts(folder: Path, subjects: Sequence[str]) -> Iterator[Trace]:
    """Yield files in a benchmark's folder that may show some subjects, and that the benchmark did not make."""
    names = RunNames.read(folder)
    of_others = [f"{group}--{label}--" for group in names.groups for label in names.showing_others]
    beginnings = (*(f"{one}--" for one in [*subjects, *names.list_groups_of(subjects)]), *of_others)
    for path in (one for name in RUN_FOLDERS for one in list_plain_files(folder / name)):
        if names.find_owner(path) is None and path.name.lstrip(".").startswith(beginnings):
            yield Trace(path, "its name begins as the subject's files do, but the benchmark did not make it")
        elif path.parent.name == "attention" and path.suffix == ".png" and not names.is_figure(path):
            yield Trace(path, "may show the subject")
    written = set(list_report_files(folder / "report"))
    for path in list_plain_files(folder / "report"):
        if path not in written and path.name[0] != ".":
            yield Trace(path, "may show the subject; it is not as `sefi bench report` wrote it")


def list_report_files(folder: Path) -> list[Path]:
    """List the files in a report's folder that are still as the report's command wrote them."""
    with suppress(OutputError, AttributeError, TypeError):  # nobody knows what it wrote
        digests = read_digests(folder)
        return [path for path in list_plain_files(folder) if hash_own_file(path) in digests.get(path.name, [])]
    return []


def list_plain_files(folder: Path) -> list[Path]:
    """List the regular files in a folder, no links and none below; none where there is no folder or it is closed."""
    with suppress(OSError):  # the search names a folder that is closed
        if not folder.is_symlink():
            return list_regular_files(folder, sorted(one.name for one in folder.iterdir()), lambda _: None)
    return []


@contextmanager
def hold_run_lock(folder: Path) -> Generator[None]:
    """Hold the lock of a benchmark's folder, so that no run works there meanwhile.

    Raises:
        OutputError: a run is at work in the folder, or its lock is a link or a pipe.
    """
    lock_file = folder / ".lock"
    if os.path.lexists(lock_file) and not is_plain_file(lock_file):
        raise OutputError("its .lock is no file of a run", "Remove it.")
    with lock_file.open("a") as lock:
        try:
            take_lock(lock.fileno(), wait=False)
        except BlockingIOError:
            raise OutputError("a benchmark is at work in this folder", "Wait for it.") from None
        yield


def take_lines_out(folder: Path, subjects: Sequence[str]) -> None:
    """Take the lines of subjects, and of groups that they are in, out of a benchmark's samples.

    The lines of rows that show another subject's photo go too: they have CLIP's vector of it.

    Raises:
        OutputError: a run is at work in the folder, or a record cannot be read or written.
    """
    with hold_run_lock(folder):
        if read_run_info(folder):  # else it is another file by now
            names = RunNames.read(folder)
            groups = [*subjects, *names.list_groups_of(subjects)]
            write_other_lines(folder / RUN_SAMPLES, groups, names.showing_others)


def take_subjects_out(folder: Path, subjects: Sequence[str]) -> None:
    """Take subjects, and groups that they are in, out of what a benchmark says of its run.

    Raises:
        OutputError: a run is at work in the folder, or the record cannot be read or written.
    """
    with hold_run_lock(folder):
        info, groups = read_run_info(folder), RunNames.read(folder).list_groups_of(subjects)
        if not info:  # by now it is another file
            return
        changed = {**info, "subjects": [one for one in info.get("subjects", []) if one not in groups]}
        if photos := read_mapping(info, "photos"):
            changed["photos"] = {name: one for name, one in photos.items() if name not in subjects}
        if folders := read_mapping(info, "folders"):
            changed["folders"] = {label: drop_subjects(one, [*subjects, *groups]) for label, one in folders.items()}
        if changed != info:
            write_text(folder / RUN_INFO, dump_json(changed, indent=1) + "\n")


def drop_subjects(listed: object, groups: Iterable[str]) -> object:
    """Return what a run lists of another program's folder, without some subjects."""
    if not isinstance(listed, dict) or not isinstance(images := listed.get("images"), list):
        return listed
    gone = set(groups)
    rest = [one for one in images if not isinstance(one, dict) or str(one.get("subject")) not in gone]
    return {**listed, "images": rest}


def write_other_lines(path: Path, groups: Iterable[str], variants: Iterable[str] = ()) -> None:
    """Write a run's samples again without those of some groups and variants; a line that was cut short may go too.

    They are read line by line, each of them once: the record of a large run does not fit into memory.

    Args:
        path: the record.
        groups: keys of subjects, and of those who share an image.
        variants: labels as names of files have them.

    Raises:
        OutputError: the record cannot be read or written.
    """
    gone = GoneLines(frozenset(groups), frozenset(variants))
    with translate_unread(path, "It may have lines of the subject."):
        first = find_gone_line(path, gone) if path.is_file() else None
        if first is not None:
            write_file(path, partial(write_rest, path, gone, first))


@dataclass(frozen=True)
class GoneLines:
    """Which lines of a run's samples are taken out: those of some groups, and those of some variants."""

    groups: frozenset[str]
    variants: frozenset[str]

    def has_line(self, line: bytes) -> bool:
        """Return whether a line is one of them.

        One that was cut short, which no run reads, is where it names a group, or where it may be of a variant.
        """
        with suppress(ValueError, RecursionError):
            values = json.loads(line)  # the types of these records are above this room
            if not isinstance(values, dict):
                return False
            return str(values.get("subject")) in self.groups or make_slug(read_label(values)) in self.variants
        return bool(self.variants) or any(f'"{one}"'.encode() in line for one in self.groups)


def find_gone_line(path: Path, gone: GoneLines) -> int | None:
    """Find where the first line to be taken out of a run's samples begins, in bytes; None where there is none."""
    position = 0
    with path.open("rb") as file:
        for line in file:
            if gone.has_line(line):
                return position
            position += len(line)
    return None


def write_rest(path: Path, gone: GoneLines, first: int, output: Path) -> None:
    """Write the lines of a run's samples that stay.

    Args:
        first: where the first line that does not begins.
        output: the file to write.
    """
    position = 0
    with path.open("rb") as before, output.open("wb") as after:
        for line in before:
            if position < first or not gone.has_line(line):
                after.write(line)
            position += len(line)
