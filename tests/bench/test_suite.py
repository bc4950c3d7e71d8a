"""Suites: every bundled one is whole, and a wrong one is refused by what is wrong in it."""

import pytest

from sefi.bench.suite import Asked, Suite, Way, bundled, open_suite, prompt_list
from sefi.core.errors import ConfigError

WHOLE = """
about = "Two ways."
prompt_lists = ["short"]
settings = ["generate.steps=7", "learn.steps=11"]

[[prompts]]
text = "a photo of {} in space"

[[ways]]
label = "ours"
settings = ["learn.steps=13"]

[[ways]]
label = "keys only"
learned_by = "ours"
class_slots = ["V"]
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_suite_is_whole(name):
    suite = open_suite(name)
    assert suite.name == name
    assert suite.about == bundled()[name]
    for way in suite.ways:
        assert suite.config(way).learn.class_word == suite.kind


def test_a_suite_of_ones_own_joins_lists_and_prompts(tmp_path):
    suite = open_suite(written(tmp_path, WHOLE))
    assert suite.name == "mine"
    assert [p.text for p in suite.prompts[:-1]] == [p["text"] for p in prompt_list("short")]
    assert suite.prompts[-1] == Asked(text="a photo of {} in space", kind="own")


def test_a_ways_own_settings_win_over_the_suites(tmp_path):
    suite = open_suite(written(tmp_path, WHOLE))
    config = suite.config(suite.ways[0])
    assert (config.learn.steps, config.generate.steps) == (13, 7)
    assert suite.learner(suite.ways[1]) is suite.ways[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('learned_by = "ours"', 'learned_by = "theirs"', "which no way learns"),
        ('label = "keys only"', 'label = "ours"', "two ways are called"),
        ("of {} in space", "of nobody", r"needs \{\} 1 times"),
        ("of {} in space", "of {} in {space}", "braces"),
        ('["V"]', '["Q"]', "no slot 'Q'"),
        ('["V"]', '["V"]\nsettings = ["learn.steps=3"]', "learns nothing"),
        ('["V"]', '["V"]\n\n[[ways]]\nlabel = "Keys: only"', "two ways are called"),
        ('settings = ["learn.steps=13"]', 'settings = ["learn.stops=13"]', "learn.stops"),
        ('about = "Two ways."', 'about = "Two ways."\ncolour = 3', "colour"),
        ('prompt_lists = ["short"]', 'prompt_lists = ["tall"]', "no list of prompts 'tall'"),
        ('about = "Two ways."', "about = ", "is no TOML file"),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path, old, new, message):
    assert old in WHOLE
    with pytest.raises(ConfigError, match=message):
        open_suite(written(tmp_path, WHOLE.replace(old, new)))


@pytest.mark.parametrize(
    ("preset", "allowed"), [("dreambooth", False), ("dreambooth-lora", False), ("celeb-basis", True)]
)
def test_methods_with_one_subject_in_a_prompt_are_refused_for_two(preset, allowed):
    prompts = (Asked(text="{} and {}", kind="scene"),)
    suite = Suite(name="mine", about="Two.", prompts=prompts, ways=(Way(label="it", preset=preset),), together=2)
    if allowed:
        suite.check()
    else:
        with pytest.raises(ConfigError, match="one subject in a prompt, and 2 share"):
            suite.check()


def test_what_only_tokens_have_is_refused_of_other_methods(tmp_path):
    whole = """
    about = "all weights"
    prompt_lists = ["short"]
    [[ways]]
    label = "all weights"
    preset = "dreambooth"
    """
    path = tmp_path / "mine.toml"
    path.write_text(whole)
    open_suite(path)
    for more in ('class_slots = ["V"]', "strength = 0.5"):
        path.write_text(whole + more)
        with pytest.raises(ConfigError, match="dreambooth has no tokens"):
            open_suite(path)


def test_an_unknown_suite_or_preset_is_named():
    with pytest.raises(ConfigError, match="no suite 'nothing'"):
        open_suite("nothing")
    suite = Suite(name="s", about="", prompts=(Asked(text="{}", kind="own"),), ways=(Way(label="a", preset="best"),))
    with pytest.raises(ConfigError, match="no preset 'best'"):
        suite.config(suite.ways[0])


@pytest.mark.parametrize(("letters", "allowed"), [(80, True), (81, False), (200, False)])
def test_a_label_fits_into_the_names_of_files(letters, allowed):
    asked = {"name": "s", "about": "", "prompts": [{"text": "{}", "kind": "plain"}], "ways": [{"label": "x" * letters}]}
    if allowed:
        Suite.model_validate(asked)
    else:
        with pytest.raises(ValueError, match="too long for the names of files"):
            Suite.model_validate(asked)
