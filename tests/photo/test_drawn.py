"""Photographs are told from the drawings of the embedded model's world, also resized and compressed ones."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from sefi.api import embedded_judges
from sefi.core.errors import PhotoError
from sefi.photo.drawn import check_drawn, score_photograph

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "photographs.py"
UNSEEN = 72  # series of drawings that the classifier was not fitted on


@pytest.fixture(scope="module")
def measured():
    spec = importlib.util.spec_from_file_location("photographs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SERIES = UNSEEN
    return module


def share_above(squares):
    scores = [score_photograph(square) for square in squares]
    return sum(score > 0 for score in scores) / len(scores)


def test_the_packages_portrait_is_a_drawing(measured):
    portrait = Image.open(embedded_judges().parent / "demo" / "portrait.png").convert("RGB")
    for image in measured.variants(portrait).values():
        check_drawn(measured.square_of(image))


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper", "cat", "coffee"])
def test_photographs_are_refused_whole_and_as_heads(measured, name):
    photograph = measured.photographs()[name]
    images = [photograph, photograph.crop(measured.HEADS.get(name, (0, 0, *photograph.size)))]
    for image in images:
        with pytest.raises(PhotoError, match="--anyway"):
            check_drawn(measured.square_of(image))


def test_few_drawings_are_refused(measured):
    squares = [square for *_, square in measured.samples_of_drawings(7)]
    assert len(squares) > 56
    assert share_above(squares) <= 0.02  # one of them at the most


@pytest.mark.slow
def test_error_rates(measured):
    drawings = [square for *_, square in measured.samples_of_drawings(200)]
    photographs = [square for *_, square in measured.samples_of_photographs()]
    assert share_above(drawings) <= 0.01
    assert share_above(photographs) >= 0.93
