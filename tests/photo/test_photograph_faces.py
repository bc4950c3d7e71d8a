"""Faces in photographs, with the detector in the package: OpenCV's YuNet."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from matplotlib import cbook
from PIL import Image
from skimage import data

from sefi.core.errors import PhotoError
from sefi.photo.augment import find_face_square
from sefi.photo.detect import (
    OVERLAP,
    PHOTOGRAPH_DETECTOR,
    TILE,
    YuNetDetector,
    _list_tile_starts,
    describe_small_face,
    find_square_around_box,
)
from sefi.photo.read import read_photo

SHA_256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"  # opencv_zoo, face_detection_yunet_2023mar
# Middle of the face and its width, found by eye.
FACES = {"astronaut": (224, 125, 88), "camera": (225, 148, 60), "hopper": (255, 215, 160)}
NO_FACES = ("cat", "coffee", "rocket")
SHOWS_MOST_OF_A_FACE = 125  # of lfw_subset, whose second hundred are parts of photographs: forehead, eye, cheek and ear


@pytest.fixture(scope="module")
def detector():
    return YuNetDetector(PHOTOGRAPH_DETECTOR)


def read(name):
    if name == "hopper":
        with cbook.get_sample_data("grace_hopper.jpg") as file:
            return np.asarray(Image.open(file).convert("RGB"))
    return np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))


def test_the_file_is_opencvs_and_its_licence_is_beside_it():
    assert hashlib.sha256(PHOTOGRAPH_DETECTOR.read_bytes()).hexdigest() == SHA_256
    assert "Permission is hereby granted" in (PHOTOGRAPH_DETECTOR.parent / "LICENSE.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FACES)
def test_photographed_faces_are_found(detector, name):
    (face,) = detector(read(name))
    x, y, width = FACES[name]
    assert abs(face.left + face.width / 2 - x) < 0.2 * width
    assert abs(face.top + face.height / 2 - y) < 0.3 * width
    assert 0.7 < face.width / width < 1.4


@pytest.mark.parametrize("name", NO_FACES)
def test_other_photographs_have_none(detector, name):
    assert detector(read(name)) == []


def test_faces_of_25_pixels(detector):
    images = np.repeat((data.lfw_subset() * 255).astype(np.uint8)[..., None], 3, -1)
    found = [bool(detector(image)) for image in images]
    assert sum(found[:100]) >= 95
    assert [number for number in range(100, 200) if found[number]] == [SHOWS_MOST_OF_A_FACE]


@pytest.mark.slow
@pytest.mark.parametrize("side", [30, 61, 240])
@pytest.mark.parametrize("long_side", [1501, 4999])
def test_a_far_face_in_a_large_photo_is_found_once(detector, long_side, side):
    scale = side / FACES["astronaut"][2]
    portrait = Image.fromarray(read("astronaut"))
    size = round(512 * scale)
    photo = Image.new("RGB", (long_side, long_side * 2 // 3), (90, 120, 90))
    left, top = long_side // 2 - size // 2, long_side // 3 - size // 2  # where tiles meet
    photo.paste(portrait.resize((size, size), Image.Resampling.LANCZOS), (left, top))
    (face,) = detector(np.asarray(photo))
    assert abs(face.left + face.width / 2 - left - FACES["astronaut"][0] * scale) < 0.25 * side


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40_000))
def test_tiles_cover_a_side_and_overlap(length):
    starts = _list_tile_starts(length)
    assert starts[0] == 0
    assert max(starts) + TILE >= length
    assert all(0 < after - before <= TILE - OVERLAP for before, after in pairwise(starts))
    assert max(starts) <= max(0, length - TILE)


def test_a_small_face_is_remarked_on(detector):
    square, face = find_face_square(read_photo(read("camera")), detector)
    remark = describe_small_face(face)
    assert square.side == pytest.approx(150, abs=20)
    assert remark is not None
    assert "x 7" in remark


@pytest.mark.parametrize(("box", "square"), [
    ((60, 10, 250, 270), (50, 10, 270)),
    ((0, 0, 10, 100), (0, 0, 100)),
    ((440, 290, 11, 10), (440, 289, 11)),
    ((0, 0, 451, 300), (0, -76, 451)),
])  # fmt: skip
def test_a_box_is_made_a_square(box, square):
    found = find_square_around_box(box, 300, 451)
    assert (found.left, found.top, found.side) == square


@pytest.mark.parametrize("box", [(0, 0, 0, 9), (-1, 0, 9, 9), (450, 0, 9, 9), (0, 299, 9, 9)])
def test_a_box_outside_the_photo_is_refused(box):
    with pytest.raises(PhotoError, match=r"not inside the photo \(451 x 300\)"):
        find_square_around_box(box, 300, 451)
