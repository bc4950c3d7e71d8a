"""Settings and options that nothing can be learned with are refused before a model is opened, where none is needed."""

from pathlib import Path

import pytest

import sefi
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.core.errors import ConfigError, IdentityError, SefiError
from sefi.identity.file import Identity
from sefi.methods import METHODS, get_preset
from sefi.methods.base import check_method, create_header

PORTRAIT = MODELS / "demo" / "portrait.png"
TUNED = ("dreambooth", "dreambooth-lora", "custom-diffusion")
ONE_STAGE = (*TUNED, "textual-inversion", "celeb-basis", "cross-init", "fastcomposer")
DOG = "learn.class_word=dog"
# Preset, settings, and what the refusal says.
COMBINATIONS = [
    ("default", ["learn.change_limit=none", "learn.noise_freedom=0.5"], "noise_freedom has no effect"),
    ("default", [DOG, "learn.outside_weight=0.5"], "learn.outside_weight needs a face"),
    ("scratch", [DOG, "learn.person_steps=2"], "'dog' is n"),
    ("scratch", [DOG, "learn.start=encoder"], "'dog' is n"),
    ("paper", ["learn.vectors=2"], "knows only learn.vectors=1"),
    ("paper", ["learn.change_limit=0.5"], "knows only learn.change_limit=None"),
    ("paper", ["learn.start=encoder"], "knows only learn.start=class"),
    ("prospect", ["learn.vectors=2"], "knows only learn.vectors=1"),
    ("prospect", ["learn.attention_weight=0.003"], "knows only learn.attention_weight=0.0"),
    ("cross-init", ["learn.vectors=3"], "knows only learn.vectors=2"),
    ("celeb-basis", [DOG], "'dog' is none"),
    ("fastcomposer", [DOG], "'dog' is none"),
    ("fastcomposer", ["learn.probe_every=5"], "knows only learn.probe_every=0"),
    ("fastcomposer", ["learn.steps=5"], "does not read learn.steps"),
    ("textual-inversion", ["learn.split_key_value=true"], "knows only learn.split_key_value=False"),
    *((name, ["learn.stages=5"], "knows only learn.stages=1") for name in ONE_STAGE),
    *((name, ["learn.attention_weight=0.003"], "knows only learn.attention_weight=0.0") for name in TUNED),
    *((name, ["learn.photo_words=at the beach"], "does not read learn.photo_words") for name in TUNED),
]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A model that is there, and cannot be opened."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(("preset", "settings", "said"), COMBINATIONS)
def test_settings_are_refused_before_the_model_is_opened(
    closed: Path, embedded: Backbone, preset: str, settings: list[str], said: str
) -> None:
    for model in (str(closed), embedded):
        with pytest.raises(ConfigError, match=said):
            sefi.learn("nowhere.png", name="ada", backbone=model, config=get_preset(preset, settings))


@pytest.mark.parametrize(
    ("preset", "settings", "options", "said"),
    [
        ("scratch", ["learn.person_steps=2"], {"memory": "6GB"}, "cannot be taken in parts"),
        ("scratch", [], {"memory": "much"}, "'much' is no"),
        ("prospect", [], {"init": "tokens"}, "does not go on from an identity"),
        ("scratch", ["learn.start=encoder"], {"init": "tokens"}, "Tokens start either at an identity or at"),
        ("scratch", [], {"init": "weights"}, "holds more than tokens"),
        ("scratch", [], {"init": 3}, "is of the type int"),
    ],
)
def test_options_are_refused_before_the_model_is_opened(
    closed: Path, embedded: Backbone, preset: str, settings: list[str], options: dict[str, object], said: str
) -> None:
    header = create_header("bob", embedded, get_preset("scratch"), 0)
    tokens = embedded.get_token_row((5,)).expand(5, 2, -1)
    inits = {"tokens": Identity({"tokens": tokens}, header)}
    inits["weights"] = Identity({"tokens": tokens, "unet.a": tokens}, header)
    if "init" in options:
        options = {"init": inits.get(options["init"], options["init"])}
    with pytest.raises((ConfigError, IdentityError), match=said):
        sefi.learn("nowhere.png", name="ada", backbone=str(closed), config=get_preset(preset, settings), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": "a.png"}, "--mask has no effect without --init-image"),
        ({"repair_faces": True, "steps": 1}, "Faces are repaired with"),
    ],
)
def test_images_to_start_from_are_checked_before_the_model_is_opened(
    closed: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        sefi.generate("a photo", backbone=str(closed), **options)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_refused_without_a_model_is_refused_with_one(embedded: Backbone, name: str) -> None:
    """`check_method` is the whole check."""
    refused = [(preset, settings) for preset, settings, _ in COMBINATIONS[4:] if get_preset(preset).method == name]
    for preset, settings in refused:
        with pytest.raises(SefiError):
            check_method(METHODS[name], embedded, get_preset(preset, settings), None)
