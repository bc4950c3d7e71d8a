"""Class words in every spelling, and the options that only people have."""

from itertools import product

import pytest

from sefi.core.config import PAPER, override
from sefi.core.errors import ConfigError
from sefi.core.prompts import PEOPLE, check_crop_options, check_photo_count, needs_face

SPELLINGS = ("person", "Person", "PERSON ", " person", "woman", "Man", "girl", "boy", "baby", "Child ")
OTHERS = ("dog", "Cat", "bear", "teapot")


@pytest.mark.parametrize("written", SPELLINGS)
def test_every_spelling_of_a_person_takes_the_face(written: str) -> None:
    word = override(PAPER, [f"learn.class_word={written}"]).learn.class_word
    assert word == written.strip().lower()
    assert word in PEOPLE
    assert needs_face(word, crop=True)
    assert not needs_face(word, crop=False)


@pytest.mark.parametrize("written", OTHERS)
def test_other_subjects_take_the_middle_square(written: str) -> None:
    assert not needs_face(override(PAPER, [f"learn.class_word={written}"]).learn.class_word, crop=True)


@pytest.mark.parametrize("written", ["", "  "])
def test_an_empty_class_word_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="class word is empty"):
        override(PAPER, [f"learn.class_word={written}"])


@pytest.mark.parametrize(
    ("word", "crop", "face", "detector"),
    product((*SPELLINGS, *OTHERS), (True, False), (None, 1, 9), (None, "yunet.onnx")),
)
def test_face_and_detector_are_refused_wherever_they_have_no_effect(word, crop, face, detector) -> None:
    used = word in SPELLINGS and crop
    given = [option for option, value in (("--face", face), ("--detector", detector)) if value is not None]
    if used or not given:
        check_crop_options(word, crop=crop, face=face, detector=detector)
        return
    with pytest.raises(ConfigError) as refused:
        check_crop_options(word, crop=crop, face=face, detector=detector)
    assert all(option in refused.value.problem for option in given)
    assert ("--no-crop" in refused.value.problem) == (word in SPELLINGS)


@pytest.mark.parametrize(("word", "crop", "boxed"), product((*SPELLINGS, *OTHERS), (True, False), (True, False)))
def test_a_detector_is_of_use_wherever_settings_look_for_a_face(word, crop, boxed) -> None:
    box = (0, 0, 9, 9) if boxed and crop else None
    settings = {"crop": crop, "box": box, "detector": "yunet.onnx", "reads_face": True}
    if word in SPELLINGS:
        check_crop_options(word, **settings)
        with pytest.raises(ConfigError, match="--face"):
            check_crop_options(word, **settings | {"face": 1, "crop": False, "box": None})
        return
    with pytest.raises(ConfigError, match="--detector"):
        check_crop_options(word, **settings)


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ([], False),
        (["learn.start=auto"], True),
        (["learn.start=encoder"], True),
        (["learn.outside_weight=0.5"], True),
        (["learn.attention_loss=hinge"], True),
        (["learn.person_steps=3"], True),
    ],
)
@pytest.mark.parametrize("word", ["person", "dog"])
def test_settings_say_whether_a_face_is_read(settings, reads, word) -> None:
    config = override(PAPER, [*settings, f"learn.class_word={word}"])
    assert config.reads_face == (reads and word == "person")


@pytest.mark.parametrize(("crop", "face", "detector"), product((True, False), (None, 1), (None, "yunet.onnx")))
@pytest.mark.parametrize("word", ["person", "cat"])
def test_a_box_is_the_only_word_on_where_the_subject_is(word, crop, face, detector) -> None:
    if crop and face is None and detector is None:
        check_crop_options(word, crop=crop, box=(0, 0, 9, 9))
        return
    with pytest.raises(ConfigError, match="--box"):
        check_crop_options(word, crop=crop, face=face, box=(0, 0, 9, 9), detector=detector)


@pytest.mark.parametrize(("face", "box", "option"), [(1, None, "--face"), (None, (0, 0, 9, 9), "--box")])
def test_a_face_or_a_box_belongs_to_one_photo(face, box, option) -> None:
    check_photo_count(1, face=face, box=box)
    check_photo_count(2, face=None, box=None)
    with pytest.raises(ConfigError, match=f"{option} belongs to one photo, and there are 2"):
        check_photo_count(2, face=face, box=box)
