"""Whom a benchmark learns: the square of one photo each, and of another picture where there is one."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sefi.core.errors import FaceError, PhotoError
from sefi.core.files import write_file
from sefi.core.nouns import Photo
from sefi.core.protocols import FaceDetector
from sefi.photo.read import read_photo
from sefi.photo.views import face_square, rgb_bytes, whole_square

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIDE = 512
LONGEST_KEY = 64


@dataclass(frozen=True)
class Subject:
    """One person or animal.

    Attributes:
        key: a short name, letters, digits, `-` and `_`.
        photo: the square that is learned from, uint8 RGB `[side, side, 3]`.
        other: the same of another picture of the subject; None where there is none.
    """

    key: str
    photo: NDArray[np.uint8]
    other: NDArray[np.uint8] | None = None


def photographs(folder: Path, detector: FaceDetector | None) -> list[Subject]:
    """Every picture file of a folder is a subject; so is every folder in it: its first picture is learned from.

    Args:
        detector: finds the face whose square is learned; None takes the middle square of each picture.

    Raises:
        PhotoError: there is no picture, one cannot be read, or two subjects have one name.
        FaceError: the photo that is to be learned shows no face, or several.
    """
    if not folder.is_dir():
        raise PhotoError(f"There is no folder {folder}.", "Name a folder with a photo or a folder for every person.")
    groups = [[path] for path in pictures_of(folder)]
    groups += [found for inner in sorted(folder.iterdir()) if inner.is_dir() and (found := pictures_of(inner))]
    if not groups:
        raise PhotoError(f"{folder} has no pictures.", f"Put {', '.join(SUFFIXES)} files or folders of them into it.")
    refuse_namesakes([key_of(paths, folder) for paths in groups])
    return [subject_of(paths, folder, detector) for paths in groups]


def pictures_of(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")


def key_of(paths: list[Path], root: Path) -> str:
    """A subject's name in plain letters, from its file or its folder."""
    named = paths[0].stem if paths[0].parent == root else paths[0].parent.name
    plain = unicodedata.normalize("NFKD", named).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:LONGEST_KEY] or "subject"


def refuse_namesakes(keys: list[str]) -> None:
    """Two subjects of one name would share what is learned; case does not count, as on some disks."""
    for key in keys:
        if [k.lower() for k in keys].count(key.lower()) > 1:
            raise PhotoError(f"Two subjects would be called {key!r}.", "Rename one of the files or folders.")


def subject_of(paths: list[Path], root: Path, detector: FaceDetector | None) -> Subject:
    """The first picture is learned from, the second is compared with if its face can be found."""
    key = key_of(paths, root)
    try:
        photo = square_of(paths[0], detector)
    except FaceError as error:
        raise FaceError(f"{paths[0]}: {error.problem}", "Use a photo with one clear face.") from error
    try:
        return Subject(key, photo, square_of(paths[1], detector) if len(paths) > 1 else None)
    except FaceError:
        return Subject(key, photo)


def square_of(path: Path, detector: FaceDetector | None) -> NDArray[np.uint8]:
    """The face's square of a photo file, or the middle one, uint8 RGB `[SIDE, SIDE, 3]`."""
    return cut_out(read_photo(path), detector)


def drawn_square(rgb: NDArray[np.uint8], detector: FaceDetector | None) -> NDArray[np.uint8]:
    """As `square_of`, of a drawing."""
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 127.5 - 1
    return cut_out(Photo(pixels, "drawing"), detector)


def cut_out(photo: Photo, detector: FaceDetector | None) -> NDArray[np.uint8]:
    """The face's square, or the middle one; with the margin of the default settings."""
    return rgb_bytes(whole_square(photo, SIDE) if detector is None else face_square(photo, detector, SIDE))


def save_photo(subject: Subject, folder: Path) -> Path:
    """Write the square where learning and the report find it; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject.key}.png"
    write_file(path, Image.fromarray(subject.photo).save)
    return path
