"""Scores of an image: hand-computed assignments, and no evaluator gives no score."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sefi.backbone.weights import find_weights
from sefi.benchmark.evaluators import (
    NO_FOCUS_SCORES,
    Evaluation,
    EvaluatorFiles,
    Evaluators,
    compute_face_box,
    describe_file,
    drop_not_finite,
    round_embedding,
    score_attention,
    score_likeness,
)
from sefi.benchmark.records import EvaluatorInfo
from sefi.diffusion.attention_maps import PromptAttention
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS, RECOGNISER
from sefi.evaluation.second_recogniser import SHIPPED_RECOGNISER
from sefi.photo.detect import Face, enlarge_image
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person

ADA, BOB = np.array([1.0, 0.0, 0.0], np.float32), np.array([0.0, 1.0, 0.0], np.float32)
LIKE_ADA, LIKE_BOB = np.array([0.8, 0.0, 0.6], np.float32), np.array([0.6, 0.8, 0.0], np.float32)
FACE = Face(10.0, 20.0, 30.0, 40.0, ((0.0, 0.0),) * 5, 0.9)


def seen(*embeddings):
    return Evaluation([FACE] * len(embeddings), list(embeddings), None, None)


def test_one_person_is_compared_with_the_surest_face():
    assert score_likeness(seen(LIKE_ADA, ADA), [ADA]) == (pytest.approx(0.8), None)
    assert score_likeness(seen(), [ADA]) == (0.0, None)


def test_two_people_get_the_faces_that_suit_them_best():
    own, leaked = score_likeness(seen(LIKE_BOB, LIKE_ADA), [ADA, BOB])
    assert own == pytest.approx((0.8 + 0.8) / 2)
    assert leaked == pytest.approx((0.0 + 0.6) / 2)


def test_the_second_recogniser_compares_its_own_embeddings():
    found = replace(seen(ADA, BOB), second_embeddings=[LIKE_BOB, LIKE_ADA])
    assert score_likeness(found, [LIKE_BOB], second=True) == (pytest.approx(1.0), None)
    assert score_likeness(found, [LIKE_BOB]) == (pytest.approx(0.6), None)
    assert score_likeness(found, [ADA, BOB], second=True)[0] == pytest.approx((0.8 + 0.8) / 2)
    assert score_likeness(seen(ADA), [ADA], second=True) == (None, None)


def test_both_recognisers_embed_the_same_faces_of_a_drawing():
    files = EvaluatorFiles(
        EMBEDDED_EVALUATORS / DETECTOR, EMBEDDED_EVALUATORS / RECOGNISER, second_recogniser=SHIPPED_RECOGNISER
    )
    evaluators = Evaluators(files)
    first, again, other = (
        evaluators.evaluate(draw(make_portrait(make_test_person(person), view), 192))
        for person, view in ((5, 5), (5, 6), (8, 8))
    )
    assert [one.shape for one in first.second_embeddings] == [(128,)] * len(first.faces)
    like = [score_likeness(one, [first.second_embeddings[0]], second=True)[0] for one in (first, again, other)]
    assert like[0] == pytest.approx(1, abs=1e-5)
    assert like[1] > 0.6 > 0.4 > like[2]
    assert not np.allclose(first.second_embeddings[0], first.embeddings[0])
    assert files.describe()["second_recogniser"].file == "second_recogniser.safetensors"
    assert "second_recogniser" not in EvaluatorFiles().describe()


def test_a_missing_second_face_counts_zero():
    assert score_likeness(seen(LIKE_ADA), [ADA, BOB]) == (pytest.approx(0.4), None)
    assert score_likeness(seen(), [ADA, BOB]) == (0.0, None)


def test_nothing_is_scored_without_evaluators():
    judging = Evaluators(EvaluatorFiles())
    rgb = np.zeros((12, 12, 3), np.uint8)
    found = judging.evaluate(rgb)
    assert found == Evaluation(None, None, None, None)
    assert judging.find_shown(rgb, found, [("scene", "beach")]) is None
    assert judging.score_prompt(found, "a photo") is None
    assert score_likeness(found, [ADA]) == (None, None)
    assert score_likeness(seen(ADA), [None]) == (None, None)
    assert set(EvaluatorFiles().describe().values()) == {None}


def test_small_images_are_enlarged_and_boxes_are_fractions():
    large = enlarge_image(np.zeros((96, 144, 3), np.uint8))
    assert large.shape == (192, 288, 3)
    assert enlarge_image(large) is large
    assert compute_face_box(FACE, np.zeros((200, 100, 3), np.uint8)) == pytest.approx((0.1, 0.1, 0.4, 0.3))


def test_focus_is_not_known_without_maps_or_face():
    rgb = np.zeros((12, 12, 3), np.uint8)
    assert score_attention(None, [], seen(ADA), rgb) == NO_FOCUS_SCORES


def test_focus_counts_the_face_and_what_is_next_to_it():
    """Four by four cells: the placeholder looks at the face's half, the cup is drawn in the other."""
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], right[:, 2:] = 0.5, 0.5
    words = ("<start>", "<ada>", "smiling", "cup")
    found = PromptAttention(
        words, torch.stack([left, left + right / 3, left, right]), torch.stack([left] * 4), (1,), None
    )
    rgb = np.zeros((192, 192, 3), np.uint8)
    face = Face(0.0, 0.0, 96.0, 192.0, ((0.0, 0.0),) * 5, 0.9)
    told = score_attention(
        found, [("attribute", "smiling"), ("action", "cup")], Evaluation([face], [ADA], None, None), rgb
    )
    assert told["focus"] == pytest.approx(0.75)
    assert told["on_objects"] == pytest.approx(0.25)
    assert told["focus_plain"] == pytest.approx(1.0)
    assert (
        score_attention(found, [("attribute", "smiling")], Evaluation([face], [ADA], None, None), rgb)["on_objects"]
        is None
    )


def test_what_is_not_finite_was_not_computed():
    assert [drop_not_finite(value) for value in (0.25, None, float("nan"), float("-inf"))] == [0.25, None, None, None]
    assert round_embedding(np.array([0.25, 0.5], np.float32)) == (0.25, 0.5)
    assert round_embedding(np.array([0.25, np.nan], np.float32)) is None


def write_weights(path, value):
    save_file({"weight": torch.full((2, 3), float(value))}, path)
    return path.read_bytes()


def hash_bytes(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_digest_of_a_folder_is_that_of_the_weights_that_are_loaded(tmp_path):
    loaded = write_weights(tmp_path / "model.safetensors", 1)
    assert describe_file(tmp_path) == EvaluatorInfo(file=tmp_path.name, sha256=hash_bytes(loaded))
    write_weights(tmp_path / "adapter.safetensors", 2)
    write_weights(tmp_path / "._model.safetensors", 3)
    assert find_weights(tmp_path).files == (tmp_path / "model.safetensors",)
    assert describe_file(tmp_path).sha256 == hash_bytes(loaded)
    assert describe_file(tmp_path / "adapter.safetensors").sha256 != hash_bytes(loaded)


def test_the_digest_of_weights_in_several_files_is_of_all(tmp_path):
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = [write_weights(tmp_path / name, n) for n, name in enumerate(names)]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[1], "b": names[0]}}))
    assert describe_file(tmp_path).sha256 == hash_bytes(*parts)
    other = write_weights(tmp_path / names[1], 7)
    assert describe_file(tmp_path).sha256 == hash_bytes(parts[0], other)


def test_a_folder_without_weights_has_no_digest(tmp_path):
    assert describe_file(tmp_path).sha256 == ""
    assert describe_file(tmp_path / "nothing").sha256 == ""
