"""Suites: every bundled one is whole, and a wrong one is refused by what is wrong in it."""

import json
from pathlib import Path

import pytest
from tests.closed_folders import obey_permissions

from sefi.benchmark.records import SuiteInfo
from sefi.benchmark.suite import (
    Suite,
    SuitePrompt,
    Variant,
    group_image_files,
    list_bundled,
    list_unread_files,
    open_suite,
    read_prompt_list,
)
from sefi.core.errors import ConfigError, PhotoError

WHOLE = """
about = "Two variants."
prompt_lists = ["short"]
settings = ["generate.steps=7", "learn.steps=11"]

[[prompts]]
text = "a photo of {} in space"

[[variants]]
label = "ours"
settings = ["learn.steps=13"]

[[variants]]
label = "keys only"
learned_by = "ours"
class_slots = ["V"]
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", list_bundled())
def test_a_bundled_suite_is_whole(name):
    suite = open_suite(name)
    assert suite.name == name
    assert suite.about == list_bundled()[name]
    for variant in suite.variants:
        assert suite.make_config(variant).learn.class_word == suite.class_word


def test_a_suite_of_ones_own_joins_lists_and_prompts(tmp_path):
    suite = open_suite(written(tmp_path, WHOLE))
    assert suite.name == "mine"
    assert [p.text for p in suite.prompts[:-1]] == [p["text"] for p in read_prompt_list("short")]
    assert suite.prompts[-1] == SuitePrompt(text="a photo of {} in space", kind="own")


def test_a_variants_settings_override_the_suites(tmp_path):
    suite = open_suite(written(tmp_path, WHOLE))
    config = suite.make_config(suite.variants[0])
    assert (config.learn.steps, config.generate.steps) == (13, 7)
    assert suite.find_learning_variant(suite.variants[1]) is suite.variants[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('learned_by = "ours"', 'learned_by = "theirs"', "which no variant learns"),
        ('learned_by = "ours"', 'learned_by = "ours"\nlearning_seed = 1', "learning_seed would be of no use"),
        ('label = "keys only"', 'label = "ours"', "two variants are called"),
        ("of {} in space", "of nobody", r"needs \{\} 1 times"),
        ("of {} in space", "of {} in {space}", "braces"),
        ('["V"]', '["Q"]', "no slot 'Q'"),
        ('["V"]', '["V"]\nsettings = ["learn.steps=3"]', "learns nothing"),
        ('["V"]', '["V"]\n\n[[variants]]\nlabel = "Keys: only"', "two variants are called"),
        ('settings = ["learn.steps=13"]', 'settings = ["learn.stops=13"]', "learn.stops"),
        ('about = "Two variants."', 'about = "Two variants."\ncolour = 3', "colour"),
        ('prompt_lists = ["short"]', 'prompt_lists = ["tall"]', "no list of prompts 'tall'"),
        ('prompt_lists = ["short"]', 'prompt_lists = "short"', "prompt_lists is no list"),
        ('prompt_lists = ["short"]', "prompt_lists = {short = 1}", "prompt_lists is no list"),
        ("[[prompts]]", "[prompts]", "prompts is no list"),
        ('text = "a photo of {} in space"', "text = 3", r"is no suite: prompts\.0\.text: Input should be"),
        ('label = "keys only"', 'label = "猫"', "the label '猫' has no letter a to z or digit"),
        ('about = "Two variants."', "about = ", "is no TOML file"),
        ('prompt_lists = ["short"]', 'prompt_lists = "short"', r"prompt_lists is no list.* prompt_lists = \[\.\.\.\]"),
        ('prompt_lists = ["short"]', "prompt_lists = 3", "prompt_lists is no list"),
        ('["V"]', '"V"', "class_slots: Input should be a valid list"),
        ('prompt_lists = ["short"]', "seeds = []", "List should have at least 1 item"),
        ('text = "a photo of {} in space"', "text = 3", "text: Input should be a valid string"),
        ('["V"]', '["V"]\nseeds = [3]', "'seeds' is a key of the suite: write it above the first"),
        ('["V"]', '["V"]\nmethod = "paper"', "Did you mean 'preset'"),
        ('["V"]', '["V"]\nname = "paper"', "Did you mean 'label'"),
        ('["V"]', '["V"]\ncontrol = "class word"', "reference row .class word., so learned_by is of no use"),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path, old, new, message):
    assert old in WHOLE
    with pytest.raises(ConfigError, match=message):
        open_suite(written(tmp_path, WHOLE.replace(old, new)))


def test_one_table_in_single_brackets_is_no_list(tmp_path):
    with pytest.raises(ConfigError, match=r"variants is no list.* Write \[\[variants\]\] above each"):
        open_suite(written(tmp_path, 'about = "One."\nprompt_lists = ["short"]\n[variants]\nlabel = "ours"\n'))


def test_own_prompts_are_tables(tmp_path):
    text = 'about = "One."\nprompts = ["a photo of {}"]\n[[variants]]\nlabel = "ours"\n'
    with pytest.raises(ConfigError, match=r"prompts\.0: Input should be a table of keys"):
        open_suite(written(tmp_path, text))


@pytest.mark.parametrize(
    ("control", "line", "idle"),
    [
        ("class word", "", None),
        ("class word", 'preset = "paper"', None),
        ("class word", 'settings = ["generate.steps=3"]', None),
        ("class word", 'settings = ["learn.steps=3"]', "learn.steps"),
        ("class word", 'class_slots = ["V"]', "class_slots"),
        ("class word", "strength = 0.5", "strength"),
        ("same", 'preset = "paper"', "preset"),
        ("photo", 'settings = ["generate.steps=3"]', "settings"),
    ],
)
def test_what_changes_nothing_of_a_reference_row_is_refused(control, line, idle, tmp_path):
    file = written(tmp_path, f'{WHOLE}\n[[variants]]\nlabel = "reference"\ncontrol = "{control}"\n{line}\n')
    if idle is None:
        assert open_suite(file).variants[-1].control == control
    else:
        with pytest.raises(ConfigError, match=rf"'reference' is a reference row \({control}\), so {idle} is of no use"):
            open_suite(file)


@pytest.mark.parametrize(
    ("learning", "using", "problem"),
    [
        ('preset = "paper"', "", r"guidance_scale=4\.0, not 7\.5"),
        ('preset = "paper"', 'preset = "paper"', None),
        ('preset = "scratch"', "", None),
        ('preset = "paper"', 'settings = ["generate.guidance_scale=4"]', None),
        ('settings = ["generate.scheduler=euler"]', "", "scheduler=ddim, not euler"),
        ('settings = ["generate.scheduler=euler"]', 'settings = ["generate.scheduler=euler"]', None),
    ],
)
def test_one_identity_is_generated_alike_unless_a_variant_says_otherwise(learning, using, problem, tmp_path):
    file = written(
        tmp_path, WHOLE.replace('settings = ["learn.steps=13"]', learning).replace('["V"]', f'["V"]\n{using}')
    )
    if problem is None:
        open_suite(file)
    else:
        with pytest.raises(ConfigError, match=rf"'keys only' uses the identity of 'ours', .*generate\.{problem}"):
            open_suite(file)


def test_the_plain_word_of_the_papers_table_is_generated_as_the_papers_method_is():
    suite = open_suite("table1-sd")
    plain, ours = (next(v for v in suite.variants if v.label == label) for label in ("plain word", "ours"))
    assert suite.make_config(plain).generate == suite.make_config(ours).generate


@pytest.mark.parametrize(
    ("preset", "allowed"), [("dreambooth", False), ("dreambooth-lora", False), ("celeb-basis", True)]
)
def test_methods_with_one_subject_in_a_prompt_are_refused_for_two(preset, allowed):
    prompts = (SuitePrompt(text="{} and {}", kind="scene"),)
    suite = Suite(
        name="mine", about="Two.", prompts=prompts, variants=(Variant(label="it", preset=preset),), together=2
    )
    if allowed:
        suite.check()
    else:
        with pytest.raises(ConfigError, match="one subject in a prompt; 2 share"):
            suite.check()


def test_what_only_tokens_have_is_refused_of_other_methods(tmp_path):
    whole = """
    about = "all weights"
    prompt_lists = ["short"]
    [[variants]]
    label = "all weights"
    preset = "dreambooth"
    """
    path = tmp_path / "mine.toml"
    path.write_text(whole)
    open_suite(path)
    for more in ('class_slots = ["V"]', "strength = 0.5"):
        path.write_text(whole + more)
        with pytest.raises(ConfigError, match="dreambooth learns no tokens"):
            open_suite(path)


TWO_METHODS = """
about = "Two methods."
prompt_lists = ["short"]
settings = ["tune.prior_images=3"]
[[variants]]
label = "tokens"
[[variants]]
label = "weights"
preset = "dreambooth"
"""


def test_a_setting_is_for_the_variants_whose_method_has_it(tmp_path):
    suite = open_suite(written(tmp_path, TWO_METHODS)).add_settings(["tune.identifier=xyz", "learn.steps=3"])
    tokens, weights = map(suite.make_config, suite.variants)
    assert (tokens.learn.steps, weights.learn.steps) == (3, 3)
    assert "tune" not in type(tokens).model_fields
    assert (weights.tune.prior_images, weights.tune.identifier) == (3, "xyz")


def test_a_setting_that_no_variant_has_is_refused(tmp_path):
    suite = open_suite(written(tmp_path, TWO_METHODS))
    refusal = "tune.rank is a setting of dreambooth-lora; sefi and dreambooth have none of this name"
    with pytest.raises(ConfigError, match=refusal):
        suite.add_settings(["tune.rank=3"])
    with pytest.raises(ConfigError, match=r"'tune\.rank' is no assignment"):
        suite.add_settings(["tune.rank"])
    with pytest.raises(ConfigError, match=r"tune\.prior_images = 'many'"):
        suite.add_settings(["tune.prior_images=many"])
    own = TWO_METHODS.replace('label = "tokens"', 'label = "tokens"\nsettings = ["tune.prior_images=3"]')
    with pytest.raises(ConfigError, match="dreambooth and dreambooth-lora and custom-diffusion; sefi has none"):
        open_suite(written(tmp_path, own))


def test_a_setting_of_a_suite_without_a_method_has_no_effect(tmp_path):
    images = TWO_METHODS.split("[[variants]]")[0] + '[[variants]]\nlabel = "theirs"\nimages = "folder"\n'
    without = open_suite(written(tmp_path, images.replace('settings = ["tune.prior_images=3"]\n', "")))
    with pytest.raises(ConfigError, match=r"No variant's method reads learn\.steps: it would have no effect"):
        without.add_settings(["learn.steps=3"])
    with pytest.raises(ConfigError, match=r"no setting 'learn\.stops'"):
        without.add_settings(["learn.stops=3"])


@pytest.mark.parametrize(
    ("line", "place", "meant"),
    [
        ('prompt_list = ["short"]\n', "'prompt_list'", "prompt_lists"),
        ("seed = [7]\n", "'seed'", "seeds"),
        ('[[variants]]\nlabel = "other"\nsetings = []\n', "'variants.2.setings'", "settings"),
        ('[[prompts]]\ntext = "{}"\nkind = "own"\nwant = []\n', "'prompts.0.want'", "wanted"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(line, place, meant, tmp_path):
    text = TWO_METHODS + line if line.startswith("[") else line + TWO_METHODS
    with pytest.raises(ConfigError) as refused:
        open_suite(written(tmp_path, text))
    assert f"there is no key {place}." in refused.value.problem
    assert refused.value.remedy.startswith(f"Did you mean {meant!r}? Use one of ")


def test_an_unknown_suite_or_preset_is_named():
    with pytest.raises(ConfigError, match="no suite 'nothing'"):
        open_suite("nothing")
    suite = Suite(
        name="s", about="", prompts=(SuitePrompt(text="{}", kind="own"),), variants=(Variant(label="a", preset="best"),)
    )
    with pytest.raises(ConfigError, match="no preset 'best'"):
        suite.make_config(suite.variants[0])


@pytest.mark.parametrize(("letters", "allowed"), [(80, True), (81, False), (200, False)])
def test_a_label_fits_into_the_names_of_files(letters, allowed):
    asked = {
        "name": "s",
        "about": "",
        "prompts": [{"text": "{}", "kind": "plain"}],
        "variants": [{"label": "x" * letters}],
    }
    if allowed:
        Suite.model_validate(asked)
    else:
        with pytest.raises(ValueError, match="too long for the names of files"):
            Suite.model_validate(asked)


def test_a_suite_with_the_old_name_of_its_variants_still_opens(tmp_path):
    old = WHOLE.replace("[[variants]]", "[[ways]]")
    assert old != WHOLE
    assert open_suite(written(tmp_path, old)) == open_suite(written(tmp_path, WHOLE))
    with pytest.raises(ConfigError, match="no key 'ways'"):
        open_suite(written(tmp_path, WHOLE + '\n[[ways]]\nlabel = "third"\n'))


def test_a_suites_record_keeps_its_keys():
    known = json.loads(open_suite("quick").model_dump_json(by_alias=True))
    assert known.keys() == SuiteInfo.parse(json.dumps(known)).model_dump(by_alias=True).keys()
    assert "variants" in known


def test_a_suite_may_call_the_class_word_by_its_old_name(tmp_path):
    now, before = (open_suite(written(tmp_path, f'{key} = "cat"\n{WHOLE}')) for key in ("class_word", "kind"))
    assert now == before
    assert before.class_word == "cat"


def test_a_folder_of_photos_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    inner, listed = tmp_path / "ada", Path.iterdir
    inner.mkdir()

    def refuse_or_list(path):
        if path == inner:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse_or_list)
    with pytest.raises(PhotoError, match="ada' cannot be read: Permission denied"):
        group_image_files(tmp_path)


def test_a_hidden_folder_is_nobody(tmp_path):
    for file in (tmp_path / "ada.png", tmp_path / ".ipynb_checkpoints" / "ada-checkpoint.png", tmp_path / ".x.png"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert group_image_files(tmp_path) == {"ada": [tmp_path / "ada.png"]}


def test_photos_of_formats_that_are_not_read_are_listed(tmp_path):
    (tmp_path / "bob").mkdir()
    for name in ("ada.png", "ada.tiff", ".hidden.tif", "notes.txt", "bob/1.TIF", "bob/2.heic"):
        (tmp_path / name).touch()
    assert list_unread_files(tmp_path) == ["ada.tiff", "bob/1.TIF"]
    assert list_unread_files(tmp_path, inside=False) == ["ada.tiff"]
    assert group_image_files(tmp_path) == {"ada": [tmp_path / "ada.png"], "bob": [tmp_path / "bob" / "2.heic"]}


def test_what_cannot_be_listed_is_left_out_of_a_note(tmp_path):
    (tmp_path / "closed").mkdir()
    for name in ("ada.tiff", "closed/1.tif"):
        (tmp_path / name).touch()
    (tmp_path / "closed").chmod(0)
    with obey_permissions():
        assert list_unread_files(tmp_path) == ["ada.tiff"]
        assert list_unread_files(tmp_path / "closed") == []
    (tmp_path / "closed").chmod(0o700)
    assert list_unread_files(tmp_path / "missing") == list_unread_files(tmp_path / "ada.tiff") == []


def test_a_folder_of_other_formats_alone_says_so(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.tif").touch()
    with pytest.raises(PhotoError, match=r"has no images; of formats .* not read: 00.tif, .*09.tif ... and 2 more\."):
        group_image_files(tmp_path)
