"""Pictures and captions: every label is drawn and said, and things are left unsaid."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from sefi.benchmark.suite import Suite, crop_drawing, open_suite
from sefi.cli.bench_setup import PHOTO_SIDE, BenchOptions, load_subjects
from sefi.cli.options import EMBEDDED
from tiny_portraits.drawing.content import SHIPPED, list_hidden
from tiny_portraits.drawing.face import DYES, choose_hair_colour
from tiny_portraits.drawing.held_and_worn import GARMENT_COLOURS, GARMENT_PAINTERS
from tiny_portraits.drawing.image import EVERY_HELD, describe_content, draw
from tiny_portraits.drawing.sampling import (
    EXCLUSIVE,
    PLAIN,
    WARDROBE,
    get_content,
    make_portrait,
    make_scene_photo,
    make_test_person,
)
from tiny_portraits.drawing.scenery import PAINTED
from tiny_portraits.text.captions import OMITTED, count_words, hide_unsaid, name_colour, say
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.text.words import CAMERAS, DOING, GARMENTS, LIGHT_WORDS, MEDIA, PHRASES, PLACES


def plain(**changes):
    """A picture of one person with nothing but what is asked for."""
    shown = next(p for p in map(picture_of, range(100)) if len(p.subjects) == 1 and not p.pets)
    of_subject = {k: changes.pop(k) for k in ("attributes", "action", "garment", "clothes") if k in changes}
    person = replace(shown.subjects[0], **({"attributes": (), "action": "", "garment": "", "scale": 30} | of_subject))
    rest = {"scene": "", "style": "photo", "light": "", "camera": ""} | changes
    return replace(shown, subjects=(replace(person, x=62.0, y=54.0),), **rest)


def picture_of(index):
    return get_content(9, index, SHIPPED)


def difference(one, other):
    return float(np.abs(draw(one, 192).astype(int) - draw(other, 192)).mean())


def test_there_are_twelve_of_each():
    counts = [len(SHIPPED.scenes), len(SHIPPED.actions), len(SHIPPED.garments), 8 + len(DYES)]
    assert counts == [12, 12, 12, 12]
    for shares in (SHIPPED.style_shares, SHIPPED.light_shares, SHIPPED.camera_shares):
        assert sum(shares) == pytest.approx(1)


def test_every_label_has_words_and_a_painter():
    assert set(SHIPPED.attributes) == set(PHRASES)
    assert set(SHIPPED.actions) == set(DOING) == set(EVERY_HELD)
    assert {"", *SHIPPED.scenes} == {"", *PLACES} == set(PAINTED)
    assert set(SHIPPED.styles) == set(MEDIA)
    assert {*SHIPPED.lights} == {"", *LIGHT_WORDS}
    assert set(SHIPPED.garments) == set(GARMENTS) == set(GARMENT_PAINTERS)
    assert {*SHIPPED.cameras} == {"", *CAMERAS}


@pytest.mark.parametrize(
    ("kind", "label"),
    [("scene", s) for s in SHIPPED.scenes]
    + [("style", s) for s in SHIPPED.styles[1:]]
    + [("light", s) for s in SHIPPED.lights[1:]]
    + [("action", a) for a in SHIPPED.actions]
    + [("garment", g) for g in SHIPPED.garments if g != "shirt"]
    + [("attributes", a) for a in SHIPPED.attributes],
)
def test_every_label_changes_the_image(kind, label):
    changed = plain(**{kind: (label,) if kind == "attributes" else label})
    assert difference(plain(), changed) > 0.05


def test_the_camera_blurs_the_background_and_not_the_person():
    sharp, soft = (draw(plain(scene="city", camera=c), 192).astype(int) for c in ("", "blurred background"))
    steps = [np.abs(np.diff(image[40:140, :48], axis=1)).max(2).mean() for image in (sharp, soft)]
    assert steps[1] < 0.6 * steps[0]
    assert (sharp[80:90, 88:96] == soft[80:90, 88:96]).all()


@given(st.integers(0, 10**6))
@settings(max_examples=80)
def test_captions_fit_and_say_only_what_is_there(index):
    picture, random = picture_of(index), np.random.default_rng(index)
    told, said = say(picture, random, SHIPPED)
    assert count_words(told.text) <= LENGTH - 2
    assert "{" not in told.text
    for kind, table in (("scene", PLACES), ("light", LIGHT_WORDS)):
        label = getattr(said, kind)
        assert label in ("", getattr(picture, kind))
        phrases = table.get(label, "")
        spoken = [
            p for group in table.values() for p in ([group] if isinstance(group, str) else group) if p in told.text
        ]
        assert set(spoken) <= ({phrases} if isinstance(phrases, str) else set(phrases))
    for person in picture.subjects:
        assert all(sum(a in group for a in person.attributes) < 2 for group in EXCLUSIVE)


def test_half_of_the_captions_leave_something_out_and_attributes_never():
    full = plain(scene="garden", light="neon", action="cup", garment="hoodie", attributes=("crown",))
    found = [hide_unsaid(full, np.random.default_rng(n), replace(SHIPPED, omission=1.0)) for n in range(400)]
    for kind, value in (("scene", lambda p: p.scene), ("light", lambda p: p.light)):
        assert kind in OMITTED
        assert np.mean([value(p) == "" for p in found]) == pytest.approx(0.5, abs=0.08)
    for value in (lambda s: s.action, lambda s: s.garment):
        assert np.mean([value(p.subjects[0]) == "" for p in found]) == pytest.approx(0.5, abs=0.08)
    assert all(p.subjects[0].attributes == ("crown",) for p in found)
    usual = [hide_unsaid(full, np.random.default_rng(n), SHIPPED) for n in range(600)]
    assert np.mean([p.scene == "" for p in usual]) == pytest.approx(0.25, abs=0.06)
    never = [hide_unsaid(full, np.random.default_rng(n), replace(SHIPPED, omission=0.0)) for n in range(50)]
    assert all(p.scene == "garden" and p.light == "neon" and p.subjects[0].action == "cup" for p in never)


def test_clothes_of_their_own_colour_have_it_and_colours_have_words():
    import colorsys

    for index in range(300):
        for person in picture_of(index).subjects:
            assert person.clothes == GARMENT_COLOURS.get(person.garment, person.clothes)
    named = {name_colour(colorsys.hls_to_rgb(*tone)) for tone in WARDROBE}
    assert named == {"red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink"}


def test_colours_are_not_said_of_a_grey_image():
    for style in ("black and white", "chalk", "drawing"):
        assert "hair colour" in list_hidden(plain().subjects[0], style)
        grey = plain(style=style, garment="hoodie", clothes=(0.8, 0.1, 0.1))
        texts = [say(grey, np.random.default_rng(n), replace(SHIPPED, omission=0.0))[0].text for n in range(40)]
        assert any("hoodie" in text for text in texts)
        assert not any(re.search(r"\b(red|orange)\b", text) for text in texts)


def test_a_dye_covers_age_and_the_own_colour():
    for name, colour in DYES.items():
        assert choose_hair_colour(plain(attributes=("old", name)).subjects[0]) == colour


def test_words_of_labels_are_one_token(tmp_path):
    tokenizer = build_tokenizer(tmp_path, list_caption_words())
    some = {"hoodie", "turquoise", "underwater", "watercolour", "neon", "crown"}
    assert some <= set(list_caption_words())
    assert all(len(tokenizer(word).input_ids) == 3 for word in some)


@pytest.mark.parametrize("version", [PLAIN, SHIPPED], ids=["suite", "model"])
def test_photos_in_scenes_show_one_person_in_two_places(version):
    for number in range(30):
        person = make_test_person(number)
        learned, other = (make_scene_photo(person, number, view, version) for view in (0, 1))
        assert learned.subjects[0].person == other.subjects[0].person == person
        assert learned.scene != other.scene
        assert {learned.scene, other.scene} <= set(version.scenes)
        assert learned.subjects[0].action in version.actions
        assert other.subjects[0].action == ""
        for shown in (learned.subjects[0], other.subjects[0]):
            assert shown.attributes == ()
            assert shown.clothes == GARMENT_COLOURS.get(shown.garment, shown.clothes)
        assert learned == make_scene_photo(person, number, 0, version)
    assert len({make_scene_photo(make_test_person(n), n, 0, version).scene for n in range(40)}) >= 6


@pytest.mark.slow
def test_the_scenes_suite_learns_from_photos_in_scenes(tmp_path):
    suite = open_suite("scenes").model_copy(update={"subjects": 2})
    asked = BenchOptions(suite, tmp_path, EMBEDDED, None, None, None, None, None, False, "cpu", "float32")
    found = load_subjects(asked, None)
    wanted = [draw(make_scene_photo(make_test_person(1), 1, view), PHOTO_SIDE) for view in (0, 1)]
    assert [crop_drawing(image, None).tolist() for image in wanted] == [
        found[1].photo.tolist(),
        found[1].other_photo.tolist(),
    ]
    with pytest.raises(ValidationError, match="people only"):
        Suite.model_validate(suite.model_dump() | {"class_word": "cat"})


def test_the_truth_names_clothes_and_camera():
    told = describe_content(plain(garment="suit", camera="wide shot"))
    assert (told["subjects"][0]["garment"], told["camera"]) == ("suit", "wide shot")


def test_test_people_wear_no_garment_and_have_the_first_labels():
    shown = [
        p for n in range(20) for p in (make_portrait(make_test_person(n), n), make_scene_photo(make_test_person(n), n))
    ]
    assert all(p.camera == "" and p.subjects[0].garment == "" for p in shown)
    assert {p.scene for p in shown} <= {"", *SHIPPED.scenes[:8]}
    assert "camera" not in describe_content(shown[0])
