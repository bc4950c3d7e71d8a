"""Marks of other programs are refused, never read as words; plain sentences are not."""

import pytest
from hypothesis import given, strategies as st

from sefi.benchmark.suite import find_data, open_suite, read_prompt_list
from sefi.core.config import PAPER, override
from sefi.core.errors import ConfigError, PromptError
from sefi.core.prompts import check_prompts, check_syntax
from sefi.methods import PRESETS

REFUSED = {
    "a photo of ((word))": "without a number",
    "a (photo) of <ada>": "without a number",
    "(<ada>:high)": "without a number",
    "a (photo of <ada>:1.2": "not closed",
    "a photo) of <ada>": "not opened",
    "a photo:1.2) of <ada>": "not opened",
    "a (:1.2) photo": "no words",
    "(photo:3.1)": "0 to 3",
    "(photo:-0.1)": "0 to 3",
    "((photo:2):2)": "0 to 3",
    "(a [photo]:1.2)": "Brackets",
    "(<ada>:1.2)++": "++ and --",
    "(a photo BREAK:1.2) of <ada>": "BREAK",
    "(photo:1.2):1.3": "number after a colon",
    "a photo of [word]": "Brackets",
    "a {red|blue} hat": "Brackets",
    "<lora:film:0.8>": "LoRA",
    "a photo <hypernet:x:1>": "LoRA",
    "<zoë>": "no placeholder",
    "< ada >": "no placeholder",
    "<ada": "no placeholder",
    "ada>": "no placeholder",
    "<>": "no placeholder",
    "<|endoftext|>": "no placeholder",
    "I <3 you": "no placeholder",
    "<<ada>>": "no placeholder",
    "word:1.3": "number after a colon",
    "<ada>:1.3": "number after a colon",
    "<ada>++ smiling": "++ and --",
    "a photo BREAK a hat": "BREAK",
    "<ada> AND <bob>": "BREAK and AND",
    "a photo of <ada> --ar 16:9": "Options",
}
NAMES = ("LoRA", "no placeholder")  # reasons that have nothing to do with weights
PLAIN = (
    "",
    "a photo of <ada> at the beach",
    "<ada>'s close-up, and <bob>: two people!",
    "at 10:30, in 16:9, 100 % sharp",
    "android and ANDROID, breakfast; a hand-made cup",
    "(<ada>:1.3)",
    "a ((big:1.2) hat:0.5), (red:0) and (round : 3 )",
    r"a smile \(wide\) of <ada>",
)


@pytest.mark.parametrize(("prompt", "reason"), REFUSED.items())
def test_foreign_syntax_is_refused(prompt: str, reason: str) -> None:
    with pytest.raises(PromptError) as refused:
        check_syntax(prompt)
    assert reason in refused.value.problem
    assert refused.value.remedy if reason in NAMES else "(text:1.1)" in refused.value.remedy


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_sentences_are_taken(prompt: str) -> None:
    check_syntax(prompt)


def test_the_bundled_prompts_and_templates_are_plain() -> None:
    files = [entry.name for entry in find_data("prompts").iterdir()]
    lists = [name.removesuffix(".toml") for name in files if name.endswith(".toml")]
    texts = [one["text"] for name in lists for one in read_prompt_list(name)]
    texts += [template for config in PRESETS.values() for template in config.learn.templates]
    assert len(texts) > 100
    for text in texts:
        check_syntax(text.replace("{}", "<ada>"))


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_whatever_stands_in_angle_brackets_is_a_name_or_is_refused(inner: str) -> None:
    valid = len(inner) > 0 and all(c.isascii() and (c.isalnum() or c in "-_") for c in inner)
    try:
        check_syntax(f"a photo of <{inner}>")
    except PromptError:
        assert not valid
    else:
        assert valid


def test_a_name_in_other_letters_is_answered_with_the_right_one() -> None:
    with pytest.raises(PromptError, match="Write <ada>"):
        check_prompts(["a photo of <Ada>"], {"ada": "person"})
    with pytest.raises(PromptError, match=r"-i bob\.safetensors"):
        check_prompts(["a photo of <bob>"], {"ada": "person"})


def test_negative_prompts_templates_and_suites_are_checked_too(tmp_path) -> None:
    with pytest.raises(PromptError, match="Brackets"):
        check_prompts(["<ada>"], {"ada": "person"}, "[ugly]")
    check_prompts(["<ada>"], {"ada": "person"}, "(ugly:1.2)")
    with pytest.raises(ConfigError, match="no weights"):
        override(PAPER, ["learn.templates=a photo of ({}:1.2)"])
    suite = tmp_path / "own.toml"
    text = 'about = "x"\n[[ways]]\nlabel = "ours"\n[[prompts]]\ntext = "a (photo:1.2) of {}"\n'
    suite.write_text(text.replace(":1.2", ""))
    with pytest.raises(ConfigError, match="without a number"):
        open_suite(suite)
    suite.write_text(text)
    assert open_suite(suite).prompts[0].text == "a (photo:1.2) of {}"
