"""A folder of generated images: new names, and one record that every run adds to."""

import sys
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sefi.core.errors import OutputError
from sefi.core.files import (
    check_folder,
    check_link,
    check_no_input,
    hold_folder_lock,
    read_status,
    write_numbered,
    write_text,
)
from sefi.core.reading import (
    LARGEST_RECORDS,
    RECORDS,
    InvalidFileError,
    measure_file,
    read_json,
    translate_file_errors,
)
from sefi.core.text import dump_json, make_file_name
from sefi.provenance.payload import read_installation_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL.Image import Image

    from sefi.diffusion.sampling import GeneratedImage
    from sefi.provenance.content_credentials import SigningKey
    from sefi.provenance.save import EncodedImage

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, SCHEMA_VERSION)  # 1 had no `run`, and named files as they were typed
LARGEST_GRID = 60_000_000  # pixels: `sefi verify` checks 64 million, and Pillow opens no image of 180
BYTES_ON_RECORD = 600  # that an image takes in a record at most, but for its prompt and the boxes of its faces


@dataclass(frozen=True)
class GridImage:
    """An image of a run as the grid shows it: small, since a thousand whole ones would fill the memory.

    Attributes:
        pixels: scaled to the grid's cells.
        identities: SHA-256 of each.
    """

    prompt: str
    pixels: "Image"
    identities: tuple[str, ...] = ()


def check_image_folder(folder: Path, inputs: "Iterable[Path | str | None]" = ()) -> None:
    """Refuse a folder that images and their record cannot be added to; the first creates it if it is missing.

    Raises:
        OutputError: nothing can be written there, or its `records.json` is an input, a link out of the folder, or
            something else than ours.
        ConfigError: the installation's key, which its images are marked with, is damaged.
    """
    check_folder(folder)
    check_no_input(folder / RECORDS, inputs)
    check_link(folder / RECORDS)
    read_records(folder / RECORDS)
    read_installation_key()


def check_room_on_record(folder: Path, prompts: "Iterable[str]", count: int) -> None:
    """Refuse more images than a folder's record has room for, before they are generated.

    Args:
        count: of images for each prompt.

    Raises:
        OutputError: no program would read the record any more.
    """
    status = read_status(folder / RECORDS)
    expected = count * sum(BYTES_ON_RECORD + len(dump_json(prompt)) for prompt in prompts)
    if (status.st_size if status else 0) + expected > LARGEST_RECORDS:
        problem = f"'{folder / RECORDS}' has no room for these images: it has at most {LARGEST_RECORDS >> 20} MB."
        raise OutputError(problem, "Generate fewer at once, or choose another folder with --out.")


def save_numbered_image(
    image: "GeneratedImage",
    folder: Path,
    *,
    mark: bool = True,
    names: bool = False,
    key: "SigningKey | None" = None,
) -> "tuple[Path, EncodedImage]":
    """Write one image, named by its prompt and seed; a number follows where that name is taken."""
    encoded = sign_encoded(image.encode(mark=mark, names=names), key)
    path = write_numbered(folder, f"{make_file_name(image.prompt)}-{image.seed}", ".png", encoded.write)
    return path, encoded


def sign_encoded(encoded: "EncodedImage", key: "SigningKey | None") -> "EncodedImage":
    """Return a file with its signature, if there is a key: the last thing that is done to it."""
    from sefi.core import __version__
    from sefi.provenance.content_credentials import sign_content

    return encoded if key is None else replace(encoded, content=sign_content(encoded.content, key, __version__))


def make_grid_image(image: "GeneratedImage") -> GridImage:
    """Return what the grid shows of an image."""
    from sefi.report.contact_sheet import CELL, fit_image

    return GridImage(image.prompt, fit_image(image.pixels, CELL), image.record.identities if image.record else ())


def save_grid(
    images: "Sequence[GridImage]",
    folder: Path,
    *,
    mark: bool = True,
    names: bool = False,
    key: "SigningKey | None" = None,
) -> "tuple[Path, EncodedImage]":
    """Write all images as one, a row per prompt, to `grid.png` or the first free `grid-2.png` ...

    Args:
        names: write the subjects' names in the prompts, where `<subject>` stands otherwise.
    """
    from sefi.provenance.metadata import hide_names
    from sefi.provenance.save import encode_image
    from sefi.report.contact_sheet import SheetRow, draw_contact_sheet

    rows = [
        SheetRow(prompt if names else hide_names(prompt), [one.pixels for one in images if one.prompt == prompt])
        for prompt in dict.fromkeys(one.prompt for one in images)
    ]
    digests = [digest for one in images for digest in one.identities]
    sheet = draw_contact_sheet(rows, cell=choose_cell(len(rows), max(len(row.images) for row in rows)))
    encoded = sign_encoded(encode_image(sheet, mark=mark, identities=digests), key)
    return write_numbered(folder, "grid", ".png", encoded.write), encoded


def choose_cell(rows: int, columns: int) -> int:
    """Return the side of a grid's cells in pixels: that of every sheet, or less where images are thousands.

    >>> choose_cell(10, 4), choose_cell(1100, 6)
    (160, 82)
    """
    from sefi.report.contact_sheet import CELL, GAP

    # One more of each for the names of rows, half a cell wide, and for the gaps at the edges.
    return max(1, min(CELL, isqrt(LARGEST_GRID // ((rows + 1) * (columns + 1))) - GAP))


def append_record(folder: Path, record: dict[str, object]) -> None:
    """Add one run to the folder's `records.json`; no run that another process adds meanwhile is lost.

    Files are named without their folders, so that a record says nothing of whose disk it was made on.

    Raises:
        OutputError: the file is not ours, has no room for the run, or cannot be written.
    """
    path = folder / RECORDS
    with hold_folder_lock(folder):
        records = {"schema_version": SCHEMA_VERSION, "runs": [*read_records(path), shorten_names(record)]}
        text = dump_json(records, indent=2) + "\n"  # in ASCII
        if len(text) > LARGEST_RECORDS:  # no program would read it any more, and its images would be nobody's
            problem = f"'{path}' has no room for this run: it has at most {LARGEST_RECORDS >> 20} MB."
            remedy = "Its images stay, without a record; generate them into another folder with --out to have one."
            raise OutputError(problem, remedy)
        write_text(path, text)


def shorten_names(record: "Mapping[str, object]") -> dict[str, object]:
    """Return a run's record with the last part of every path, `records` left out: it is the file itself."""
    short = {name: value for name, value in record.items() if name != "records"}
    images, identities, inputs = (record.get(name) for name in ("images", "identities", "inputs"))
    if isinstance(images, list):
        short["images"] = [{**one, "file": Path(one["file"]).name} for one in images]
    if isinstance(identities, list):
        short["identities"] = [Path(str(one)).name for one in identities]
    if isinstance(inputs, dict):
        short["inputs"] = {name: Path(v).name if isinstance(v, str) else v for name, v in inputs.items()}
    if isinstance(grid := record.get("grid"), str):
        short["grid"] = Path(grid).name
    return short


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the runs on record, none if there is no file; earlier versions wrote one run alone.

    Raises:
        OutputError: there is a file that `sefi generate` did not write.
    """
    if read_status(path) is None:
        return []
    with translate_file_errors(
        f"'{path}'", OutputError, "is no record of generated images", "Choose another folder with --out."
    ):
        if measure_records(path) == 0:
            return []
        records = read_json(path, LARGEST_RECORDS)
        if "images" in records:
            return [records]
        runs = records.get("runs")
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise InvalidFileError("it has no list of runs")
        if records.get("schema_version") not in READABLE_VERSIONS:
            remedy = "Update sefi, or choose another folder with --out."
            raise OutputError(f"'{path}' was written by a newer sefi.", remedy)
        return runs


def measure_records(path: Path) -> int:
    """Measure a record in bytes.

    Raises:
        OutputError: it is too long to be read and written again for every run.
        InvalidFileError: it is no regular file.
    """
    size = measure_file(path, sys.maxsize)
    if size > LARGEST_RECORDS:
        problem = f"'{path}' has {size >> 20} MB of records; at most {LARGEST_RECORDS >> 20} MB are added to."
        # Not to rename it: `sefi forget` knows a record by its name.
        raise OutputError(problem, "Choose another folder with --out.")
    return size
