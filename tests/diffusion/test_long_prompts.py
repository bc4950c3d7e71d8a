"""Prompts longer than the model's text: divided as in AUTOMATIC1111, each chunk encoded alone, none lost."""

import logging

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, strategies as st
from tests.diffusion.test_prompt_weights import encode_empty, make_identity

import sefi
from sefi.core.config import Config, parse_config
from sefi.core.errors import REMARKS, PromptError
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.diffusion.attention_maps import record_attention
from sefi.diffusion.composer import ComposerConditioner, Fuse
from sefi.diffusion.conditioning import IdentityConditioner, WordsConditioner
from sefi.diffusion.text import (
    MAX_CHUNKS,
    PromptToken,
    describe_long_prompts,
    divide_tokens,
    parse_prompt,
    parse_template,
)

ROOM = 15  # of the tiny model
FIRST = "a photo of a person and a dog at the beach in the snow and"  # 15 words
SECOND = "<ada> smiling at the dog"
LONG = f"{FIRST} {SECOND}"


@pytest.fixture(params=["backbone", "sdxl"])
def model(request):
    return request.getfixturevalue(request.param)


def divide_as_automatic1111(commas, room, reach=20):
    """Return the lengths of chunks as `tokenize_line` of its `sd_hijack_clip.py` makes them.

    Args:
        commas: whether each token is a comma.
    """
    chunks, tokens, last_comma = [], [], -1
    for comma in commas:
        if comma:
            last_comma = len(tokens)
        elif reach != 0 and len(tokens) == room and last_comma != -1 and len(tokens) - last_comma <= reach:
            cut = last_comma + 1
            chunks.append(tokens[:cut])
            tokens, last_comma = tokens[cut:], -1
        if len(tokens) == room:
            chunks.append(tokens)
            tokens, last_comma = [], 0 if comma else -1
        tokens.append(comma)
    return [len(chunk) for chunk in [*chunks, tokens]]


@given(st.lists(st.booleans() | st.just(False) | st.just(False), max_size=250), st.sampled_from([15, 23, 75]))
def test_words_of_one_token_are_divided_as_in_automatic1111(commas, room):
    tokens = [PromptToken((n,), "," if comma else "x") for n, comma in enumerate(commas)]
    chunks = divide_tokens(tokens, room)
    assert [len(chunk) for chunk in chunks] == divide_as_automatic1111(commas, room)
    assert [token for chunk in chunks for token in chunk] == tokens


WORD_SIZES = st.lists(st.tuples(st.integers(1, 17), st.sampled_from([None, "ada", ","])), max_size=40)


@given(WORD_SIZES)
def test_words_and_placeholders_stay_whole(sizes):
    tokens, units = [], []
    for size, kind in sizes:
        size = 1 if kind == "," else min(size, ROOM) if kind else size
        name = "ada" if kind == "ada" else None
        unit = [PromptToken((len(tokens) + n,), kind or "x", name, ends=n == size - 1) for n in range(size)]
        tokens += unit
        units.append(unit)
    chunks = divide_tokens(tokens, ROOM)
    assert [token for chunk in chunks for token in chunk] == tokens
    assert all(0 < len(chunk) <= ROOM for chunk in chunks[1:])
    place = {token.ids: number for number, chunk in enumerate(chunks) for token in chunk}
    assert all(len({place[token.ids] for token in unit}) == 1 for unit in units if len(unit) <= ROOM)


def test_each_chunk_is_encoded_alone(model):
    identity = make_identity(model)
    conditioner = IdentityConditioner(model, [identity])
    long, first, second = (conditioner.encode_prompts([text], 400) for text in (LONG, FIRST, SECOND))
    torch.testing.assert_close(long.states, torch.cat([first.states, second.states], dim=1))
    if model.family == "sdxl":
        torch.testing.assert_close(long.pooled, first.pooled)
        assert torch.equal(long.extra["time_ids"], first.extra["time_ids"])
    weighted = conditioner.encode_prompts([LONG.replace("smiling", "(smiling:1.3)")], 400).states
    assert (weighted != long.states).any(dim=-1)[0].nonzero().flatten().tolist() == [17 + 3]


def test_a_prompt_that_fits_is_encoded_as_ever(model):
    parsed = parse_prompt(model, FIRST, {})
    assert parsed.ids.shape == (len(model.tokenizers), model.text_length)
    assert (parsed.length, parsed.word_places) == (17, tuple(range(17)))
    states = model.encode_text(parsed.ids[None]).states
    assert torch.equal(WordsConditioner(model, {}).encode_prompts([FIRST], 0).states, torch.cat([states] * 2, dim=-1))


def test_shorter_prompts_of_a_batch_go_on_with_the_empty_prompt(model):
    conditioner = IdentityConditioner(model, [make_identity(model)])
    both = conditioner.encode_prompts([SECOND, LONG], 400)
    alone = [conditioner.encode_prompts([text], 400) for text in (SECOND, LONG)]
    assert both.states.shape[1] == 2 * model.text_length
    assert torch.equal(both.states[0, : model.text_length], alone[0].states[0])
    assert torch.equal(both.states[1], alone[1].states[0])
    rest = both.states[0, model.text_length :]
    torch.testing.assert_close(rest, torch.cat([encode_empty(model)] * 2, dim=-1))
    if model.family == "sdxl":
        assert torch.equal(both.pooled, torch.cat([one.pooled for one in alone]))


def generate(model, prompts, identities=(), **settings):
    config = parse_config({"generate": {"steps": 6, "guidance_scale": 3.0, **settings}}, Config)
    made = sefi.generate(prompts, identities, backbone=model, config=config)
    return [np.asarray(one.pixels) for one in made]


@pytest.mark.slow
def test_images_of_prompts_and_negative_prompts_of_all_lengths(model):
    ada = [make_identity(model)]
    plain = generate(model, [LONG], ada)[0]
    changed = generate(model, [LONG.replace("smiling", "holding")], ada)[0]
    assert (plain != changed).any(), "the second chunk is read"
    avoided = generate(model, [SECOND], ada, negative_prompt=f"{FIRST} a cup")[0]
    assert (avoided != generate(model, [SECOND], ada, negative_prompt=FIRST)[0]).any()
    together = generate(model, [SECOND, LONG], ada, negative_prompt=f"{LONG.replace('<ada>', 'person')} {FIRST}")
    assert (together[0] != together[1]).any()


def test_too_long_prompts_and_long_sentences_to_learn_with_are_refused(backbone):
    whole = "dog " * (MAX_CHUNKS * ROOM)
    assert parse_prompt(backbone, whole, {}).ids.shape[-1] == MAX_CHUNKS * backbone.text_length
    with pytest.raises(PromptError, match="at most 8 times") as refused:
        parse_prompt(backbone, f"{whole} dog", {})
    assert "121 tokens" in refused.value.problem
    with pytest.raises(PromptError, match="15 tokens"):
        parse_template(backbone, LONG, {"ada": "person"})
    with pytest.raises(PromptError, match="<ada> stands for more than the 15 tokens"):
        parse_prompt(backbone, "<ada>", {"ada": "person"}, {"ada": 16})


def test_the_user_hears_that_a_prompt_is_divided(backbone, caplog):
    assert describe_long_prompts(backbone, [FIRST, FIRST], {}, {}) == []
    assert describe_long_prompts(backbone, ["<ada> " * 8], {"ada": "person"}, {"ada": 2})
    assert describe_long_prompts(backbone, [LONG], {}, {}) == []
    with caplog.at_level(logging.WARNING, REMARKS):
        generate(backbone, [LONG], [make_identity(backbone)])
    assert any("in 2 parts" in record.message for record in caplog.records)


def test_attention_maps_have_the_words_of_every_chunk(backbone):
    conditioner = IdentityConditioner(backbone, [make_identity(backbone)])
    config = parse_config({"generate": {"steps": 3, "guidance_scale": 3.0}}, Config)
    for negative in ("", f"{LONG.replace('<ada>', 'dog')} {FIRST}"):
        settings = config.generate.model_copy(update={"negative_prompt": negative})
        found = record_attention(backbone, conditioner, LONG, 0, settings, SilentProgress())
        words = ["(start)", *FIRST.split(), "(end)", "(start)", "<ada>", "<ada>", *SECOND.split()[1:], "(end)"]
        assert found.words == tuple(words)
        assert found.placeholders == (18, 19)
        assert len(found.maps) == len(found.reference_maps) == len(words)
        assert found.maps.sum() <= found.maps[0].numel() + 1e-3  # with the padding they sum to 1 in every cell


def test_the_class_words_maps_do_not_depend_on_the_negative_prompt_beside_them(backbone):
    conditioner = IdentityConditioner(backbone, [make_identity(backbone)], strength=0)
    config = parse_config({"generate": {"steps": 3, "guidance_scale": 3.0, "negative_prompt": "a dog"}}, Config)
    found = record_attention(backbone, conditioner, LONG, 0, config.generate, SilentProgress())
    torch.testing.assert_close(found.maps, found.reference_maps)


def test_an_attached_pipeline_takes_prompts_of_different_lengths(backbone):
    pipe = StableDiffusionPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet,
        scheduler=DDIMScheduler.from_config(backbone.scheduler.config, steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    ada = make_identity(backbone)
    with sefi.attach(pipe, ada) as handle:
        for prompts, negatives in (
            ([LONG, SECOND], ""),
            ([SECOND, SECOND], [f"{FIRST} {FIRST} a dog", FIRST]),
            ([SECOND, LONG], [FIRST, f"{FIRST} a cup"]),
        ):
            texts = handle.encode(prompts, negatives)
            assert texts["prompt_embeds"].shape == texts["negative_prompt_embeds"].shape
            pipe(**texts, num_inference_steps=3, output_type="np", height=24, width=24)
        context = IdentityConditioner(backbone, [ada]).encode_prompts([LONG, SECOND], 500).states
        embeds = handle.encode([LONG, SECOND])["prompt_embeds"]
    wide = context.shape[-1]
    torch.testing.assert_close(embeds[..., wide : 2 * wide], context)  # the middle of three stages


def test_images_are_fused_with_names_of_later_chunks(backbone):
    fuse = Fuse(backbone.token_width, 5).eval()
    features = {"ada": torch.randn(5, generator=create_generator(0, "features"))}
    conditioner = ComposerConditioner(backbone, fuse, features, {"ada": "person"}, alpha=1.0)
    long, second = (conditioner.encode_prompts([text], 400).states for text in (LONG, SECOND))
    torch.testing.assert_close(long[:, backbone.text_length :], second)
    assert conditioner.encode_prompts([LONG, SECOND], 400).states.shape == (2, *long.shape[1:])
