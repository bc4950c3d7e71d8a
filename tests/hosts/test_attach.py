"""Identities attached to a user's own diffusers pipeline: every layer reads its stage's text, and nothing is left."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

import sefi
from sefi.core.errors import BackboneError, PromptError
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import create_scheduler, draw_initial_noise
from sefi.identity.file import Identity, IdentityHeader

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
}


@pytest.fixture
def pipe(backbone):
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config, steps_offset=1, clip_sample=False)
    made = StableDiffusionPipeline(
        vae=backbone.vae, text_encoder=backbone.text_encoder, tokenizer=backbone.tokenizer, unet=backbone.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def make_identity(backbone, name, stages, seed):
    tokens = torch.randn((stages, 2, backbone.token_width), generator=torch.Generator().manual_seed(seed))
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model=backbone.fingerprint, width=backbone.token_width,
        class_word="person", signature=backbone.signature.dump(),
    )  # fmt: skip
    return Identity({"tokens": tokens}, header)


@pytest.fixture
def people(backbone):
    return [make_identity(backbone, "ada", 5, 1), make_identity(backbone, "bob", 3, 2)]


def record_texts(pipe):
    """Record what every `to_k` and `to_v` of cross-attention reads, with the timestep of the call."""
    calls, now = [], []

    def note_timestep(_module, args, kwargs):
        now.append(float(args[1] if len(args) > 1 else kwargs["timestep"]))

    def watch(layer, half):
        original = layer.forward

        def forward(texts):
            calls.append((now[-1], half, texts.clone()))
            return original(texts)

        layer.forward = forward
        handles.append(layer)

    handles = [pipe.unet.register_forward_pre_hook(note_timestep, with_kwargs=True, prepend=True)]
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            watch(layer, int(name.endswith("to_v")))
    return calls, handles


def release(handles):
    handles[0].remove()
    for layer in handles[1:]:
        del layer.forward


PROMPTS = ["a photo of <ada> and <bob> at the beach", "a photo of <bob>", "a photo of a dog"]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_every_layer_reads_the_text_of_its_stage(backbone, pipe, people, name, guidance):
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    conditioner = IdentityConditioner(backbone, people)
    with sefi.attach(pipe, *people) as handle:
        texts = handle.encode(PROMPTS)
        calls, handles = record_texts(pipe)
        try:
            pipe(**texts, num_inference_steps=7, guidance_scale=guidance, output_type="latent")
        finally:
            release(handles)
    assert len(calls) > 7
    for timestep, half, found in calls:
        # Heun's steps lie between whole timesteps; a stage begins at a whole one.
        wanted = conditioner.encode_prompts(PROMPTS, int(timestep)).states.chunk(2, dim=-1)[half]
        torch.testing.assert_close(found[-len(PROMPTS) :], wanted, atol=2e-6, rtol=1e-5)


def test_it_generates_what_sefi_generates(backbone, pipe, people):
    config = sefi.PRESETS["default"]
    config = config.model_copy(
        update={"generate": config.generate.model_copy(update={"steps": 10, "scheduler": "ddim"})}
    )
    image = sefi.generate("a photo of <ada>", [people[0]], backbone=backbone, config=config, seed=3)[0].pixels
    pipe.scheduler = create_scheduler(backbone, "ddim", 10)
    with sefi.attach(pipe, people[0]) as handle:
        mine = pipe(
            **handle.encode("a photo of <ada>"), latents=draw_initial_noise(backbone, [3]), num_inference_steps=10,
            guidance_scale=config.generate.guidance_scale, height=backbone.resolution, width=backbone.resolution,
        ).images[0]  # fmt: skip
    assert np.abs(np.asarray(image, int) - np.asarray(mine, int)).max() <= 1


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


def test_two_handles_and_two_threads_share_a_pipeline(backbone, pipe, people):
    ada, bob = people
    texts = {}
    with sefi.attach(pipe, ada) as first, sefi.attach(pipe, bob, strength=0.7) as second:
        texts = {"ada": first.encode("a photo of <ada>"), "bob": second.encode("a photo of <bob>")}
        pipes = {name: StableDiffusionPipeline(**pipe.components) for name in texts}
        for one in pipes.values():
            one.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
            one.set_progress_bar_config(disable=True)

        def draw(name):
            seeded = torch.Generator().manual_seed(5)
            return pipes[name](**texts[name], num_inference_steps=5, generator=seeded, output_type="np").images

        alone = {name: draw(name) for name in texts}
        wrong = []

        def repeat(name):
            wrong.extend(name for _ in range(10) if not np.array_equal(draw(name), alone[name]))

        threads = [threading.Thread(target=repeat, args=(name,)) for name in texts for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        first.detach()
        assert np.array_equal(draw("bob"), alone["bob"])  # the other handle's hooks stay
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_image_to_image_and_other_sizes(backbone, pipe, people):
    side = backbone.resolution
    change = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    change.set_progress_bar_config(disable=True)
    with sefi.attach(change, *people) as handle:
        photo = Image.radial_gradient("L").convert("RGB").resize((side, side))
        texts = handle.encode(PROMPTS[0], negative="snow")
        assert change(**texts, image=photo, strength=0.5, num_inference_steps=8).images[0].size == (side, side)
        images = pipe(**texts, num_inference_steps=3, num_images_per_prompt=2, height=side, width=2 * side).images
        assert [image.size for image in images] == [(2 * side, side)] * 2


def test_what_cannot_be_attached_is_refused(backbone, pipe, people):
    with sefi.attach(pipe, people[0]) as handle, pytest.raises(PromptError):
        handle.encode("a photo of <eve>")
    other = replace(people[0], header=people[0].header.model_copy(update={"base_model": "sd1:768:0123456789abcdef"}))
    with pytest.raises(sefi.SefiError, match="another model"):
        sefi.attach(pipe, other)
    pipe.vae = None
    with pytest.raises(BackboneError, match="without vae"):
        sefi.attach(pipe, *people)


def test_an_attachment_that_fails_leaves_no_hook(backbone, pipe, people):
    pipe.controlnet = torch.nn.Linear(1, 1)  # no network of diffusers, which is found after the UNet was hooked
    with pytest.raises(AttributeError):
        sefi.attach(pipe, *people)
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
