"""Square crops: inside the photo, around the face, replayable."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sefi.photo.detect import Face, Square, crop_square, find_square_around, find_square_in_middle, resize_pixels
from sefi.photo.read import Photo

sides = st.integers(32, 400)


def face_at(left: float, top: float, width: float, height: float) -> Face:
    return Face(left=left, top=top, width=width, height=height, landmarks=((0.0, 0.0),) * 5, score=1.0)


def photo_of(height: int, width: int) -> Photo:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return Photo(pixels=torch.rand(3, height, width, generator=generator) * 2 - 1, source="x")


@given(
    height=sides, width=sides, x=st.floats(0, 1), y=st.floats(0, 1), size=st.floats(0.02, 1),
    margin=st.floats(1, 5),
)  # fmt: skip
def test_the_square_stays_inside_and_shows_the_face(
    height: int, width: int, x: float, y: float, size: float, margin: float
) -> None:
    side = size * min(height, width)
    face = face_at(x * (width - side), y * (height - side), side, side)
    square = find_square_around(face, height, width, margin)
    assert square.left >= 0
    assert square.top >= 0
    assert square.left + square.side <= width
    assert square.top + square.side <= height
    assert square.left <= face.left + 1
    assert square.left + square.side >= face.left + side - 1
    assert square.side <= margin * max(side, 1) + 1


@pytest.mark.slow
@given(
    height=sides, width=sides, left=st.floats(-500, 500), top=st.floats(-500, 500),
    size=st.floats(0, 900), margin=st.floats(0.5, 5),
)  # fmt: skip
@settings(deadline=None)
def test_any_face_gives_an_image_in_range(
    height: int, width: int, left: float, top: float, size: float, margin: float
) -> None:
    face = face_at(left, top, size, size / 2)
    result = crop_square(photo_of(height, width), find_square_around(face, height, width, margin), 37)
    assert result.shape == (3, 37, 37)
    assert result.abs().max() <= 1


def test_a_margin_of_two_doubles_the_face() -> None:
    assert find_square_around(face_at(100, 80, 40, 50), 400, 300, 2.0) == Square(70, 55, 100)


def test_a_face_at_the_edge_moves_the_square_inside() -> None:
    assert find_square_around(face_at(-5, 2, 40, 40), 400, 300, 2.0) == Square(0, 0, 80)


def test_a_large_face_makes_the_square_the_short_side() -> None:
    assert find_square_around(face_at(50, 100, 200, 200), 400, 300, 2.0) == Square(0, 50, 300)


def test_outside_repeats_the_edge() -> None:
    photo = photo_of(32, 47)
    result = crop_square(photo, Square(left=-3, top=-5, side=57), 57)
    assert torch.equal(result[:, 5:37, 3:50], photo.pixels)
    assert torch.equal(result[:, 0, 0], photo.pixels[:, 0, 0])
    assert torch.equal(result[:, -1, -1], photo.pixels[:, -1, -1])


@given(height=sides, width=sides)
def test_the_middle_square(height: int, width: int) -> None:
    square = find_square_in_middle(height, width)
    assert square.side == min(height, width)
    assert abs((width - square.side) - 2 * square.left) <= 1
    assert abs((height - square.side) - 2 * square.top) <= 1


def test_the_same_size_is_exact_and_a_copy() -> None:
    pixels = photo_of(37, 37).pixels
    same = resize_pixels(pixels, 37, 37)
    assert torch.equal(same, pixels)
    assert same.data_ptr() != pixels.data_ptr()


@pytest.mark.parametrize("resolution", [13, 128, 512])
def test_flat_colours_stay_flat(resolution: int) -> None:
    photo = Photo(pixels=torch.full((3, 67, 41), 0.25), source="x")
    result = crop_square(photo, find_square_in_middle(67, 41), resolution)
    torch.testing.assert_close(result, torch.full((3, resolution, resolution), 0.25))
