"""Animals, people with each other, and what a picture hides."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tiny_portraits.drawing.content import ATTRIBUTES, HIDES, list_hidden
from tiny_portraits.drawing.face import apply_attributes, measure_half_width
from tiny_portraits.drawing.image import apply_kuwahara, describe_pet, draw, make_painting
from tiny_portraits.drawing.sampling import HELD_OUT, PEOPLE_ONLY, Shares, is_allowed, sample_content
from tiny_portraits.drawing.traits import (
    ANIMAL_COORDINATES,
    ANIMAL_WIDTH,
    ANIMALS,
    COATS,
    EXTREMES,
    LOOKS,
    Animal,
    change_person,
    sample_animal,
    sample_person,
)
from tiny_portraits.text.captions import choose_trait_words, write_caption
from tiny_portraits.text.words import PHRASES

PETS, PAIRS = Shares(pet=1.0), replace(PEOPLE_ONLY, pair=1.0)


def pet_picture(seed, **changes):
    picture = sample_content(np.random.default_rng(seed), shares=PETS)
    pet = replace(picture.pets[0], attributes=(), **changes)
    return replace(picture, pets=(pet,), style="photo", scene="", light="")


@pytest.mark.parametrize("kind", ANIMALS)
def test_every_coat_is_drawn_in_its_own_colour(kind):
    middle = []
    for number in range(len(COATS)):
        values = dict.fromkeys(ANIMAL_COORDINATES, 0.1) | {"coat": (number + 0.5) / len(COATS), "coat_shade": 0.5}
        shown = draw(pet_picture(2, animal=Animal(kind, tuple(values.values()))))
        middle.append(shown[60:90, 30:60].mean((0, 1)))
    assert min(np.abs(a - b).sum() for i, a in enumerate(middle) for b in middle[:i]) > 8


def test_kinds_differ_and_equal_descriptions_give_equal_pixels():
    values = tuple(sample_animal(np.random.default_rng(0)).coordinates)
    drawn = [draw(pet_picture(1, animal=Animal(kind, values))) for kind in ANIMALS]
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])
    assert (drawn[0] == draw(pet_picture(1, animal=Animal("cat", values)))).all()


@given(st.integers(0, 1000))
@settings(max_examples=40)
def test_an_animal_has_a_vector_and_words(number):
    animal = sample_animal(np.random.default_rng(number))
    assert animal.get_vector().shape == (ANIMAL_WIDTH,)
    assert np.abs(animal.get_vector()).max() <= 1
    assert animal.floppy <= (animal.kind == "dog")
    assert ("ears" in animal.get_traits()) == (animal.kind == "dog")
    told = write_caption(pet_picture(3, animal=animal), np.random.default_rng(number))
    assert animal.kind in told.text
    assert not told.named


@given(st.integers(0, 1000))
@settings(max_examples=40)
def test_an_animals_face_lies_in_the_image(number):
    picture = sample_content(np.random.default_rng(number), shares=PETS)
    points = np.array(describe_pet(picture.pets[0])["landmarks"])
    assert points.min() > 0
    assert points.max() < 128


def test_only_dogs_have_ears_that_hang():
    hanging = Animal("dog", tuple((dict.fromkeys(ANIMAL_COORDINATES, 0.4) | {"ear_droop": 0.9}).values()))
    for kind in ANIMALS:
        animal = replace(hanging, kind=kind)
        pointed = replace(
            animal, coordinates=tuple((dict.fromkeys(ANIMAL_COORDINATES, 0.4) | {"ear_droop": 0.1}).values())
        )
        assert animal.floppy == (kind == "dog")
        assert not pointed.floppy
        differ = (draw(pet_picture(5, animal=animal)) != draw(pet_picture(5, animal=pointed))).any()
        assert differ == (kind == "dog")


def test_no_animal_wears_what_is_held_out_of_its_scene():
    worn = set()
    for number in range(3000):
        picture = sample_content(np.random.default_rng([4, number]), shares=PETS)
        shown = {picture.scene, *picture.pets[0].attributes}
        worn |= {(a, picture.scene) for a in picture.pets[0].attributes}
        assert not any(a in shown and b in shown for a, b in HELD_OUT)
    # Other scenes are seen with the same things, so that the rule is what keeps the pair away.
    assert ("hat", "space") in worn
    assert ("sunglasses", "desert") in worn
    beach = replace(pet_picture(0), scene="space")
    assert is_allowed(beach)
    assert not is_allowed(replace(beach, pets=(replace(beach.pets[0], attributes=("sunglasses",)),)))


@pytest.mark.parametrize("seed", range(5))
def test_hands_meet_between_two_people_and_nowhere_else(seed):
    picture = replace(sample_content(np.random.default_rng(seed), shares=PAIRS), style="photo")
    apart, joined = (draw(replace(picture, interaction=what), 128) for what in ("", "shaking hands"))
    rows, columns = np.nonzero((apart != joined).any(-1))
    assert len(rows) > 100
    faces = max(s.y + 0.5 * s.scale for s in picture.subjects)
    assert rows.min() > faces
    assert columns.min() > picture.subjects[0].x - 5
    assert columns.max() < picture.subjects[1].x + 5


def test_only_two_people_shake_hands():
    for number in range(300):
        picture = sample_content(np.random.default_rng(number))
        assert not picture.interaction or len(picture.subjects) == 2
        assert 1 <= len(picture.subjects) + len(picture.pets) <= 2


@given(st.integers(0, 5000))
@settings(max_examples=80)
def test_a_caption_says_nothing_that_the_image_hides(number):
    picture = sample_content(np.random.default_rng(number), shares=PEOPLE_ONLY)
    subject = picture.subjects[0]
    words = choose_trait_words(subject, picture.style, np.random.default_rng(number))
    unseen = list_hidden(subject, picture.style)
    traits = subject.person.get_traits()
    for kind in unseen & traits.keys():
        assert traits[kind] not in words
    if "hair colour" in unseen:
        assert not any(subject.person.hair_colour in w and "hair" in w for w in words)
    if {"sunglasses", "eyes closed"} & set(subject.attributes) or picture.style == "drawing":
        assert f"{subject.person.eye_colour} eyes" not in words


def hair(person):
    return f"{person.hair_style} {person.hair_colour} hair"


@given(st.integers(0, 5000), st.sampled_from([PEOPLE_ONLY, PAIRS]))
@settings(max_examples=80)
def test_a_whole_caption_says_nothing_that_the_image_hides(number, shares):
    picture = sample_content(np.random.default_rng(number), shares=shares)
    said = write_caption(picture, np.random.default_rng([number, 1])).text
    unseen = [list_hidden(s, picture.style) for s in picture.subjects]
    visible = {words for s in picture.subjects for a in s.attributes for words in PHRASES[a]}
    for subject, kinds in zip(picture.subjects, unseen, strict=True):
        visible |= {words for kind, words in subject.person.get_traits().items() if kind not in kinds}
        visible |= set() if kinds & {"hair style", "hair colour"} else {hair(subject.person)}
    for subject, kinds in zip(picture.subjects, unseen, strict=True):
        secret = {words for kind, words in subject.person.get_traits().items() if kind in kinds}
        secret |= {hair(subject.person)} if kinds & {"hair style", "hair colour"} else set()
        # What an attribute or the other person's face shows as well may be said.
        assert not [words for words in secret if words in said and not any(words in seen for seen in visible)]


def test_what_hides_and_what_is_hidden_have_names():
    person = change_person(
        sample_person(np.random.default_rng(0)), dict.fromkeys(("freckles", "mole", "glasses"), 0.99)
    )
    kinds = {"skin", "hair style", "hair colour", "eyes", *(kind for kind, *_ in EXTREMES), *LOOKS.values()}
    assert HIDES.keys() <= set(ATTRIBUTES)
    assert {kind for hidden_kinds in HIDES.values() for kind in hidden_kinds} <= kinds
    assert person.get_traits().keys() <= kinds


def test_a_pencil_drawing_hides_colours_and_a_photo_none():
    subject = sample_content(np.random.default_rng(8), shares=PEOPLE_ONLY).subjects[0]
    plain = replace(subject, attributes=())
    assert list_hidden(plain, "photo") == list_hidden(plain, "painting") == frozenset()
    assert list_hidden(plain, "drawing") & {"hair style", *plain.person.get_traits()} == {"skin", "hair colour", "eyes"}
    assert list_hidden(replace(plain, attributes=("hat", "sad")), "photo") == {"hair style"}


@pytest.mark.parametrize("number", range(40))
def test_words_of_an_animal_say_nothing_that_the_image_hides(number):
    picture = sample_content(np.random.default_rng(number), shares=PETS)
    (pet,) = picture.pets
    drawn, shaded = (
        replace(picture, style="drawing"),
        replace(picture, pets=(replace(pet, attributes=("sunglasses",)),)),
    )
    for random in map(np.random.default_rng, range(5)):
        words = write_caption(drawn, random).text.split()
        assert pet.animal.coat not in words
        assert "eyes" not in words
        assert "eyes" not in write_caption(shaded, random).text


def test_what_an_attribute_hides_really_is_hidden_or_changed():
    person = sample_person(np.random.default_rng(8))
    subject = replace(sample_content(np.random.default_rng(8), (person,)).subjects[0], attributes=("round face",))
    assert measure_half_width(apply_attributes(subject)) > measure_half_width(person)
    assert apply_attributes(replace(subject, attributes=("curly hair",))).hair_style == "curly"
    assert apply_attributes(replace(subject, attributes=("smiling",))) is person


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_can_be_seen(attribute):
    person = change_person(
        sample_person(np.random.default_rng(4)), {"hair_style": 0.05, "hair_colour": 0.05, "face_width": 0.2}
    )
    picture = sample_content(np.random.default_rng(4), (person,))
    plain = replace(picture.subjects[0], attributes=(), action="", scale=40.0, x=64.0, y=64.0)
    without, having = (
        draw(replace(picture, subjects=(replace(plain, attributes=a),), style="photo", scene=""))
        for a in ((), (attribute,))
    )
    assert (np.abs(without.astype(int) - having).sum(-1) > 40).sum() > 40


def test_looks_are_answered_at_the_ends_and_open_in_the_middle():
    person = sample_person(np.random.default_rng(1))
    assert set(LOOKS.values()) <= {kind for kind, *_ in EXTREMES} | {"freckles", "glasses", "mole"}
    for (_, coordinate, _, high), (value, answer) in product(EXTREMES, ((0.1, 0.0), (0.5, 0.5), (0.9, 1.0))):
        assert change_person(person, {coordinate: value}).get_look(high) == answer
    assert change_person(person, {"mole": 0.99}).get_look("a mole") == 1.0
    assert change_person(person, {"mole": 0.2}).get_look("a mole") == 0.0


def test_the_calmest_corner_keeps_edges_and_flat_places():
    image = np.zeros((23, 23, 3), np.float32)
    image[:, 11:] = 200
    assert (apply_kuwahara(image, 3) == image).all()
    assert (apply_kuwahara(np.full((17, 23, 3), 99, np.float32), 4) == 99).all()
    noisy = image + np.random.default_rng(0).normal(0, 8, image.shape).astype(np.float32)
    smooth = apply_kuwahara(noisy, 3)
    assert smooth[:, :7].std() < 0.6 * noisy[:, :7].std()
    assert smooth[:, 12].mean() - smooth[:, 10].mean() > 180


@pytest.mark.parametrize("side", [67, 96, 128])
def test_a_painting_keeps_its_size_and_follows_from_its_seed(side):
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    first, same, other = make_painting(image, 1), make_painting(image, 1), make_painting(image, 2)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert (first == same).all()
    assert (first != other).any()
