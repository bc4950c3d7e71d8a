"""Every method passes the checks of `sefi.testing`, and each check can fail."""

from dataclasses import replace
from pathlib import Path

import pytest

from sefi.backbone.bundle import Backbone
from sefi.core.errors import ConfigError
from sefi.core.progress import SilentProgress
from sefi.identity.file import Identity
from sefi.methods import METHODS
from sefi.methods.base import WeightCounts
from sefi.methods.textual_inversion import TextualInversion
from sefi.testing import (
    CHECKS,
    Check,
    Trial,
    check_counts,
    check_file_keeps_everything,
    check_file_size,
    check_half_precision,
    check_learning_leaves_no_trace,
    check_loss_falls,
    check_presets,
    check_prompt_is_not_shared,
    check_strength_zero_is_class_word,
    check_subject_is_generated,
    list_differences,
    record_state,
    try_method,
)
from tiny_portraits.training.composer import ComposerRecipe, build_composer, train_composer

# So that a few steps tell: far above what the presets take.
RATES = {"dreambooth": 5e-6, "dreambooth-lora": 1e-3, "prospect": 3e-4}


@pytest.fixture(scope="module")
def composer(embedded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of FastComposer that learned next to nothing."""
    file = tmp_path_factory.mktemp("composer") / "composer.safetensors"
    recipe = ComposerRecipe(images=3, steps=3, batch=2, learning_rate=2e-3)
    train_composer(embedded, build_composer(embedded.token_width, 1), recipe, 1, SilentProgress(), file)
    return file


EACH = [name if name == "sefi" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.fixture(scope="module")
def inversion(embedded: Backbone, half: Backbone) -> Trial:
    """The trial of the quickest method, of which the tests that a check can fail make something wrong."""
    return try_method("textual-inversion", (), embedded, half)


@pytest.fixture(scope="module", params=EACH)
def trial(request: pytest.FixtureRequest, embedded: Backbone, half: Backbone, inversion: Trial) -> Trial:
    if request.param == inversion.name:
        return inversion
    settings = [f"learn.learning_rate={RATES[request.param]}"] if request.param in RATES else []
    if request.param == "fastcomposer":
        settings = [f"compose.weights={request.getfixturevalue('composer')}"]
    return try_method(request.param, settings, embedded, half)


@pytest.mark.parametrize("check", CHECKS)
def test_a_method_does_what_every_method_does(trial: Trial, check: Check) -> None:
    check(trial)


# ---------------------------------------------------------------- each check can fail


def refuse(*given: object) -> None:
    raise ConfigError("It cannot learn with that.", "Change it.")


def test_a_refused_preset_is_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextualInversion, "check", refuse)
    with pytest.raises(ConfigError, match="cannot learn"):
        check_presets(inversion)


def test_counts_of_nothing_are_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextualInversion, "count_weights", lambda *given: WeightCounts(0, 0))
    with pytest.raises(AssertionError, match="Nothing is learned"):
        check_counts(inversion)


def test_a_trace_is_noticed(inversion: Trial) -> None:
    before = record_state(inversion.backbone)
    inversion.backbone.unet.conv_in.left_behind = 1
    changes = list_differences(before, record_state(inversion.backbone))
    del inversion.backbone.unet.conv_in.left_behind
    assert changes == ["unet.conv_in:left_behind"]
    with pytest.raises(AssertionError, match="left_behind"):
        check_learning_leaves_no_trace(replace(inversion, changes=tuple(changes)))


@pytest.mark.slow
def test_a_loss_that_rises_is_noticed(inversion: Trial) -> None:
    wrong = {name: -tensor for name, tensor in inversion.identity.tensors.items()}
    with pytest.raises(AssertionError, match="denoising error"):
        check_loss_falls(replace(inversion, identity=replace(inversion.identity, tensors=wrong)))


def test_a_file_that_loses_something_is_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {name: tensor + 1 for name, tensor in inversion.identity.tensors.items()}
    monkeypatch.setattr(Identity, "load", lambda path: replace(inversion.identity, tensors=wrong))
    with pytest.raises(AssertionError, match="differ after loading"):
        check_file_keeps_everything(inversion)


def test_a_wrong_size_is_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextualInversion, "info", replace(TextualInversion.info, kilobytes=12))
    with pytest.raises(AssertionError, match="not 12"):
        check_file_size(inversion)


@pytest.mark.slow
def test_a_subject_without_effect_is_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = TextualInversion.apply
    monkeypatch.setattr(
        TextualInversion, "apply", lambda self, some, backbone, strength=1: apply(self, some, backbone, 0)
    )
    with pytest.raises(AssertionError, match="that of the class word"):
        check_subject_is_generated(inversion)
    with pytest.raises(AssertionError, match="Half precision"):
        check_half_precision(inversion)


def test_a_strength_without_effect_is_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = TextualInversion.apply
    monkeypatch.setattr(TextualInversion, "apply", lambda self, some, backbone, strength=1: apply(self, some, backbone))
    with pytest.raises(AssertionError, match="not close"):
        check_strength_zero_is_class_word(inversion)


def test_two_methods_in_a_prompt_are_noticed(inversion: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sefi.testing.generate", lambda *given, **named: [])
    with pytest.raises(AssertionError, match="They are drawn"):
        check_prompt_is_not_shared(inversion)
