"""Whose face is read where the square around the chosen one shows others too."""

import numpy as np
import pytest
from numpy.typing import NDArray

import sefi.api
from sefi.api import crop_photo, find_faces_in
from sefi.core.config import DEFAULT, override
from sefi.core.errors import FaceError
from sefi.evaluation.encoders import SurestFace
from sefi.methods import celeb_basis
from sefi.methods.base import TrainingOptions
from sefi.photo.augment import PhotoViews, SubjectCrop, convert_to_bytes
from sefi.photo.detect import Face
from sefi.photo.read import read_photo

READING = override(DEFAULT, ["learn.start=encoder"])
# Cheek to cheek: the red face is smaller than the blue one, and whoever finds faces is surer of the blue one.
SMALL, LARGE = (60, 100, 60, 80), (120, 60, 110, 160)


def find_coloured(rgb: NDArray[np.uint8]) -> list[Face]:
    """Find the blue and the red rectangle of an image, the blue one first."""
    faces = []
    for channel in (2, 0):
        others = [one for one in (0, 1, 2) if one != channel]
        rows, columns = np.nonzero((rgb[..., channel] > 200) & (rgb[..., others].max(-1) < 60))
        if len(rows):
            left, top = columns.min(), rows.min()
            width, height = columns.max() + 1 - left, rows.max() + 1 - top
            points = tuple((left + width * x, top + height / 2) for x in (0.1, 0.3, 0.5, 0.7, 0.9))
            faces.append(Face(left, top, width, height, points, 0.9))
    return faces


def paint(**faces: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    rgb = np.full((300, 400, 3), 255, np.uint8)
    for colour, (left, top, width, height) in faces.items():
        rgb[top : top + height, left : left + width] = {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]
    return rgb


@pytest.fixture(autouse=True)
def coloured_faces(monkeypatch):
    monkeypatch.setattr(sefi.api, "open_detector", lambda backbone, detector: find_coloured)


def crop_of(backbone, rgb, **options) -> SubjectCrop:
    return crop_photo(read_photo(rgb), backbone, READING, **options)


def read_colour(crop: SubjectCrop, backbone) -> str:
    """Read the colour in the middle of the face that is read of a crop."""
    (face,) = find_faces_in([crop], backbone, READING, None)
    left, top, width, height = face.box
    side = crop.pixels.shape[-1]
    row, column = int((top + height / 2) * side), int((left + width / 2) * side)
    assert face.landmarks[2] == pytest.approx((left + width / 2, top + height / 2), abs=0.02)
    red, _, blue = convert_to_bytes(crop.pixels)[row, column]
    return "red" if red > blue else "blue"


@pytest.mark.parametrize(("number", "colour"), [(1, "red"), (2, "blue")])
def test_the_chosen_face_is_read(backbone, number, colour):
    crop = crop_of(backbone, paint(red=SMALL, blue=LARGE), face=number)
    assert len(find_coloured(convert_to_bytes(crop.pixels))) == 2
    assert read_colour(crop, backbone) == colour


def test_it_is_read_where_only_its_neighbour_is_found_in_the_square(backbone, monkeypatch):
    crop = crop_of(backbone, paint(red=SMALL, blue=LARGE), face=1)
    monkeypatch.setattr(sefi.api, "open_detector", lambda backbone, detector: lambda rgb: find_coloured(rgb)[:1])
    assert read_colour(crop, backbone) == "red"


def test_of_a_box_the_face_that_fills_it_best_is_read(backbone):
    rgb = paint(red=SMALL, blue=LARGE)
    assert read_colour(crop_of(backbone, rgb, box=(50, 60, 95, 200)), backbone) == "red"
    assert read_colour(crop_of(backbone, rgb, box=(20, 20, 260, 260)), backbone) == "blue"
    # Nobody is in the box itself: the square around it shows one.
    assert read_colour(crop_of(backbone, paint(blue=LARGE), box=(100, 225, 200, 60)), backbone) == "blue"


def test_without_a_choice_the_largest_is_read(backbone):
    assert read_colour(crop_of(backbone, paint(red=SMALL, blue=LARGE), crop=False), backbone) == "blue"


def test_a_face_alone_is_read_where_the_square_shows_it(backbone):
    crop = crop_of(backbone, paint(red=SMALL))
    (face,), (found,) = find_faces_in([crop], backbone, READING, None), find_coloured(convert_to_bytes(crop.pixels))
    side = crop.pixels.shape[-1]
    assert face.box == (found.left / side, found.top / side, found.width / side, found.height / side)
    faceless = SubjectCrop(crop.pixels * 0, crop.square, crop.source, face=crop.face)
    with pytest.raises(FaceError, match="No face was found in what is learned"):
        find_faces_in([faceless], backbone, READING, None)


def recognise_colour(rgb: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
    """Embed a face as its mean colour."""
    left, top = int(face.left), int(face.top)
    return rgb[top : top + int(face.height), left : left + int(face.width)].mean((0, 1)).astype(np.float32) / 255


def test_recognisers_embed_the_chosen_face_and_its_mirror_image(backbone, monkeypatch):
    monkeypatch.setattr(SurestFace, "load", lambda folder: SurestFace(find_coloured, recognise_colour))
    crop = crop_of(backbone, paint(red=SMALL, blue=LARGE), face=1)
    views = PhotoViews(crop.pixels, DEFAULT.views, places=(crop.place,))
    embeddings = celeb_basis.embed_views(views, TrainingOptions())
    assert [int(one.argmax()) for one in embeddings] == [0, 0]
    unplaced = celeb_basis.embed_views(PhotoViews(crop.pixels, DEFAULT.views), TrainingOptions())
    assert [int(one.argmax()) for one in unplaced] == [2, 2]
