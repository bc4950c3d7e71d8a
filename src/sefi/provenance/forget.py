"""What of a likeness is on disk, and its removal: the identity, copies, exports, images, pages, records and runs.

A file is listed only where it can be shown to be of the identity: it has its bytes or its numbers, its name was made
for it, it names the identity's SHA-256, or a record says that the identity made it. No symbolic link is followed.
"""

import filecmp
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sefi.core.errors import IdentityError, OutputError
from sefi.core.files import (
    IDENTITY_KEY,
    LONGEST_STEM,
    SHARD_NAME,
    FileKind,
    cut_to_bytes,
    fit_stem,
    get_shard_stem,
    is_folder,
    is_plain_file,
    is_regular_file,
    is_there,
    read_content,
)
from sefi.core.own_files import RECORD as OWN_RECORD, drop_digests, locate_lock, read_digests
from sefi.core.progress import Progress, SilentProgress
from sefi.core.reading import FLOATS, LARGEST_WEIGHTS, RECORDS, InvalidFileError, Limits, load_tensors, read_layout
from sefi.provenance.forget_records import (
    BATCH_RECORDS,
    CHANGED_OTHERS,
    SHARED,
    TOO_LARGE,
    RunsOnRecord,
    is_batch_record,
    is_too_large,
    read_runs,
)
from sefi.provenance.forget_runs import (
    RUN_INFO,
    explain_namesake,
    find_run_subjects,
    is_run_folder,
    list_run_doubts,
    list_run_samples,
    list_run_traces,
    list_variants_of_subject,
)
from sefi.provenance.forget_tables import (
    BATCH_FAILURES,
    CARD_SAMPLES,
    SampleKey,
    SubjectSamples,
    find_namesake_failures,
    list_card_traces,
    list_failure_traces,
    list_own_tables,
)
from sefi.provenance.leftovers import TEMPORARY, Trace, compute_file_state, find_regular_files, is_lock_held
from sefi.provenance.metadata import DIGITS, NOT_LEARNED_YET, shorten_digests
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import read_named_identities

MANY_FILES = 2000  # are searched in about two seconds
LEAST_TOKEN_BYTES, LEAST_DIFFERENT_BYTES = 64, 16  # of tokens that tell whose a file is
LARGEST_SEARCHED = 256 << 20  # bytes of a file whose content is searched
LIMITS = Limits(size=LARGEST_SEARCHED, dtypes=FLOATS | {"U8", "I64"}, empty=True)
HEADERS = replace(LIMITS, size=LARGEST_WEIGHTS)  # of files whose header alone is read
PAGE_NAMES = re.compile(r'(?:name="sefi-identities" content|data-identities)="([0-9a-f ]*)"')
PROMPT_FILE = re.compile(r"sefi-.+-prompt\.txt")  # of `sefi export`
EXPORT_KEY, TITLE_KEY = "sefi.identity", "modelspec.title"  # in the metadata of exported files
STAYS = "stays until the rest is gone, which it shows the way to"
LISTS_FOLDER = ("index.html", CARD_SAMPLES, BATCH_FAILURES, OWN_RECORD)  # show which others of a folder go
NAMES_DIGEST = "it names the identity's SHA-256"  # the reason of a trace


@dataclass(frozen=True)
class SoughtIdentity:
    """What an identity is recognised by.

    Attributes:
        path: its file, which may be gone: a killed training has left none.
        files: that file and the further ones of a very large identity.
        digests: SHA-256 of the file, in hex, and of what the program would write.
        numbers: its tokens as bytes, in the number types that files have them in.
        tokens: SHA-256 of the tokens as float32.
    """

    path: Path
    name: str
    files: tuple[Path, ...] = ()
    digests: frozenset[str] = frozenset()
    numbers: tuple[bytes, ...] = ()
    tokens: str = ""

    def is_named(self, names: Iterable[str]) -> bool:
        """Return whether one of some SHA-256, or of their first digits, is the identity's."""
        return bool({one[:DIGITS] for one in names} & {one[:DIGITS] for one in self.digests})


@dataclass
class Findings:
    """What was found.

    Attributes:
        traces: what is shown to be of the identity, by path.
        unproven: what may be of it, and is left to the user.
    """

    traces: dict[Path, Trace] = field(default_factory=dict[Path, Trace])
    unproven: list[Trace] = field(default_factory=list[Trace])

    def add(self, trace: Trace) -> None:
        """Add a trace, unless its file is known already."""
        self.traces.setdefault(trace.path, trace)


def read_sought_identity(
    path: Path, digests: Iterable[str] = (), shards: Iterable[str] = (), *, is_sound: bool = False
) -> SoughtIdentity:
    """Read what an identity is recognised by; one that is damaged is recognised by less.

    Args:
        digests: further SHA-256 that files may name it by.
        shards: names of its further files, that were made for it: its header may name any file. Those that another
            identity names too are left out where that one stays.
        is_sound: it has passed every check of a reader. Of another its tokens are not sought: they may be none, or
            numbers that are everywhere.

    Raises:
        IdentityError: there is another file in its place.
        OutputError: it cannot be read.
    """
    path = Path(os.path.realpath(path))
    further = [path.with_name(name) for name in sorted(shards)]
    files = [one for one in further if is_regular_file(one) and read_content(one).kind is FileKind.SAFETENSORS]
    if not is_there(path):
        return SoughtIdentity(path, path.stem, tuple(files))
    content = read_content(path) if is_regular_file(path) else None
    if content is None or content.kind is not FileKind.IDENTITY:
        remedy = (
            "Name the file that `sefi learn` wrote. One that is damaged so far is yours to remove; then repeat this."
        )
        raise IdentityError(f"'{path}' is no identity.", remedy)
    numbers, tokens = read_token_bytes(path) if is_sound else ((), "")
    # A benchmark's variants learn one subject several times: whatever names one of them shows the same photo's subject.
    known = frozenset([*map(compute_file_digest, [path, *list_variants_of_subject(path)]), *digests])
    return SoughtIdentity(path, content.name or path.stem, (path, *files), known, numbers, tokens)


def read_token_bytes(path: Path) -> tuple[tuple[bytes, ...], str]:
    """Return an identity's tokens as bytes, as float32 and float16, and their SHA-256; nothing where it has none."""
    import numpy as np  # noqa: PLC0415

    with suppress(InvalidFileError, ValueError, OSError, TypeError, KeyError, AttributeError):
        read_layout(path, LIMITS)
        loaded = load_tensors(path, "numpy")
        tokens = [np.asarray(value, np.float32) for name, value in sorted(loaded.items()) if name.startswith("tokens")]
        joined = np.concatenate(tokens, axis=-1).tobytes() if tokens else b""
        forms = [one.astype(kind).tobytes() for one in tokens for kind in (np.float32, np.float16)]
        long = [one for one in forms if len(one) >= LEAST_TOKEN_BYTES and len(set(one)) >= LEAST_DIFFERENT_BYTES]
        return tuple(long), hashlib.sha256(joined).hexdigest() if joined else ""
    return (), ""


def list_traces(
    sought: SoughtIdentity,
    folders: Sequence[Path],
    progress: Progress | None = None,
    is_of_tokens: Callable[[str], bool] | None = None,
) -> tuple[list[Trace], list[Trace]]:
    """List what is known to hold a likeness, the identity itself last, and what may hold it and is not removed.

    The order lets a removal that is cut short be repeated: what shows which others belong to the identity goes last.

    Args:
        progress: is advanced after every file, where there are many.
        is_of_tokens: says of a method, by its name, whether its identities are applied by their tokens alone; without
            it each image of a command is taken to show all of its identities.

    Raises:
        OutputError: a process is learning the identity.
    """
    if is_lock_held(locate_lock(sought.path)):
        raise OutputError(f"A process is making '{sought.path}'.", "Wait until it has ended.")
    findings, runs = Findings(), list[Path]()
    around = [sought.path.parent, *(one for one in sought.path.parents[1:2] if is_run_folder(one))]
    paths = collect_files([*around, *folders], findings)
    records = read_all_records(paths, sought, findings, is_of_tokens)
    for path in show_progress(paths, progress):
        if path == sought.path:
            continue
        if path.name == RUN_INFO and is_run_folder(path.parent):
            runs.append(path.parent)
        try:
            add_file(path, sought, findings)
        except (OSError, OutputError) as error:
            findings.unproven.append(Trace(path, f"cannot be read: {error}"))
    add_further_files(sought.path, findings)
    drop_files_of_others(sought.path, findings)
    drop_images_of_others(records, findings)
    drop_shared_images(sought, findings)
    digests = read_own_digests(paths)
    samples = add_run_traces(runs, add_recorded_images(records, sought, findings), sought, findings)
    add_cards((one for one in paths if one.name == CARD_SAMPLES), samples, digests, findings)
    add_failures([one for one in paths if one.name == BATCH_FAILURES], sought, digests, findings)
    add_tables(findings, sought, digests)
    identity = [Trace(sought.path, "the identity")] if is_there(sought.path) else []
    traces = [one for one in findings.traces.values() if one.path != sought.path]
    unproven = [one for one in findings.unproven if one.path not in findings.traces]
    variants = set(list_variants_of_subject(sought.path))
    ordered = [*sorted(traces, key=lambda one: rank_trace(one, variants)), *identity]
    return list(filter(None, map(note_state, ordered))), unproven


def rank_trace(trace: Trace, variants: AbstractSet[Path]) -> tuple[int, int]:
    """Return where a file stands in the order of removal: after those that are known to be of the identity by it.

    Args:
        variants: other identities of the same subject, whose SHA-256 files may name.
    """
    name = trace.path.name
    in_folder = LISTS_FOLDER.index(name) + 1 if name in LISTS_FOLDER else 0
    return (2 if trace.clear is not None else 1 if trace.path in variants else 0), in_folder


def read_all_records(
    paths: Iterable[Path], sought: SoughtIdentity, findings: Findings, is_of_tokens: Callable[[str], bool] | None
) -> list[RunsOnRecord]:
    """Read the records of images among some files; one that is too large is named as unproven.

    Raises:
        OutputError: the disk does not give one, and nobody knows whose images are in its folder.
    """
    records = list[RunsOnRecord]()
    for path in (one for one in paths if one.name == RECORDS and one != sought.path):
        if is_too_large(path):
            findings.unproven.append(Trace(path, TOO_LARGE))
        elif (runs := read_runs(path)) is not None:
            records.append(RunsOnRecord(path, sought.path, sought.digests, runs, is_of_tokens))
    return records


def note_state(trace: Trace) -> Trace | None:
    """Return a trace with the state of its file, so that another that takes its place stays; None if it is gone.

    What is cleared is read again then, and may be changed by another trace before.
    """
    try:
        state = compute_file_state(trace.path.stat())
        return trace if trace.clear is not None else replace(trace, seen=state)
    except FileNotFoundError:
        return None
    except OSError:
        return trace


def collect_files(folders: Iterable[Path], findings: Findings) -> list[Path]:
    """Return the regular files below folders, each once; a folder with too many is named as not searched to its end."""
    found, unread = dict[Path, None](), list[Path]()
    for folder in dict.fromkeys(one for one in folders if is_folder(one)):
        try:
            for path in find_regular_files([folder], unread=unread):
                found[path] = None
        except OutputError as error:
            findings.unproven.append(Trace(folder, f"not searched to its end: {error.problem} Name folders with --in."))
    findings.unproven += [Trace(folder, "this folder cannot be read") for folder in dict.fromkeys(unread)]
    return list(found)


def show_progress(paths: Sequence[Path], progress: Progress | None) -> Iterator[Path]:
    """Yield paths, and advance a progress where they are many."""
    shown = progress if progress is not None and len(paths) > MANY_FILES else SilentProgress()
    shown.start(len(paths), "searching files")
    for path in paths:
        yield path
        shown.advance()
    shown.finish()


def add_file(path: Path, sought: SoughtIdentity, findings: Findings) -> None:
    """Add a file to the findings, if it is of the identity or may be.

    Raises:
        OSError, OutputError: it cannot be read.
    """
    if reason := explain_name(path, sought) or explain_content(path, sought):
        findings.add(Trace(path, reason))
    elif TEMPORARY.fullmatch(path.name):
        findings.unproven.append(Trace(path, "of an interrupted command, nobody knows of whom: --leftovers removes it"))
    elif sought.files and (doubt := explain_doubt(path, sought)):
        findings.unproven.append(Trace(path, doubt))


def explain_name(path: Path, sought: SoughtIdentity) -> str | None:
    """Return how a file's name shows that it is of an identity; None if it does not."""
    if path in sought.files:
        return "a further file of the identity"
    match = TEMPORARY.fullmatch(path.name)
    if match is None or path.parent != sought.path.parent:
        return None
    if match["suffix"] == ".unfinished":  # a training that was being saved: `..ada.HASH.NUMBER.partial.unfinished`
        match = TEMPORARY.fullmatch(f"{match['stem']}.unfinished") or match
    of_training = match["kind"] == "unfinished"
    if not of_training and match["suffix"] != ".safetensors":
        return None
    stem, rest = match["stem"], len(os.fsencode(match[0])) - len(os.fsencode(match["stem"]))
    cut = fit_stem(sought.path, rest) if of_training else cut_to_bytes(sought.path.stem, LONGEST_STEM)
    if stem != cut or (stem != sought.path.stem and has_namesake(sought.path, stem)):
        return None
    return "an unfinished training" if of_training else "a temporary file"


def has_namesake(path: Path, beginning: str) -> bool:
    """Return whether the name of another identity in the folder begins in the same way."""
    return any(one != path and one.name.startswith(beginning) for one in path.parent.glob("*.safetensors"))


def explain_content(path: Path, sought: SoughtIdentity) -> str | None:
    """Return how a file's content shows that it is of an identity; None if it does not.

    Raises:
        OSError, OutputError: it cannot be read.
    """
    size = path.stat().st_size
    if any(size == one.stat().st_size and filecmp.cmp(path, one, shallow=False) for one in sought.files):
        return "a copy of the identity"
    if size > LARGEST_SEARCHED or not (sought.digests or path.parent.name == BATCH_RECORDS):
        return None
    match read_content(path).kind:
        case FileKind.PNG | FileKind.IMAGE:
            found = sought.is_named(read_named_identities(path))
        case FileKind.SAFETENSORS | FileKind.IDENTITY | FileKind.CHECKPOINT:
            return explain_tensors(path, sought)
        case FileKind.HTML:
            texts = PAGE_NAMES.findall(path.read_text(encoding="utf-8", errors="replace"))
            found = sought.is_named(one for text in texts for one in text.split())
        case FileKind.JSON if path.parent.name == BATCH_RECORDS:
            of_file = path == sought.path.parent / BATCH_RECORDS / f"{sought.path.stem}.json"
            return "a batch's record of it" if is_batch_record(path, sought.digests, by_name=of_file) else None
        case FileKind.TEXT | FileKind.JSON if PROMPT_FILE.fullmatch(path.name) or TEMPORARY.fullmatch(path.name):
            content = path.read_bytes()
            found = any(digest[:DIGITS].encode() in content for digest in sought.digests)
        case _:
            return None
    return NAMES_DIGEST if found else None


def explain_tensors(path: Path, sought: SoughtIdentity) -> str | None:
    """Return how a safetensors file shows that it is of an identity: it names it, or has its tokens."""
    if sought.is_named([read_metadata(path).get(EXPORT_KEY, "")]):
        return NAMES_DIGEST
    content = path.read_bytes()
    return "it has the identity's tokens" if any(one in content for one in sought.numbers) else None


def read_metadata(path: Path, limits: Limits = LIMITS) -> Mapping[str, str]:
    """Return the metadata of a safetensors file; none where it cannot be read."""
    with suppress(InvalidFileError, ValueError, OSError, KeyError, TypeError):
        return read_layout(path, limits).metadata
    return {}


def list_further_names(identity: Path) -> frozenset[str]:
    """Return the further files that an identity names; none where it is no identity."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        listed = json.loads(read_metadata(identity, HEADERS).get(IDENTITY_KEY, "")).get("shards", [])
        return frozenset(one for one in listed if isinstance(one, str))
    return frozenset()


def add_further_files(identity: Path, findings: Findings) -> None:
    """Add the further files of copies of the identity; those that were named for other identities as unproven."""
    for path in [identity, *(one for one in findings.traces if one.suffix == ".safetensors")]:
        for name in sorted(list_further_names(path)):
            match, further = SHARD_NAME.fullmatch(name), path.parent / Path(name).name
            if match is None or further.name != name or not is_plain_file(further):
                continue
            if match[1] == get_shard_stem(path):
                findings.add(Trace(further, "a further file of a copy of the identity"))
            else:
                findings.unproven.append(Trace(further, f"'{path.name}' names it, but it was named for another"))


def drop_files_of_others(identity: Path, findings: Findings) -> None:
    """Leave out further files that another identity names too, which is not removed."""
    further = [one for one in findings.traces if SHARD_NAME.fullmatch(one.name)]
    for folder in {one.parent for one in further}:
        others = [one for one in sorted(folder.glob("*.safetensors")) if one != identity and one not in findings.traces]
        named = {name: other for other in others for name in list_further_names(other)}
        for path in (one for one in further if one.parent == folder and one.name in named):
            del findings.traces[path]
            reason = f"a further file of '{named[path.name]}' too: forget that by its own name"
            findings.unproven.append(Trace(path, reason))


def explain_doubt(path: Path, sought: SoughtIdentity) -> str | None:
    """Return why a file may be of an identity, where nothing shows it; None if nothing hints at it.

    Raises:
        OSError, OutputError: it cannot be read.
    """
    kind = read_content(path).kind
    if kind in (FileKind.HTML, FileKind.SAFETENSORS, FileKind.IDENTITY) and path.stat().st_size > LARGEST_SEARCHED:
        return "too large to be searched"
    if kind is FileKind.PNG and shorten_digests([NOT_LEARNED_YET]) in read_named_identities(path):
        return "a picture of what a training learns that has no result: nothing says of whom"
    if kind is FileKind.SAFETENSORS:
        title = read_metadata(path).get(TITLE_KEY, "")
        if re.fullmatch(rf"sefi-{re.escape(sought.name)}(-s\d+)?", title):
            return "exported from an identity of this name, which it does not say more of"
    if kind is FileKind.IDENTITY and sought.tokens and sought.tokens in read_metadata(path).get(IDENTITY_KEY, ""):
        return "an identity that was learned on from it: forget it by its own name"
    return None


def drop_images_of_others(records: Iterable[RunsOnRecord], findings: Findings) -> None:
    """Leave out images that name the identity and, as a record says, show somebody else alone.

    Earlier versions wrote the SHA-256 of all identities of a command into each of its images, whoever it shows.
    """
    files = {
        path: hashes
        for runs in records
        for path, hashes in runs.list_files_by_owner(runs.list_ours(), others=True).items()
    }
    hashes = {one for known in files.values() for one in known}
    for path, trace in list(findings.traces.items()):
        if trace.reason != NAMES_DIGEST or not hashes:
            continue
        with suppress(OSError):
            if compute_file_digest(path) in hashes:
                del findings.traces[path]
            elif path in files:
                del findings.traces[path]
                findings.unproven.append(Trace(path, CHANGED_OTHERS))


def drop_shared_images(sought: SoughtIdentity, findings: Findings) -> None:
    """Leave out images that name somebody else too where the record is too large to say whom they show; copies too.

    What names the identity alone shows nobody else, and goes.
    """
    folders = {one.path.parent for one in findings.unproven if one.reason == TOO_LARGE}
    named = [path for path, trace in findings.traces.items() if trace.reason == NAMES_DIGEST] if folders else []
    shared = set[str]()
    for path in (one for one in named if one.parent in folders):
        with suppress(OSError, OutputError):
            if not all(sought.is_named([one]) for one in read_named_identities(path)):
                shared.add(compute_file_digest(path))
    for path in named if shared else ():
        with suppress(OSError):
            if compute_file_digest(path) in shared:
                del findings.traces[path]
                findings.unproven.append(Trace(path, SHARED))


def add_recorded_images(records: Iterable[RunsOnRecord], sought: SoughtIdentity, findings: Findings) -> frozenset[str]:
    """Add the images that records say an identity made, and the records; return the SHA-256 of their pixels."""
    pixels = set[str]()
    for runs in records:
        ours = runs.list_ours()
        proven, unproven = runs.list_images(ours)
        for trace in proven:
            findings.add(trace)
        pixels |= runs.list_pixel_digests(ours)
        findings.unproven += [*unproven, *runs.list_doubts(ours)]
        if ours:
            findings.add(Trace(runs.path, "the identity, its images and its runs are taken out", runs.take_out))
        elif runs.has_namesake(sought.name):
            findings.unproven.append(
                Trace(runs.path, "images of another identity of this name, perhaps an earlier one")
            )
    return frozenset(pixels)


def add_run_traces(
    runs: Iterable[Path], pixels: frozenset[str], sought: SoughtIdentity, findings: Findings
) -> SubjectSamples:
    """Add what benchmarks' folders have of the identity's subject, and those that have another of its name.

    Args:
        pixels: SHA-256 of the pixels of images that the identity made.

    Returns:
        The subject as cards of data sets have it that were made of those benchmarks.
    """
    named, keys = {sought.name}, set[SampleKey]()
    for run in runs:
        subjects = find_run_subjects(run, [*findings.traces, sought.path], sought.name, pixels)
        if subjects:
            named |= set(subjects)
            keys |= list_run_samples(run, subjects)
            for trace in list_run_traces(run, subjects):
                findings.add(trace)
            findings.unproven += list_run_doubts(run, subjects)
        elif namesake := explain_namesake(run, sought.name):
            findings.unproven.append(Trace(run / RUN_INFO, namesake))
    return SubjectSamples(frozenset(named), frozenset(keys))


OwnDigests = Mapping[Path, Mapping[str, Sequence[str]]]  # of each folder with a record of own files, what it says


def read_own_digests(paths: Iterable[Path]) -> OwnDigests:
    """Read the records of own files among some files; one that cannot be read says of no file that it is one."""
    found: dict[Path, Mapping[str, Sequence[str]]] = {}
    for folder in sorted({one.parent for one in paths if one.name == OWN_RECORD}):
        with suppress(OutputError):
            found[folder] = read_digests(folder)
    return found


def add_cards(tables: Iterable[Path], samples: SubjectSamples, digests: OwnDigests, findings: Findings) -> None:
    """Add the cards of data sets that have scores of the subject's images.

    Args:
        tables: their samples.
    """
    for path in tables:
        try:
            proven, unproven = list_card_traces(path, samples, digests.get(path.parent, {}))
        except (OSError, OutputError) as error:
            proven, unproven = [], [Trace(path, f"cannot be read: {error}")]
        for trace in proven:
            findings.add(trace)
        findings.unproven += [one for one in unproven if one not in findings.unproven]


def add_failures(tables: Sequence[Path], sought: SoughtIdentity, digests: OwnDigests, findings: Findings) -> None:
    """Add a batch's page and table that name the identity as one that could not be learned.

    Nothing of it was made then that could name it: it is known by its folder and its file's name, as its record is.

    Args:
        tables: of all batches.
    """
    folder, name = sought.path.parent, sought.path.stem
    is_record_there = folder / BATCH_RECORDS / f"{name}.json" in findings.traces
    others = [one for one in tables if one.parent != folder and one.name in digests.get(one.parent, {})]
    try:
        known = digests.get(folder, {})
        proven, unproven = list_failure_traces(folder, name, known, is_record_there=is_record_there)
        for trace in proven:
            findings.add(trace)
        findings.unproven += [*unproven, *find_namesake_failures(others, name)]
    except (OSError, OutputError) as error:
        findings.unproven.append(Trace(folder, f"a table or a page of a batch cannot be read: {error}"))


def add_tables(findings: Findings, sought: SoughtIdentity, all_digests: OwnDigests) -> None:
    """Add the tables that were written together with a page that shows the identity, and clear records of own files."""
    for folder, digests in all_digests.items():
        with suppress(OutputError, OSError):
            if folder / "index.html" in findings.traces:
                for trace in list_own_tables(folder, digests, "written together with a page that shows the identity"):
                    findings.add(trace)
            if folder == sought.path.parent and sought.path.name in digests:
                findings.unproven += list_siblings(sought.path, digests)
            gone = {name for name in digests if folder / name in findings.traces or folder / name == sought.path}
            gone |= {name for name, known in digests.items() if sought.is_named(known)}
            if gone:
                clear = partial(drop_digests, folder, frozenset(gone))
                findings.add(Trace(folder / OWN_RECORD, "its SHA-256 of these files are taken out", clear))


def list_siblings(path: Path, names: Iterable[str]) -> list[Trace]:
    """List the other identities that the command wrote which wrote one: `sefi demo` learns a photo twice."""
    others = [path.with_name(name) for name in names if name.endswith(".safetensors") and name != path.name]
    reason = "another identity of the same command, perhaps of the same photo: forget it by its own name"
    return [Trace(other, reason) for other in others if is_regular_file(other)]


def remove_traces(
    traces: Sequence[Trace], identity: Path, folders: Iterable[Path] = ()
) -> tuple[list[Path], list[Trace]]:
    """Remove files; return those that are gone or cleared, and those that are not with the reason.

    The identity, its subject's others and what records say of it stay where anything else does, and a page or a table
    where a file of its folder does, so that the command can be repeated. Folders that are then empty go.

    Args:
        folders: that stay though they are empty, as the identity's does.
    """
    gone: list[Path] = []
    left: list[Trace] = []
    shown = {identity.resolve(), *list_variants_of_subject(identity.resolve())}
    # A kill between the two halves of a write leaves one file under two names, both of which are listed.
    names = Counter[tuple[int, ...] | None](one.seen for one in traces if one.seen is not None)
    for trace in traces:
        if left and is_needed_again(trace, left, shown):
            left.append(Trace(trace.path, STAYS))
            continue
        try:
            links = remove_trace(trace)
        except (OSError, OutputError) as error:
            left.append(Trace(trace.path, getattr(error, "strerror", None) or str(error)))
            continue
        gone.append(trace.path)
        if links > max(1, names[trace.seen]):
            left.append(Trace(trace.path, "removed, but the same file has another name (a hard link) somewhere"))
        names[trace.seen] -= 1
    for folder in sorted({path.parent for path in gone}, key=lambda one: -len(one.parts)):
        if folder not in {identity.resolve().parent, *(one.resolve() for one in folders)}:
            with suppress(OSError):  # it holds something else
                folder.rmdir()
    return gone, left


def is_needed_again(trace: Trace, left: Iterable[Trace], identities: AbstractSet[Path]) -> bool:
    """Return whether a file is needed to find what is left again.

    Args:
        identities: of the subject.
    """
    folders = {one.path.parent for one in left}
    if trace.path.name == OWN_RECORD:
        return trace.path.parent in folders | {one.parent for one in identities}
    if trace.path.name in LISTS_FOLDER:
        return trace.path.parent in folders
    return trace.clear is not None or trace.path in identities


def remove_trace(trace: Trace) -> int:
    """Remove a file, or take the likeness out of it; return how many names it had.

    Raises:
        OSError, OutputError: it cannot be done, or another file has taken its place since it was listed.
    """
    status = trace.path.stat()
    if trace.seen is not None and trace.seen != compute_file_state(status):
        raise OutputError("It was changed since it was listed.", "Repeat the command.")
    if trace.clear is None:
        trace.path.unlink()
    else:
        trace.clear()
    return status.st_nlink
