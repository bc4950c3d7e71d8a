"""What names a subject without an image that shows it: the card of a data set, a batch's page and table of failures.

A folder's record of own files says which of them are still as a command wrote them.
"""

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sefi.core.files import is_regular_file
from sefi.core.own_files import hash_own_file
from sefi.core.text import escape_controls
from sefi.provenance.leftovers import Trace

TABLES = frozenset({".csv", ".json", ".jsonl", ".tex", ".md"})  # of a report, and of a data set's card
CARD_SAMPLES = "samples.jsonl"  # of `sefi bench publish`: a line for each image
BATCH_PAGE, BATCH_FAILURES = "index.html", "failures.csv"  # of `sefi batch`
LARGEST_TABLE = 256 << 20  # bytes of one that is searched

IN_CARD = "published with the scores of the subject's images; `sefi bench publish` writes it again"
CHANGED_CARD = "it has scores of the subject's images, but is not as `sefi bench publish` wrote it"
NAMESAKE_IN_CARD = "it has scores of a subject of this name; if it is the same, remove what is published there"
NOT_LEARNED = "it names what a batch could not learn; `sefi batch` writes it again"
CHANGED_PAGE = "it names what a batch could not learn, but is not as `sefi batch` wrote it"


class SampleKey(NamedTuple):
    """What a line of a benchmark's samples, or of a card's, says of an image: subject, variant, SHA-256 of pixels."""

    subject: str
    variant: str
    sha256: str


@dataclass(frozen=True)
class SubjectSamples:
    """A subject as cards of data sets have it.

    Attributes:
        names: its names, which another subject may have too.
        keys: of lines on record that show it.
    """

    names: frozenset[str]
    keys: frozenset[SampleKey]


def read_sample_keys(path: Path) -> Iterator[SampleKey]:
    """Yield what each line of a benchmark's samples says of its image; lines that are none are passed over.

    Raises:
        OSError: they cannot be read.
    """
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                values = json.loads(line)
                if isinstance(values, dict):
                    yield make_sample_key(values)


def make_sample_key(values: Mapping[str, object]) -> SampleKey:
    """Return the key of a line; earlier versions call the variant otherwise."""
    return SampleKey(*(str(one) for one in (values.get("subject"), read_label(values), values.get("sha256"))))


def read_label(values: Mapping[str, object]) -> str:
    """Return the label of the variant that a line of a benchmark's samples is of."""
    return str(values.get("variant", values.get("way", "")))


def list_card_traces(
    path: Path, samples: SubjectSamples, digests: Mapping[str, Sequence[str]]
) -> tuple[list[Trace], list[Trace]]:
    """List the files of a data set's card that has scores of a subject, and what only may be of it.

    Args:
        path: the card's samples.
        samples: what is sought.
        digests: the folder's record of own files.

    Raises:
        OSError, OutputError: it cannot be read.
    """
    if path.stat().st_size > LARGEST_TABLE:
        return [], [Trace(path, "too large to be searched")]
    named = False
    for key in read_sample_keys(path):
        if key in samples.keys:
            if is_own_file(path, digests):
                return list_own_tables(path.parent, digests, IN_CARD), []
            return [], [Trace(path, CHANGED_CARD)]
        named = named or not samples.names.isdisjoint([key.subject, *key.subject.split("+")])
    return [], [Trace(path, NAMESAKE_IN_CARD)] if named else []


def list_own_tables(folder: Path, digests: Mapping[str, Sequence[str]], reason: str) -> list[Trace]:
    """List the tables in a folder that are still as a command wrote them."""
    paths = [folder / name for name in digests if Path(name).suffix in TABLES]
    return [Trace(path, reason) for path in paths if is_own_file(path, digests)]


def is_own_file(path: Path, digests: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a file is still as a command wrote it, by its folder's record of own files.

    Raises:
        OutputError: it cannot be read.
    """
    known = digests.get(path.name, ())
    return bool(known) and is_regular_file(path) and hash_own_file(path) in known


def list_failure_traces(
    folder: Path, name: str, digests: Mapping[str, Sequence[str]], *, is_record_there: bool
) -> tuple[list[Trace], list[Trace]]:
    """List a batch's page and table that name somebody whom it did not learn, and those that were changed since.

    Args:
        folder: the batch's, where the identity would be.
        name: of the identity's file, without its ending.
        digests: the folder's record of own files.
        is_record_there: the batch has a record of that identity.

    Raises:
        OSError, OutputError: one cannot be read.
    """
    table, page = folder / BATCH_FAILURES, folder / BATCH_PAGE
    is_named = (is_record_there or table.name in digests) and has_failure(table, name)
    paths = [table] * is_named + [page] * ((is_named or is_record_there) and contains_name(page, name))
    own = [one for one in paths if is_own_file(one, digests)]
    changed = [one for one in paths if one not in own]
    return [Trace(one, NOT_LEARNED) for one in own], [Trace(one, CHANGED_PAGE) for one in changed]


def has_failure(table: Path, name: str) -> bool:
    """Return whether a batch's table of failures has a row of a name.

    Raises:
        OSError: it cannot be read.
    """
    text, shown = read_table_text(table), escape_controls(name)
    with suppress(csv.Error):
        rows = csv.reader(io.StringIO(text, newline=""))
        return any(row[:1] in ([shown], [f"'{shown}"]) for row in rows)  # a name like a formula has a mark before it
    return False


def contains_name(page: Path, name: str) -> bool:
    """Return whether a page has a name as a whole word; `OSError` where it cannot be read."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", html.unescape(read_table_text(page))) is not None


def read_table_text(path: Path) -> str:
    """Return the text of a page or a table; an empty one where there is none, or one too large to be searched.

    Raises:
        OSError: it cannot be read.
    """
    if not is_regular_file(path) or path.stat().st_size > LARGEST_TABLE:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def find_namesake_failures(tables: Iterable[Path], name: str) -> Iterator[Trace]:
    """Yield the tables of other batches that name somebody of a name whom they did not learn.

    Raises:
        OSError: one cannot be read.
    """
    for table in tables:
        if has_failure(table, name):
            how = f"if it is the same, forget '{table.with_name(name)}.safetensors' too"
            yield Trace(table, f"this batch could not learn somebody of this name; {how}")
