"""Who allows a likeness: stated before it is learned on a model of real people, in the file, and honoured."""

import json
from datetime import date

import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from sefi.cli.app import app
from sefi.core.errors import ConfigError
from sefi.identity.file import Identity
from sefi.provenance.consent import SUBJECTS, Consent, check_consent, parse_consent, require_consent

TODAY = date(2026, 5, 1)
LINE = "by=Jane Doe; for=self; scope=private use; date=2026-01-02; expires=2026-05-01"
WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)


@given(WORD, st.sampled_from(list(SUBJECTS)), WORD, st.dates(), st.none() | st.timedeltas())
def test_what_is_formatted_is_read_back(by, subject, scope, given, lasts):
    expires = None
    if lasts is not None:
        expires = date.fromordinal(min(date.max.toordinal(), given.toordinal() + abs(lasts.days)))
    consent = Consent(by, subject, scope, given, expires)
    assert parse_consent(consent.format(), TODAY) == consent


@given(st.text(max_size=80))
def test_any_text_is_a_consent_or_refused(text):
    try:
        consent = parse_consent(text, TODAY)
    except ConfigError as error:
        assert "--consent" in error.remedy  # noqa: PT017
    else:
        assert parse_consent(consent.format(), TODAY) == consent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Jane",
        "by=Jane; for=self",
        "by=Jane; for=friend; scope=x",
        "by=Jane; by=Joe; for=self; scope=x",
        "by=Jane; for=self; scope=x; expires=tomorrow",
        "by=Jane; for=self; scope=x; expires=2026-02-30",
        "by=Jane; for=self; scope=x; date=2026-05-01; expires=2026-04-30",
        "by=Ja\nne; for=self; scope=x",
        f"by={'J' * 301}; for=self; scope=x",
    ],
)
def test_a_consent_that_says_too_little_is_refused(text):
    with pytest.raises(ConfigError):
        parse_consent(text, TODAY)


def test_it_holds_on_its_last_day_and_not_after():
    check_consent("ada", LINE, TODAY)
    with pytest.raises(ConfigError, match="expired"):
        check_consent("ada", LINE, date(2026, 5, 2))
    with pytest.raises(ConfigError, match="expired"):
        require_consent(LINE, date(2026, 5, 2))
    check_consent("ada", "Ada agreed, by word of mouth", TODAY)
    check_consent("ada", None, TODAY)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def learn(portrait, model_folder, out, *words):
    few = ("--name", "ada", "--no-crop", "--steps", 1, "--out", out)
    return run("learn", portrait, "--model", model_folder, *few, *words)


def test_learning_on_a_model_of_real_people_needs_a_consent(portrait, model_folder, tmp_path):
    out = tmp_path / "ada.safetensors"
    found = learn(portrait, model_folder, out, "--json")
    assert found.exit_code == 2
    assert "--consent" in json.loads(found.stdout)["try"]
    assert not list(tmp_path.iterdir())

    text = "by=Jane Doe; for=self; scope=private use; date=2026-01-02; expires=9999-01-01"
    assert learn(portrait, model_folder, out, "--consent", text).exit_code == 0
    assert Identity.load(out).header.consent == text
    assert text in run("inspect", out).stdout


def test_images_of_an_expired_consent_are_refused_unless_wanted(portrait, model_folder, tmp_path):
    out, images = tmp_path / "ada.safetensors", tmp_path / "images"
    assert learn(portrait, model_folder, out, "--consent", "by=Jane; for=self; scope=x").exit_code == 0
    identity = Identity.load(out)
    Identity(identity.tensors, identity.header.model_copy(update={"consent": LINE})).save(out)
    words = (
        "generate",
        "a photo of <ada>",
        "-i",
        out,
        "--model",
        model_folder,
        "--steps",
        1,
        "--out",
        images,
        "--json",
    )
    found = run(*words)
    assert (found.exit_code, "expired" in json.loads(found.stdout)["error"]) == (2, True)
    assert not list(images.glob("*"))

    found = run(*words, "--expired-consent")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["expired_consent"] is True
