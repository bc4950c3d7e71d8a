"""What a command leaves behind: checked before long work, written whole or not at all."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import typer

from sefi.cli.schemas import add_schema
from sefi.core.errors import OutputError
from sefi.core.json_text import dump_json

SLUG_LENGTH = 60


def checked_file(path: Path) -> Path:
    """A path where a file can be written, tried out before the work that leads to it.

    Raises:
        OutputError: It is a folder, its folder is missing, or nothing can be written there.
    """
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder.", "Name a file with --out.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder '{path.parent}'.", "Create it, or change --out.")
    try_writing(path.parent)
    return path


def checked_folder(path: Path) -> Path:
    """A folder where files can be written; it is created if it is missing.

    Raises:
        OutputError: There is a file in its way, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error
    try_writing(path)
    return path


def try_writing(folder: Path) -> None:
    """Write and remove an empty file: permission bits alone do not tell (root, read-only disks)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refusal(folder, error) from error


def refusal(path: Path, error: OSError) -> OutputError:
    """The error that says why nothing can be written here."""
    reason = error.strerror or type(error).__name__
    return OutputError(f"Cannot write to '{path}': {reason}.", "Choose another place with --out.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbouring file that then takes this name, so no half a file is seen.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise refusal(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def slug(prompt: str) -> str:
    """A prompt as a short file name.

    >>> slug("a photo of <ada> at the beach!")
    'a-photo-of-ada-at-the-beach'
    """
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].strip("-") or "image"


def say(text: str) -> None:
    """A remark for people: on stderr, so that stdout holds results only."""
    typer.echo(text, err=True)


def answer(record: dict[str, object], text: str, *, as_json: bool, command: str) -> None:
    """The result of a command: a text, or the record with its schema as one line of JSON."""
    described = add_schema(command, record)
    typer.echo(dump_json(described) if as_json else text)
