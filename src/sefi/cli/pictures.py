"""A folder of generated images: names that nobody has yet, and one record that every run adds to."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sefi.cli.output import slug
from sefi.core.errors import OutputError
from sefi.core.files import (
    Kind,
    check_folder,
    check_no_input,
    locked,
    read_content,
    read_status,
    write_numbered,
    write_text,
)
from sefi.core.json_text import dump_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sefi.core.nouns import GeneratedImage

RECORDS = "records.json"
SCHEMA_VERSION = 1
LARGEST_RECORDS = 256 << 20  # bytes; a run of a hundred images takes 20 KB


def check_image_folder(folder: Path, inputs: "Iterable[Path | str | None]" = ()) -> Path:
    """Return a folder that images and their record can be added to; it is created if it is missing.

    Raises:
        OutputError: nothing can be written there, or its `records.json` is an input or something else than ours.
    """
    check_folder(folder)
    check_no_input(folder / RECORDS, inputs)
    read_records(folder / RECORDS)
    return folder


def save_image(image: "GeneratedImage", folder: Path) -> Path:
    """Write one image, named by its prompt and seed; a number follows where that name is taken."""
    return write_numbered(folder, f"{slug(image.prompt)}-{image.seed}", ".png", image.pixels.save)


def save_grid(images: "Sequence[GeneratedImage]", folder: Path) -> Path:
    """Write all images as one, a row per prompt, to `grid.png` or the first free `grid-2.png` ..."""
    from sefi.report.sheet import Row, contact_sheet

    prompts = dict.fromkeys(image.prompt for image in images)
    rows = [Row(text, [i.pixels for i in images if i.prompt == text]) for text in prompts]
    return write_numbered(folder, "grid", ".png", contact_sheet(rows).save)


def append_record(folder: Path, record: dict[str, object]) -> None:
    """Add one run to the folder's `records.json`; no run that another process adds meanwhile is lost.

    Raises:
        OutputError: the file is not ours, or cannot be written.
    """
    path = folder / RECORDS
    with locked(folder):
        records = {"schema_version": SCHEMA_VERSION, "runs": [*read_records(path), record]}
        write_text(path, dump_json(records, indent=2) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the runs on record, none if there is no file; earlier versions wrote one run alone.

    Raises:
        OutputError: there is a file that `sefi generate` did not write.
    """
    found = read_status(path)
    if found is None:
        return []
    foreign = OutputError(f"'{path}' is no record of generated images.", "Choose another folder with --out.")
    if not path.is_file() or found.st_size > LARGEST_RECORDS:
        raise foreign
    if read_content(path).kind is Kind.EMPTY:
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise foreign from error
    if isinstance(records, dict) and "images" in records:
        return [records]
    runs = records.get("runs") if isinstance(records, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise foreign
    if records.get("schema_version") != SCHEMA_VERSION:
        raise OutputError(f"'{path}' was written by a newer sefi.", "Update sefi, or choose another folder with --out.")
    return runs
