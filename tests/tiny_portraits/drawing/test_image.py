"""The world: pictures follow from their numbers, captions from pictures, and the truth from both."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sefi.core.progress import SilentProgress
from sefi.evaluation.encoders import FACE_LANDMARKS, align_face
from tiny_portraits.drawing.image import describe_content, draw
from tiny_portraits.drawing.sampling import HELD_OUT, get_content
from tiny_portraits.drawing.traits import VECTOR_WIDTH, sample_person, sample_relative
from tiny_portraits.text.captions import FIRST, write_caption, write_drawings
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.text.words import CHARACTERS, FAMILIES, list_characters
from tiny_portraits.training.drawings import roughen_images


def test_equal_seeds_give_equal_images():
    first, second, other = draw(get_content(7, 3)), draw(get_content(7, 3)), draw(get_content(7, 4))
    assert first.shape == (96, 96, 3)
    assert (first == second).all()
    assert (first != other).any()
    assert draw(get_content(7, 3), 131).shape == (131, 131, 3)


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_faces_lie_inside_and_landmarks_inside_faces(index):
    for told in describe_content(get_content(5, index))["subjects"]:
        left, top, width, height = told["box"]
        assert 0 < left + width / 2 < 128
        assert 0 < top + height / 2 < 128
        points = np.array(told["landmarks"])
        assert (points[:, 0] > left - 4).all()
        assert (points[:, 0] < left + width + 4).all()
        assert (points[:, 1] > top - 2).all()
        assert (points[:, 1] < top + height).all()
        assert points[0, 0] < points[1, 0]


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_no_held_out_pair_is_drawn_and_names_match_people(index):
    picture = get_content(9, index)
    shown = {picture.scene} | {a for s in picture.subjects for a in (*s.attributes, s.action)}
    shown |= {a for p in picture.pets for a in p.attributes}
    assert not any(a in shown and b in shown for a, b in HELD_OUT)
    told = write_caption(picture, np.random.default_rng(index))
    assert told.text.count(FIRST) == len(told.named)


def test_relatives_look_more_alike_than_strangers():
    random = np.random.default_rng(1)
    near, far = [], []
    for _ in range(40):
        person = sample_person(random)
        near.append(np.abs(np.subtract(person.coordinates, sample_relative(person, random).coordinates)).mean())
        far.append(np.abs(np.subtract(person.coordinates, sample_person(random).coordinates)).mean())
    assert max(near) < min(far)
    assert sample_person(random).get_vector().shape == (VECTOR_WIDTH,)


def test_an_unseen_feature_does_not_change_the_vector():
    random = np.random.default_rng(2)
    person = next(p for p in iter(lambda: sample_person(random), None) if not p.has("mole"))
    moved = list(person.coordinates)
    from tiny_portraits.drawing.traits import COORDINATES, Person

    moved[COORDINATES.index("mole_x")] = 1 - moved[COORDINATES.index("mole_x")]
    assert (Person(tuple(moved)).get_vector() == person.get_vector()).all()
    assert (draw_one(Person(tuple(moved))) == draw_one(person)).all()


def draw_one(person):
    from tiny_portraits.drawing.sampling import sample_content

    return draw(sample_content(np.random.default_rng(0), (person,)))


def test_names_are_unique_words_and_families_share_theirs(tmp_path):
    everyone = list_characters()
    assert len({c.first for c in everyone}) == len(everyone) == CHARACTERS
    assert len({c.last for c in everyone}) == FAMILIES
    tokenizer = build_tokenizer(tmp_path, list_caption_words())
    for word in list_caption_words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == LENGTH


def test_drawings_are_written(tmp_path):
    write_drawings(2, 3, tmp_path, SilentProgress(), side=67)
    told = json.loads((tmp_path / "00001.json").read_text())
    assert told["scene"] == get_content(3, 1).scene
    assert FIRST not in told["caption"]
    assert (tmp_path / "00001.png").stat().st_size > 500


def test_alignment_moves_landmarks_to_their_places():
    image = np.zeros((150, 150, 3), np.uint8)
    points = FACE_LANDMARKS * 0.7 + np.array([31, 17], np.float32)
    for x, y in points:
        image[round(float(y)), round(float(x))] = 255
    bright = align_face(image, points, FACE_LANDMARKS)
    for x, y in FACE_LANDMARKS:
        assert bright[int(y) - 2 : int(y) + 4, int(x) - 2 : int(x) + 4].max() > 60


@pytest.mark.parametrize("seed", [0, 1])
def test_roughening_keeps_shape_and_range(seed):
    images = np.random.default_rng(seed).integers(0, 255, (3, 17, 19, 3), dtype=np.uint8)
    rough = roughen_images(images, np.random.default_rng(seed))
    assert rough.shape == images.shape
    assert rough.min() >= 0
    assert rough.max() <= 255
    assert 0 < np.abs(rough - images).mean() < 60
