"""What a method cannot learn with is refused before anything is drawn or learned, never passed over."""

import re
from pathlib import Path

import pytest
import torch

import sefi
from sefi.api import find_evaluators
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.cli.attend import TOKENS_REMEDY
from sefi.cli.loading import choose_preset
from sefi.core.config import Config, dump_config, override
from sefi.core.errors import ConfigError, IdentityError, MethodError, PromptError
from sefi.identity.file import Identity, check_tokens_alone, read_saved_config
from sefi.identity.tokens import FreeVectors
from sefi.methods import METHODS, PRESETS, is_of_tokens
from sefi.methods.base import check_method, create_header, get_class_row
from sefi.methods.celeb_basis import compute_bases
from sefi.methods.fastcomposer import SHIPPED, check_weights, choose_settings, hash_file
from sefi.photo.augment import PhotoViews
from sefi.training.token_inversion import TokenTask

PORTRAIT = MODELS / "demo" / "portrait.png"
OWN = {"textual-inversion", "sefi", "prospect"}  # have stages or vectors to choose
TUNED = ("dreambooth", "dreambooth-lora", "custom-diffusion")
TOKEN_SETTINGS = (
    "learn.attention_loss=hinge",
    "learn.attention_share=0.5",
    "learn.context_weight=0.1",
    "learn.photo_words=at the beach",
    "learn.outside_weight=0.5",
    "learn.compile=true",
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_allowed(embedded: Backbone, name: str) -> None:
    config = PRESETS[name]
    check_method(METHODS[config.method], embedded, config, find_evaluators(embedded))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
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
        *((name, setting) for name in ("fastcomposer", *TUNED) for setting in TOKEN_SETTINGS),
    ],
)
def test_settings_that_would_be_passed_over(embedded: Backbone, name: str, setting: str) -> None:
    config = override(PRESETS[choose_preset(name, None)], [setting])
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        check_method(METHODS[name], embedded, config, find_evaluators(embedded))


@pytest.mark.parametrize("name", TUNED)
def test_a_sentence_that_cannot_be_learned_with_costs_no_class_images(
    embedded: Backbone, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A weight's bracket in the rare word, and more words than the model reads."""
    monkeypatch.setattr("sefi.training.finetuning.generate_class_latents", None)
    settings = ["learn.templates=" + "a photo of " * 60 + "{}"]
    if name != "custom-diffusion":  # its rare word is a token's row, and in no sentence
        settings.append("tune.identifier=(sks")
    for setting in settings:
        config = override(PRESETS[name], [setting])
        with pytest.raises((ConfigError, PromptError)):
            METHODS[name].check(embedded, config, None)
        with pytest.raises((ConfigError, PromptError)):
            sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=config)


@pytest.mark.parametrize("setting", ["token_norm_limit=1.5", "vectors=2", "change_limit=0.5"])
def test_limits_and_several_vectors_are_for_tokens_that_the_module_does_not_give(
    embedded: Backbone, setting: str
) -> None:
    limited = override(PRESETS["default"], [f"learn.{setting}"])
    METHODS["sefi"].check(embedded, limited, None)
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        METHODS["sefi"].check(embedded, override(limited, ["learn.expansion=module"]), None)


@pytest.mark.parametrize("name", METHODS)
def test_pets_only_where_no_face_is_read(embedded: Backbone, name: str) -> None:
    config = override(PRESETS[choose_preset(name, None)], ["learn.class_word=cat"])
    if name in ("celeb-basis", "fastcomposer"):
        with pytest.raises(ConfigError, match="'cat' is none"):
            METHODS[name].check(embedded, config, find_evaluators(embedded))
    else:
        METHODS[name].check(embedded, config, find_evaluators(embedded))


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_only_where_the_model_stays_as_it_is(half: Backbone, name: str) -> None:
    if name in TUNED:
        with pytest.raises(ConfigError, match="bfloat16 is too coarse"):
            METHODS[name].check(half, PRESETS[name], find_evaluators(half))
    else:
        METHODS[name].check(half, PRESETS[choose_preset(name, None)], find_evaluators(half))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_learned_in_float16_whose_small_gradients_become_0(narrow: Backbone, name: str) -> None:
    config = PRESETS[choose_preset(name, None)]
    if name == "fastcomposer":  # reads the photo, and learns nothing
        METHODS[name].check(narrow, config, find_evaluators(narrow))
        return
    with pytest.raises(ConfigError, match=r"float16 is too (narrow|coarse)") as error:
        METHODS[name].check(narrow, config, find_evaluators(narrow))
    assert "float32" in error.value.remedy


def test_what_the_encoder_reads_needs_no_gradient(narrow: Backbone) -> None:
    config = override(PRESETS["default"], ["learn.start=encoder", "learn.steps=0"])
    METHODS["sefi"].check(narrow, config, None)
    with pytest.raises(ConfigError, match="float16 is too narrow"):
        sefi.learn(PORTRAIT, name="ada", backbone=narrow, config=override(config, ["learn.steps=1"]))


def test_a_task_of_tokens_asks_too(narrow: Backbone) -> None:
    """For methods of other packages, and for identities that are learned together."""
    config = override(PRESETS["textual-inversion"], ["learn.steps=1", "views.latent_pool=1"])
    views = PhotoViews(torch.zeros(3, narrow.resolution, narrow.resolution), config.views)
    row = get_class_row(narrow, config)
    with pytest.raises(ConfigError, match="float16 is too narrow"):
        TokenTask(narrow, views, config, 1, FreeVectors(row, row[None]))


@pytest.mark.parametrize("shape", [(2, 192), (1, 2, 5), (5, 3, 192), (1, 2, 1, 3, 192)])
def test_a_module_whose_tokens_have_another_shape_is_refused(embedded: Backbone, shape: tuple[int, ...]) -> None:
    class Module(FreeVectors):
        def forward(self, random: torch.Generator | None = None) -> torch.Tensor:
            return torch.zeros(shape)

    config = override(PRESETS["textual-inversion"], ["learn.steps=1", "views.latent_pool=1"])
    views = PhotoViews(torch.zeros(3, embedded.resolution, embedded.resolution), config.views)
    row = get_class_row(embedded, config)
    with pytest.raises(MethodError, match=re.escape(f"gives tokens of the shape {list(shape)}.")) as refused:
        TokenTask(embedded, views, config, 1, Module(row, row[None]))
    assert "[stage, 2, 192] or [stage, 2, vector, 192]" in refused.value.remedy


@pytest.mark.parametrize("name", ["celeb-basis", "cross-init"])
def test_a_list_of_names_that_is_missing(embedded: Backbone, name: str) -> None:
    config = override(PRESETS[name], ["basis.names=/nowhere.txt"])
    with pytest.raises(ConfigError, match=r"/nowhere\.txt cannot be read: No such file"):
        METHODS[name].check(embedded, config, find_evaluators(embedded))


@pytest.mark.parametrize("identifier", ["<new1>", " ", "a {} b"])
def test_a_rare_word_must_be_one(identifier: str) -> None:
    with pytest.raises(ConfigError, match=r"tune\.identifier"):
        override(PRESETS["dreambooth"], [f"tune.identifier={identifier}"])


def test_parts_that_a_method_does_not_train() -> None:
    for name, parts in {"dreambooth": "key_value", "dreambooth-lora": "unet+text", "custom-diffusion": "unet"}.items():
        with pytest.raises(ConfigError, match=rf"tune\.parts = '{re.escape(parts)}': Input should be"):
            override(PRESETS[name], [f"tune.parts={parts}"])


@pytest.mark.parametrize("name", METHODS)
def test_settings_made_for_another_method(embedded: Backbone, name: str) -> None:
    """What earlier versions saved with every identity is read by the method alone."""
    kind = METHODS[name].config_type
    config = PRESETS[choose_preset(name, None)]
    sections = {"tune": {"parts": "unet", "rank": 4}, "basis": {"components": 512}, "compose": {"alpha": 0.7}}
    saved = sections | dump_config(config)
    header = create_header("ada", embedded, config, 0).model_copy(update={"settings": saved})
    assert read_saved_config(header, kind) == config
    other = "dreambooth" if name != "dreambooth" else "default"
    if kind is not type(PRESETS[other]) and kind is not Config:
        with pytest.raises(ConfigError, match=f"needs settings of the type {kind.__name__}, not "):
            METHODS[name].check(
                embedded, PRESETS[other].model_copy(update={"learn": config.learn}), find_evaluators(embedded)
            )


def test_no_more_components_than_the_names_span(embedded: Backbone) -> None:
    # The characters have a hundred last names in all.
    few, all_there_are = (
        compute_bases(embedded, override(PRESETS["celeb-basis"], [f"basis.components={n}"]).basis) for n in (7, 512)
    )
    assert few.shape == (2, 1 + 7, embedded.token_width)
    assert all_there_are.shape == (2, 1 + 99, embedded.token_width)
    torch.testing.assert_close(all_there_are[:, : 1 + 7], few)


def test_names_that_are_all_the_same(embedded: Backbone, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ada lane\nada lane lane\n")
    config = override(PRESETS["celeb-basis"], [f"basis.names={tmp_path / 'names.txt'}"])
    with pytest.raises(ConfigError, match="are the same"):
        METHODS["celeb-basis"].check(embedded, config, find_evaluators(embedded))


@pytest.mark.parametrize(("name", "lacks"), [("celeb-basis", "face_recognition.onnx"), ("fastcomposer", "clip")])
def test_evaluators_that_are_missing(embedded: Backbone, tmp_path: Path, name: str, lacks: str) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(ConfigError, match=lacks):
            METHODS[name].check(embedded, PRESETS[name], folder)


def test_a_run_with_missing_weights_does_not_begin(embedded: Backbone) -> None:
    config = override(PRESETS["fastcomposer"], ["compose.weights=/nowhere/composer.safetensors"])
    with pytest.raises(ConfigError, match="no weights at /nowhere"):
        sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=embedded, config=config)


# ---------------------------------------------------------------- FastComposer


def embed_photo(backbone: Backbone, name: str, *settings: str) -> Identity:
    header = create_header(name, backbone, override(PRESETS["fastcomposer"], settings), 0)
    return Identity({"image": torch.zeros(1, 128), "composer": hash_file(SHIPPED)}, header)


def test_two_of_different_settings_do_not_share_a_prompt(embedded: Backbone) -> None:
    one, other = embed_photo(embedded, "ada"), embed_photo(embedded, "bob", "compose.alpha=0.5")
    assert choose_settings([one, embed_photo(embedded, "bob")]).alpha == PRESETS["fastcomposer"].compose.alpha
    with pytest.raises(IdentityError, match="'ada' and 'bob' have different settings"):
        choose_settings([one, other])


def test_features_of_other_weights_are_refused(embedded: Backbone, tmp_path: Path) -> None:
    ada = embed_photo(embedded, "ada")
    check_weights([ada], SHIPPED)
    changed = tmp_path / "composer.safetensors"
    changed.write_bytes(SHIPPED.read_bytes() + b" ")
    with pytest.raises(IdentityError, match="other weights"):
        check_weights([ada], changed)


@pytest.mark.parametrize(("alpha", "most", "more"), [(1.0, 1.0, 1.01), (0.7, 1 / 0.7, 1.43), (0.5, 2.0, 2.1)])
def test_a_strength_that_does_no_more_is_refused(embedded: Backbone, alpha: float, most: float, more: float) -> None:
    ada = embed_photo(embedded, "ada", f"compose.alpha={alpha}")
    apply = METHODS["fastcomposer"].apply
    assert apply([ada], embedded, most).conditioner.alpha == pytest.approx(1)
    with pytest.raises(ConfigError, match=rf"in all steps at a strength of {most:.3g}: {more:g} does no more"):
        apply([ada], embedded, more)
    apply([], embedded, more)


# ---------------------------------------------------------------- in use


@pytest.mark.parametrize("name", ["dreambooth", "dreambooth-lora", "fastcomposer"])
def test_negative_texts_name_nobody(embedded: Backbone, name: str) -> None:
    conditioner = METHODS[name].apply([], embedded).conditioner
    with pytest.raises(PromptError, match="negative prompt names"):
        conditioner.encode_negative(1, "a photo of <ada>")


@pytest.mark.parametrize("name", METHODS)
def test_attention_is_shown_for_tokens_alone(embedded: Backbone, name: str) -> None:
    """What a file of each method holds decides, as for `sefi.attach` and `sefi export`."""
    width = embedded.token_width
    tensors = {} if name in (*TUNED, "fastcomposer") else {"tokens": torch.zeros(1, 2, width)}
    tensors |= {"custom-diffusion": {"tokens": torch.zeros(1, 2, 2, width)}}.get(name, {})
    tensors |= {"unet.conv_in.weight": torch.zeros(1)} if name in TUNED else {}
    identity = Identity(tensors, create_header("ada", embedded, PRESETS[choose_preset(name, None)], 0))
    assert identity.is_tokens_alone == is_of_tokens(name)
    if identity.is_tokens_alone:
        check_tokens_alone([identity], TOKENS_REMEDY)
    else:
        with pytest.raises(IdentityError, match=f"{name}, which is more than tokens") as refused:
            check_tokens_alone([identity], TOKENS_REMEDY)
        assert "Attention is shown for tokens" in refused.value.remedy
