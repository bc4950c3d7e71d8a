"""How programs load a textual-inversion file, each rule stated again, and how A1111 reads a prompt and spaces steps.

From docs/hosts/export.md's list of versions. Each reader returns the vectors `[vector, width]` that a prompt then gets,
by the text encoder's width where there are two, and raises `Refused` where the program says that it does not use the
file. Anything else that goes wrong is a file that is registered and broken.
"""

import re
from functools import cache

import numpy as np
import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts
from safetensors import safe_open
from safetensors.torch import load_file

from sefi.backbone.tokenizer import create_clip_tokenizer

WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}


class Refused(Exception):
    """The program says that this file is none that it uses."""


def read_as_a1111(path, family="sd1"):
    """`create_embedding_from_data` and `load_from_file` of A1111, reForge and Forge."""
    data = load_file(path)
    if {"clip_g", "clip_l"} <= data.keys():
        parts = {data[name].shape[-1]: data[name] for name in ("clip_l", "clip_g")}
    else:
        if len(data) != 1:
            raise Refused("embedding file has multiple terms in it")
        tensor = next(iter(data.values()))
        tensor = tensor[None] if tensor.ndim == 1 else tensor
        parts = {tensor.shape[-1]: tensor}
    if sum(parts) != sum(WIDTHS[family]):
        raise Refused("skipped: another width than the model's")
    assert all(tensor.ndim == 2 for tensor in parts.values()), "registered, broken"
    return {width: tensor.float() for width, tensor in parts.items()}


def read_as_comfyui(path, family="sd1"):
    """`load_embed` and `process_tokens` of ComfyUI and Fooocus: what another width has is ignored with a warning."""
    data = load_file(path)
    keys = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}[family]
    found = {}
    for key, width in zip(keys, WIDTHS[family], strict=True):
        tensor = data.get(key, next(iter(data.values())))
        rows = [tensor] if tensor.ndim == 1 else list(tensor)
        if any(row.shape[-1] != width for row in rows):
            raise Refused("shape mismatch when trying to apply embedding, embedding will be ignored")
        # More than one row in the place of one word makes the sentence too long: a crash at the prompt.
        assert all(row.ndim == 1 for row in rows), "registered, broken"
        found[width] = torch.stack(rows).float()
    return found


def read_as_invokeai(path, family="sd1"):
    """`TI_Config_Base` and `TextualInversionModelRaw.from_checkpoint` of InvokeAI."""
    data = load_file(path)
    if not ({"string_to_param", "emb_params", "clip_g"} & data.keys() or len(data) < 10):
        raise Refused("model does not look like a textual inversion embedding file")
    if "emb_params" in data:
        width = data["emb_params"].shape[-1]
    elif "clip_g" in data:
        width = data["clip_g"].shape[-1]
    else:
        width = next(iter(data.values())).shape[0]
    if width != WIDTHS[family][-1]:
        raise Refused(f"unrecognized token dimension {width}")
    names = ("clip_l", "clip_g") if "clip_g" in data else ("emb_params",)
    parts = {data[name].shape[-1]: data[name] for name in names}
    assert all(tensor.ndim == 2 for tensor in parts.values()), "registered, broken"
    return parts


def read_as_sdnext(path, family="sd1"):
    """`open_embeddings`, `load_diffusers_embedding` and `insert_vectors` of SD.Next."""
    with safe_open(path, "pt") as file:
        vectors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    sizes = [tensor.shape[-1] for tensor in vectors]
    if len(sizes) > len(WIDTHS[family]):
        raise Refused("skipped: more tensors than text encoders")
    if not set(sizes) <= set(WIDTHS[family]):
        raise Refused("Embedding load: an error, and nothing is registered")
    assert all(tensor.ndim == 2 for tensor in vectors), "registered, broken"
    return dict(zip(sizes, vectors, strict=True))


def read_as_drawthings(path, family="sd1"):
    """`EmbeddingImporter.import` of Draw Things."""
    data = load_file(path)
    if {"clip_g", "clip_l"} <= data.keys() and (data["clip_l"].shape[-1], data["clip_g"].shape[-1]) == WIDTHS["sdxl"]:
        return {data[name].shape[-1]: data[name] for name in ("clip_l", "clip_g")}
    found = [
        tensor
        for tensor in data.values()
        if tensor.ndim in (1, 2) and tensor.shape[-1] in (768, 1024) and (tensor.ndim == 1 or tensor.shape[0] < 77)
    ]
    if not found or found[-1].shape[-1] != WIDTHS[family][0]:
        raise Refused("tensor not found")
    return {found[-1].shape[-1]: found[-1]}


def read_as_kohya(path, family="sd1"):
    """`gen_img.py` of sd-scripts: the first tensor, or SDXL's two by their names; a single number fills a row."""
    data = load_file(path)
    if family == "sdxl" and not {"clip_l", "clip_g"} <= data.keys():
        raise Refused("KeyError")
    first = [data["clip_l"], data["clip_g"]] if family == "sdxl" else [next(iter(data.values()))]
    found = {}
    for width, vectors in zip(WIDTHS[family], first, strict=True):
        found[width] = torch.full((len(vectors), width), torch.nan)
        for row, vector in enumerate(vectors):
            found[width][row] = vector
    return found


def read_as_diffusers(path, family="sd1"):
    """Diffusers' own functions of `load_textual_inversion`; SDXL's file is loaded by hand, one encoder at a time."""
    if family == "sdxl":
        data = load_file(path)
        if data.keys() != {"clip_l", "clip_g"}:
            raise Refused("Loaded state dictionary is incorrect")
        return {tensor.shape[-1]: tensor for tensor in data.values()}
    states = load_textual_inversion_state_dicts([str(path)], use_safetensors=True, local_files_only=True)
    mixin, tokenizer = TextualInversionLoaderMixin, create_tokenizer()
    try:
        _, embeddings = mixin._retrieve_tokens_and_embeddings([f"<{path.stem}>"], states, tokenizer)
    except ValueError as error:
        raise Refused(str(error)) from error
    _, rows = mixin._extend_tokens_and_embeddings([f"<{path.stem}>"], embeddings, tokenizer)
    if any(row.shape[-1] != WIDTHS[family][0] for row in rows):
        raise Refused("Loaded embeddings are of incorrect shape")
    assert all(row.ndim == 1 for row in rows), "registered, broken"
    return {WIDTHS[family][0]: torch.stack(rows)}


create_tokenizer = cache(create_clip_tokenizer)


READERS = {
    "a1111": read_as_a1111,
    "forge": read_as_a1111,
    "comfyui": read_as_comfyui,
    "fooocus": read_as_comfyui,
    "invokeai": read_as_invokeai,
    "sdnext": read_as_sdnext,
    "drawthings": read_as_drawthings,
    "kohya": read_as_kohya,
    "diffusers": read_as_diffusers,
}


# ------------------------------------------------------------------ A1111's prompts and steps


def list_scheduled_texts(text, steps, first_pass=0):
    """`get_learned_conditioning_prompt_schedules` of Forge and A1111, of whole numbers: each text with its number.

    Numbers below 1 are no end of a text. A second pass subtracts the calls of the first one.
    """
    numbers = [min(steps, int(number) - first_pass) for number in re.findall(r":(-?\d+)\]", text)]
    ends = sorted({steps, *(number for number in numbers if number >= 1)})
    return [(end, read_at_number(text, end, steps, first_pass)) for end in ends]


def read_at_number(text, end, steps, first_pass):
    """`at_step`, innermost first: of `[before:after:number]` the first, as long as `end <= number`."""
    innermost = re.compile(r"\[([^\[\]:]*):([^\[\]:]*):(-?\d+)\]")
    while found := innermost.search(text):
        number = min(steps, int(found[3]) - first_pass)
        text = text[: found.start()] + found[1 if end <= number else 2] + text[found.end() :]
    return text


def read_switching(text, call, steps, first_pass=0):
    """`reconstruct_multicond_batch` of Forge and A1111: the text that a call of the denoiser reads, counted from 0.

    Args:
        steps: calls of the denoiser in this pass: of some samplers two for each step.
        first_pass: those of the pass before, where this is the second one.
    """
    texts = list_scheduled_texts(text, steps, first_pass)
    return next((one for end, one in texts if call <= end), texts[0][1])


def list_sdnext_texts(text, steps):
    """`get_prompt_schedule` of SD.Next: the text of every step."""
    found = []
    for end, one in list_scheduled_texts(text, steps):
        for step in range(steps):
            if len(found) < step + 1 <= end:
                found.append(one)
    return found


def list_karras_timesteps(steps):
    """k-diffusion's `get_sigmas_karras` (rho 7)."""
    low, high = make_sigmas()[[0, -1]] ** (1 / 7)
    return find_timesteps((high + np.linspace(0, 1, steps) * (low - high)) ** 7)


def list_exponential_timesteps(steps):
    """k-diffusion's `get_sigmas_exponential`; `get_sigmas_polyexponential` with its own rho 1 is the same."""
    low, high = np.log(make_sigmas()[[0, -1]])
    return find_timesteps(np.exp(np.linspace(high, low, steps)))


def list_uniform_timesteps(steps):
    """k-diffusion's `get_sigmas`: evenly from the last timestep to the first."""
    return np.linspace(999, 0, steps)


def list_sgm_timesteps(steps):
    """`sgm_uniform`: evenly from the last timestep, without the first."""
    return np.linspace(999, 0, steps + 1)[:-1]


def list_simple_timesteps(steps):
    """`simple_scheduler`: every so many of the noise levels."""
    return np.array([999 - int(step * 1000 / steps) for step in range(steps)])


def list_turbo_timesteps(steps):
    """`turbo_scheduler`: the ends of equal parts."""
    return (np.arange(steps, 0, -1) * (1000 / steps) - 1).round().clip(0, 999)


def find_timesteps(sigmas):
    """Noise levels as timesteps, by `sigma_to_t`."""
    return np.interp(np.log(sigmas), np.log(make_sigmas()), np.arange(1000))


def make_sigmas():
    """Stable Diffusion's noise levels, `[timestep]`, without any library's scheduler."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    return ((1 - kept) / kept) ** 0.5
