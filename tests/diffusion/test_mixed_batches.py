"""A batch mixes any identities and prompts: images as of each alone, texts encoded together, projected once a stage."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, strategies as st
from tests.hosts.conftest import make_identity

import sefi
from sefi.core.config import DEFAULT, GenerateSettings, override
from sefi.core.progress import SilentProgress
from sefi.diffusion import conditioning, sampling
from sefi.diffusion.attention import copy_with_key_value_attention, reuse_projections
from sefi.diffusion.composer import ComposerConditioner, Fuse
from sefi.diffusion.conditioning import MOST_ENCODED, IdentityConditioner, RecentEncodings, WordsConditioner
from sefi.diffusion.sampling import sample_images
from sefi.identity.file import Identity

COUNT = 16
QUICK = override(DEFAULT, ["generate.steps=5", f"generate.batch_size={COUNT}"])
SCENES = ("at the beach", "in snow", "holding a cup", "smiling and in the snow")


@pytest.fixture(scope="module")
def people(backbone):
    """Sixteen identities far from each other; of different numbers of stages, three of one stage."""
    return [make_identity(backbone, f"p{n}", 1 if n % 7 == 3 else 5, n) for n in range(COUNT)]


@pytest.fixture(scope="module")
def prompts():
    return [f"a photo of <p{n}> {SCENES[n % len(SCENES)]}" for n in range(COUNT)]


def read_pixels(images):
    return np.stack([np.asarray(one.pixels, dtype=np.int16) for one in images])


@pytest.mark.slow
def test_sixteen_identities_in_a_batch_are_the_images_of_each_alone(backbone, people, prompts):
    together = read_pixels(sefi.generate(prompts, people, backbone=backbone, config=QUICK, seed=11))
    alone = read_pixels(
        [
            sefi.generate(prompt, one, backbone=backbone, config=QUICK, seed=11)[0]
            for prompt, one in zip(prompts, people, strict=True)
        ]
    )
    assert np.abs(together - alone).max() <= 1
    # The seed is one, so only who is named and where makes the difference: each is nearest to its own.
    distances = np.abs(together[:, None] - alone[None]).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(COUNT)).all()
    assert np.partition(distances, 1, axis=1)[:, 1].min() > distances.diagonal().max()


def test_prompts_are_encoded_together_and_are_the_same_texts(backbone, people, prompts, monkeypatch):
    calls = []
    encode = type(backbone).encode_text

    def count(self, ids, *rest):
        calls.append(len(ids))
        return encode(self, ids, *rest)

    conditioner = IdentityConditioner(backbone, people)
    single = torch.cat([IdentityConditioner(backbone, people).encode_prompts([one], 700).states for one in prompts])
    monkeypatch.setattr(type(backbone), "encode_text", count)
    assert torch.allclose(conditioner.encode_prompts(prompts, 700).states, single, atol=1e-6)
    assert calls == [2 * COUNT]
    conditioner.encode_prompts(prompts[:3], 700)
    assert calls == [2 * COUNT]
    monkeypatch.setattr(conditioning, "ENCODED_AT_ONCE", 5)
    IdentityConditioner(backbone, people).encode_prompts(prompts, 700)
    assert calls[1:] == [10, 10, 10, 2]


def test_a_stage_that_was_encoded_is_held_for_itself(backbone, people, prompts):
    conditioner = IdentityConditioner(backbone, people)
    for timestep in (999, 700, 300, 0, 700):
        fresh = IdentityConditioner(backbone, people).encode_prompts(prompts[:2], timestep)
        assert torch.equal(conditioner.encode_prompts(prompts[:2], timestep).states, fresh.states), timestep


def test_prompts_of_many_names_are_encoded_a_few_at_a_time(backbone, people, monkeypatch):
    """Of each name there is a version, so that fewer prompts share a call; at least one is in each."""
    calls = []
    encode = type(backbone).encode_text

    def count(self, ids, *rest):
        calls.append(len(ids))
        return encode(self, ids, *rest)

    monkeypatch.setattr(type(backbone), "encode_text", count)
    several = [f"<p{n}> and <p{n + 1}> and <p{n + 2}>" for n in range(5)]
    IdentityConditioner(backbone, people).encode_prompts(several, 700)
    assert calls == [2 * 4 * 4, 2 * 4]
    monkeypatch.setattr(conditioning, "ENCODED_AT_ONCE", 3)
    IdentityConditioner(backbone, people).encode_prompts(several[:2], 700)
    assert calls[2:] == [2 * 4, 2 * 4]


def test_long_short_and_weighted_prompts_in_one_batch(backbone, people):
    conditioner = IdentityConditioner(backbone, people)
    long = "a photo of <p1> " + "at the beach and in the snow " * 4
    prompts = [long, "a photo of (<p2>:1.3) smiling", "<p3>", "a dog", f"<p4> {long}"]
    together = conditioner.encode_prompts(prompts, 300).states
    for prompt, states in zip(prompts, together, strict=True):
        alone = IdentityConditioner(backbone, people).encode_prompts([prompt], 300).states[0]
        assert torch.allclose(states[: len(alone)], alone, atol=1e-6)
    plain = conditioner.encode_prompts(["a photo of <p2> smiling"], 300).states[0]
    assert not torch.allclose(together[1, : len(plain)], plain, atol=1e-3)


LONG = "a photo of <p1> " + "at the beach and in the snow " * 4  # 32 words, of which a chunk takes 15


def generate_alone(prompts, backbone, people, **settings):
    """Generate each prompt in a call of its own."""
    named = [[people[int(n)] for n in re.findall(r"<p(\d+)>", prompt)] for prompt in prompts]
    return read_pixels(
        [
            sefi.generate(prompt, who, backbone=backbone, config=QUICK, seed=11, **settings)[0]
            for prompt, who in zip(prompts, named, strict=True)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("negative", ["", "a dog " * 12])
def test_a_long_prompt_changes_no_image_of_the_others(backbone, people, negative):
    prompts = ["a photo of <p2> smiling", "a dog in snow", LONG, f"<p4> {LONG}", "a photo of <p3>"]
    settings = {"guidance_scale": 6.0, "negative_prompt": negative}
    together = sefi.generate(prompts, people[1:5], backbone=backbone, config=QUICK, seed=11, **settings)
    assert [image.prompt for image in together] == prompts
    alone = generate_alone(prompts, backbone, people, **settings)
    assert np.abs(read_pixels(together) - alone).max() <= 1


def test_prompts_of_one_length_share_a_batch(backbone, people, monkeypatch):
    sizes = []
    sample = sampling.sample_batch

    def note(model, pipeline, prompts, *rest):
        sizes.append(len(prompts))
        return sample(model, pipeline, prompts, *rest)

    monkeypatch.setattr(sampling, "sample_batch", note)
    prompts = ["<p1>", "a dog", LONG, "a cup", "a person", "a photo"]
    settings = {"steps": 1, "batch_size": 2, "guidance_scale": 2.0, "backbone": backbone, "config": QUICK}
    for negative, wanted in (("", [2, 1, 2, 1]), ("a dog " * 24, [2, 2, 2])):  # read with four chunks, all of them
        sizes.clear()
        sefi.generate(prompts, people[1], negative_prompt=negative, **settings)
        assert sizes == wanted


@given(chunks=st.lists(st.integers(1, 3), max_size=20), start=st.integers(0, 20), size=st.integers(1, 6))
def test_batches_end_where_they_are_full_or_the_length_changes(chunks, start, size):
    ends = list(sampling.list_batch_ends(chunks, start, size))
    begins = [start, *ends][: len(ends)]
    batches = [chunks[begin:end] for begin, end in zip(begins, ends, strict=True)]
    assert [one for batch in batches for one in batch] == chunks[start:]
    assert all(1 <= len(batch) <= size and len(set(batch)) == 1 for batch in batches)
    for batch, following in pairwise(batches):  # none ends early
        assert len(batch) == size or batch[-1] != following[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda backbone: IdentityConditioner(backbone, []),
        lambda backbone: WordsConditioner(backbone, {}),
        lambda backbone: ComposerConditioner(backbone, Fuse(backbone.token_width, 5), {}, {}, alpha=0.5),
    ],
    ids=["identities", "words", "composer"],
)
def test_many_prompts_do_not_fill_the_memory(backbone, make):
    conditioner = make(backbone)
    for n in range(MOST_ENCODED + 5):
        conditioner.encode_prompts([f"a photo of a (cup:{1 + n / 1000})"], 0)
    assert len(conditioner.encodings) == MOST_ENCODED


def test_the_prompts_that_were_asked_for_last_are_held(backbone, people):
    encodings = RecentEncodings(most=2)
    first, *others = IdentityConditioner(backbone, people).encode_prompts(["a dog", "a cup", "snow"], 0).chunk(3)
    encodings.add(first, "a dog", 0)
    encodings.add(first, "a dog", 1)
    encodings.add(others[0], "a cup", 0)
    assert encodings.find("a dog", 1) is first  # of a prompt all stages are held
    encodings.add(others[1], "snow", 0)
    assert [encodings.find(one, 0) for one in ("a dog", "a cup", "snow")] == [first, None, others[1]]
    assert encodings.find("a dog", 2) is None


def test_more_prompts_at_once_than_are_held_are_encoded_all_the_same(backbone, people, prompts):
    conditioner = IdentityConditioner(backbone, people)
    wanted = conditioner.encode_prompts(prompts, 700)
    conditioner.encodings = RecentEncodings(most=3)
    for _ in range(2):
        assert torch.allclose(conditioner.encode_prompts(prompts, 700).states, wanted.states, atol=1e-6)


def count_projections(monkeypatch):
    """Count how often texts are projected to keys; returns the list that grows."""
    calls = []
    forward = torch.nn.Linear.forward

    def count(self, x):
        if x.shape[-1] == self.in_features and x.shape[1] == 17:  # words
            calls.append(id(self))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", count)
    return calls


def test_a_stage_projects_its_texts_once(backbone, people, prompts, monkeypatch):
    conditioner = IdentityConditioner(backbone, [people[0]])
    conditioner.encode_negative(1, "")
    for t in (999, 700, 500, 300, 100):
        conditioner.encode_prompts(prompts[:1], t)
    calls = count_projections(monkeypatch)
    settings = GenerateSettings(steps=23)
    (image,) = sample_images(backbone, conditioner, prompts[:1], [5], settings, SilentProgress())
    layers = sum(isinstance(one, Attention) and one.is_cross_attention for one in backbone.unet.modules())
    assert len(calls) == 2 * layers * 5  # keys and values of five stages, not of 23 steps
    assert image.pixels.size == (24, 24)


def test_what_was_projected_changes_no_image_and_is_not_held(backbone, people, prompts, monkeypatch):
    reused = sefi.generate(prompts[:3], people[:3], backbone=backbone, config=QUICK, seed=3)
    monkeypatch.setattr("sefi.diffusion.sampling.reuse_projections", lambda *_: torch.no_grad())
    plain = sefi.generate(prompts[:3], people[:3], backbone=backbone, config=QUICK, seed=3)
    assert (read_pixels(reused) == read_pixels(plain)).all()


def test_another_context_and_one_changed_in_place_are_projected_anew(backbone):
    unet = copy_with_key_value_attention(backbone.unet)
    latents, step = torch.randn(1, 3, 12, 12), torch.tensor(400)
    contexts = [torch.randn(1, 17, 48, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    with torch.no_grad():
        fresh = [unet(latents, step, one).sample for one in contexts]
        with reuse_projections(unet):
            first = contexts[0].clone()
            assert torch.equal(unet(latents, step, first).sample, fresh[0])
            assert torch.equal(unet(latents, step, first).sample, fresh[0])
            assert torch.equal(unet(latents, step, contexts[1]).sample, fresh[1])
            assert torch.equal(unet(latents, step, first).sample, fresh[0])
            first.copy_(contexts[1])
            assert torch.equal(unet(latents, step, first).sample, fresh[1])
    for processor in unet.attn_processors.values():
        assert getattr(processor, "projected", None) is None
        assert not getattr(processor, "reuses", False)


def test_an_identity_is_not_changed_by_a_batch(backbone, people, prompts):
    before = [one.tokens.clone() for one in people]
    sefi.generate(prompts, people, backbone=backbone, config=QUICK)
    assert all(torch.equal(one.tokens, tokens) for one, tokens in zip(people, before, strict=True))


def test_a_different_seed_of_tokens_is_another_image(backbone, people, prompts):
    """The comparison above can fail: exchanged tokens are seen."""
    wrong = Identity(people[1].tensors, replace_name(people[0], people[1]))
    right = read_pixels(sefi.generate(prompts[0], people[0], backbone=backbone, config=QUICK))
    exchanged = read_pixels(sefi.generate(prompts[0], wrong, backbone=backbone, config=QUICK))
    assert np.abs(right - exchanged).max() > 1


def replace_name(named, other):
    return other.header.model_copy(update={"name": named.name})
