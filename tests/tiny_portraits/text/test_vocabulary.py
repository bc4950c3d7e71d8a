"""The words that the embedded model is said to know are those it was trained with, and no other passes in silence."""

import dataclasses
import json
import logging

import pytest

import sefi
from sefi.cli.app import app
from sefi.core.config import override
from sefi.core.errors import SefiError
from sefi.core.prompts import WORDS, read_known_words, read_word_groups
from sefi.diffusion.text import describe_unknown_words, find_unknown_words
from sefi.methods import PRESETS
from tiny_portraits.text.captions import FIRST, LAST
from tiny_portraits.text.tokenizing import build_tokenizer, list_caption_words

pytestmark = pytest.mark.world


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone()


def test_the_file_in_the_package_holds_the_words_of_the_captions(package_files, tmp_path):
    package_files.write_words(tmp_path / "words.json")
    assert WORDS.read_text(encoding="utf-8") == (tmp_path / "words.json").read_text(encoding="utf-8")
    assert set(list_caption_words()) - read_known_words() == {FIRST, LAST}  # these stand for names while training


def test_the_same_words_give_the_same_ids_and_merges(tmp_path):
    tokenizers = []
    for number in range(3):
        build_tokenizer(tmp_path / str(number), list_caption_words())
        tokenizers.append((tmp_path / str(number) / "tokenizer.json").read_bytes())
    assert len(set(tokenizers)) == 1


def test_every_known_word_is_one_token(embedded):
    tokenizer = embedded.tokenizer
    assert not [w for w in read_known_words() if len(tokenizer(w, add_special_tokens=False).input_ids) != 1]


def test_every_phrase_of_every_group_is_known(embedded, package_files):
    phrases = [phrase for group in package_files.group_words().values() for phrase in group]
    assert find_unknown_words(embedded, phrases) == []


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a photo of <ada> as an astronaut", ["astronaut"]),
        ("Cyberpunk, van Gogh", ["cyberpunk", "van", "gogh"]),
        ("A PHOTO of <astronaut> at the beach, smiling", []),
        ("a close-up photo of fewus giadthmont", []),
        ("beach!", ["!"]),
        ("na u ro", ["na", "u", "ro"]),  # pieces of words, which the tokenizer has tokens for
    ],
)
def test_unknown_words_are_found(embedded, prompt, unknown):
    assert find_unknown_words(embedded, [prompt]) == unknown


def test_prompts_that_differ_in_nothing_else_are_named(embedded):
    prompts = ["<ada> as an astronaut", "<ada> as an Cyberpunk", "<bob> as an astronaut"]
    remarks = describe_unknown_words(embedded, prompts)
    assert "'astronaut', 'cyberpunk'" in remarks[0]
    assert "sefi world words" in remarks[0]
    assert len(remarks) == 2
    assert "<ada> as an astronaut; <ada> as an Cyberpunk" in remarks[1]
    assert "bob" not in remarks[1]


def test_a_model_of_the_whole_language_knows_every_word(embedded):
    from sefi.backbone.tokenizer import create_clip_tokenizer

    other = dataclasses.replace(embedded, tokenizer=create_clip_tokenizer(), source="folder")
    assert find_unknown_words(other, ["an astronaut, cyberpunk! zoë 日本"]) == []


@pytest.mark.slow
def test_unknown_words_are_named_at_the_command_line_and_in_python(embedded, tmp_path, caplog):
    from typer.testing import CliRunner

    out = ("--steps", "2", "--out", str(tmp_path), "--json")
    found = CliRunner().invoke(app, ["generate", "a photo of person, cyberpunk", "--negative-prompt", "ugly", *out])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["unknown_words"] == ["cyberpunk", "ugly"]
    assert "note: this model does not know 'cyberpunk', 'ugly'" in found.stderr
    with caplog.at_level(logging.WARNING, "sefi.remarks"):
        config = override(PRESETS["default"], ["generate.steps=1"])
        sefi.generate("a photo of person, cyberpunk", backbone=embedded, config=config)
    assert ["does not know 'cyberpunk'" in message for message in caplog.messages] == [True]


def test_a_class_word_that_is_only_a_piece_of_words_is_refused(embedded, photo_file):
    config = override(PRESETS["default"], ["learn.class_word=na"])
    with pytest.raises(SefiError, match="does not know the class word 'na'"):
        sefi.learn(photo_file, name="ada", backbone=embedded, config=config, any_style=True)


def test_the_command_lists_them_by_group():
    from typer.testing import CliRunner

    answer = json.loads(CliRunner().invoke(app, ["world", "words", "--json"]).stdout)
    assert answer["groups"] == read_word_groups()
    assert {"scenes", "actions", "attributes", "styles"} <= set(answer["groups"])
    assert len(answer["names"]) == 2000
    shown = CliRunner().invoke(app, ["world", "words"]).stdout
    assert all(f"{group}: {phrases[0]}" in shown for group, phrases in answer["groups"].items())
