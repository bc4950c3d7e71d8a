"""Identities attached to a user's own diffusers pipeline: every layer reads its stage's text, and nothing is left."""

import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from tests.hosts.conftest import PROMPTS, list_layers, make_identity, make_people, make_pipe

import sefi
from sefi.backbone.bundle import copy_part
from sefi.core.errors import BackboneError, ConfigError, IdentityError, PromptError
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import create_scheduler, draw_initial_noise


@pytest.fixture
def pipe(backbone):
    return make_pipe(backbone)


@pytest.fixture
def people(backbone):
    return make_people(backbone)


def test_it_generates_what_sefi_generates(backbone, pipe, people):
    config = sefi.PRESETS["default"]
    config = config.model_copy(
        update={
            "generate": config.generate.model_copy(update={"steps": 10, "scheduler": "ddim", "guidance_scale": 4.0})
        }
    )
    image = sefi.generate("a photo of <ada>", [people[0]], backbone=backbone, config=config, seed=3)[0].pixels
    pipe.scheduler = create_scheduler(backbone, "ddim", 10)
    with sefi.attach(pipe, people[0]) as handle:
        mine = pipe(
            **handle.encode("a photo of <ada>"), latents=draw_initial_noise(backbone, [3]), num_inference_steps=10,
            guidance_scale=config.generate.guidance_scale, height=backbone.resolution, width=backbone.resolution,
        ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(image), np.asarray(mine))


def test_every_row_of_a_batch_has_its_own_timestep(backbone):
    """As in training and in pipelines that denoise several images at different steps."""
    people, pipe = make_people(backbone), make_pipe(backbone)
    conditioner = IdentityConditioner(backbone, people)
    noise = torch.zeros(3, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    handle = sefi.attach(pipe, *people)
    texts = handle.encode(PROMPTS)["prompt_embeds"]

    @given(st.lists(st.floats(0, 999.99) | st.integers(0, 999), min_size=3, max_size=3))
    @example([0.0, 333.5, 0.0])  # a border of three stages is between two timesteps
    @settings(max_examples=25)
    def check(times):
        seen = []
        hooks = [
            layer.register_forward_hook(lambda _module, args, _out, half=half: seen.append((half, args[0])))
            for half, layer in list_layers(pipe.unet)
        ]
        with torch.no_grad():
            pipe.unet(noise, torch.tensor(times, dtype=torch.float64), texts)
        for hook in hooks:
            hook.remove()
        # Texts of a batch are encoded together; a row may round differently alone.
        each = [conditioner.encode_prompts(list(PROMPTS), int(time)).states[row] for row, time in enumerate(times)]
        wanted = torch.stack(each)
        assert len(seen) == len(hooks)
        assert all(torch.equal(one, wanted.chunk(2, dim=-1)[half]) for half, one in seen)

    check()
    handle.detach()


def test_short_stages_have_their_own_texts(backbone, pipe):
    """27 and 25 stages have 675 in common, of one or two timesteps each."""
    people = [make_identity(backbone, "ada", 27, 1), make_identity(backbone, "bob", 25, 2)]
    prompt, total = "<ada> <bob>", backbone.num_train_timesteps
    conditioner = IdentityConditioner(backbone, people)
    keys = [conditioner.get_context_key(time) for time in range(total)]
    borders = [time for time in range(1, total) if keys[time] != keys[time - 1]]
    with sefi.attach(pipe, *people) as handle:
        texts = handle.encode(prompt)["prompt_embeds"]
        width = texts.shape[-1] // handle.stages
    wrong = []
    for time in borders:
        stage = handle.stages * time // total
        found = texts[..., stage * width : (stage + 1) * width]
        if not torch.equal(found, conditioner.encode_prompts([prompt], time).states):
            wrong.append(time)
    assert len(borders) == 50
    assert not wrong


def test_after_detaching_the_pipeline_is_what_it_was(backbone, pipe, people):
    def draw():
        return pipe(
            "a photo of a dog", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="np"
        )

    before, modes = draw().images, [module.training for module in pipe.unet.modules()]
    with sefi.attach(pipe, *people) as handle:
        assert np.array_equal(draw().images, before)  # a plain call in between
        pipe(**handle.encode("a photo of <ada> and <bob>"), num_inference_steps=3)
    assert np.array_equal(draw().images, before)
    assert [module.training for module in pipe.unet.modules()] == modes
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
    with pytest.raises(BackboneError, match="detached"):
        handle.encode("a photo of <ada>")


def test_what_cannot_be_attached_is_refused(backbone, pipe, people):
    with sefi.attach(pipe, people[0]) as handle:
        for prompt, negative in (("a photo of <eve>", ""), ("a photo", "<ada>"), ("\ud800", ""), ("a dog", "\ud800")):
            with pytest.raises(PromptError):
                handle.encode(prompt, negative)
    other = replace(people[0], header=people[0].header.model_copy(update={"base_model": "sd1:768:0123456789abcdef"}))
    with pytest.raises(sefi.SefiError, match="another model"):
        sefi.attach(pipe, other)
    pipe.vae = None
    with pytest.raises(BackboneError, match="without vae"):
        sefi.attach(pipe, *people)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -0.01, 2.01, -5, 1e30, "1", None])
def test_a_strength_is_a_number_from_0_to_2(pipe, people, strength):
    with pytest.raises(ConfigError, match="strength") as refused:
        sefi.attach(pipe, *people, strength=strength)
    assert "0 to 2" in refused.value.remedy
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_the_borders_of_the_strength_are_taken(pipe, people):
    for strength in (0, 2, 1.5):
        with sefi.attach(pipe, *people, strength=strength) as handle:
            assert handle.encode("<ada>")["prompt_embeds"].isfinite().all()


def test_no_negative_prompt_is_the_empty_one_as_in_diffusers(pipe, people):
    with sefi.attach(pipe, *people) as handle:
        wanted = handle.encode(["<ada>", "a dog"])
        for found in (handle.encode(["<ada>", "a dog"], None), handle.encode(("<ada>", "a dog"), ["", ""])):
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ([], ""),
        (5, ""),
        ([5], ""),
        (None, ""),
        ([None], ""),
        (b"a dog", ""),
        ("a dog", 5),
        ("a dog", [5]),
        ("a dog", []),
        ("a dog", ["snow", "cup"]),
        (["a dog", "a cup", "snow"], ["snow"]),
        (["a dog"], [None]),
    ],
)
def test_what_is_no_text_and_lists_of_other_lengths_are_refused(pipe, people, prompt, negative):
    with sefi.attach(pipe, *people) as handle:
        with pytest.raises(PromptError) as refused:
            handle.encode(prompt, negative)
        with pytest.raises(PromptError):  # also where another program encodes
            handle.encode(prompt, negative, encoder=lambda text: pytest.fail(f"{text!r} was encoded"))
    assert refused.value.remedy


def test_stages_that_would_take_all_memory_are_refused(backbone, pipe):
    people = [make_identity(backbone, f"p{stages}", stages, stages) for stages in (97, 89, 83, 1)]
    with pytest.raises(IdentityError, match=r"97.*89.*83") as refused:
        sefi.attach(pipe, *people)
    assert "'p97' has 97" in refused.value.problem
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
    fitting = [make_identity(backbone, f"p{stages}", stages, stages) for stages in (99, 10)]  # of 1000 timesteps
    with sefi.attach(pipe, *fitting) as handle:
        assert handle.stages == 990
    with sefi.attach(pipe, people[0]) as handle:
        assert handle.stages == 97


@pytest.mark.parametrize("detaches", [True, False])
def test_a_pipeline_that_nobody_holds_is_freed(backbone, people, detaches):
    pipe = make_pipe(replace(backbone, unet=copy.deepcopy(backbone.unet)))
    handle = sefi.attach(pipe, *people)
    pipe(**handle.encode("a photo of <ada>"), num_inference_steps=1, output_type="np")
    if detaches:
        handle.detach()
    watched = [weakref.ref(pipe), weakref.ref(pipe.unet)]
    del pipe, handle
    gc.collect()
    assert [one() for one in watched] == [None, None]


@pytest.mark.parametrize("duplicate", [copy_part, copy.deepcopy])
def test_a_copy_of_an_attached_unet_is_attached_by_itself(pipe, people, duplicate):
    def draw(one, texts):
        noise = torch.Generator().manual_seed(1)
        return one(**texts, generator=noise, num_inference_steps=2, output_type="np").images

    with sefi.attach(pipe, people[0]) as handle:
        texts = handle.encode("a photo of <ada>")
        other = make_pipe(replace(handle.conditioner.backbone, unet=duplicate(pipe.unet)))
        with pytest.raises(RuntimeError):  # of the text's width: nothing is attached to the copy
            draw(other, texts)
        with sefi.attach(other, people[0]):
            assert np.array_equal(draw(other, texts), draw(pipe, texts))
        assert draw(pipe, texts).size
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_an_attachment_that_fails_leaves_no_hook(backbone, pipe, people):
    pipe.controlnet = torch.nn.Linear(1, 1)  # no network of diffusers
    with pytest.raises(BackboneError, match="Linear"):
        sefi.attach(pipe, *people)
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        ("custom-diffusion", {"tokens": (1, 2, 2), "unet.block.attn2.to_k.weight": (2,)}),
        ("dreambooth", {"unet.conv_in.weight": (2,), "text_encoder.a": (2,)}),
        ("dreambooth-lora", {"unet.block.attn1.to_q.lora_A": (2,)}),
        ("fastcomposer", {"image": (1,), "composer": (1,)}),
        ("of another package", {"tokens": (1, 2, 1), "text_encoder_2.a": (2,)}),
    ],
)
def test_identities_that_are_more_than_tokens_are_refused(pipe, people, method, shapes):
    header = people[0].header.model_copy(update={"method": method, "stages": 1})
    more = {"tokens": (people[0].header.width,)}
    tensors = {name: torch.zeros(*shape, *more.get(name, (3,))) for name, shape in shapes.items()}
    with pytest.raises(IdentityError, match=f"{method}, which is more than tokens") as refused:
        sefi.attach(pipe, sefi.Identity(tensors, header))
    assert "sefi.generate" in refused.value.remedy
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_what_a_method_saved_of_its_tokens_attaches(pipe, people):
    """Celeb Basis keeps the basis and its coefficients for a reader; the tokens are all there is."""
    tensors = {**people[0].tensors, "coefficients": torch.zeros(2, 3), "basis": torch.zeros(2, 4, 5)}
    with sefi.attach(pipe, replace(people[0], tensors=tensors)) as handle:
        assert handle.encode("<ada>")["prompt_embeds"].isfinite().all()
