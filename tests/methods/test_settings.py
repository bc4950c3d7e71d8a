"""Every setting of every method changes what is learned, or is refused: the whole matrix of methods and settings."""

import re
from itertools import count, product
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

from sefi.api import crop_photo
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.benchmark.suite import list_bundled, open_suite
from sefi.core.config import (
    DEFAULT,
    PAPER,
    Config,
    choose_start,
    list_setting_fields,
    list_setting_names,
    override,
    read_setting,
)
from sefi.core.errors import ConfigError
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
from sefi.identity.file import Identity
from sefi.methods import METHODS, PRESETS, name_default_preset, select_read_settings
from sefi.methods.base import TrainingOptions, check_method, list_idle_settings, refuse_unread_settings
from sefi.photo.augment import PhotoViews
from sefi.photo.read import read_photo

PORTRAIT = MODELS / "demo" / "portrait.png"
FEW = (
    "learn.steps=3", "learn.batch=2", "learn.templates=a photo of {}", "views.latent_pool=4", "tune.prior_images=2",
    "generate.steps=1",
)  # fmt: skip
# What has its effect elsewhere: in generation, in speed, in a file that is named, or on the shipped model alone.
ELSEWHERE = {
    "learn.class_word",
    "learn.compile",
    "learn.start",
    "learn.encoder",
    "learn.person_steps",
    "basis.names",
    "compose.weights",
    "compose.alpha",
}
# Another value of a setting than any preset has; of choices it is another choice.
OTHERS = {
    "learn.steps": "1", "learn.batch": "3", "learn.learning_rate": "3.3e-3", "learn.weight_decay": "0.3",
    "learn.gradient_clip": "1e-7", "learn.attention_weight": "0.5", "learn.dropout": "0.4", "learn.stages": "3",
    "learn.vectors": "3", "learn.token_norm_limit": "0.01", "learn.probe_every": "2", "learn.patience": "1",
    "learn.templates": "a picture of {}", "learn.token_average": "0.5", "learn.change_limit": "1e-4",
    "learn.noise_freedom": "0.5", "learn.attention_share": "0.5", "learn.context_weight": "0.5",
    "learn.photo_words": "at the beach", "learn.outside_weight": "0.5", "learn.encoder": "encoder.safetensors",
    "learn.person_steps": "2",
    "views.brightness": "0.9", "views.contrast": "0.9", "views.saturation": "0.9", "views.hue": "0.4",
    "views.flip": "0", "views.min_scale": "0.9", "views.max_scale": "0.8", "views.aspect": "0.5",
    "views.crop_margin": "3", "views.latent_pool": "0", "tune.identifier": "guitar", "tune.prior_images": "1",
    "tune.prior_weight": "0.5", "tune.rank": "2", "basis.components": "1", "basis.average_decay": "0.5",
}  # fmt: skip
# Settings without which another one has no effect.
LOSS = ("learn.attention_weight=0.5",)
BESIDES = {
    **dict.fromkeys((f"learn.{one}" for one in ("attention_option", "attention_reduction", "attention_loss")), LOSS),
    "learn.detach_query": LOSS,
    "learn.residual_init": ("learn.expansion=module",),
    "learn.dropout": ("learn.expansion=module",),
    "learn.noise_freedom": ("learn.change_limit=1e-4",),
    "learn.patience": ("learn.probe_every=1",),
    "learn.encoder": ("learn.start=encoder",),
}


def get_start(name: str) -> Config:
    """Return the preset of a method that learns from the class word, with few steps."""
    preset = PRESETS["scratch" if name == "sefi" else name_default_preset(name)]
    return override(preset, select_read_settings(preset, FEW))


def choose_other(config: Config, setting: str) -> str:
    """Return another value of a setting, as it is typed."""
    if setting in OTHERS:
        return OTHERS[setting]
    kind, value = list_setting_fields(type(config))[setting].annotation, read_setting(config, setting)
    if kind is bool:
        return str(not value)
    assert get_origin(kind) is Literal, f"{setting} has no other value here"
    return str(next((one for one in get_args(kind) if one != value), value))


def is_usual(name: str, config: Config, setting: str) -> bool:
    """Return whether a setting's value is the default or of a preset of the method."""
    usual = [METHODS[name].config_type(), *(one for one in PRESETS.values() if one.method == name)]
    return read_setting(config, setting) in [read_setting(one, setting) for one in usual]


def learn(backbone: Backbone, config: Config) -> Identity:
    """Learn the portrait; the third score of a probe is the highest, and the second the lowest."""
    crop = crop_photo(read_photo(PORTRAIT), backbone, config, detector=EMBEDDED_EVALUATORS / DETECTOR)
    assert crop.face is not None
    views = PhotoViews(crop.pixels, config.views, (), (crop.face,), (crop.place,))
    scores = {0: 3.0, 1: 2.0}
    number = count()
    options = TrainingOptions(probe=lambda _identity: scores.get(next(number), 9.0), evaluators=EMBEDDED_EVALUATORS)
    return METHODS[config.method].learn("ada", views, backbone, config, 1, options)


def is_same(one: Identity, other: Identity) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def find_refusal(backbone: Backbone, name: str, config: Config) -> str:
    """Return why a method refuses settings; nothing where it takes them."""
    try:
        check_method(METHODS[name], backbone, config, EMBEDDED_EVALUATORS)
    except ConfigError as error:
        return error.problem
    return ""


@pytest.mark.parametrize(("name", "setting"), [(name, one) for name in METHODS for one in METHODS[name].info.unread])
def test_a_setting_that_is_not_read_is_refused(name: str, setting: str) -> None:
    start = get_start(name)
    # A setting that another one asks for is refused by the name of that one.
    needed = BESIDES.get(setting, ()) if setting in ("learn.noise_freedom", "learn.encoder") else ()
    config = override(start, [*needed, f"{setting}={choose_other(start, setting)}"])
    refuse_unread_settings(METHODS[name], start)
    if is_usual(name, config, setting):
        refuse_unread_settings(METHODS[name], config)
        return
    named = needed[0].partition("=")[0] if needed else setting
    with pytest.raises(ConfigError, match=re.escape(f"{METHODS[name].info.title} does not read {named}, which is ")):
        refuse_unread_settings(METHODS[name], config)


IDLE = {
    "learn.attention_option=1": ("learn.attention_weight=0", LOSS[0]),
    "learn.attention_reduction=mean": ("learn.attention_weight=0", "learn.attention_share=0.5"),
    "learn.detach_query=true": ("learn.attention_weight=0", LOSS[0]),
    "learn.attention_weight=0.7": ("learn.attention_share=0.5", "learn.attention_share=none"),
    "learn.dropout=0.4": ("learn.expansion=direct", "learn.expansion=module"),
    "learn.patience=7": ("learn.probe_every=0", "learn.probe_every=2"),
    "views.pool_noise=fresh": ("views.latent_pool=0", "views.latent_pool=3"),
}


@pytest.mark.parametrize("setting", IDLE)
def test_a_setting_that_another_one_makes_idle_is_named(setting: str) -> None:
    method, (without, needed) = METHODS["sefi"], IDLE[setting]
    config = override(PAPER, [without, setting])
    (remark,) = list_idle_settings(method, config, config)
    assert remark.startswith(f"{setting.partition('=')[0]} has no effect: {needed.partition('=')[0][:8]}")
    used = override(PAPER, [needed, setting])
    assert list_idle_settings(method, used, used) == []


@pytest.mark.parametrize(("name", "encoder"), product(METHODS, (True, False)))
def test_presets_have_no_idle_setting_of_their_own(name: str, encoder: bool) -> None:
    for preset in (one for one in PRESETS.values() if one.method == name):
        assert list_idle_settings(METHODS[name], preset, choose_start(preset, encoder=encoder)) == []


def test_what_the_recipe_from_the_encoder_leaves_without_effect_is_named() -> None:
    given = override(DEFAULT, ["learn.attention_option=1"])
    (remark,) = list_idle_settings(METHODS["sefi"], given, choose_start(given, encoder=True))
    assert "learn.attention_option has no effect" in remark
    assert list_idle_settings(METHODS["sefi"], given, choose_start(given, encoder=False)) == []


def test_what_the_start_at_the_class_word_leaves_without_effect_is_named() -> None:
    given = override(DEFAULT, ["learn.noise_freedom=0.5"])
    (remark,) = list_idle_settings(METHODS["sefi"], given, choose_start(given, encoder=False))
    assert remark == "learn.noise_freedom has no effect: learn.change_limit is none"
    assert list_idle_settings(METHODS["sefi"], given, choose_start(given, encoder=True)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_setting_changes_what_is_learned_or_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """On a tiny model, but for FastComposer, whose weights are the embedded model's."""
    (tmp_path / "names.txt").write_text("dog cup\nbeach photo\nsnow cat\n")
    model: Backbone = request.getfixturevalue("embedded" if name == "fastcomposer" else "backbone")
    start, made, passed_over = get_start(name), dict[Config, Identity](), list[str]()
    start = override(start, select_read_settings(start, [f"basis.names={tmp_path / 'names.txt'}"]))
    elsewhere = {*ELSEWHERE, *METHODS[name].info.unread}
    for setting in list_setting_names(type(start)):
        before = override(start, BESIDES.get(setting, ()))
        if setting.startswith("generate.") or setting in elsewhere or find_refusal(model, name, before):
            continue
        other = f"{setting}={choose_other(start, setting)}"
        after = override(before, [other])
        if after == before:  # it has one choice
            continue
        if refusal := find_refusal(model, name, after):
            assert setting in refusal
            continue
        for config in (before, after):
            if config not in made:
                made[config] = learn(model, config)
        if is_same(made[before], made[after]):
            passed_over.append(other)
    assert not passed_over


@pytest.mark.parametrize("suite", list_bundled())
def test_no_suite_sets_what_its_methods_do_not_read(suite: str) -> None:
    opened = open_suite(suite)
    for variant in opened.list_learning_variants():
        config = opened.make_config(variant)
        refuse_unread_settings(METHODS[config.method], config)


def test_a_setting_of_a_suite_is_for_the_variants_that_read_it() -> None:
    suite = open_suite("table1").add_settings(["learn.batch=3"])
    batches = {config.method: config.learn.batch for config in map(suite.make_config, suite.list_learning_variants())}
    assert batches.pop("fastcomposer") == 1
    assert set(batches.values()) == {3}
    alone = suite.model_copy(
        update={
            "variants": tuple(one for one in suite.variants if one.control is not None or one.preset == "fastcomposer")
        }
    )
    with pytest.raises(ConfigError, match=r"No variant's method reads learn\.batch"):
        alone.check()
