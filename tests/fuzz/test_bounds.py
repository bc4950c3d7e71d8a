"""Values that no program can use: absurd numbers, other types, and text that would write on the terminal."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tests.fuzz.test_readers import header, tokens, write_raw
from typer.testing import CliRunner

from sefi.api import generate, learn, list_prompt_remarks
from sefi.backbone.open import open_backbone
from sefi.cli.app import app
from sefi.core.config import PAPER
from sefi.core.errors import BackboneError, ConfigError, IdentityError, PhotoError, PromptError, SefiError
from sefi.core.text import escape_controls
from sefi.identity.file import Identity, read_identity
from sefi.methods import METHODS, get_preset, name_default_preset
from sefi.photo.read import read_photo

CLEAR, TITLE, TURNED = "\x1b[2J", "\x1b]0;mine\x07", "\u202e"
LARGE = 10**9


def list_whole_numbers():
    """Every setting of every method that is a whole number, with a preset of the method."""
    for method in METHODS:
        preset = name_default_preset(method)
        for section, values in get_preset(preset).model_dump().items():
            for name, value in values.items() if isinstance(values, dict) else ():
                if type(value) is int:
                    yield pytest.param(preset, f"{section}.{name}", id=f"{method}-{section}.{name}")


@pytest.mark.parametrize(("preset", "name"), list_whole_numbers())
def test_a_number_that_would_fill_the_memory_is_refused(preset, name):
    """Also those that fill nothing have a bound: a file that holds the settings must be readable."""
    with pytest.raises(ConfigError, match=re.escape(name)):
        get_preset(preset, [f"{name}={LARGE}"])


@pytest.mark.parametrize("option", ["--count", "--batch-size", "--steps"])
def test_an_absurd_option_ends_before_a_model_is_opened(option):
    found = CliRunner().invoke(app, ["generate", "a dog", option, str(LARGE), "--model", "/nowhere"])
    assert found.exit_code == 2
    assert "less than or equal to" in found.output


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "Infinity"])
def test_a_metric_that_is_no_number_in_words(tmp_path, text):
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), header(metrics={"loss": text}))
    with pytest.raises(IdentityError, match="finite"):
        read_identity(path)


@pytest.mark.parametrize("value", [5, 2.5, b"photo.png", object(), {"a": 1}, [5], [None], torch.ones(3)])
def test_what_is_no_photo_in_python(value, backbone):
    with pytest.raises(PhotoError):
        learn(value, name="ada", backbone=backbone, config=PAPER)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": 5}, IdentityError),
        ({"name": None}, IdentityError),
        ({"config": "paper"}, ConfigError),
        ({"config": None}, ConfigError),
        ({"backbone": 3}, BackboneError),
        ({"init": "ada.safetensors"}, IdentityError),
        ({"seed": "x"}, ConfigError),
        ({"seed": 1.5}, ConfigError),
    ],
    ids=str,
)
def test_what_learn_cannot_use(arguments, error, backbone):
    photo = np.zeros((40, 40, 3), np.uint8)
    known = {"name": "ada", "backbone": backbone, "config": PAPER, "any_style": True, "crop": False}
    with pytest.raises(error):
        learn(photo, **known | arguments)


@pytest.mark.parametrize(
    ("prompts", "arguments", "error"),
    [
        (3, {}, PromptError),
        (None, {}, PromptError),
        ([3], {}, PromptError),
        (["a dog", None], {}, PromptError),
        (b"a dog", {}, PromptError),
        ("a dog", {"identities": 3}, IdentityError),
        ("a dog", {"identities": [3]}, IdentityError),
        ("a dog", {"backbone": 3}, BackboneError),
        ("a dog", {"config": "paper"}, ConfigError),
        ("a dog", {"seed": "x"}, ConfigError),
        ("a dog", {"steps": "many"}, ConfigError),
        ("a dog", {"num_images": LARGE}, ConfigError),
        ("a dog", {"init_image": 3}, SefiError),
    ],
    ids=str,
)
def test_what_generate_cannot_use(prompts, arguments, error, backbone):
    with pytest.raises(error):
        generate(prompts, **{"backbone": backbone, "config": PAPER} | arguments)


@pytest.mark.parametrize("value", [5, None, b"x", object()])
def test_what_no_reader_can_use(value):
    for read, error in ((read_photo, PhotoError), (Identity.load, IdentityError), (open_backbone, BackboneError)):
        with pytest.raises(error):
            read(value)


@pytest.mark.parametrize("prompt", ["", " ", "\n"])
def test_an_empty_prompt_is_generated_with_a_remark(prompt, backbone):
    assert any("a prompt is empty" in one for one in list_prompt_remarks(backbone, ["a dog", prompt], PAPER.generate))
    assert not list_prompt_remarks(backbone, ["a dog"], PAPER.generate)


@given(st.text())
def test_escaped_text_has_no_control_characters_and_loses_nothing_else(text):
    escaped = escape_controls(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", escaped)
    assert re.sub(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\[nrt]", "", escaped) == re.sub(
        r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\[nrt]|[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "", text
    )


@pytest.mark.parametrize("attack", [CLEAR, TITLE, TURNED, "\r", "\x9b2J", "\x08"], ids=ascii)
def test_text_of_a_file_writes_nothing_on_the_terminal(tmp_path, attack):
    about = header(class_word=f"person{attack}", consent=f"yes{attack}\nname: eve", library_versions={attack: attack})
    about |= {"base_model": f"tiny{attack}", "method": f"sefi{attack}", "order": attack}
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), about)
    found = CliRunner().invoke(app, ["inspect", str(path)])
    assert found.exit_code == 0
    assert attack not in found.output
    assert "name: eve" not in found.output.splitlines()
    answer = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert attack not in answer.stdout
    assert json.loads(answer.stdout)["base_model"] == f"tiny{attack}"


def test_an_error_writes_nothing_on_the_terminal(tmp_path: Path):
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), header(**{f"x{CLEAR}": 1}))
    found = CliRunner().invoke(app, ["inspect", str(path)])
    assert found.exit_code == 2
    assert CLEAR not in found.output
    assert "\\x1b[2J" in found.output
