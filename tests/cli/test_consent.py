"""Who allows a likeness: stated before it is learned on a model of real people, in the file, and honoured."""

import json
from datetime import date
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

from sefi.api import learn as api_learn
from sefi.backbone.open import open_backbone
from sefi.benchmark.identities import Learner
from sefi.cli.app import app
from sefi.core.config import override
from sefi.core.errors import REMARKS, ConfigError
from sefi.hosts.attach import attach
from sefi.identity.file import Identity
from sefi.methods import PRESETS
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


@pytest.fixture
def expired(portrait, model_folder, tmp_path):
    """An identity whose consent has expired."""
    out = tmp_path / "ada.safetensors"
    assert learn(portrait, model_folder, out, "--consent", "by=Jane; for=self; scope=x").exit_code == 0
    identity = Identity.load(out)
    Identity(identity.tensors, identity.header.model_copy(update={"consent": LINE})).save(out)
    return out


@pytest.mark.slow
def test_an_expired_consent_is_refused_wherever_a_likeness_is_used(expired, model_folder, tmp_path):
    attend = ("attend", "a photo of <ada>", "-i", expired, "--model", model_folder, "--steps", 1)
    attend = (*attend, "--out", tmp_path / "maps.png")
    export = ("export", expired, "--to", "a1111", "--out", tmp_path / "export")
    for words in (attend, export):
        found = run(*words, "--json")
        assert (found.exit_code, "expired" in json.loads(found.stdout)["error"]) == (2, True)
        assert run(*words, "--expired-consent").exit_code == 0
    identity, model = Identity.load(expired), open_backbone(str(model_folder))
    parts = {name: getattr(model, name) for name in ("tokenizer", "text_encoder", "vae", "unet")}
    empty = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(**parts, **empty, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False))
    with pytest.raises(ConfigError, match="expired"):
        attach(pipe, identity)
    attach(pipe, identity, expired_consent=True).detach()
    with pytest.raises(ConfigError, match="expired"):
        identity.push_to_hub("jane/ada")


def test_exports_carry_the_consent(expired, tmp_path):
    assert run("export", expired, "--to", "a1111", "--out", tmp_path / "out", "--expired-consent").exit_code == 0
    with safe_open(tmp_path / "out" / "sefi-ada.safetensors", "np") as file:
        assert file.metadata()["sefi.consent"] == LINE
    assert LINE in (tmp_path / "out" / "sefi-ada-prompt.txt").read_text()


def test_a_benchmark_refuses_it_too(expired, backbone):
    learner = Learner(SimpleNamespace(
        suite=SimpleNamespace(find_learning_variant=lambda variant: variant),
        folder=SimpleNamespace(locate_identity=lambda subject, variant: expired),
        backbone=backbone,
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="expired"):
        learner.load_or_learn(None, SimpleNamespace(key="ada"))


@pytest.mark.parametrize("last_day", ["", "2999-12-31"])
def test_a_person_at_a_terminal_is_asked(portrait, model_folder, tmp_path, monkeypatch, last_day):
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda stream: True, raising=False)
    out = tmp_path / "ada.safetensors"
    words = ("learn", portrait, "--model", model_folder, "--name", "ada", "--no-crop", "--steps", 1, "--out", out)
    answers = f"Jane Doe\nself\n\n{last_day}\n"
    found = CliRunner().invoke(app, [str(word) for word in words], input=answers)
    assert found.exit_code == 0, found.output
    consent = parse_consent(Identity.load(out).header.consent, TODAY)
    assert (consent.by, consent.subject, consent.scope) == ("Jane Doe", "self", "private use")
    assert consent.expires == (date(2999, 12, 31) if last_day else None)


@pytest.mark.slow
def test_python_says_once_that_nobody_is_stated_to_have_agreed(model_folder, portrait, caplog):
    caplog.set_level("WARNING", logger=REMARKS)
    model = open_backbone(str(model_folder))
    config = override(PRESETS["default"], ["learn.steps=1", "learn.class_word=dog"])
    made = api_learn(portrait, name="ada", backbone=model, config=config, any_style=True)
    assert caplog.text.count("no consent") == 1
    assert made.header.consent is None
    caplog.clear()
    consent = Consent("Jane", "pet", "private use", TODAY)
    made = api_learn(portrait, name="ada", backbone=model, config=config, any_style=True, consent=consent)
    assert "no consent" not in caplog.text
    assert made.header.consent == consent.format()


def test_what_has_expired_without_a_date_is_refused_as_expired():
    text = "by=Jane; for=self; scope=x; expires=2020-01-01"
    for check in (lambda: check_consent("ada", text, TODAY), lambda: require_consent(text, TODAY)):
        with pytest.raises(ConfigError, match="expired on 2020-01-01"):
            check()


def test_a_consent_of_a_day_to_come_is_refused():
    with pytest.raises(ConfigError, match="in the future"):
        require_consent("by=Jane; for=self; scope=x; date=2999-01-01", TODAY)


def test_learning_on_from_an_identity_keeps_its_consent_and_refuses_an_expired_one(backbone, ada, portrait):
    known = Identity.load(ada)

    def learn_from(consent):
        init = Identity(known.tensors, known.header.model_copy(update={"consent": consent}))
        config = override(PRESETS["default"], ["learn.steps=1"])
        return api_learn(portrait, name="eve", backbone=backbone, config=config, crop=False, init=init)

    with pytest.raises(ConfigError, match="expired on 2020-01-01"):
        learn_from("by=Jane; for=self; scope=x; date=2019-01-01; expires=2020-01-01")
    line = "by=Jane; for=self; scope=x; date=2019-01-01"
    assert learn_from(line).header.consent == line
