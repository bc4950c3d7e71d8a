"""Which comparisons are asked: whole places, every subject in turn, random orders, checks with one right answer."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings, strategies as st

from sefi.benchmark.records import RunInfo, Sample
from sefi.core.errors import ConfigError
from sefi.user_study.study import PHOTO, StudyOptions, design_study

SUBJECTS, SEEDS = ("ada", "bob", "eve"), (100, 101)
PROMPTS = (("scene", "beach"), ("scene", "snow"), ("action", "cup"), ("attribute", "smiling"), ("style", "painting"))


def variant(label, control=None):
    return {"label": label, "about": "", "control": control}


def run(*variants, **suite):
    place = "{} and {}" if suite.get("together") == 2 else "{}"
    prompts = [{"text": f"{place} {label}", "kind": kind, "wanted": [[kind, label]]} for kind, label in PROMPTS]
    labels = variants or ("ours", "rival", "third")
    references = [variant("the word", "class word"), variant("the photo", "photo")]
    whole = {
        "name": "s",
        "prompts": prompts,
        "variants": [variant(label) for label in labels] + references,
        "seeds": SEEDS,
    }
    return RunInfo.model_validate({"suite": whole | suite, "subjects": [], "model": {}})


def sample(subject, label, prompt, seed, **changes):
    values = {
        "subject": subject,
        "variant": label,
        "kind": PROMPTS[prompt][0],
        "prompt": prompt,
        "text": f"person {PROMPTS[prompt][1]}",
        "seed": seed,
        "image": f"pictures/{subject}--{label}--{prompt}--{seed}.png",
        "sha256": f"{subject}{label}{prompt}{seed}",
    }
    return Sample(**values | changes)


def samples(labels=("ours", "rival", "third"), subjects=SUBJECTS):
    return [sample(*one) for one in product(subjects, labels, range(len(PROMPTS)), SEEDS)]


def parts(file):
    """Subject, variant, prompt, seed of an image's file name."""
    return tuple(file.removeprefix("pictures/").removesuffix(".png").split("--"))


def plain(study, question=None):
    return [c for c in study.comparisons if c.right is None and question in {None, c.question}]


def checks(study, question):
    return [c for c in study.comparisons if c.right is not None and c.question == question]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 7))
def test_a_comparison_shows_one_image_of_each_variant_of_one_case(seed, count, number):
    study = design_study(run(), samples(), StudyOptions(count=count, checks=number, seed=seed))
    assert set(study.variants.values()) == {"ours", "rival", "third"}
    for comparison in plain(study):
        found = [(one.code, *parts(one.file)) for one in comparison.shown]
        assert {study.variants[code] for code, *_ in found} == set(study.variants.values())
        assert all(study.variants[code] == label for code, _, label, *_ in found)
        assert len({(subject, prompt, seed) for _, subject, _, prompt, seed in found}) == 1
    places = len(SUBJECTS) * len(PROMPTS) * len(SEEDS)
    assert all(len(plain(study, q)) == min(count, places) for q in ("prompt", "identity", "quality"))
    assert [len(checks(study, q)) for q in ("prompt", "identity", "quality")] == [number, number, 0]


def test_no_comparison_comes_twice_and_subjects_take_turns():
    study = design_study(run(), samples(), StudyOptions(count=7))
    for question in study.questions:
        places = [parts(c.shown[0].file)[::2] + parts(c.shown[0].file)[3:] for c in plain(study, question)]
        assert len(set(places)) == 7
        assert sorted(Counter(place[0] for place in places).values()) == [2, 2, 3]


def test_every_variant_comes_at_every_position():
    study = design_study(run(), samples(), StudyOptions(count=30, checks=0))
    seen = Counter((n, one.code) for c in study.comparisons for n, one in enumerate(c.shown))
    assert set(seen) == set(product(range(3), "ABC"))
    assert all(15 < times < 45 for times in seen.values())  # 30 of 90 expected


def test_the_same_seed_asks_the_same_and_another_asks_otherwise():
    first, again, other = (design_study(run(), samples(), StudyOptions(count=9, seed=seed)) for seed in (4, 4, 5))
    assert first == again
    assert first.name != other.name
    assert first.comparisons != other.comparisons


def test_a_study_of_other_images_has_another_name():
    changed = samples()
    changed[3] = changed[3].model_copy(update={"sha256": "other"})
    names = {design_study(run(), some, StudyOptions()).name for some in (samples(), changed)}
    assert len(names) == 2


def test_letters_do_not_follow_the_order_of_the_variants():
    letters = {tuple(design_study(run(), samples(), StudyOptions(seed=seed)).variants.values()) for seed in range(40)}
    assert len(letters) == 6


def test_the_photo_and_the_prompt_are_shown_only_where_they_are_asked_for():
    for c in design_study(run(), samples(), StudyOptions(count=5)).comparisons:
        assert (c.prompt is not None) == (c.question == "prompt")
        assert bool(c.photos) == (c.question == "identity")
        if c.question == "prompt" and c.right is None:
            assert c.prompt == f"person {PROMPTS[int(parts(c.shown[0].file)[2])][1]}"
        if c.question == "identity":
            images = [one.file for one in c.shown if one.code != PHOTO]
            assert c.photos == (f"photos/{parts(images[0])[0]}.png",)


def test_names_are_unique_and_neither_they_nor_the_image_count_reveal_checks():
    study = design_study(run(), samples(), StudyOptions(count=5))
    names = [c.name for c in study.comparisons]
    assert names == [
        f"{q}-{n}" for q, many in (("prompt", 11), ("identity", 11), ("quality", 5)) for n in range(1, many + 1)
    ]
    assert {len(c.shown) for c in study.comparisons} == {3}


def test_no_question_begins_with_a_check():
    for seed in range(20):
        study = design_study(run(), samples(), StudyOptions(count=2, checks=3, seed=seed))
        assert [c.right for c in study.comparisons if c.name.endswith("-1")] == [None] * 3


def test_in_an_identity_check_the_photo_itself_is_right():
    for check in checks(design_study(run(), samples(), StudyOptions(checks=4)), "identity"):
        assert check.right == PHOTO
        assert [one.file for one in check.shown if one.code == PHOTO] == list(check.photos)


def test_in_a_prompt_check_one_image_follows_the_prompt_and_the_others_another():
    study = design_study(run(), samples(), StudyOptions(checks=6))
    for check in checks(study, "prompt"):
        prompts = {one.code: int(parts(one.file)[2]) for one in check.shown}
        asked = next(n for n, (_, label) in enumerate(PROMPTS) if check.prompt == f"person {label}")
        assert prompts.pop(check.right) == asked
        assert asked not in prompts.values()
        assert len(set(prompts.values())) == 1


def obeying(one, *, sure):
    return one.model_copy(update={"shown": (sure,), "prompt_score": 0.1 if sure else 0.3})


def test_a_prompt_check_relies_on_the_image_whose_readings_match_the_prompt():
    some = [obeying(one, sure=one.key[:3] == ("bob", "rival", 2)) for one in samples()]
    study = design_study(run(), some, StudyOptions(count=1, checks=1))
    (check,) = checks(study, "prompt")
    right = next(one.file for one in check.shown if one.code == check.right)
    assert parts(right)[:3] == ("bob", "rival", "2")


def test_a_prompt_that_wants_the_same_thing_too_is_no_wrong_answer():
    prompts = [
        {"text": "{}", "kind": kind, "wanted": [[kind, label], ["scene", "beach"]]} for kind, label in PROMPTS[1:]
    ]
    first = {"text": "{}", "kind": "scene", "wanted": [["scene", "beach"]]}
    info = run(prompts=[first, *prompts])
    assert not checks(design_study(info, samples(), StudyOptions()), "prompt")


def give_texts(some, texts):
    """Samples as they are, with the texts of these prompts."""
    return [one.model_copy(update={"text": texts[one.prompt].replace("{}", "person")}) for one in some]


@pytest.mark.parametrize(
    ("wanted", "possible"),
    [
        # Every image fits "a photo of {}": it is never what a check asks for.
        ([[], ["scene", "beach"], ["scene", "beach"], ["scene", "snow"], ["style", "oil"]], {1, 2, 3, 4}),
        ([[]] * 5, {1, 2, 3, 4}),  # nobody knows what to look for: prompts of one's own
        # Nobody knows what to look for in the second sentence on the beach, which is never what a check asks for.
        ([[], ["scene", "beach"], [], ["scene", "snow"], ["style", "oil"]], {1, 3, 4}),
    ],
)
def test_a_check_asks_for_what_only_its_own_images_show(wanted, possible):
    beaches = ["a photo of {} at the beach", "a picture of {} on the Sunny Beach by the sea"]
    texts = ["a photo of {}", *beaches, "{} in snow", "{} in oil"]
    prompts = [{"text": t, "kind": "k", "wanted": [w] if w else []} for t, w in zip(texts, wanted, strict=True)]
    asked = set()
    for seed in range(20):
        options = StudyOptions(count=1, checks=6, seed=seed)
        for check in checks(design_study(run(prompts=prompts), give_texts(samples(), texts), options), "prompt"):
            shown = {one.code: int(parts(one.file)[2]) for one in check.shown}
            right = shown.pop(check.right)
            asked.add(right)
            assert {right, *shown.values()} != {1, 2}  # both sentences mean the beach
    assert asked == possible


def test_prompts_that_differ_in_no_word_have_no_check():
    texts = ["a photo of {}", "photo of {}", "the picture of {}", "a portrait of {}", "an image of {}"]
    prompts = [{"text": text, "kind": "k"} for text in texts]
    assert not checks(design_study(run(prompts=prompts), give_texts(samples(), texts), StudyOptions()), "prompt")


def test_two_subjects_in_an_image_have_two_photos_and_no_identity_check():
    study = design_study(run(together=2, kind="cat"), samples(subjects=("ada+bob",)), StudyOptions(count=2))
    assert study.questions["identity"] == "Which image shows the cat of each photo?"
    assert plain(study, "identity")[0].photos == ("photos/ada.png", "photos/bob.png")
    assert not checks(study, "identity")
    assert checks(study, "prompt")


def test_variants_are_chosen_by_label_and_the_class_word_may_be_one():
    study = design_study(
        run(), samples(("ours", "rival", "the word")), StudyOptions(variants=("the word", "ours", "ours"))
    )
    assert sorted(study.variants.values()) == ["ours", "the word"]


def test_cases_without_an_image_of_every_variant_are_left_out():
    some = [c for c in samples() if (c.variant, c.seed) != ("third", 100)]
    study = design_study(run(), some, StudyOptions(count=50, checks=0))
    assert len(plain(study, "quality")) == 15
    assert all(parts(one.file)[3] == "101" for c in study.comparisons for one in c.shown)


@pytest.mark.parametrize(
    ("info", "some", "variants", "message"),
    [
        (run(), [], (), "no images"),
        (run(), samples(), ("ours", "theirs"), "no variant 'theirs'"),
        (run(), samples(), ("ours", "the photo"), "no variant 'the photo' to compare"),
        (run(), samples(), ("ours",), "and here is 1"),
        (run("ours"), samples(("ours",)), (), "and here is 1"),
        (run(*"abcdefg"), samples(tuple("abcdefg")), (), "and here is 7"),
        (run(), samples(("ours", "rival")), (), "has an image of each of ours, rival, third"),
    ],
)
def test_what_cannot_be_compared_is_said(info, some, variants, message):
    with pytest.raises(ConfigError, match=message) as caught:
        design_study(info, some, StudyOptions(variants=variants))
    assert caught.value.remedy
