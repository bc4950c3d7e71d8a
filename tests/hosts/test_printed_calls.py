"""The calls that `sefi export --to diffusers` prints are run as they are printed, on tiny pipelines."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.hosts.conftest import draw, make_identity, make_pipe

from sefi.hosts.export import Sampler, export_tokens, get_host, write_exported
from sefi.hosts.weight_files import export_custom_diffusion
from sefi.identity.file import Identity

HOST = get_host("diffusers")


@pytest.fixture(params=["host", "host_xl"])
def model(request):
    """A tiny Stable Diffusion, and a tiny SDXL, whose tokenizers are its own."""
    made = request.getfixturevalue(request.param)
    second = {} if made.tokenizer_2 is None else {"tokenizer_2": copy.deepcopy(made.tokenizer_2)}
    return replace(made, tokenizer=copy.deepcopy(made.tokenizer), **second)


def run_printed(exported, folder, pipe):
    """Write the files and run what is printed."""
    write_exported(exported.files, folder)
    assert "FOLDER" in exported.folder  # where users read what it is
    exec(exported.prompt, {"FOLDER": str(folder), "pipe": pipe})


def read_rows(pipe, word):
    """Return the rows of a word, and of its further vectors, side by side: `[vector, width]`."""
    found = []
    for second in ("", "_2"):
        tokenizer, encoder = getattr(pipe, f"tokenizer{second}", None), getattr(pipe, f"text_encoder{second}", None)
        if tokenizer is not None:
            ids = tokenizer(pipe.maybe_convert_prompt(word, tokenizer), add_special_tokens=False)
            found.append(encoder.get_input_embeddings().weight[ids.input_ids].detach())
    return torch.cat(found, dim=-1)


@pytest.mark.parametrize("vectors", [1, 3])
def test_one_file(model, tmp_path, vectors):
    identity, pipe = make_identity(model, "ada", 5, 1, vectors=vectors), make_pipe(model)
    exported = export_tokens(identity, HOST, "mean", None)
    run_printed(exported, tmp_path, pipe)
    torch.testing.assert_close(read_rows(pipe, "<sefi-ada>"), identity.stage_tokens.mean((0, 1)))
    assert exported.prompt.splitlines()[-1] == "# a photo of <sefi-ada> at the beach"


def test_a_file_for_each_stage(model, tmp_path):
    identity, pipe = make_identity(model, "ada", 5, 1), make_pipe(model)
    run_printed(export_tokens(identity, HOST, "mean", Sampler()), tmp_path, pipe)
    for stage, tokens in enumerate(identity.stage_tokens):
        torch.testing.assert_close(read_rows(pipe, f"<sefi-ada-s{stage + 1}>"), tokens.mean(0))


def test_custom_diffusion(model, tmp_path):
    made, pipe = make_identity(model, "ada", 1, 1, vectors=2), make_pipe(model)
    weights = {
        f"unet.{name}": weight + 1
        for name, weight in model.unet.named_parameters()
        if ".attn2.to_k." in name or ".attn2.to_v." in name
    }
    before = draw(pipe, prompt="a photo of a dog", num_inference_steps=1)
    run_printed(export_custom_diffusion(Identity({**made.tensors, **weights}, made.header), HOST), tmp_path, pipe)
    torch.testing.assert_close(read_rows(pipe, "<sefi-ada>"), made.stage_tokens[0, 0, :1])
    assert (draw(pipe, prompt="a photo of a dog", num_inference_steps=1) != before).any()
