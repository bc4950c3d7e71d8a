"""The world: pictures follow from their numbers, captions from pictures, and the truth from both."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sefi.core.protocols import SilentProgress
from sefi.metrics.align import FACE, aligned
from sefi.world.captions import FIRST, caption
from sefi.world.data import drawings, picture_at
from sefi.world.draw import write_drawings
from sefi.world.drawing import draw, truth
from sefi.world.judging_data import roughened
from sefi.world.names import CHARACTERS, FAMILIES, characters
from sefi.world.person import VECTOR_WIDTH, random_person, relative
from sefi.world.sampling import HELD_OUT
from sefi.world.tokenizing import LENGTH, build_tokenizer, words


def test_equal_numbers_give_equal_pictures():
    first, second, other = draw(picture_at(7, 3)), draw(picture_at(7, 3)), draw(picture_at(7, 4))
    assert first.shape == (96, 96, 3)
    assert (first == second).all()
    assert (first != other).any()
    assert draw(picture_at(7, 3), 131).shape == (131, 131, 3)


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_faces_lie_inside_and_landmarks_inside_faces(index):
    for told in truth(picture_at(5, index))["subjects"]:
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
    picture = picture_at(9, index)
    shown = {picture.scene} | {a for s in picture.subjects for a in (*s.attributes, s.action)}
    shown |= {a for p in picture.pets for a in p.attributes}
    assert not any(a in shown and b in shown for a, b in HELD_OUT)
    told = caption(picture, np.random.default_rng(index))
    assert told.text.count(FIRST) == len(told.named)


def test_relatives_look_more_alike_than_strangers():
    random = np.random.default_rng(1)
    near, far = [], []
    for _ in range(40):
        person = random_person(random)
        near.append(np.abs(np.subtract(person.coordinates, relative(person, random).coordinates)).mean())
        far.append(np.abs(np.subtract(person.coordinates, random_person(random).coordinates)).mean())
    assert max(near) < min(far)
    assert random_person(random).vector().shape == (VECTOR_WIDTH,)


def test_an_unseen_feature_does_not_change_the_vector():
    random = np.random.default_rng(2)
    person = next(p for p in iter(lambda: random_person(random), None) if not p.has("mole"))
    moved = list(person.coordinates)
    from sefi.world.person import COORDINATES, Person

    moved[COORDINATES.index("mole_x")] = 1 - moved[COORDINATES.index("mole_x")]
    assert (Person(tuple(moved)).vector() == person.vector()).all()
    assert (draw_one(Person(tuple(moved))) == draw_one(person)).all()


def draw_one(person):
    from sefi.world.sampling import random_picture

    return draw(random_picture(np.random.default_rng(0), (person,)))


def test_names_are_unique_words_and_families_share_theirs(tmp_path):
    everyone = characters()
    assert len({c.first for c in everyone}) == len(everyone) == CHARACTERS
    assert len({c.last for c in everyone}) == FAMILIES
    tokenizer = build_tokenizer(tmp_path, words())
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == LENGTH


def test_drawings_are_kept_and_written(tmp_path):
    kept = drawings(tmp_path / "d.npy", 3, 5, SilentProgress(), workers=1)
    assert (kept[4] == draw(picture_at(3, 4))).all()
    write_drawings(2, 3, tmp_path, SilentProgress(), side=67)
    told = json.loads((tmp_path / "00001.json").read_text())
    assert told["scene"] == picture_at(3, 1).scene
    assert FIRST not in told["caption"]
    assert (tmp_path / "00001.png").stat().st_size > 500


def test_alignment_moves_landmarks_to_their_places():
    image = np.zeros((150, 150, 3), np.uint8)
    points = FACE * 0.7 + np.array([31, 17], np.float32)
    for x, y in points:
        image[round(float(y)), round(float(x))] = 255
    bright = aligned(image, points, FACE)
    for x, y in FACE:
        assert bright[int(y) - 2 : int(y) + 4, int(x) - 2 : int(x) + 4].max() > 60


@pytest.mark.parametrize("seed", [0, 1])
def test_roughening_keeps_shape_and_range(seed):
    images = np.random.default_rng(seed).integers(0, 255, (3, 17, 19, 3), dtype=np.uint8)
    rough = roughened(images, np.random.default_rng(seed))
    assert rough.shape == images.shape
    assert rough.min() >= 0
    assert rough.max() <= 255
    assert 0 < np.abs(rough - images).mean() < 60
