"""Pipelines with something loaded, offloaded, fused, compiled or copied: right, or refused with what to do."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.hooks import apply_group_offloading
from PIL import Image
from tests.hosts.conftest import (
    NEGATIVE,
    PROMPTS,
    check_row,
    count_hooks,
    count_wrong,
    draw,
    make_host,
    make_people,
    make_pipe,
    mark_slow,
    record_contexts,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import sefi
from sefi.core.errors import BackboneError
from sefi.diffusion.conditioning import IdentityConditioner

FEW = {"num_inference_steps": 5, "guidance_scale": 4.0}
SIDE = 28  # of the images that the image encoder sees


def check_contexts(pipe, backbone, people, handle, **call):
    """Check the contexts of one call while attached."""
    with record_contexts(pipe.unet) as readings:
        images = draw(pipe, **handle.encode(PROMPTS, NEGATIVE), **FEW, **call)
    assert readings
    assert count_wrong(readings, IdentityConditioner(backbone, people), PROMPTS, NEGATIVE) == 0
    return images


# ------------------------------------------------------------------ LoRA


def make_lora(backbone, seed=3, rank=2):
    """Make a LoRA of every attention projection, and of the text encoder's."""
    generator, state = torch.Generator().manual_seed(seed), {}
    roots = {"unet": (backbone.unet, ("to_q", "to_k", "to_v")), "text_encoder": (backbone.text_encoder, ("q_proj",))}
    for root, (module, kinds) in roots.items():
        for name, layer in module.named_modules():
            if name.endswith(kinds):
                out, width = layer.weight.shape
                for half, shape in {"lora_A": (rank, width), "lora_B": (out, rank)}.items():
                    state[f"{root}.{name}.{half}.weight"] = 0.5 * torch.randn(shape, generator=generator)
    return state


@pytest.mark.slow
def test_a_lora_loaded_before(host):
    people, pipe = make_people(host), make_pipe(host)
    bare = draw(pipe, prompt=PROMPTS[2], **FEW)
    pipe.load_lora_weights(make_lora(host), adapter_name="style")
    assert not np.array_equal(draw(pipe, prompt=PROMPTS[2], **FEW), bare)
    with sefi.attach(pipe, *people) as handle:
        assert not handle.remarks  # the model is the one of the identities; the LoRA lies beside it
    check_row(pipe, host, people, **FEW)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe, prompt=PROMPTS[2], **FEW), bare)


@pytest.mark.slow
def test_a_lora_loaded_while_attached(host):
    """The LoRA replaces layers that have hooks already, and changes texts that were encoded before."""
    people, pipe = make_people(host), make_pipe(host)
    before = draw(pipe, prompt=PROMPTS[2], **FEW)
    with sefi.attach(pipe, *people) as handle:
        bare = check_contexts(pipe, host, people, handle)
        pipe.load_lora_weights(make_lora(host), adapter_name="style")
        loaded = check_contexts(pipe, host, people, handle)
        pipe.set_adapters("style", 0.3)
        weak = check_contexts(pipe, host, people, handle)
        pipe.unload_lora_weights()
        assert np.array_equal(check_contexts(pipe, host, people, handle), bare)
        pipe.load_lora_weights(make_lora(host, seed=4), adapter_name="other")
        check_contexts(pipe, host, people, handle)
        pipe.unload_lora_weights()
    assert np.abs(loaded - bare).max() > np.abs(weak - bare).max() > 0
    assert count_hooks(pipe.unet) == 0
    assert np.array_equal(draw(pipe, prompt=PROMPTS[2], **FEW), before)


@pytest.mark.slow
def test_a_lora_fused_into_the_weights(host):
    people, pipe = make_people(host), make_pipe(host)
    with sefi.attach(pipe, *people) as handle:
        bare = check_contexts(pipe, host, people, handle)
        pipe.load_lora_weights(make_lora(host), adapter_name="style")
        loaded = check_contexts(pipe, host, people, handle)
        pipe.fuse_lora()
        fused = check_contexts(pipe, host, people, handle)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    assert np.abs(fused - loaded).max() < 1e-3 < np.abs(loaded - bare).max()


# ------------------------------------------------------------------ images as prompts, textual inversion


def load_ip_adapter(pipe, width):
    """Load an adapter with a tiny image encoder, as its published files are laid out."""
    torch.manual_seed(6)
    size = {"hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**size, image_size=SIDE, patch_size=14, projection_dim=10)
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=CLIPImageProcessor(size=SIDE, crop_size=SIDE),
    )
    words = 4
    project = {"proj.weight": torch.randn(words * width, 10), "proj.bias": torch.zeros(words * width)}
    project |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    layers = [name for name in pipe.unet.attn_processors if ".attn2." in name]
    state = {}
    for number, name in enumerate(layers):
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        for half in ("to_k_ip", "to_v_ip"):
            state[f"{2 * number + 1}.{half}.weight"] = torch.randn(attention.to_k.weight.shape)
    pipe.load_ip_adapter({"image_proj": project, "ip_adapter": state}, subfolder="", weight_name="")


@pytest.mark.slow
def test_an_ip_adapter(host):
    people, pipe = make_people(host), make_pipe(host)
    load_ip_adapter(pipe, host.unet.config["cross_attention_dim"])
    processors = dict(pipe.unet.attn_processors)
    picture = Image.radial_gradient("L").convert("RGB")
    check_row(pipe, host, people, ip_adapter_image=picture, **FEW)
    assert pipe.unet.attn_processors == processors
    with sefi.attach(pipe, *people) as handle:
        assert not handle.remarks
        strong = check_contexts(pipe, host, people, handle, ip_adapter_image=picture)
        pipe.set_ip_adapter_scale(0.0)
        assert not np.array_equal(check_contexts(pipe, host, people, handle, ip_adapter_image=picture), strong)


def load_words(pipe, backbone):
    """Load two textual inversions: `toy` of one vector, `hat` of three."""
    generator = torch.Generator().manual_seed(8)
    for word, vectors in (("toy", 1), ("hat", 3)):
        pipe.load_textual_inversion(torch.randn(vectors, backbone.token_width, generator=generator), token=word)


@pytest.mark.slow
@pytest.mark.parametrize("early", mark_slow([True, False], [False]))
def test_a_textual_inversion(tokenizer, early):
    """The pipeline's own words mean in `encode` what they mean in the pipeline, several vectors included."""
    host = make_host(copy.deepcopy(tokenizer))
    people, pipe = make_people(host), make_pipe(host)
    if early:
        load_words(pipe, host)
    with sefi.attach(pipe, *people) as handle:
        assert not handle.remarks
        before = handle.encode("a photo of <ada>")
        if not early:
            load_words(pipe, host)
        assert torch.equal(handle.encode("a photo of <ada>")["prompt_embeds"], before["prompt_embeds"])
        text = "a photo of a toy and a hat at the beach"
        wanted, _ = pipe.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
        found = handle.encode(text, "a hat")
        halves = found["prompt_embeds"].chunk(2 * handle.stages, dim=-1)
        assert all(torch.allclose(half, wanted, atol=2e-6) for half in halves)
        avoided, _ = pipe.encode_prompt("a hat", "cpu", 1, do_classifier_free_guidance=False)
        assert torch.allclose(found["negative_prompt_embeds"][..., : host.token_width], avoided, atol=2e-6)
        both = handle.encode("a photo of <ada> and a toy")["prompt_embeds"]
        assert not torch.equal(both, handle.encode("a photo of <ada> and a dog")["prompt_embeds"])
        images = check_contexts(pipe, host, people, handle)
        assert np.isfinite(images).all()


# ------------------------------------------------------------------ memory and speed


@pytest.mark.parametrize("early", mark_slow([True, False], [False]))
def test_offloading_of_whole_networks(host, tokenizer, early):
    """What `enable_model_cpu_offload` does: a hook of accelerate on every network."""
    people, pipe = make_people(host), make_pipe(host)

    def offload():
        for network in (pipe.text_encoder, pipe.unet, pipe.vae):
            cpu_offload_with_hook(network, "cpu")

    if early:
        offload()
        check_row(pipe, make_host(tokenizer), people, **FEW)
    else:
        with sefi.attach(pipe, *people) as handle:
            offload()
            check_contexts(pipe, make_host(tokenizer), people, handle)
    assert hasattr(pipe.text_encoder, "_hf_hook")
    assert "forward" in vars(pipe.text_encoder)


@pytest.mark.parametrize(
    ("part", "message"), [("text_encoder", "piece by piece"), ("unet", "sequential offloading"), ("vae", "sequential")]
)
def test_sequential_offloading_is_refused(host, part, message):
    people, pipe = make_people(host), make_pipe(host)
    cpu_offload(getattr(pipe, part), "cpu")
    with pytest.raises(BackboneError, match=message):
        sefi.attach(pipe, *people)
    assert count_hooks(pipe.text_encoder) == 0


@pytest.mark.slow
def test_weights_stored_in_another_type(host):
    people, pipe = make_people(host), make_pipe(host)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    with sefi.attach(pipe, *people) as handle, record_contexts(pipe.unet) as readings:
        draw(pipe, **handle.encode(PROMPTS, NEGATIVE), **FEW)
    assert count_wrong(readings, IdentityConditioner(host, people), PROMPTS, NEGATIVE) == 0


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float16])
def test_texts_are_as_fine_as_the_text_encoder_where_the_unet_is_stored_coarser(host, storage):
    pipe = make_pipe(host)
    with sefi.attach(pipe, *make_people(host)) as handle:
        wanted = handle.encode(PROMPTS[:1], NEGATIVE)
        pipe.unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        found = handle.encode(PROMPTS[:1], NEGATIVE)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        plain, _ = pipe.encode_prompt("a photo of a dog", "cpu", 1, False)
        assert {one.dtype for one in found.values()} == {plain.dtype} == {torch.float32}
        draw(pipe, **found, **FEW)


def test_texts_are_made_where_the_text_encoder_is(host):
    """The meta device stands for an accelerator that only the UNet is on."""
    pipe = make_pipe(host)
    with sefi.attach(pipe, *make_people(host)) as handle:
        wanted = handle.encode(PROMPTS, NEGATIVE)
        pipe.unet = pipe.unet.to("meta")
        found = handle.encode(PROMPTS, NEGATIVE)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_texts_of_sdxl_are_made_where_each_text_encoder_is(host_xl):
    ids = torch.zeros(1, 2, host_xl.text_length, dtype=torch.long)
    rows, mask = torch.zeros(1, host_xl.text_length, host_xl.token_width), torch.ones_like(ids[:, 0], dtype=torch.bool)
    seen = []
    for encoder in host_xl.text_encoders:
        encoder.get_input_embeddings().register_forward_hook(
            lambda _module, args, out: seen.append((args[0].device.type, out.device.type))
        )
    host_xl.unet.to("meta")
    assert host_xl.encode_text(ids, rows, mask).states.device.type == "cpu"
    assert seen == [("cpu", "cpu")] * 2
    seen.clear()
    host_xl.text_encoder_2.to("meta")
    with pytest.raises(NotImplementedError, match="meta tensor"):  # where its states are moved: they have no values
        host_xl.encode_text(ids, rows, mask)
    assert seen == [("cpu", "cpu"), ("meta", "meta")]


def test_offloading_in_groups(host):
    """Of the UNet it works; of the text encoder it is refused, since a copy of it would run the original's hooks."""
    people, pipe = make_people(host), make_pipe(host)
    where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu"), "offload_type": "leaf_level"}
    apply_group_offloading(pipe.unet, **where)
    with sefi.attach(pipe, *people) as handle:
        check_contexts(pipe, host, people, handle)
    apply_group_offloading(pipe.text_encoder, **where)
    with pytest.raises(BackboneError, match="piece by piece"):
        sefi.attach(pipe, *people)


@pytest.mark.slow
def test_fused_projections_are_refused(host):
    people, pipe = make_people(host), make_pipe(host)
    for early in (True, False):
        before = draw(pipe, prompt=PROMPTS[2], **FEW)
        if early:
            pipe.fuse_qkv_projections()
        with sefi.attach(pipe, *people) as handle:
            assert not handle.remarks
            texts = handle.encode(PROMPTS)
            if not early:
                draw(pipe, **texts, **FEW)
                pipe.fuse_qkv_projections()
            with pytest.raises(BackboneError, match="unfuse_qkv_projections"):
                draw(pipe, **texts, **FEW)
            assert np.allclose(draw(pipe, prompt=PROMPTS[2], **FEW), before, atol=1e-4)
            pipe.unfuse_qkv_projections()
            check_contexts(pipe, host, people, handle)
        assert np.array_equal(draw(pipe, prompt=PROMPTS[2], **FEW), before)


COMPILED = product(["wrapped before", "wrapped after", "in place"], [False, True])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "used"),
    [pytest.param(*case, marks=[] if all(case[1:]) else pytest.mark.thorough) for case in COMPILED],
)
def test_a_compiled_unet(host, place, used):
    """With dynamo alone, which traces and guards; what a backend makes of the graphs is not looked at."""
    torch._dynamo.reset()
    people, pipe = make_people(host), make_pipe(host)
    unet = pipe.unet
    before = draw(pipe, prompt=PROMPTS[2], **FEW)
    with sefi.attach(pipe, *people) as handle:
        wanted = draw(pipe, **handle.encode(PROMPTS, NEGATIVE), **FEW)
    if place == "in place":
        unet.compile(backend="eager")
    elif place == "wrapped before":
        pipe.unet = torch.compile(unet, backend="eager")
    if used:  # compiled without hooks first
        draw(pipe, prompt=PROMPTS[2], **FEW)
    with sefi.attach(pipe, *people) as handle:
        assert not handle.remarks
        if place == "wrapped after":
            pipe.unet = torch.compile(unet, backend="eager")
        found = draw(pipe, **handle.encode(PROMPTS, NEGATIVE), **FEW)
    assert np.abs(found - wanted).max() < 1e-5
    assert count_hooks(unet) == 0
    assert np.abs(draw(pipe, prompt=PROMPTS[2], **FEW) - before).max() < 1e-5
    torch._dynamo.reset()


# ------------------------------------------------------------------ copies, and networks that do not fit


@pytest.mark.slow
def test_copies_of_an_attached_network_are_not_attached(host):
    people, pipe = make_people(host), make_pipe(host)
    before = draw(pipe, prompt=PROMPTS[2], **FEW)
    with sefi.attach(pipe, *people) as handle:
        texts = handle.encode(PROMPTS, NEGATIVE)
        wanted = draw(pipe, **texts, **FEW)
        other = make_pipe(replace(host, unet=copy.deepcopy(pipe.unet)))
    assert np.array_equal(draw(other, prompt=PROMPTS[2], **FEW), before)
    with pytest.raises(RuntimeError):
        draw(other, **texts, **FEW)
    with sefi.attach(other, *people) as handle:
        assert np.array_equal(draw(other, **handle.encode(PROMPTS, NEGATIVE), **FEW), wanted)
    assert np.array_equal(draw(other, prompt=PROMPTS[2], **FEW), before)


@pytest.mark.slow
def test_sefi_generates_as_before_while_its_model_is_attached(host):
    people, pipe = make_people(host), make_pipe(host)
    config = sefi.PRESETS["default"]
    config = config.model_copy(update={"generate": config.generate.model_copy(update={"steps": 3})})

    def generate():
        return sefi.generate(PROMPTS[0], people, backbone=host, config=config, seed=3)[0].pixels.tobytes()

    before = generate()
    with sefi.attach(pipe, people[0]) as handle:
        draw(pipe, **handle.encode("a photo of <ada>"), **FEW)
        assert generate() == before


def test_a_control_for_another_model_is_refused(host):
    people = make_people(host)
    control = ControlNetModel.from_config({**ControlNetModel.from_unet(host.unet).config, "cross_attention_dim": 25})
    pipe = make_pipe(host, StableDiffusionControlNetPipeline, controlnet=control)
    with pytest.raises(BackboneError, match="24, 25"):
        sefi.attach(pipe, *people)
    assert count_hooks(pipe.unet) == 0
    assert type(pipe) is StableDiffusionControlNetPipeline
