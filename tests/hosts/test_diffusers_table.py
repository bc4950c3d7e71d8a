"""The table in docs/hosts/diffusers.md, row by row: each layer reads its stage's text, and nothing is left."""

from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPAGPipeline,
    T2IAdapter,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from tests.hosts.conftest import PROMPTS, check_row, make_host, make_people, make_pipe, mark_slow

import sefi
from sefi.core.errors import ConfigError
from sefi.diffusion.conditioning import IdentityConditioner

KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
SCHEDULERS = {
    "ddim": (DDIMScheduler, {}, 5),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}, 7),
    "dpm++ 2m karras": (DPMSolverMultistepScheduler, KARRAS, 17),
    "dpm++ sde karras": (DPMSolverMultistepScheduler, {**KARRAS, "algorithm_type": "sde-dpmsolver++"}, 11),
    "euler, timesteps between whole ones": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, 7),
    "euler a": (EulerAncestralDiscreteScheduler, {}, 7),
    "heun": (HeunDiscreteScheduler, {}, 5),
    "unipc": (UniPCMultistepScheduler, {}, 7),
    "lcm": (LCMScheduler, {}, 4),
}


def picture(side=24):
    return Image.radial_gradient("L").convert("RGB").resize((side, side))


def mask(side=24):
    return Image.linear_gradient("L").resize((side, side))


def make_control(unet, seed):
    torch.manual_seed(seed)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    for name, weight in control.named_parameters():
        if "controlnet" in name:  # its outputs begin at zero
            torch.nn.init.normal_(weight, std=0.1)
    return control


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", mark_slow(SCHEDULERS, ["dpm++ 2m karras", "euler, timesteps between whole ones"]))
def test_schedulers(host, name):
    kind, settings, steps = SCHEDULERS[name]
    pipe = make_pipe(host)
    pipe.scheduler = kind.from_config(host.scheduler.config, **settings)
    readings = check_row(pipe, host, make_people(host), num_inference_steps=steps, guidance_scale=4.0)
    assert len({reading.timestep for reading in readings}) >= steps - 1
    if "between" in name:
        assert any(reading.timestep % 1 for reading in readings)


ARGUMENTS = [
    {"guidance_scale": 0.0},
    {"height": 24, "width": 40, "num_images_per_prompt": 2},
    {"eta": 1.0},
    {"guidance_scale": 1.0},
    {"guidance_rescale": 0.7},
    {"num_images_per_prompt": 2},
    {"height": 56, "width": 16},
]


@pytest.mark.parametrize("call", mark_slow(ARGUMENTS, ARGUMENTS[:2]), ids=str)
def test_arguments(host, call):
    check_row(make_pipe(host), host, make_people(host), **{"num_inference_steps": 4, "guidance_scale": 4.0, **call})


@pytest.mark.slow
def test_timesteps_of_the_callers_choice(host):
    pipe = make_pipe(host)
    pipe.scheduler = EulerDiscreteScheduler.from_config(host.scheduler.config)
    readings = check_row(pipe, host, make_people(host), timesteps=[901, 777, 400, 13])
    assert {reading.timestep for reading in readings} == {901, 777, 400, 13}


@pytest.mark.parametrize("size", mark_slow([8, 5], [5]))
def test_guidance_as_an_input(tokenizer, size):
    pipe, model = make_consistency_pipe(tokenizer, size=size)
    call = {"num_inference_steps": 4, "guidance_scale": 8.0}
    check_row(pipe, model, make_people(model), batches=("p",), negative="", **call)


def make_consistency_pipe(tokenizer, kind=None, size=8, *, controlled=False):
    """A pipeline around a UNet that takes the guidance scale as an input, and its parts."""
    model = make_host(tokenizer, time_cond_proj_dim=size)
    assert model.embeds_guidance
    control = {"controlnet": make_control(make_host(tokenizer).unet, 5)} if controlled else {}
    pipe = make_pipe(model, kind, **control)
    pipe.scheduler = LCMScheduler.from_config(model.scheduler.config)
    return pipe, model


CONSISTENCY = {
    "text": (LatentConsistencyModelPipeline, {"height": 24, "width": 24}),
    "image": (LatentConsistencyModelImg2ImgPipeline, {"image": picture(), "strength": 0.8}),
}


@pytest.mark.parametrize("name", mark_slow(CONSISTENCY, ["text"]))
def test_pipelines_of_latent_consistency(tokenizer, name):
    """Their calls have no argument for encoded negative texts."""
    kind, call = CONSISTENCY[name]
    pipe, model = make_consistency_pipe(tokenizer, kind)
    call = {"num_inference_steps": 4, "original_inference_steps": 50, **call}
    check_row(pipe, model, make_people(model), PROMPTS[:1], batches=("p",), negative="", **call)


@pytest.mark.parametrize("kind", [None, StableDiffusionImg2ImgPipeline, LatentConsistencyModelPipeline])
def test_a_negative_prompt_that_a_pipeline_never_reads_is_refused(tokenizer, kind):
    pipe, model = make_consistency_pipe(tokenizer, kind)
    with sefi.attach(pipe, *make_people(model)) as handle:
        for prompts, negative in ((PROMPTS[0], "snow"), (PROMPTS, ["", " ", "snow"])):
            with pytest.raises(ConfigError, match="A negative prompt has no effect on this model"):
                handle.encode(prompts, negative)
        assert ("negative_prompt_embeds" in handle.encode(PROMPTS, " ")) == (kind is not LatentConsistencyModelPipeline)


@pytest.mark.slow
def test_a_negative_prompt_that_a_pipeline_reads_of_such_a_unet_is_taken(tokenizer):
    """`StableDiffusionControlNetImg2ImgPipeline` does not pass the scale on, and calls the UNet for both texts."""
    pipe, model = make_consistency_pipe(tokenizer, StableDiffusionControlNetImg2ImgPipeline, controlled=True)
    call = {**SMALL, **IMAGE, "control_image": picture()}
    check_row(pipe, model, make_people(model), PROMPTS[:1], batches=("np",), **call)


@pytest.mark.parametrize("dtype", mark_slow([torch.bfloat16, torch.float64], [torch.bfloat16]))
def test_other_number_types(host, dtype):
    pipe = make_pipe(host).to(dtype)
    check_row(pipe, host, make_people(host), num_inference_steps=3)


def test_free_u_and_slices_and_tiles(host):
    pipe = make_pipe(host)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    pipe.enable_attention_slicing(1)
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    check_row(pipe, host, make_people(host), num_inference_steps=3)


@pytest.mark.slow
def test_other_processors_of_attention(host):
    pipe = make_pipe(host)
    pipe.unet.set_attn_processor(AttnProcessor())
    processors = dict(pipe.unet.attn_processors)
    check_row(pipe, host, make_people(host), num_inference_steps=3)
    assert pipe.unet.attn_processors == processors


# ------------------------------------------------------------------ other pipelines

SMALL = {"num_inference_steps": 8, "guidance_scale": 4.0}
IMAGE = {"image": picture(), "strength": 0.5}
MASKED = {**IMAGE, "mask_image": mask()}


@pytest.mark.slow
@pytest.mark.parametrize("strength", mark_slow([0.4, 0.75], [0.4]))
def test_image_to_image(host, strength):
    pipe = make_pipe(host, StableDiffusionImg2ImgPipeline)
    for prompt in PROMPTS:
        readings = check_row(pipe, host, make_people(host), [prompt], image=picture(), strength=strength, **SMALL)
        assert len({reading.timestep for reading in readings}) == int(8 * strength)


@pytest.mark.parametrize("channels", mark_slow([4, 9], [4]))
def test_inpainting(tokenizer, channels):
    model = make_host(tokenizer, channels)
    pipe = make_pipe(model, StableDiffusionInpaintPipeline)
    check_row(pipe, model, make_people(model), height=24, width=24, **MASKED, **SMALL)


CONTROLLED = {
    "text": (StableDiffusionControlNetPipeline, {"image": picture()}),
    "image": (StableDiffusionControlNetImg2ImgPipeline, {**IMAGE, "control_image": picture()}),
    "inpainting": (StableDiffusionControlNetInpaintPipeline, {**MASKED, "control_image": picture()}),
}


@pytest.mark.slow
def test_editing_by_instruction(tokenizer):
    """InstructPix2Pix calls its UNet with three texts for each image, the prompt first."""
    model = make_host(tokenizer, unet_channels=8)
    pipe = make_pipe(model, StableDiffusionInstructPix2PixPipeline)
    call = {"num_inference_steps": 4, "guidance_scale": 4.0, "image_guidance_scale": 1.5}
    check_row(pipe, model, make_people(model), PROMPTS[:1], batches=("pnn",), image=picture(), **call)


@pytest.mark.slow
def test_an_adapter_for_sketches(host):
    torch.manual_seed(9)
    sizes = {"in_channels": 3, "channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2}
    pipe = make_pipe(host, StableDiffusionAdapterPipeline, adapter=T2IAdapter(**sizes, adapter_type="full_adapter"))
    # Latents, since this pipeline decodes by a call that diffusers has given up.
    call = {**SMALL, "image": picture(), "height": 24, "width": 24, "output_type": "latent"}
    check_row(pipe, host, make_people(host), PROMPTS[:1], **call)


@pytest.mark.parametrize("name", mark_slow(CONTROLLED, []))
def test_control(host, name):
    kind, call = CONTROLLED[name]
    pipe = make_pipe(host, kind, controlnet=make_control(host.unet, 5))
    check_row(pipe, host, make_people(host), PROMPTS[:1], height=24, width=24, **call, **SMALL)


@pytest.mark.slow
def test_several_controls(host):
    nets = [make_control(host.unet, seed) for seed in (5, 6)]
    pipe = make_pipe(host, StableDiffusionControlNetPipeline, controlnet=nets)
    check_row(pipe, host, make_people(host), PROMPTS[:1], image=[picture(), picture()], **SMALL)


@pytest.mark.slow
def test_a_control_that_sees_the_prompt_only(host):
    pipe = make_pipe(host, StableDiffusionControlNetPipeline, controlnet=make_control(host.unet, 5))
    check_row(pipe, host, make_people(host), PROMPTS[:1], image=picture(), guess_mode=True, **SMALL)


@pytest.mark.parametrize("guidance", mark_slow([0.0, 4.0], [4.0]))
def test_perturbed_attention(host, guidance):
    pipe = make_pipe(host, StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    call = {"num_inference_steps": 3, "guidance_scale": guidance, "pag_scale": 2.0}
    check_row(pipe, host, make_people(host), batches=("npp",) if guidance else ("pp",), **call)


MORE = {
    "perturbed, image": (StableDiffusionPAGImg2ImgPipeline, {**IMAGE, "pag_scale": 2.0}),
    "perturbed, inpainting": (StableDiffusionPAGInpaintPipeline, {**MASKED, "pag_scale": 2.0}),
    "perturbed, control": (StableDiffusionControlNetPAGPipeline, {"image": picture(), "pag_scale": 2.0}),
    "panorama": (StableDiffusionPanoramaPipeline, {"height": 24, "width": 24}),
    "self-attention guidance": (StableDiffusionSAGPipeline, {}),
    "sdxl, control, image": (StableDiffusionXLControlNetImg2ImgPipeline, {**IMAGE, "control_image": picture()}),
    "sdxl, control, inpainting": (StableDiffusionXLControlNetInpaintPipeline, {**MASKED, "control_image": picture()}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_pipelines(host, host_xl, name):
    kind, call = MORE[name]
    model = host_xl if name.startswith("sdxl") else host
    more = {"pag_applied_layers": ["mid"]} if "perturbed" in name else {}
    more |= {"controlnet": make_control(model.unet, 5)} if "control" in name else {}
    size = {"height": 24, "width": 24} if "inpainting" in name or name.startswith("sdxl") else {}
    # Self-attention guidance calls the UNet for the negative text alone too; PAG's ControlNet for both.
    batches = {"perturbed": ("npp", "np"), "self-attention guidance": ("n", "p", "np")}.get(
        name.partition(",")[0], ("np",)
    )
    check_row(make_pipe(model, kind, **more), model, make_people(model), PROMPTS[:1], batches, **size, **call, **SMALL)


@pytest.mark.slow
def test_a_callback_that_drops_the_negative_text(host):
    """Diffusers' own callback ends guidance after some of the steps, by the tensors that it is given."""
    call = {"num_inference_steps": 6, "guidance_scale": 4.0}
    callback = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)}
    readings = check_row(make_pipe(host), host, make_people(host), PROMPTS[:1], **call, **callback)
    assert {len(reading.texts) for reading in readings} == {1, 2}


XL_BATCHES = {(False, False): ("p",), (False, True): ("np",), (True, False): ("pp",), (True, True): ("npp",)}
XL = {
    "text": (None, {}),
    "image": (StableDiffusionXLImg2ImgPipeline, IMAGE),
    "inpainting": (StableDiffusionXLInpaintPipeline, MASKED),
    "perturbed": (StableDiffusionXLPAGPipeline, {"pag_scale": 2.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_slow(XL, ["inpainting"]))
@pytest.mark.parametrize("guidance", mark_slow([0.0, 4.0], [4.0]))
def test_sdxl(host_xl, name, guidance):
    kind, call = XL[name]
    pipe = make_pipe(host_xl, kind, **({"pag_applied_layers": ["mid"]} if name == "perturbed" else {}))
    call = {"height": 24, "width": 24, **call, **SMALL, "guidance_scale": guidance}
    check_row(pipe, host_xl, make_people(host_xl), batches=XL_BATCHES[name == "perturbed", guidance > 1], **call)


@pytest.mark.slow
def test_sdxl_with_control(host_xl):
    pipe = make_pipe(host_xl, StableDiffusionXLControlNetPipeline, controlnet=make_control(host_xl.unet, 5))
    check_row(pipe, host_xl, make_people(host_xl), PROMPTS[:1], image=picture(), height=24, width=24, **SMALL)


@pytest.mark.slow
def test_the_pooled_text_of_sdxl_is_that_of_the_stage(host_xl):
    people, pipe, seen = make_people(host_xl), make_pipe(host_xl), []
    conditioner = IdentityConditioner(host_xl, people)

    def note(_module, _args, kwargs):
        seen.append((int(kwargs["timestep"] if "timestep" in kwargs else _args[1]), kwargs["added_cond_kwargs"]))

    with sefi.attach(pipe, *people) as handle:
        texts = handle.encode(PROMPTS, "snow")
        pipe(**texts, num_inference_steps=1, output_type="latent")  # the hooks are there; the test's comes after them
        hook = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
        pipe(**texts, num_inference_steps=7, output_type="latent")
        hook.remove()
    assert len(seen) == 7
    for timestep, conditions in seen:
        null, positive = conditions["text_embeds"].chunk(2)
        assert torch.equal(positive, conditioner.encode_prompts(PROMPTS, timestep).pooled)
        assert torch.equal(null, conditioner.encode_negative(len(PROMPTS), "snow").pooled)
