"""Tiny pipelines of diffusers, and what every layer of cross-attention in them really reads."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from tests.conftest import WIDTH, make_backbone, make_sdxl, make_unet, make_vae
from torch import Tensor
from transformers import CLIPTokenizer

import sefi
from sefi.backbone.bundle import Backbone
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.identity.file import Identity, IdentityHeader

# None, one and two names.
PROMPTS = ["a photo of <ada> and <bob> at the beach", "a photo of <bob>", "a photo of a dog"]
NEGATIVE = "snow"
BATCHES = ("p", "np", "npp")  # without guidance, with it, and with perturbed attention
LATENTS = 4  # the inpainting pipelines know 4 and 9 channels only


def mark_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Mark all cases slow but the quick ones: every row of the table has tests, some of them in each run."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def make_host(tokenizer: CLIPTokenizer, unet_channels: int = LATENTS, **unet: Any) -> Backbone:
    """Make a tiny Stable Diffusion with latents of 4 channels."""
    parts = make_backbone(tokenizer)
    vae = type(parts.vae).from_config({**make_vae().config, "latent_channels": LATENTS})
    # As arguments, not in the configuration: from that diffusers leaves out what it knows as a default.
    channels = {"in_channels": unet_channels, "out_channels": LATENTS}
    made = UNet2DConditionModel.from_config(make_unet(WIDTH).config, **channels, **unet)
    return replace(parts, vae=vae, unet=made, signature=None)


@pytest.fixture
def host(tokenizer: CLIPTokenizer) -> Backbone:
    """A tiny Stable Diffusion for this test alone."""
    return make_host(tokenizer)


@pytest.fixture
def host_xl(tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer) -> Backbone:
    """A tiny SDXL for this test alone, with latents of 4 channels."""
    made = make_sdxl(tokenizer, tokenizer_2)
    channels = {"in_channels": LATENTS, "out_channels": LATENTS}
    vae = type(made.vae).from_config({**made.vae.config, "latent_channels": LATENTS})
    return replace(
        made, vae=vae, unet=UNet2DConditionModel.from_config({**made.unet.config, **channels}), signature=None
    )


def make_pipe(backbone: Backbone, kind: type | None = None, **more: Any) -> Any:
    """Make a pipeline of a model's own parts with DDIM."""
    settings: dict[str, Any] = {"clip_sample": False, "steps_offset": 1}
    parts: dict[str, Any] = {"scheduler": DDIMScheduler.from_config(backbone.scheduler.config, **settings)}
    parts |= {name: getattr(backbone, name) for name in ("vae", "unet", "text_encoder", "tokenizer")}
    if backbone.family == "sdxl":
        parts |= {"text_encoder_2": backbone.text_encoder_2, "tokenizer_2": backbone.tokenizer_2}
        pipe = (kind or StableDiffusionXLPipeline)(**parts, **{"add_watermarker": False, **more})
    else:
        rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = (kind or StableDiffusionPipeline)(**parts, **{**rest, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_identity(backbone: Backbone, name: str, stages: int, seed: int, vectors: int = 1) -> Identity:
    """Make an identity of random tokens of this model."""
    shape = (stages, 2, backbone.token_width) if vectors == 1 else (stages, 2, vectors, backbone.token_width)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model=backbone.fingerprint, width=backbone.token_width,
        class_word="person", signature=backbone.signature.dump(),
        **({"widths": backbone.token_widths} if len(backbone.token_widths) > 1 else {}),
    )  # fmt: skip
    return Identity({"tokens": tokens}, header)


def make_people(backbone: Backbone) -> list[Identity]:
    """Make two identities, of 5 and of 3 stages."""
    return [make_identity(backbone, "ada", 5, 1), make_identity(backbone, "bob", 3, 2)]


@dataclass(frozen=True)
class Reading:
    """What a layer was really given: the network's timestep, key (0) or value (1), `[batch, word, width]`."""

    denoiser: int
    timestep: float
    half: int
    texts: Tensor
    thread: int


def list_layers(denoiser: torch.nn.Module) -> Iterator[tuple[int, torch.nn.Module]]:
    """Yield the layers of cross-attention that make keys (0) and values (1)."""
    for name, layer in denoiser.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            yield int(name.endswith("to_v")), layer


@contextmanager
def record_contexts(*denoisers: torch.nn.Module) -> Iterator[list[Reading]]:
    """Record what every `attn2.to_k` and `attn2.to_v` reads: forward hooks see inputs after all other hooks."""
    readings: list[Reading] = []
    times: dict[tuple[int, int], float] = {}
    handles = []

    def note_time(number: int) -> Callable:
        def note(module, args, kwargs):
            time = args[1] if len(args) > 1 else kwargs["timestep"]
            times[number, threading.get_ident()] = float(torch.as_tensor(time).flatten()[0])

        return note

    def note_texts(number: int, half: int) -> Callable:
        def note(module, args, output):
            thread = threading.get_ident()
            readings.append(Reading(number, times[number, thread], half, args[0].clone(), thread))

        return note

    for number, denoiser in enumerate(denoisers):
        handles.append(denoiser.register_forward_pre_hook(note_time(number), with_kwargs=True, prepend=True))
        handles += [layer.register_forward_hook(note_texts(number, half)) for half, layer in list_layers(denoiser)]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()


def count_wrong(
    readings: list[Reading],
    conditioner: IdentityConditioner,
    prompts: list[str],
    negative: str,
    *,
    copies: int = 1,
    batches: tuple[str, ...] = BATCHES,
) -> int:
    """Count the readings that differ in any bit from the independent contexts of their timestep.

    Where the denoiser's weights are stored in half precision, an attachment gives the texts in that: there they may
    differ by its rounding.

    Args:
        copies: images for each prompt.
        batches: what a batch may be: negative texts (n) and prompts (p), of which the first one of its length counts.
    """
    wrong = 0
    for reading in readings:
        texts = conditioner.encode_prompts(prompts, int(reading.timestep)).states
        positive = texts.chunk(2, dim=-1)[reading.half].repeat_interleave(copies, dim=0)
        null = conditioner.encode_negative(len(positive), negative).states.chunk(2, dim=-1)[reading.half]
        kinds = {"n": null, "p": positive}
        batch = next(one for one in batches if len(one) * len(positive) == len(reading.texts))
        expected = torch.cat([kinds[one] for one in batch])
        dtype = conditioner.backbone.dtype
        rounding = 0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps * expected.abs().amax().item()
        wrong += not (reading.texts - expected.to(reading.texts)).abs().amax().item() <= rounding
    return wrong


def count_hooks(*modules: torch.nn.Module) -> int:
    """Count the hooks before layers, of all kinds."""
    return sum(len(part._forward_pre_hooks) for module in modules for part in module.modules())


def draw(pipe: Any, **call: Any) -> Any:
    """Call a pipeline with seeded noise, `[image, height, width, channel]`."""
    return pipe(**{"output_type": "np", "generator": torch.Generator().manual_seed(1), **call}).images


def check_row(
    pipe: Any,
    backbone: Backbone,
    people: list[Identity],
    prompts: list[str] = PROMPTS,
    batches: tuple[str, ...] = BATCHES,
    negative: str = NEGATIVE,
    **call: Any,
) -> list[Reading]:
    """Check one row of the table: no wrong context while attached, and the same bits as before afterwards."""
    control = getattr(pipe, "controlnet", None)
    denoisers = [pipe.unet, *([] if control is None else getattr(control, "nets", [control]))]
    kind, hooks = type(pipe), count_hooks(*denoisers)
    copies = call.get("num_images_per_prompt", 1)
    plain = {name: value for name, value in call.items() if name != "num_images_per_prompt"}
    before = draw(pipe, prompt="a photo of a dog", **plain)
    with sefi.attach(pipe, *people) as handle, record_contexts(*denoisers) as readings:
        images = draw(pipe, **handle.encode(prompts, negative), **call)
    assert len(images) == len(prompts) * copies
    assert {reading.denoiser for reading in readings} == set(range(len(denoisers)))
    conditioner = IdentityConditioner(backbone, people)
    assert count_wrong(readings, conditioner, prompts, negative, copies=copies, batches=batches) == 0
    assert count_hooks(*denoisers) == hooks
    assert type(pipe) is kind
    after = draw(pipe, prompt="a photo of a dog", **plain)
    assert (after == before).all()
    return readings
