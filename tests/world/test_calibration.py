"""Thresholds of the embedded model's judges: what obeys is told rightly, and drawings give sensible values."""

from dataclasses import replace

import numpy as np
import pytest

from sefi.backbone.open import MODELS
from sefi.world import calibration
from sefi.world.calibration import drawn_far_threshold, drawn_tau, obeyed
from sefi.world.person import random_person
from sefi.world.sampling import PEOPLE_ONLY, random_pet, random_picture


def shown(**parts):
    """A photo of one smiling person with a cup at the beach, changed as asked."""
    random = np.random.default_rng(3)
    made = random_picture(random, (random_person(random),), PEOPLE_ONLY)
    person = replace(made.subjects[0], attributes=("smiling",), action="cup")
    return replace(made, **{"subjects": (person,), "scene": "beach", "style": "photo", "pets": (), **parts})


def test_a_drawing_obeys_if_all_that_is_wanted_is_there():
    picture = shown()
    assert obeyed(picture, [("scene", "beach")])
    assert obeyed(picture, [["attribute", "smiling"], ["action", "cup"], ["style", "photo"]])
    assert not obeyed(picture, [("attribute", "smiling"), ("action", "guitar")])
    assert not obeyed(picture, [("attribute", "cup")])


def test_company_does_not_obey():
    picture = shown()
    assert not obeyed(replace(picture, subjects=picture.subjects * 2), [("scene", "beach")])
    assert not obeyed(replace(picture, pets=(random_pet(np.random.default_rng(5)),)), [("scene", "beach")])


@pytest.mark.world
def test_the_threshold_of_likeness_lets_at_most_one_stranger_in_a_thousand_pass(monkeypatch):
    monkeypatch.setattr(calibration, "STRANGERS", range(100_000, 100_047))
    assert 0.1 < drawn_far_threshold(MODELS / "judges") < 0.9


@pytest.mark.world
def test_tau_lies_between_right_and_wrong_drawings(monkeypatch):
    monkeypatch.setattr(calibration, "PICTURES", 97)
    assert 0.0 < drawn_tau(MODELS / "judges") < 0.9
