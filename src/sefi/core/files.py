"""Writing files: checked before long work, never over an input, always atomic.

A file appears under its name in one step: it is written under a unique temporary name in the same folder, flushed to
the disk and then renamed, so a crash or a second process never leaves or shows half of it.
"""

import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError

from sefi.core.errors import ConfigError, OutputError
from sefi.core.text import format_names, is_utf8

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

IDENTITY_KEY, CHECKPOINT_KEY = "sefi", "sefi-run"  # in the metadata of our safetensors files
LARGEST_HEADER = 1 << 20  # bytes of a safetensors header that are looked into
KIND_BYTES = 1 << 12  # bytes from the beginning of a file that tell the other kinds apart
LONGEST_STEM = 40  # bytes of a name that its temporary name repeats
LONGEST_NAME = 255  # bytes of a file's name where the system does not say
LONGEST_SHARD_STEM = 200  # bytes
# A further file of a very large identity, such as `ada.2.1f0c9a7b3d5e.safetensors`, and what follows its stem.
SHARD_END = r"\.[0-9]{1,4}\.[0-9a-f]{12}\.safetensors"
SHARD_NAME = re.compile(rf"([^/\\\0]{{1,{LONGEST_SHARD_STEM}}}){SHARD_END}")
LOCK_SECONDS = 30.0
OWNER_ONLY = stat.S_IRUSR | stat.S_IWUSR
ANOTHER = "Choose another place with --out."
# What a file system says that knows no hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or the largest file
# What it says where folders cannot be flushed.
NO_FLUSHING = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS)


# By their names images are taken from a folder; what they are, their content says.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp")
UNREAD_SUFFIXES = (".tif", ".tiff", ".jp2", ".jxl", ".psd", ".tga")  # of images whose formats are not read
OTHER_IMAGE_SUFFIXES = frozenset({*IMAGE_SUFFIXES, *UNREAD_SUFFIXES, ".svg", ".pdf"} - {".png"})


class FileKind(StrEnum):
    """What a file holds, by its content and never by its name; the value is what messages call it."""

    IDENTITY = "an identity"
    CHECKPOINT = "an unfinished training"
    SAFETENSORS = "a safetensors file of something else"
    PNG = "a PNG image"
    IMAGE = "an image that is no PNG"
    HTML = "an HTML page"
    JSON = "a JSON file"
    TEXT = "a text file"
    EMPTY = "an empty file"
    OTHER = "a file of another kind"


@dataclass(frozen=True)
class FileContent:
    """What is in a file.

    Attributes:
        name: an identity's name; None for the other kinds, and where it cannot be read.
    """

    kind: FileKind
    name: str | None = None


# ------------------------------------------------------------------ before the work


def check_output(
    path: Path,
    kind: FileKind,
    *,
    inputs: Iterable[Path | str | None] = (),
    overwrite: bool = False,
    name: str | None = None,
    follow: bool = True,
) -> None:
    """Refuse a path where a result may not be written; it is tried out before the work that leads to it.

    Args:
        path: the result's file; a link stands for the file that it leads to.
        kind: what will be written.
        inputs: everything that the command reads; values that are no existing path are passed over.
        overwrite: replace an existing file of the same kind and name.
        name: an identity's name.
        follow: the user named this file. False where the user named its folder: a link there may lead nowhere else.

    Raises:
        OutputError: it is an input, by whatever name; it is a folder or a device; a file of another kind, of another
            identity, or of the same one without `overwrite` is there; its name is too long, not UTF-8 or that of
            another image format; it is a link out of its folder, without `follow`; or nothing can be written there.
    """
    check_utf8(path)
    check_utf8(follow_link(path))
    check_suffix(path, kind)
    status = read_status(path)
    if status is None and not is_folder(path.parent):
        raise OutputError(f"There is no folder '{path.parent}'.", "Create it, or change --out.")
    if status is not None:
        check_regular(path, status)
        check_no_input(path, inputs)
        check_replaceable(path, kind, overwrite=overwrite, name=name)
    if not follow:
        check_link(path)
    try_writing(follow_link(path), path)


def check_suffix(path: Path, kind: FileKind) -> None:
    """Refuse the name of another image format for a PNG: programs that go by names would not open it.

    Raises:
        OutputError: it ends so.
    """
    if kind is FileKind.PNG and path.suffix.lower() in OTHER_IMAGE_SUFFIXES:
        problem = f"A PNG is written, and '{path.name}' is the name of another format."
        raise OutputError(problem, f"Name it {path.with_suffix('.png').name}.")


def describe_missing_folder(path: Path) -> str:
    """Return the problem of a path where a folder should be: there is nothing, or a file."""
    if is_there(path):
        return f"'{path}' is a file, not a folder."
    return f"There is no folder '{path}'."


def describe_unread(names: Iterable[str]) -> str:
    """Return the end of a sentence on a folder: which of its files are images of formats that are not read.

    >>> describe_unread(["ada.tif", "notes.txt"]), describe_unread(["notes.txt"])
    ('; of formats that are not read: ada.tif', '')
    """
    unread = [name for name in names if name.lower().endswith(UNREAD_SUFFIXES)]
    return f"; of formats that are not read: {format_names(unread)}" if unread else ""


def check_folder(path: Path) -> None:
    """Refuse a folder where no files can be written; one that is missing is left so until `make_folder`.

    A command that is refused after this check leaves no empty folder behind.

    Raises:
        OutputError: There is a file in its way, its name is not UTF-8, or nothing can be written there.
    """
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        make_folder(path)
        try_writing(path / "image.png", path)
    finally:
        for folder in missing:
            with suppress(OSError):  # it was not made, or somebody has put a file there meanwhile
                folder.rmdir()


def prepare_folder(path: Path) -> Path:
    """Return a folder where files can be written, created if it is missing; errors as in `check_folder`."""
    check_folder(path)
    return make_folder(path)


def make_folder(path: Path) -> Path:
    """Return a folder, created with those above it if it is missing.

    Raises:
        OutputError: There is a file in its way, its name is not UTF-8, or it cannot be created.
    """
    check_utf8(path)
    if is_regular_file(path):
        raise OutputError(f"'{path}' is a file; a folder is wanted.", ANOTHER)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise make_output_error(path, error) from error
    return path


# A path that somebody types may be too long, a circle of links, or in a folder that is closed: until Python 3.14
# `Path.is_file` and its siblings raise the system's error then, where there is merely nothing to be found.


def is_regular_file(path: Path) -> bool:
    """Return whether a path leads to a regular file; one that the system refuses leads nowhere."""
    return os.path.isfile(path)  # noqa: PTH113  raises nothing


def is_plain_file(path: Path) -> bool:
    """Return whether a path is a regular file itself, and no link to one; no file has a name that is too long."""
    with suppress(OSError, ValueError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder; one that the system refuses leads nowhere."""
    return os.path.isdir(path)  # noqa: PTH112  raises nothing


def is_there(path: Path) -> bool:
    """Return whether a path leads to anything; one that the system refuses leads nowhere."""
    return os.path.exists(path)  # noqa: PTH110  raises nothing


def get_current_folder() -> Path:
    """Return the folder that the program runs in.

    Raises:
        ConfigError: it was deleted meanwhile.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError("The folder that this runs in is gone.", "Change to another folder (cd).") from error


def follow_link(path: Path) -> Path:
    """Return the file that a link leads to; any other path as it is: what lies above it need not be UTF-8."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114  raises nothing


def check_link(path: Path) -> None:
    """Refuse a link out of its folder: whoever names a folder to write to has not named what links in it lead to.

    Raises:
        OutputError: it is one.
    """
    target = follow_link(path)
    if target != path and not target.is_relative_to(os.path.realpath(path.parent)):
        raise OutputError(f"'{path}' is a link out of its folder.", "Remove it, or choose another place with --out.")


def check_utf8(path: Path) -> None:
    """Refuse a name that is not UTF-8: records and pages name their files, and could not be written.

    Raises:
        OutputError: it is not.
    """
    if not is_utf8(str(path)):
        raise OutputError(f"The name '{path}' is not UTF-8.", "Choose another name with --out.")


def check_regular(path: Path, status: os.stat_result) -> None:
    """Refuse folders, devices, pipes and sockets: a rename would put a file in their place.

    Raises:
        OutputError: it is no regular file.
    """
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"'{path}' is a folder.", "Name a file with --out.")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"'{path}' is a device, a pipe or a socket.", "Name a regular file with --out.")


def check_no_input(path: Path, inputs: Iterable[Path | str | None]) -> None:
    """Refuse a path that leads to an input, itself or through symbolic or hard links.

    Raises:
        OutputError: it does.
    """
    for one in inputs:
        with suppress(OSError, ValueError):  # a hub id or a preset is no path
            if one is not None and path.samefile(one):
                raise OutputError(f"'{path}' is an input of this command.", "Choose another file with --out.")


def check_replaceable(path: Path, kind: FileKind, *, overwrite: bool, name: str | None = None) -> None:
    """Refuse to replace what is not the same thing, or what was not asked to be replaced.

    Raises:
        OutputError: another kind of file is there, another identity, or `overwrite` is missing.
    """
    if read_status(path) is None:
        return
    content = read_content(path)
    if content.kind not in (kind, FileKind.EMPTY):
        raise OutputError(f"'{path}' exists and is {content.kind}, not {kind}.", "Choose another file with --out.")
    if name is not None and content.kind is FileKind.IDENTITY and content.name != name:
        other = "another identity" if content.name is None else f"the identity <{content.name}>"
        raise OutputError(f"'{path}' exists and holds {other}, not <{name}>.", "Choose another file with --out.")
    if not overwrite:
        raise OutputError(f"'{path}' exists.", "Choose another --out, or replace it with --overwrite.")


def try_writing(path: Path, named: Path) -> None:
    """Try to create a temporary file: permission bits alone do not show it (root, read-only disks).

    Args:
        path: the file, no link.
        named: what the message names.

    Raises:
        OutputError: it cannot be done.
    """
    partial = name_partial(path)
    try:
        create_file(partial)
        partial.unlink()
    except OSError as error:
        raise make_output_error(named, error) from error


def name_partial(path: Path) -> Path:
    """Return a temporary name, in the same folder and with the same suffix, that nobody else has."""
    stem = cut_to_bytes(path.stem, LONGEST_STEM)
    return path.with_name(f".{stem}.{secrets.token_hex(6)}.partial{path.suffix}")


def fit_stem(path: Path, extra_bytes: int) -> str:
    """Return as much of a file's stem as can stand in its folder in a name with `extra_bytes` bytes beside it."""
    longest = LONGEST_NAME
    with suppress(OSError, ValueError, AttributeError):  # no such folder, no such limit, Windows
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    return cut_to_bytes(path.stem, max(1, longest - extra_bytes))


def get_shard_stem(path: Path) -> str:
    """Return what the names of an identity's further files begin with: its stem, cut where the names get too long."""
    return cut_to_bytes(fit_stem(path, len(".9999.123456789abc.safetensors")), LONGEST_SHARD_STEM)


def cut_to_bytes(text: str, longest: int) -> str:
    """Return the longest beginning of a text that has at most so many bytes in UTF-8.

    >>> cut_to_bytes("zoë", 3)
    'zo'
    """
    return text.encode("utf-8", "ignore")[:longest].decode("utf-8", "ignore")


def read_status(path: Path) -> os.stat_result | None:
    """Return what the system knows of the file that a path leads to; None if there is none.

    Raises:
        OutputError: the path is too long, a circle of links, or may not be looked at.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null, or half of a character
        raise make_output_error(path, error) from error


def make_output_error(path: Path, error: Exception) -> OutputError:
    """Return the error that says why nothing can be written here."""
    if isinstance(error, MemoryError):
        return OutputError(f"Cannot write to '{path}': there is not enough memory.", "Free some, and try again.")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    full = getattr(error, "errno", None) in FULL
    # What was done so far is beside the output: the same command goes on with it, another place does not.
    remedy = "Free some space and run the same command again, or choose another place with --out." if full else ANOTHER
    return OutputError(f"Cannot write to '{path}': {reason}.", remedy)


# ------------------------------------------------------------------ existing files


def read_content(path: Path) -> FileContent:
    """Return what a regular file holds, by its first bytes.

    Raises:
        OutputError: it may not be read, so nobody can tell what would be lost.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(KIND_BYTES)
            length = int.from_bytes(head[:8], "little")
            if head[8:9] == b"{" and length <= size - 8:
                file.seek(8)
                return parse_safetensors_content(file.read(length) if length <= LARGEST_HEADER else b"")
    except OSError as error:
        raise make_output_error(path, error) from error
    return FileContent(detect_kind(head))


def parse_safetensors_content(header: bytes) -> FileContent:
    """Return what the header of a safetensors file says that it holds."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        metadata = json.loads(header).get("__metadata__", {})
        if CHECKPOINT_KEY in metadata:
            return FileContent(FileKind.CHECKPOINT)
        if IDENTITY_KEY in metadata:
            return FileContent(FileKind.IDENTITY, parse_identity_name(metadata[IDENTITY_KEY]))
    return FileContent(FileKind.SAFETENSORS)


def parse_identity_name(text: str) -> str | None:
    """Return the name in an identity's header; None if it cannot be read."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        name = json.loads(text).get("name")
        return name if isinstance(name, str) else None
    return None


def detect_kind(head: bytes) -> FileKind:
    """Return the kind of a file that is no safetensors file, by its first bytes.

    >>> detect_kind(b"<!doctype html><html>").name, detect_kind(b'{"a": 1}').name, detect_kind(b"").name
    ('HTML', 'JSON', 'EMPTY')
    """
    if not head:
        return FileKind.EMPTY
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return FileKind.PNG
    if head.startswith((b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] in (b"WEBP", b"ftyp"):
        return FileKind.IMAGE
    if b"\0" in head:
        return FileKind.OTHER
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return FileKind.HTML
    return FileKind.JSON if text.startswith((b"{", b"[")) else FileKind.TEXT


# ------------------------------------------------------------------ writing


def write_file(path: Path, write: Callable[[Path], object], *, replace: bool = True, mode: int | None = None) -> None:
    """Let `write` fill a temporary file that then takes this name, so that no half a file is ever seen.

    Args:
        path: a link in its folder stands for the file that it leads to. Where the user named the file itself, and not
            its folder, links may lead anywhere: follow them first (`follow_link`).
        write: gets the temporary path, with the same suffix.
        replace: take the place of an existing file, whose permissions are kept.
        mode: permissions, such as 0o600 for a secret, which is then never readable by others; None gives those of the
            existing file, which the new content never exceeds, or of any new file.

    Raises:
        OutputError: the disk is full, the place cannot be written, or what is there is no regular file or a link out of
            its folder.
        FileExistsError: a file is there and `replace` is false.
    """
    check_link(path)
    target, before = follow_link(path), read_status(path)
    if before is not None:
        check_regular(path, before)
    partial = name_partial(target)
    try:
        if mode is None and before is not None:
            mode = stat.S_IMODE(before.st_mode)
        create_file(partial, 0o666 if mode is None else OWNER_ONLY)
        if mode is None:
            mode = stat.S_IMODE(partial.stat().st_mode)
        write(partial)
        flush_file(partial)
        # Last: it may forbid its owner to write, who has to open the file for all before. It has to be set in any
        # case, as whoever writes may put another file in the place of ours: safetensors does.
        partial.chmod(mode)
        publish_file(partial, target, replace=replace)
        flush_folder(target.parent)
    except FileExistsError:
        raise
    except (OSError, SafetensorError, UnicodeError, MemoryError) as error:
        raise make_output_error(path, error) from error
    finally:
        with suppress(OSError):  # a name or a disk that takes no file has none to remove, and the error above counts
            partial.unlink()


def write_output(
    path: Path,
    kind: FileKind,
    write: Callable[[Path], object],
    *,
    inputs: Iterable[Path | str | None] = (),
    overwrite: bool = False,
    name: str | None = None,
    follow: bool = True,
) -> None:
    """Write a result that `check_output` allowed before the work, if what is there now still allows it.

    Args:
        write: gets a temporary path, as in `write_file`; the others as in `check_output`.

    Raises:
        OutputError: as in `check_output` and `write_file`; somebody may have put a file there meanwhile.
    """
    inputs = tuple(inputs)

    def fill(partial: Path) -> None:
        write(partial)
        check_output(path, kind, inputs=inputs, overwrite=overwrite, name=name, follow=follow)

    with translate_existing_file_error(path):
        write_file(follow_link(path) if follow else path, fill, replace=overwrite)


@contextmanager
def translate_existing_file_error(path: Path) -> Generator[None]:
    """Raise `OutputError` for a `FileExistsError`: a file may not take the place of the one that is there."""
    try:
        yield
    except FileExistsError:
        raise OutputError(f"'{path}' exists.", "Choose another --out, or replace it with --overwrite.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_file(path, make_text_writer(text))


def make_text_writer(text: str) -> Callable[[Path], object]:
    """Return what `write_file` and `write_output` need to write a text in UTF-8."""
    return lambda path: path.write_text(text, encoding="utf-8")


def write_numbered(folder: Path, stem: str, suffix: str, write: Callable[[Path], object]) -> Path:
    """Write `stem.suffix`, or the first of `stem-2.suffix`, `stem-3.suffix` ... that is free, and return it.

    The folder is created if it is missing. Two processes never get the same name: the file system decides, which also
    knows whether `A` and `a` differ.
    """
    make_folder(folder)
    number = 1
    while True:
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        number += 1
        if os.path.lexists(path):
            continue
        with suppress(FileExistsError):
            write_file(path, write, replace=False)
            return path


def remove_file(path: Path) -> None:
    """Remove a file that is no longer needed, if it is there.

    Raises:
        OutputError: it cannot be removed; the work that it served is done.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        problem = f"All is written, but '{path}' cannot be removed: {error.strerror}."
        raise OutputError(problem, "Remove it yourself, or with `sefi forget --leftovers`.") from error


def create_file(path: Path, mode: int = 0o666) -> None:
    """Create an empty file that nobody else has created, with the permissions of any new file, or fewer."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def publish_file(partial: Path, path: Path, *, replace: bool) -> None:
    """Move a finished file to its name; `FileExistsError` if that is taken and must not be replaced."""
    if not replace:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            publish_without_links(partial, path)
        return
    partial.replace(path)


def publish_without_links(partial: Path, path: Path) -> None:
    """Move a finished file to a free name where the system knows no hard links: the name is taken first.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be done; then the name is free again.
    """
    create_file(path)
    try:
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            if partial.exists():  # else it has the name by now
                path.unlink()
        raise


def flush_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the system can say so.

    Raises:
        OSError: the disk reports a fault: what was renamed may be gone after a loss of power.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may not be listed, and any folder on Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FLUSHING:
            raise
    finally:
        os.close(handle)


@contextmanager
def hold_folder_lock(folder: Path) -> Generator[None]:
    """Hold the lock of a folder, created if missing, so that one process at a time works on its files.

    Raises:
        OutputError: it cannot be created; or the system has no such locks, and another process held it for half a
            minute.
    """
    make_folder(folder)
    handle = lock_folder(folder)
    if handle is None:
        with lock_file(folder / ".lock"):
            yield
        return
    try:
        yield
    finally:
        os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Wait for the folder's lock and return its handle; None where folders cannot be locked."""
    if fcntl is None:
        return None
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            take_lock(handle)
        except BaseException:
            os.close(handle)
            raise
        return handle
    return None


def take_lock(handle: int, *, wait: bool = True) -> None:
    """Lock an open file or folder until this process and all that inherit the handle have closed it.

    Where the system has no such locks, nothing is locked.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
        OSError: the file system knows no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def lock_file(path: Path) -> Generator[None]:
    """Hold a lock file, removed afterwards.

    Raises:
        OutputError: another process held it for half a minute.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            create_file(path)
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise OutputError(f"Another process holds '{path}'.", "Wait for it, or delete that file.") from None
            time.sleep(0.02)
        except OSError as error:
            raise make_output_error(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
