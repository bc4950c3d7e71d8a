"""What a method cannot learn with is refused before anything is drawn or learned, never passed over."""

from pathlib import Path

import pytest
import torch

import sefi
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.cli.opening import preset_of
from sefi.core.config import override
from sefi.core.errors import ConfigError, IdentityError, PromptError
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.methods import METHODS, check_tokens_only
from sefi.methods.base import create_header
from sefi.methods.celeb_basis import compute_bases
from sefi.methods.fastcomposer import SHIPPED, check_weights, choose_settings, hash_file

OWN = {"textual-inversion", "sefi", "prospect"}  # have stages or vectors to choose
TUNED = ("dreambooth", "dreambooth-lora", "custom-diffusion")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_allowed(embedded: Backbone, name: str) -> None:
    config = PRESETS[name]
    METHODS[config.method].check(embedded, config, embedded.judges)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("sefi", "learn.vectors=2"),
        ("prospect", "learn.vectors=2"),
        ("prospect", "learn.attention_weight=0.003"),
        ("textual-inversion", "learn.stages=5"),
        ("textual-inversion", "learn.split_key_value=true"),
        ("textual-inversion", "learn.expansion=module"),
        ("prospect", "learn.token_norm_limit=1.5"),
        ("celeb-basis", "learn.vectors=2"),
        ("cross-init", "learn.vectors=3"),
        ("fastcomposer", "learn.attention_weight=0.003"),
        ("fastcomposer", "learn.probe_every=5"),
        *((name, "learn.stages=5") for name in METHODS if name not in OWN),
        *((name, "learn.token_norm_limit=1.5") for name in METHODS if name not in ("sefi", "prospect")),
        *((name, "learn.attention_weight=0.003") for name in TUNED),
    ],
)
def test_settings_that_would_be_passed_over(embedded: Backbone, name: str, setting: str) -> None:
    config = override(PRESETS[preset_of(name, None)], [setting])
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        METHODS[name].check(embedded, config, embedded.judges)


def test_a_limit_of_norms_is_for_tokens_that_the_module_does_not_give(embedded: Backbone) -> None:
    limited = override(PRESETS["default"], ["learn.token_norm_limit=1.5"])
    METHODS["sefi"].check(embedded, limited, None)
    with pytest.raises(ConfigError, match="token_norm_limit"):
        METHODS["sefi"].check(embedded, override(limited, ["learn.expansion=module"]), None)


@pytest.mark.parametrize("name", METHODS)
def test_pets_only_where_no_face_is_read(embedded: Backbone, name: str) -> None:
    config = override(PRESETS[preset_of(name, None)], ["learn.class_word=cat"])
    if name in ("celeb-basis", "fastcomposer"):
        with pytest.raises(ConfigError, match="'cat' is none"):
            METHODS[name].check(embedded, config, embedded.judges)
    else:
        METHODS[name].check(embedded, config, embedded.judges)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_only_where_the_model_stays_as_it_is(half: Backbone, name: str) -> None:
    if name in TUNED:
        with pytest.raises(ConfigError, match="bfloat16 is too coarse"):
            METHODS[name].check(half, PRESETS[name], half.judges)
    else:
        METHODS[name].check(half, PRESETS[preset_of(name, None)], half.judges)


@pytest.mark.parametrize("name", ["celeb-basis", "cross-init"])
def test_a_list_of_names_that_is_missing(embedded: Backbone, name: str) -> None:
    config = override(PRESETS[name], ["basis.names=/nowhere.txt"])
    with pytest.raises(ConfigError, match=r"/nowhere\.txt cannot be read: No such file"):
        METHODS[name].check(embedded, config, embedded.judges)


@pytest.mark.parametrize("identifier", ["<new1>", " ", "a {} b"])
def test_a_rare_word_must_be_one(identifier: str) -> None:
    with pytest.raises(ConfigError, match=r"tune\.identifier"):
        override(PRESETS["dreambooth"], [f"tune.identifier={identifier}"])


def test_no_more_components_than_the_names_span(embedded: Backbone) -> None:
    # The characters have a hundred last names in all.
    few, all_there_are = (
        compute_bases(embedded, override(PRESETS["celeb-basis"], [f"basis.components={n}"])) for n in (7, 512)
    )
    assert few.shape == (2, 1 + 7, embedded.width)
    assert all_there_are.shape == (2, 1 + 99, embedded.width)
    torch.testing.assert_close(all_there_are[:, : 1 + 7], few)


def test_names_that_are_all_the_same(embedded: Backbone, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ada lane\nada lane lane\n")
    config = override(PRESETS["celeb-basis"], [f"basis.names={tmp_path / 'names.txt'}"])
    with pytest.raises(ConfigError, match="are the same"):
        METHODS["celeb-basis"].check(embedded, config, embedded.judges)


@pytest.mark.parametrize(("name", "lacks"), [("celeb-basis", "face_recognition.onnx"), ("fastcomposer", "clip")])
def test_judges_that_are_missing(embedded: Backbone, tmp_path: Path, name: str, lacks: str) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(ConfigError, match=lacks):
            METHODS[name].check(embedded, PRESETS[name], folder)


def test_a_run_with_missing_weights_does_not_begin(embedded: Backbone) -> None:
    config = override(PRESETS["fastcomposer"], ["compose.weights=/nowhere/composer.safetensors"])
    with pytest.raises(ConfigError, match="no weights at /nowhere"):
        sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=embedded, config=config)


# ---------------------------------------------------------------- FastComposer


def pictured(backbone: Backbone, name: str, *settings: str) -> Identity:
    header = create_header(name, backbone, override(PRESETS["fastcomposer"], settings), 0)
    return Identity({"image": torch.zeros(1, 128), "composer": hash_file(SHIPPED)}, header)


def test_two_of_different_settings_do_not_share_a_prompt(embedded: Backbone) -> None:
    one, other = pictured(embedded, "ada"), pictured(embedded, "bob", "compose.alpha=0.5")
    assert choose_settings([one, pictured(embedded, "bob")]).alpha == PRESETS["fastcomposer"].compose.alpha
    with pytest.raises(IdentityError, match="'ada' and 'bob' have different settings"):
        choose_settings([one, other])


def test_features_of_other_weights_are_refused(embedded: Backbone, tmp_path: Path) -> None:
    ada = pictured(embedded, "ada")
    check_weights([ada], SHIPPED)
    changed = tmp_path / "composer.safetensors"
    changed.write_bytes(SHIPPED.read_bytes() + b" ")
    with pytest.raises(IdentityError, match="other weights"):
        check_weights([ada], changed)


# ---------------------------------------------------------------- in use


@pytest.mark.parametrize("name", ["dreambooth", "dreambooth-lora", "fastcomposer"])
def test_negative_texts_name_nobody(embedded: Backbone, name: str) -> None:
    conditioner = METHODS[name].apply([], embedded).conditioner
    with pytest.raises(PromptError, match="negative prompt names"):
        conditioner.null_context(1, "a photo of <ada>")


@pytest.mark.parametrize("name", METHODS)
def test_attention_is_shown_for_tokens_alone(embedded: Backbone, name: str) -> None:
    identity = Identity({}, create_header("ada", embedded, PRESETS[preset_of(name, None)], 0))
    if name in (*TUNED, "fastcomposer"):
        with pytest.raises(IdentityError, match="changes the model itself"):
            check_tokens_only([identity])
    else:
        check_tokens_only([identity])
