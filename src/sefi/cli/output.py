"""What a command says: its answer on stdout, remarks on stderr, and the names of its files."""

import re

import typer

from sefi.cli.schemas import add_schema
from sefi.core.json_text import dump_json

SLUG_LENGTH = 60


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
