"""Class words of several tokens: one row stands for them while learning, the words themselves without an identity."""

from dataclasses import replace

import pytest
import torch
from tests.diffusion.test_prompt_weights import make_identity

import sefi
from sefi.core.config import Config, override, parse_config, select_settings
from sefi.core.errors import PromptError
from sefi.core.progress import SilentProgress
from sefi.core.prompts import is_person
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner
from sefi.diffusion.text import compute_class_row, parse_prompt, tokenize_class_word
from sefi.methods import METHODS, PRESETS
from sefi.training.token_inversion import encode_training_texts

WORDS = "snow dog"
FEW = ("learn.steps=2", "learn.batch=2", "views.latent_pool=2", f"learn.class_word={WORDS}")


@pytest.fixture(params=["backbone", "sdxl"])
def model(request):
    return request.getfixturevalue(request.param)


def find_rows(model, *words):
    """Return the rows of words that are one token, read from the tables."""
    ids = [[tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in words] for tokenizer in model.tokenizers]
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in model.text_encoders]
    return torch.cat([table[numbers] for table, numbers in zip(tables, ids, strict=True)], dim=-1)


def make_snow_dog(model):
    made = make_identity(model)
    return replace(made, header=made.header.model_copy(update={"class_word": WORDS}))


def test_their_row_is_the_mean_and_that_of_one_token_its_own(model):
    assert len(tokenize_class_word(model, WORDS)) == 2
    torch.testing.assert_close(compute_class_row(model, WORDS), find_rows(model, "snow", "dog").mean(0))
    assert torch.equal(compute_class_row(model, "dog"), find_rows(model, "dog")[0])


def test_without_strength_the_prompt_has_the_words_themselves(model):
    conditioner = IdentityConditioner(model, [make_snow_dog(model)], strength=0)
    plain = WordsConditioner(model, {"ada": WORDS}).encode_prompts(["a photo of <ada> at the beach"], 0)
    found = conditioner.encode_prompts(["a photo of <ada> at the beach"], 700)
    torch.testing.assert_close(found.states, plain.states)


def test_strength_goes_from_their_row_to_what_was_learned(model):
    identity = make_snow_dog(model)
    half = IdentityConditioner(model, [identity], strength=0.5).stage_tokens["ada"]
    row = find_rows(model, "snow", "dog").mean(0)
    torch.testing.assert_close(half, (identity.stage_tokens + row) / 2)
    slots = IdentityConditioner(model, [identity], class_slots=[(1, "K")]).stage_tokens["ada"]
    torch.testing.assert_close(slots[1, 0], row.expand(2, -1))


def test_learning_starts_from_their_row_and_compares_with_it(model, photo_file):
    config = override(PRESETS["default"], FEW)
    texts = encode_training_texts(model, config.learn)
    rows = torch.zeros(len(texts.ids), model.text_length, model.token_width)
    rows[texts.vector_index >= 0] = find_rows(model, "snow", "dog").mean(0)
    with torch.no_grad():
        expected = model.encode_text(texts.ids, rows, texts.vector_index >= 0).states
    torch.testing.assert_close(texts.reference.states, expected)
    begun = sefi.learn(photo_file, name="ada", backbone=model, crop=False, config=override(config, ["learn.steps=1"]))
    start = find_rows(model, "snow", "dog").mean(0)
    assert (begun.tokens - start).abs().max() <= 2 * config.learn.learning_rate
    assert begun.header.class_word == WORDS


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["textual-inversion", "dreambooth", "dreambooth-lora", "custom-diffusion", "prospect"])
def test_the_methods_learn_and_generate(backbone, photo_file, name):
    few = ("tune.prior_images=1", "generate.steps=5")
    config = override(PRESETS[name], select_settings(METHODS[name].config_type, (*FEW, *few)))
    identity = sefi.learn(photo_file, name="ada", backbone=backbone, crop=False, config=config)
    assert sefi.generate("a photo of <ada> at the beach", [identity], backbone=backbone, config=config)


def test_maps_compare_with_their_row(backbone):
    identity = make_snow_dog(backbone)
    row = find_rows(backbone, "snow", "dog").mean(0)
    identity.tensors["tokens"] = row.expand(3, 2, 1, -1).clone()
    config = parse_config({"generate": {"steps": 3}}, Config)
    conditioner = IdentityConditioner(backbone, [identity])
    found = record_attention(backbone, conditioner, "a photo of <ada>", 0, config.generate, SilentProgress())
    torch.testing.assert_close(found.maps, found.reference_maps)


@pytest.mark.parametrize("word", ["prson", "snow prson", "hippopotamus hippopotamus", "☃ dog"])
def test_unknown_and_misspelt_words_are_refused(backbone, word):
    with pytest.raises(PromptError) as refused:
        tokenize_class_word(backbone, word)
    assert ("prson" not in word) or "Did you mean 'person'?" in refused.value.remedy


def test_the_last_word_says_whether_it_is_a_person():
    assert is_person("old man")
    assert is_person(" Young  Woman")
    assert not is_person("man's dog")
    assert not is_person("")


def test_every_place_of_the_prompt_is_filled(backbone):
    parsed = parse_prompt(backbone, "<ada> and <ada>", {"ada": WORDS}, {"ada": 3})
    assert parsed.places["ada"] == (1, 2, 3, 5, 6, 7)
