"""What `sefi bench run` opens: who is drawn for a class word."""

import numpy as np
import pytest

from sefi.benchmark.evaluators import EvaluatorFiles, Evaluators
from sefi.benchmark.suite import Suite
from sefi.cli.bench_setup import BenchOptions, Thresholds, find_thresholds, load_subjects, note_scored
from sefi.cli.options import EMBEDDED
from sefi.core.errors import ConfigError
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS

SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "about": "One subject.",
        "prompts": [{"text": "a photo of {}", "kind": "plain"}],
        "variants": [{"label": "pasted", "control": "photo"}],
        "subjects": 1,
        "first": 3,
    }
)


def open_options(folder, class_word, model=EMBEDDED, **changes):
    suite = SUITE.model_copy(update={"class_word": class_word, **changes})
    return BenchOptions(suite, folder, model, None, None, None, None, None, False, "cpu", "float32")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("class_word", "usual", "key"),
    [("woman", "person", "p3"), ("Person", "person", "p3"), ("old man", "person", "p3"), (" Cat", "cat", "c3")],
)
def test_a_word_for_people_draws_people_and_its_spelling_changes_nothing(tmp_path, class_word, usual, key):
    [found], [wanted] = (load_subjects(open_options(tmp_path, word), None) for word in (class_word, usual))
    assert found.key == wanted.key == key
    assert np.array_equal(found.photo, wanted.photo)
    assert np.array_equal(found.other_photo, wanted.other_photo)


@pytest.mark.parametrize("class_word", ["horse", "teapot", "black cat", ""])
def test_what_is_not_drawn_is_refused(tmp_path, class_word):
    with pytest.raises(ConfigError, match=f"The package draws no subjects of the class word '{class_word}'") as refused:
        load_subjects(open_options(tmp_path, class_word), None)
    assert "person, cat, dog, bear" in refused.value.remedy


def test_words_for_people_have_thresholds_and_photos_in_scenes(tmp_path):
    for class_word, tau in (("woman", 0.23), ("Person", 0.23), ("dog", None)):
        assert find_thresholds(open_options(tmp_path, class_word, model="none"), None) == Thresholds(tau, None)
    scenes = SUITE.model_dump() | {"photos": "scene"}
    assert Suite.model_validate(scenes | {"class_word": "woman"}).photos == "scene"
    for photos in ("scene", "both"):
        with pytest.raises(ValueError, match="people only, not of a dog"):
            Suite.model_validate(scenes | {"class_word": "dog", "photos": photos})


def test_half_of_the_people_are_learned_from_portraits_and_half_from_scenes(tmp_path):
    """Who has an odd place in the middle has a portrait."""
    found = load_subjects(open_options(tmp_path, "person", subjects=3, photos="both"), None)
    plain, scene = (
        load_subjects(open_options(tmp_path, "person", subjects=3, photos=one), None) for one in ("plain", "scene")
    )
    for subject, wanted, not_wanted in zip(found, (*plain[:2], scene[2]), (*scene[:2], plain[2]), strict=True):
        assert subject.key == wanted.key
        assert np.array_equal(subject.photo, wanted.photo)
        assert np.array_equal(subject.other_photo, wanted.other_photo)
        assert not np.array_equal(subject.photo, not_wanted.photo)


def test_what_is_scored_in_part_or_not_at_all_is_said(tmp_path, capsys):
    """The embedded model's CLIP reads 32 tokens: start, end and 30 between them."""
    fits, long = ("a photo of {} " + " ".join(["snow"] * count) for count in (26, 27))
    prompts = [SUITE.prompts[0].model_copy(update={"text": text.strip()}) for text in (fits, f"({long}:1.2)", "{}")]
    (tmp_path / "ada.tif").touch()
    clip = Evaluators(EvaluatorFiles(clip=EMBEDDED_EVALUATORS / "clip"))
    suite = SUITE.model_copy(update={"prompts": tuple(prompts)})
    assert note_scored(clip, suite, tmp_path) == [f"({long}:1.2)"]
    said = capsys.readouterr().err
    assert "longer than the 30 tokens that CLIP reads, or with a character that it does not know" in said
    assert f", so scored by the beginning: '({long}:1.2)'" in said
    assert "of formats that are not read: ada.tif" in said
    assert note_scored(Evaluators(EvaluatorFiles()), suite, None) == []
    assert capsys.readouterr().err == ""


def test_a_prompt_is_scored_as_far_as_a_sign_that_clip_has_no_token_for():
    """The embedded CLIP's token for it is the one that ends a text."""
    clip = Evaluators(EvaluatorFiles(clip=EMBEDDED_EVALUATORS / "clip"))
    texts = ["a photo of {} \u96ea at the beach", "a photo of {} \u96ea in the snow"]
    assert np.array_equal(*(clip.encode_sentence(text) for text in texts))
    assert clip.find_cut_prompts([*texts, "a photo of {} at the beach", "{}, moonlit"], "person") == texts


def test_notes_name_a_few_and_say_how_many_there_are(tmp_path, capsys):
    long = [f"a photo of {{}} {number} " + " ".join(["snow"] * 30) for number in range(5)]
    prompts = tuple(SUITE.prompts[0].model_copy(update={"text": text}) for text in long)
    (tmp_path / "ada" / "inside").mkdir(parents=True)
    for name in (*(f"{number:02}.tif" for number in range(12)), "inside/1.tif"):
        (tmp_path / "ada" / name).touch()
    clip = Evaluators(EvaluatorFiles(clip=EMBEDDED_EVALUATORS / "clip"))
    suite = SUITE.model_copy(update={"prompts": prompts})
    assert note_scored(clip, suite, None, [tmp_path / "ada", tmp_path / "ada.png"]) == long
    of_prompts, of_photos = capsys.readouterr().err.splitlines()
    assert of_prompts.endswith(f"{', '.join(map(repr, long[:3]))} ... and 2 more")
    assert of_photos.endswith("08.tif, 09.tif ... and 2 more; save them as PNG")
