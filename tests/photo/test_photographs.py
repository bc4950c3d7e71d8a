"""Photographs are told from the drawings of the embedded model's world, also resized and compressed ones."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from sefi.core.errors import PhotoError
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from sefi.photo.read import DRAWING_SCORE, refuse_drawing, refuse_photograph, score_photograph

SCRIPT = Path(__file__).parents[2] / "experiments" / "photographs.py"
UNSEEN = 72  # series of drawings that the classifier was not fitted on


@pytest.fixture(scope="module")
def measured():
    spec = importlib.util.spec_from_file_location("photographs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SERIES, module.RECOLOURED = UNSEEN, 4
    return module


def share_above(squares):
    scores = [score_photograph(square) for square in squares]
    return sum(score > 0 for score in scores) / len(scores)


def test_the_packages_portrait_is_a_drawing(measured):
    portrait = Image.open(EMBEDDED_EVALUATORS.parent / "demo" / "portrait.png").convert("RGB")
    for image in measured.make_variants(portrait).values():
        refuse_photograph(measured.crop_model_square(image))


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper", "cat", "coffee"])
def test_photographs_are_refused_whole_and_as_heads(measured, name):
    photograph = measured.read_photographs()[name]
    images = [photograph, photograph.crop(measured.HEADS.get(name, (0, 0, *photograph.size)))]
    for image in images:
        with pytest.raises(PhotoError, match="--any-style"):
            refuse_photograph(measured.crop_model_square(image))


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper", "cat", "coffee", "rocket", "camera"])
def test_other_models_take_photographs_and_refuse_the_packages_portrait(measured, name):
    refuse_drawing(measured.crop_model_square(measured.read_photographs()[name]))
    portrait = Image.open(EMBEDDED_EVALUATORS.parent / "demo" / "portrait.png").convert("RGB")
    with pytest.raises(PhotoError, match="--any-style"):
        refuse_drawing(measured.crop_model_square(portrait))


@pytest.mark.slow
def test_few_drawings_are_refused(measured):
    squares = [square for *_, square in measured.yield_drawings(7)]
    assert len(squares) > 56
    assert share_above(squares) <= 0.02  # one of them at the most


@pytest.mark.thorough
def test_error_rates(measured):
    drawings = [square for *_, square in measured.yield_drawings(120)]
    photographs = [square for *_, square in measured.yield_photographs()]
    assert share_above(drawings) <= 0.03
    assert share_above(photographs) >= 0.88
    assert sum(score_photograph(square) < DRAWING_SCORE for square in photographs) == 0
    assert sum(score_photograph(square) < DRAWING_SCORE for square in drawings) >= 0.5 * len(drawings)
