"""The first difference that is named is the cause: one fact changed alone is named, whatever follows from it."""

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image, PngImagePlugin

from sefi.core.errors import PhotoError
from sefi.provenance.compare import (
    CAUSES,
    EFFECTS,
    NOT_COMPARED,
    PARTLY_STATED,
    Comparable,
    ImageOnRecord,
    compare_results,
    parse_parameters,
    read_image_words,
)
from sefi.provenance.metadata import ImageRecord, format_parameters, make_png_text

STATED = [cause for cause in CAUSES if cause not in ("kind", "tensors", "images")]
DIGEST = "0123456789abcdef" * 4


def make_facts(**changes):
    facts = {cause: {"value": 1, "deep": {"er": [1, 2], "off": None}} for cause in STATED}
    return facts | {cause: facts[cause] | change for cause, change in changes.items()}


def make_tensors(**changes):
    tokens = np.arange(3 * 2 * 5, dtype=np.float32).reshape(3, 2, 5)
    for place, value in changes.items():
        tokens[tuple(map(int, place[1:].split("_")))] = value
    return {"tokens": tokens}


def save_png(path, pixels, text=None):
    Image.fromarray(pixels).save(path, pnginfo=text)
    return path


def test_causes_stand_before_effects():
    order = ("kind", "versions", "machine", "model", "settings", "seed", "photo", "init", "tensors", "images")
    assert [cause for cause in CAUSES if cause in order] == list(order)


@pytest.mark.parametrize("name", ["value", "deep"])
@pytest.mark.parametrize("cause", STATED)
def test_one_fact_changed_alone_is_the_first_difference(cause, name):
    changed = make_facts(**{cause: {name: {"er": [1, 3], "off": None} if name == "deep" else 2}})
    if cause == "preset":  # it counts where settings differ
        changed["settings"] = changed["settings"] | {"more": 1}
    # What follows from any cause: other numbers.
    one, other = Comparable("x", make_facts(), make_tensors()), Comparable("x", changed, make_tensors(_1_0_2=99))
    found = compare_results(one, other)
    first = found.differences[0]
    expected = ("tensors", "tokens") if CAUSES.index(cause) > CAUSES.index("tensors") else (cause, first.name)
    assert (first.cause, first.name) == expected
    assert (cause, "deep.er" if name == "deep" else "value") in [(one.cause, one.name) for one in found.differences]
    assert len(found.differences) == (3 if cause == "preset" else 2)
    assert found.is_unexplained == (cause in EFFECTS)


@given(st.sets(st.sampled_from(STATED), min_size=1))
def test_of_several_facts_the_earliest_cause_is_first(causes):
    found = compare_results(
        Comparable("x", make_facts()), Comparable("x", make_facts(**{cause: {"value": 2} for cause in causes}))
    )
    counted = causes if "settings" in causes else causes - {"preset"}
    assert [fact.cause for fact in found.differences] == [cause for cause in CAUSES if cause in counted]


def test_equal_ones_are_equal_in_both_directions():
    one, other = (Comparable("x", make_facts(), make_tensors()) for _ in range(2))
    found = compare_results(one, other)
    assert found.is_equal
    assert found.compared == 3 * len(STATED) + 1
    assert not found.unknown


def test_two_kinds_have_nothing_else_in_common():
    found = compare_results(Comparable("x", make_facts()), Comparable("y", make_facts(seed={"value": 2})))
    assert [(fact.cause, fact.first, fact.second) for fact in found.differences] == [("kind", "x", "y")]


@pytest.mark.parametrize("cause", STATED)
def test_what_one_side_does_not_state_is_unknown_and_no_difference(cause):
    facts = make_facts()
    del facts[cause]
    for one, other in ((make_facts(), facts), (facts, make_facts())):
        found = compare_results(Comparable("x", one), Comparable("x", other))
        assert found.is_equal
        assert {fact.cause for fact in found.unknown} == {cause}


@pytest.mark.parametrize("cause", STATED)
def test_a_single_fact_that_is_missing_is_a_difference_unless_earlier_versions_left_it_out(cause):
    found = compare_results(Comparable("x", make_facts(**{cause: {"more": 1}})), Comparable("x", make_facts()))
    assert found.is_equal == (cause in {*PARTLY_STATED, "preset"})


def test_numbers_and_booleans_are_not_mixed_up():
    def compare(first, second):
        return compare_results(*(Comparable("x", {"settings": {"a": value}}) for value in (first, second))).is_equal

    assert compare(1, 1.0)
    assert not compare(1, True)
    assert not compare(0, None)
    assert not compare("1", 1)


def test_the_seconds_of_a_training_are_no_difference():
    one, other = ({"metrics": {"loss": 0.5, "learn_seconds": seconds, "peak_mb": seconds}} for seconds in (3.0, 5.0))
    assert compare_results(Comparable("x", one), Comparable("x", other)).is_equal


# ------------------------------------------------------------------ tensors


@given(st.integers(0, 2), st.integers(0, 1), st.integers(0, 4), st.floats(1, 1e6, width=32), st.integers(0, 29))
def test_the_largest_difference_is_placed(stage, slot, number, size, other_place):
    one, other = make_tensors(), make_tensors()
    other["tokens"].flat[other_place] += 0.25
    other["tokens"][stage, slot, number] += size
    fact = compare_results(Comparable("x", tensors=one), Comparable("x", tensors=other)).differences[0]
    count = int((one["tokens"] != other["tokens"]).sum())
    assert fact.detail.startswith(f"{count} of 30 numbers differ, most by ")
    assert fact.detail.endswith(f": stage {stage}, {('key', 'value')[slot]}, number {number}")
    assert fact.first == float(one["tokens"][stage, slot, number])


def test_tensors_of_another_shape_dtype_or_name_are_first():
    tokens = make_tensors()["tokens"]
    one = {"small": tokens, "shape": tokens, "dtype": tokens, "gone": tokens, "zero": np.zeros(2, np.float32)}
    other = {
        "small": tokens + np.float32(0.5), "shape": tokens[:2], "dtype": tokens.astype(np.float16),
        "zero": -np.zeros(2, np.float32),
    }  # fmt: skip
    found = compare_results(Comparable("x", tensors=one), Comparable("x", tensors=other)).differences
    assert [fact.name for fact in found] == ["shape", "dtype", "gone", "small", "zero"]
    assert (found[0].first, found[0].second) == ("3 x 2 x 5, float32", "2 x 2 x 5, float32")
    assert found[-1].detail == "the bits of zeros differ, no number does"


# ------------------------------------------------------------------ images


def test_pixels_that_differ_are_counted_and_placed(tmp_path):
    pixels = np.full((13, 11, 3), 100, np.uint8)
    changed = pixels.copy()
    changed[4, 3, 1], changed[7, 9, 2], changed[7, 9, 0] = 101, 93, 99
    images = [ImageOnRecord(None, save_png(tmp_path / f"{n}.png", p)) for n, p in enumerate((pixels, changed, pixels))]
    one, other, same = (Comparable("x", images={"a": image}) for image in images)
    (fact,) = compare_results(one, other).differences
    assert fact.detail == "2 of 143 pixels differ, most by 7 of 255; all in 7 x 4 pixels from left 3, top 4"
    assert compare_results(one, same).is_equal


def test_images_are_compared_by_their_hashes_where_files_are_gone(tmp_path):
    def compare(first, second):
        sides = (Comparable("x", images={"a": ImageOnRecord(one, tmp_path / "none.png")}) for one in (first, second))
        return compare_results(*sides)

    assert compare(DIGEST, DIGEST).is_equal
    (fact,) = compare(DIGEST, DIGEST[::-1]).differences
    assert fact.detail == "hashes of pixels differ; a file is missing"
    found = compare(None, DIGEST)
    assert found.is_equal
    assert [fact.detail for fact in found.unknown] == [NOT_COMPARED]


def test_a_size_and_a_missing_image_are_differences(tmp_path):
    large, small = (save_png(tmp_path / f"{n}.png", np.zeros((n, 5, 3), np.uint8)) for n in (7, 3))
    one = Comparable("x", images={"a": ImageOnRecord(None, large), "b": ImageOnRecord(DIGEST, small)})
    other = Comparable("x", images={"a": ImageOnRecord(None, small)})
    found = compare_results(one, other).differences
    assert [fact.detail for fact in found] == ["5 x 7 pixels in A, 5 x 3 in B", "only one side has it"]


def test_the_words_of_an_image_are_facts(tmp_path):
    record = ImageRecord(
        'a photo of <ada>, "old"\nin snow', 7, (24, 16), negative_prompt="hat, red", version="0.1.0",
        settings={"scheduler": "ddim", "steps": 3, "guidance_scale": 4.5, "note": 'a, "b": c\\d'},
        model="tiny 0123", identities=(DIGEST,),
    )  # fmt: skip
    path = save_png(tmp_path / "a.png", np.zeros((16, 24, 3), np.uint8), make_png_text(record, "0.1.0"))
    facts = read_image_words(path)[1]
    assert facts["prompts"] == {"prompt": 'a photo of <subject>, "old"\nin snow', "negative prompt": "hat, red"}
    assert facts["seed"] == {"Seed": "7"}
    assert facts["model"] == {"Model": "tiny 0123"}
    assert facts["identities"] == {"Identities": DIGEST[:16]}
    assert facts["versions"] == {"Version": "sefi 0.1.0"}
    assert facts["settings"] == {
        "Steps": "3", "Sampler": "DDIM", "CFG scale": "4.5", "Size": "24x16", "note": 'a, "b": c\\d',
    }  # fmt: skip
    assert facts["words"]["digital source type"].endswith("trainedAlgorithmicMedia")


WORDS = {"prompt": "a", "seed": 3, "size": (24, 16), "model": "m", "version": "0.1.0", "identities": (DIGEST,)}
CHANGED_WORDS = [
    ("version", "0.2.0", "versions"),
    ("model", "n", "model"),
    ("size", (24, 24), "settings"),
    ("settings", {"steps": 4}, "settings"),
    ("prompt", "b", "prompts"),
    ("negative_prompt", "hat", "prompts"),
    ("identities", (DIGEST[::-1],), "identities"),
    ("seed", 4, "seed"),
]


@pytest.mark.parametrize(("name", "value", "cause"), CHANGED_WORDS, ids=[one[0] for one in CHANGED_WORDS])
def test_a_word_changed_alone_is_the_first_difference(name, value, cause):
    one, other = (
        Comparable("an image", parse_parameters(format_parameters(ImageRecord(**words))))
        for words in (WORDS, WORDS | {name: value})
    )
    assert {fact.cause for fact in compare_results(one, other).differences} == {cause}


@given(st.text(max_size=200))
def test_words_of_others_are_parsed_without_a_crash(text):
    json.dumps(parse_parameters(text))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM\0\0"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PhotoError):
        read_image_words(tmp_path / "a.png")


def test_text_that_unpacks_to_too_much_is_refused(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a" * (2 << 20), zip=True)
    path = save_png(tmp_path / "a.png", np.zeros((3, 5, 3), np.uint8), text)
    with pytest.raises(PhotoError):
        read_image_words(path)


def test_a_setting_of_a_variant_that_one_run_alone_has_is_a_difference_whatever_the_variant_is_called():
    facts = {"settings": {"method 2": {"method": "sefi", "learn": {"steps": 3}}}}
    other = {"settings": {"method 2": {"method": "sefi", "learn": {}}}}
    found = compare_results(Comparable("a benchmark run", facts), Comparable("a benchmark run", other))
    assert ("method 2.learn.steps", 3, None) in [(one.name, one.first, one.second) for one in found.differences]
