"""Weighted words: their states are moved from those of the empty prompt; everything else stays bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sefi
from sefi.backbone.kinds import EMBEDDED
from sefi.core.config import Config, parse_config
from sefi.core.errors import PromptError
from sefi.core.rng import create_generator
from sefi.diffusion.composer import ComposerConditioner, Fuse
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner
from sefi.diffusion.text import (
    describe_unknown_words,
    find_unknown_words,
    get_special_tokens,
    parse_prompt,
    parse_template,
)
from sefi.identity.file import Identity, IdentityHeader

NAMES = {"ada": "person"}
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def make_identity(backbone, name="ada", stages=3, vectors=2, seed=1):
    shape = (stages, 2, vectors, backbone.token_width)
    tokens = 0.3 * torch.randn(shape, generator=create_generator(seed, "tokens"))
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model=backbone.fingerprint, width=backbone.token_width,
        class_word="person", signature=backbone.signature.dump(),
    )  # fmt: skip
    return Identity({"tokens": tokens}, header)


def encode_empty(backbone):
    """Encode the empty prompt, written down by hand: start, end, padding."""
    ids = [
        [start, end, *[padding] * (backbone.text_length - 2)]
        for start, end, padding in map(get_special_tokens, backbone.tokenizers)
    ]
    return backbone.encode_text(torch.tensor([ids])).states[0]


def move(states, empty, weights):
    """Weigh states as ComfyUI's `encode_token_weights` does: word by word, from the empty prompt's."""
    moved = states.clone()
    for place, weight in weights.items():
        for half in range(states.shape[-1] // empty.shape[-1]):
            part = slice(half * empty.shape[-1], (half + 1) * empty.shape[-1])
            moved[place, part] = (states[place, part] - empty[place]) * weight + empty[place]
    return moved


@pytest.fixture(params=["backbone", "sdxl"])
def model(request):
    return request.getfixturevalue(request.param)


def test_states_move_from_the_empty_prompts_in_key_and_value(model):
    conditioner = IdentityConditioner(model, [make_identity(model)])
    plain = conditioner.encode_prompts(["a photo of <ada> at the beach"], 500)
    weighted = conditioner.encode_prompts(["a photo of (<ada>:1.5) at (the (beach:0.5):1.2)"], 500)
    # start a photo of <ada> <ada> at the beach
    expected = move(plain.states[0], encode_empty(model), {4: 1.5, 5: 1.5, 7: 1.2, 8: 0.6})
    torch.testing.assert_close(weighted.states[0], expected, **TOLERANCE)
    untouched = [0, 1, 2, 3, 6, *range(9, model.text_length)]
    assert torch.equal(weighted.states[0, untouched], plain.states[0, untouched])
    assert plain.pooled is None or torch.equal(weighted.pooled, plain.pooled)


def test_a_weight_of_one_changes_no_bit_and_zero_gives_the_empty_prompts_state(model):
    conditioner = IdentityConditioner(model, [make_identity(model)])
    plain, one, zero = (
        conditioner.encode_prompts([prompt], 100).states
        for prompt in ("a photo of <ada>", "(a photo:1) of (<ada>:1.0)", "a (photo:0) of <ada>")
    )
    assert torch.equal(plain, one)
    torch.testing.assert_close(zero[0, 2, : model.token_width], encode_empty(model)[2], **TOLERANCE)


def test_negative_prompts_and_prompts_of_words_are_weighted_too(model):
    plain, weighted = "a dog holding a cup", "a (dog:1.4) holding a cup"
    expected = None
    for conditioner in (IdentityConditioner(model, []), WordsConditioner(model, {})):
        states = conditioner.encode_prompts([plain], 0).states[0]
        expected = move(states, encode_empty(model), {2: 1.4})
        torch.testing.assert_close(conditioner.encode_prompts([weighted], 0).states[0], expected, **TOLERANCE)
        torch.testing.assert_close(conditioner.encode_negative(1, weighted).states[0], expected, **TOLERANCE)
    named = WordsConditioner(model, {"ada": "dog"}).encode_prompts(["a (<ada>:1.4) holding a cup"], 0)
    torch.testing.assert_close(named.states[0], expected, **TOLERANCE)


def test_a_word_is_weighted_after_its_image_is_fused_with_it(backbone):
    fuse = Fuse(backbone.token_width, 5).eval()
    features = {"ada": torch.randn(5, generator=create_generator(0, "features"))}
    conditioner = ComposerConditioner(backbone, fuse, features, NAMES, alpha=1.0)
    plain = conditioner.encode_prompts(["a photo of <ada>"], 500).states[0]
    weighted = conditioner.encode_prompts(["a photo of (<ada>:1.5)"], 500).states[0]
    torch.testing.assert_close(weighted, move(plain, encode_empty(backbone), {4: 1.5}), **TOLERANCE)


@pytest.mark.slow
def test_images_change_with_a_weight_and_not_with_a_weight_of_one(backbone):
    config = parse_config({"generate": {"steps": 5, "guidance_scale": 4.0}}, Config)
    plain, one, more = (
        np.asarray(sefi.generate(prompt, [make_identity(backbone)], backbone=backbone, config=config)[0].pixels)
        for prompt in ("a photo of <ada>", "a (photo:1) of <ada>", "a photo of (<ada>:1.7)")
    )
    assert (plain == one).all()
    assert (plain != more).any()


def test_a_weighted_word_is_that_word_in_tokens_and_remarks(backbone, embedded_words):
    parsed = parse_prompt(backbone, "a (photo:1.2) of (<ada>:0.5)", NAMES)
    assert parsed.words == ("(start)", "a", "photo", "of", "<ada>", "(end)")
    assert [round(float(weight), 3) for weight in parsed.weights[: parsed.length]] == [1, 1, 1.2, 1, 0.5, 1]
    assert parse_prompt(backbone, "a (photo:1) of <ada>", NAMES).weights is None
    assert find_unknown_words(embedded_words, ["a photo of (<ada>:1.3) with a (xylograph:0.5)"]) == ["xylograph"]
    remarks = describe_unknown_words(embedded_words, ["a (xylograph:1.2) photo", "a photo"])
    assert len(remarks) == 2


@pytest.fixture
def embedded_words(backbone):
    """A model that is taken for the embedded one, whose words are known."""
    return replace(backbone, source=EMBEDDED)


def test_sentences_to_learn_with_have_no_weights(backbone):
    with pytest.raises(PromptError, match="no weights"):
        parse_template(backbone, "a (photo:1.2) of <ada>", NAMES)
