"""Prompts that compel encodes, with weights: without weights they are our own contexts."""

import copy

import numpy as np
import pytest
import torch
from tests.hosts.conftest import (
    NEGATIVE,
    PROMPTS,
    count_wrong,
    draw,
    make_identity,
    make_people,
    make_pipe,
    mark_slow,
    record_contexts,
)

import sefi
from sefi.core.errors import BackboneError, ConfigError, PromptError
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.hosts.stage_words import format_stage_word, replace_names_by_words

compel = pytest.importorskip("compel")
# compel gives the text encoder a mask of ones, which takes another kernel of attention: the last digits differ.
NEAR = {"atol": 1e-6, "rtol": 1e-5}
FEW = {"num_inference_steps": 6, "guidance_scale": 4.0}


def make_encoder(handle):
    """Make compel around the handle's copies, as docs/hosts/diffusers.md does."""
    parts = handle.copy_text_parts()
    return compel.Compel(tokenizer=parts.tokenizer, text_encoder=parts.text_encoder)


def make_encoder_xl(handle):
    made = compel.CompelForSDXL(handle.copy_text_parts())

    def encode(text):
        encoded = made(text)
        return encoded.embeds, encoded.pooled_embeds

    return encode


@pytest.mark.parametrize("number", [0, 1])
def test_a_plain_text_encoder_gives_our_texts_bit_for_bit(host, number):
    # One prompt: several are encoded together, and rows of a larger batch may round differently.
    people, pipe, named = make_people(host), make_pipe(host), PROMPTS[number : number + 1]
    with sefi.attach(pipe, *people) as handle:
        parts = handle.copy_text_parts()

        def encode(text):
            settings = {"padding": "max_length", "max_length": host.text_length, "return_tensors": "pt"}
            with torch.no_grad():
                ids = parts.tokenizer(text, **settings).input_ids
                # Key and value text are encoded together; rows of a batch may round differently.
                row = int("v>" in text)
                return parts.text_encoder(ids.expand(2, -1)).last_hidden_state[row : row + 1]

        ours, theirs = handle.encode(named, NEGATIVE), handle.encode(named, NEGATIVE, encoder=encode)
        # Of several names ours encodes each alone; in another program's text they stand together.
        assert torch.equal(ours["prompt_embeds"], theirs["prompt_embeds"]) == (number == 1)
        theirs["negative_prompt_embeds"] = ours["negative_prompt_embeds"]  # of a batch of one
        with record_contexts(pipe.unet) as readings:
            draw(pipe, **theirs, **FEW)
    together = IdentityConditioner(host, people, separate_names=False)
    assert count_wrong(readings, together, named, NEGATIVE) == 0


@pytest.mark.slow
def test_without_weights_compels_texts_equal_sefis(host):
    pipe = make_pipe(host)
    with sefi.attach(pipe, *make_people(host)) as handle:
        encoder = make_encoder(handle)
        ours, theirs = handle.encode(PROMPTS[1:], NEGATIVE), handle.encode(PROMPTS[1:], NEGATIVE, encoder=encoder)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], **NEAR)


@pytest.mark.slow
def test_without_weights_compels_texts_equal_sefis_for_sdxl(host_xl):
    people, pipe = make_people(host_xl), make_pipe(host_xl)
    with sefi.attach(pipe, *people) as handle:
        encoder = make_encoder_xl(handle)
        ours, theirs = handle.encode(PROMPTS[1:], NEGATIVE), handle.encode(PROMPTS[1:], NEGATIVE, encoder=encoder)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], **NEAR)
        draw(pipe, **theirs, **FEW)


WEIGHTED = {
    "a photo of <ada>++ at the beach": "a photo of <ada> at the beach",
    "a photo of <ada> at the (beach)0.7": "a photo of <ada> at the beach",
    "(<ada> and <bob>)1.4": "<ada> and <bob>",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", mark_slow(WEIGHTED, ["(<ada> and <bob>)1.4"]))
def test_weights_change_the_texts_of_every_stage(host, text):
    plain, people, pipe = WEIGHTED[text], make_people(host), make_pipe(host)
    with sefi.attach(pipe, *people) as handle:
        encoder = make_encoder(handle)
        weighted, even = (handle.encode(one, NEGATIVE, encoder=encoder)["prompt_embeds"] for one in (text, plain))
        if "<bob>" not in text:  # whose names ours encodes apart
            torch.testing.assert_close(even, handle.encode(plain, NEGATIVE)["prompt_embeds"], **NEAR)
        stages = (weighted - even).abs().split(2 * host.token_width, dim=-1)
        assert len(stages) == 15
        assert all(difference.max() > 1e-3 for difference in stages)
        # What compel makes of one stage's words is what the layer gets.
        words = replace_names_by_words(text, {"ada": 4, "bob": 2}, 1, {"ada": 1, "bob": 1})
        assert torch.equal(weighted[..., -host.token_width :], encoder(words))


@pytest.mark.slow
def test_identities_of_several_vectors_are_several_words(host):
    ada, pipe = make_identity(host, "ada", 5, 1, vectors=3), make_pipe(host)
    with sefi.attach(pipe, ada) as handle:
        encoder = make_encoder(handle)
        for text in ("a photo of <ada> at the beach", "<ada> and <ada>"):
            ours, theirs = (handle.encode(text, encoder=one)["prompt_embeds"] for one in (None, encoder))
            torch.testing.assert_close(theirs, ours, **NEAR)
        heavy = handle.encode("a photo of (<ada>)1.3 at the beach", encoder=encoder)["prompt_embeds"]
        assert (heavy - handle.encode("a photo of <ada> at the beach")["prompt_embeds"]).abs().max() > 1e-3


def test_the_pipelines_own_parts_stay_as_they_are(host):
    pipe, size, table = make_pipe(host), len(host.tokenizer), host.token_tables[0].clone()
    vocabulary = dict(host.tokenizer.get_vocab())
    plain = draw(pipe, prompt="a photo of a dog", **FEW)
    with sefi.attach(pipe, *make_people(host)) as handle:
        make_encoder(handle)("a photo of <ada-4k>")
        assert pipe.tokenizer.get_vocab() == vocabulary
        assert len(pipe.tokenizer) == size
        assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, table)
    assert np.array_equal(draw(pipe, prompt="a photo of a dog", **FEW), plain)
    with pytest.raises(BackboneError, match="detached"):
        handle.copy_text_parts()


def test_without_identities_the_copies_are_the_pipelines_own(host):
    with sefi.attach(make_pipe(host)) as handle:
        parts = handle.copy_text_parts()
        assert parts.tokenizer.get_vocab() == host.tokenizer.get_vocab()
        assert torch.equal(parts.text_encoder.get_input_embeddings().weight, host.token_tables[0])
        assert handle.encode("a photo of a dog")["prompt_embeds"].shape[-1] == 2 * host.token_width


def test_words_after_a_textual_inversion(host):
    """The pipeline's own words have the first new rows; ours come after them."""
    pipe = make_pipe(host)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion(torch.ones(1, host.token_width), token="toy")
    with sefi.attach(pipe, *make_people(host)) as handle:
        text = "a photo of <ada> and a toy"
        ours, theirs = (handle.encode(text, encoder=one)["prompt_embeds"] for one in (None, make_encoder(handle)))
        torch.testing.assert_close(theirs, ours, **NEAR)


@pytest.mark.parametrize("names", mark_slow([("Ada", "ada"), ("ada", "Ada")], [("Ada", "ada")]))
def test_names_that_differ_in_case_are_two_people(host, names):
    pipe = make_pipe(host)
    with sefi.attach(pipe, *(make_identity(host, name, 5, seed) for seed, name in enumerate(names))) as handle:
        encoder = make_encoder(handle)
        for name in names:
            text = f"a photo of <{name}> at the beach"
            ours, theirs = (handle.encode(text, encoder=one)["prompt_embeds"] for one in (None, encoder))
            torch.testing.assert_close(theirs, ours, **NEAR)


def test_unknown_names_and_unequal_lengths_are_refused(host):
    with sefi.attach(make_pipe(host), *make_people(host)) as handle:
        encoder = make_encoder(handle)
        with pytest.raises(PromptError, match="eve"):
            handle.encode("a photo of <eve>", encoder=encoder)
        with pytest.raises(PromptError):
            handle.encode("a photo of <ada>", "<bob>", encoder=encoder)
        with pytest.raises(PromptError, match="have 16 states, negative prompts 17"):
            handle.encode("a photo", "snow", encoder=lambda text: encoder(text)[:, : 16 if "photo" in text else 17])


def test_texts_of_any_other_length_are_refused(host):
    lengths = {"short": 17, "long": 34}

    def encode(text):
        return torch.zeros(1, lengths[text], host.token_width)

    with sefi.attach(make_pipe(host), *make_people(host)) as handle:
        cases = {
            "have 17 states, negative prompts 17 and 34": (["short", "short"], ["short", "long"]),
            "have 17 and 34 states, negative prompts 17": (["short", "long"], "short"),
            "have 17 states, negative prompts 34": ("short", "long"),
        }
        for message, texts in cases.items():
            with pytest.raises(PromptError, match=message):
                handle.encode(*texts, encoder=encode)
        assert handle.encode(["long", "long"], "long", encoder=encode)["prompt_embeds"].shape[:2] == (2, 34)


def test_an_earlier_layer_and_an_encoder_are_refused_together(host):
    with sefi.attach(make_pipe(host), *make_people(host), clip_skip=2) as handle:
        with pytest.raises(ConfigError, match="clip_skip=2") as refused:
            handle.encode("a photo of <ada>", encoder=lambda text: pytest.fail(f"{text!r} was encoded"))
        assert "Attach without clip_skip" in refused.value.remedy
        handle.encode("a photo of <ada>")


def test_words_have_names_that_no_identity_has():
    assert format_stage_word("ada", 0, 0, 0) == "<ada-0k>"
    assert format_stage_word("ada", 2, 1, 1) == "<ada-2v>_1"
