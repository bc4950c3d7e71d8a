"""Scores of a picture: hand-computed assignments, and no judge gives no score."""

import numpy as np
import pytest
import torch

from sefi.bench.focus import NOTHING, focus_of
from sefi.bench.judging import JudgeFiles, Judging, Seen, box_of, finite_or_none, likeness, plain_numbers
from sefi.core.nouns import Face
from sefi.generate.attend import AttendResult
from sefi.photo.enlarge import enlarged

ADA, BOB = np.array([1.0, 0.0, 0.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)
LIKE_ADA, LIKE_BOB = np.array([0.8, 0.0, 0.6], np.float32), np.array([0.6, 0.8, 0.0], np.float32)
FACE = Face(10.0, 20.0, 30.0, 40.0, ((0.0, 0.0),) * 5, 0.9)


def seen(*embeddings):
    return Seen([FACE] * len(embeddings), list(embeddings), None, None)


def test_one_person_is_compared_with_the_surest_face():
    assert likeness(seen(LIKE_ADA, ADA), [ADA]) == (pytest.approx(0.8), None)
    assert likeness(seen(), [ADA]) == (0.0, None)


def test_two_people_get_the_faces_that_suit_them_best():
    own, leaked = likeness(seen(LIKE_BOB, LIKE_ADA), [ADA, BOB])
    assert own == pytest.approx((0.8 + 0.8) / 2)
    assert leaked == pytest.approx((0.0 + 0.6) / 2)


def test_a_missing_second_face_counts_zero():
    assert likeness(seen(LIKE_ADA), [ADA, BOB]) == (pytest.approx(0.4), None)
    assert likeness(seen(), [ADA, BOB]) == (0.0, None)


def test_nothing_is_scored_without_judges():
    judging = Judging(JudgeFiles())
    rgb = np.zeros((12, 12, 3), np.uint8)
    found = judging.see(rgb)
    assert found == Seen(None, None, None, None)
    assert judging.shown(rgb, found, [("scene", "beach")]) is None
    assert judging.prompt_score(found, "a photo") is None
    assert likeness(found, [ADA]) == (None, None)
    assert likeness(seen(ADA), [None]) == (None, None)
    assert set(JudgeFiles().told().values()) == {None}


def test_small_pictures_are_enlarged_and_boxes_are_shares():
    large = enlarged(np.zeros((96, 144, 3), np.uint8))
    assert large.shape == (192, 288, 3)
    assert enlarged(large) is large
    assert box_of(FACE, np.zeros((200, 100, 3), np.uint8)) == pytest.approx((0.1, 0.1, 0.4, 0.3))


def test_focus_is_not_known_without_maps_or_face():
    rgb = np.zeros((12, 12, 3), np.uint8)
    assert focus_of(None, [], seen(ADA), rgb) == NOTHING


def test_focus_counts_the_face_and_what_stands_beside_it():
    """Four by four cells: the placeholder looks at the face's half, the cup is drawn in the other."""
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], right[:, 2:] = 0.5, 0.5
    words = ("<start>", "<ada>", "smiling", "cup")
    found = AttendResult(words, torch.stack([left, left + right / 3, left, right]), torch.stack([left] * 4), (1,), None)
    rgb = np.zeros((192, 192, 3), np.uint8)
    face = Face(0.0, 0.0, 96.0, 192.0, ((0.0, 0.0),) * 5, 0.9)
    told = focus_of(found, [("attribute", "smiling"), ("action", "cup")], Seen([face], [ADA], None, None), rgb)
    assert told["focus"] == pytest.approx(0.75)
    assert told["on_objects"] == pytest.approx(0.25)
    assert told["focus_plain"] == pytest.approx(1.0)
    assert focus_of(found, [("attribute", "smiling")], Seen([face], [ADA], None, None), rgb)["on_objects"] is None


def test_what_is_not_finite_was_not_computed():
    assert [finite_or_none(value) for value in (0.25, None, float("nan"), float("-inf"))] == [0.25, None, None, None]
    assert plain_numbers(np.array([0.25, 0.5], np.float32)) == (0.25, 0.5)
    assert plain_numbers(np.array([0.25, np.nan], np.float32)) is None
