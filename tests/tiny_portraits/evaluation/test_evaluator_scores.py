"""Thresholds of the embedded model's judges: what obeys is told rightly, and drawings give sensible values."""

from dataclasses import replace

import numpy as np
import pytest

from sefi.backbone.open import MODELS
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, sample_content, sample_pet
from tiny_portraits.drawing.traits import sample_person
from tiny_portraits.evaluation import evaluator_scores
from tiny_portraits.evaluation.evaluator_scores import find_drawing_far_threshold, find_drawing_tau, shows_wanted


def shown(**parts):
    """A photo of one smiling person with a cup at the beach, changed as asked."""
    random = np.random.default_rng(3)
    made = sample_content(random, (sample_person(random),), PEOPLE_ONLY)
    person = replace(made.subjects[0], attributes=("smiling",), action="cup")
    return replace(made, **{"subjects": (person,), "scene": "beach", "style": "photo", "pets": (), **parts})


def test_a_drawing_obeys_if_all_that_is_wanted_is_there():
    picture = shown()
    assert shows_wanted(picture, [("scene", "beach")])
    assert shows_wanted(picture, [["attribute", "smiling"], ["action", "cup"], ["style", "photo"]])
    assert not shows_wanted(picture, [("attribute", "smiling"), ("action", "guitar")])
    assert not shows_wanted(picture, [("attribute", "cup")])


def test_company_does_not_obey():
    picture = shown()
    assert not shows_wanted(replace(picture, subjects=picture.subjects * 2), [("scene", "beach")])
    assert not shows_wanted(replace(picture, pets=(sample_pet(np.random.default_rng(5)),)), [("scene", "beach")])


@pytest.mark.slow
@pytest.mark.world
def test_the_threshold_of_likeness_lets_at_most_one_stranger_in_a_thousand_pass(monkeypatch):
    monkeypatch.setattr(evaluator_scores, "STRANGERS", range(100_000, 100_047))
    assert 0.1 < find_drawing_far_threshold(MODELS / "evaluators") < 0.9


@pytest.mark.slow
@pytest.mark.world
def test_tau_lies_between_right_and_wrong_drawings(monkeypatch):
    monkeypatch.setattr(evaluator_scores, "DRAWINGS", 97)
    assert 0.0 < find_drawing_tau(MODELS / "evaluators") < 0.9
