"""An identity's own file is refused by all programs but one; stage files' prompt gives our texts at every step."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from tests.hosts.loading_rules import (
    READERS,
    WIDTHS,
    Refused,
    create_tokenizer,
    list_exponential_timesteps,
    list_karras_timesteps,
    list_uniform_timesteps,
    read_switching,
)

from sefi.core.prompts import NAME
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.hosts.export import HOSTS, Sampler, choose_slot, export_tokens, make_stem, write_exported
from sefi.identity.file import MARK, Identity, IdentityHeader


def make_identity(shape, widths, method="sefi", name="ada", base_model="sd1:768:0123456789abcdef"):
    header = IdentityHeader(
        schema_version=3 if len(widths) > 1 else 2, name=name, method=method, stages=shape[0], base_model=base_model,
        width=sum(widths), widths=widths if len(widths) > 1 else (), class_word="person",
    )  # fmt: skip
    return Identity({"tokens": torch.randn(*shape, sum(widths))}, header)


# ------------------------------------------------------------------ the file of an identity

NATIVE = {  # shapes of tokens, and other tensors that methods keep
    "sefi": ((5, 2), {}),
    "one token": ((1, 2), {}),
    "textual inversion": ((1, 2, 3), {}),
    "prospect": ((10, 2), {}),
    "celeb basis": ((1, 2, 3), {"coefficients": (2, 11), "basis": (2, 12, 768)}),
    "half precision": ((5, 2), {}),
}


def save_native(path, kind, family):
    shape, others = NATIVE[kind]
    identity = make_identity(shape, WIDTHS[family])
    identity.tensors.update({name: torch.randn(size) for name, size in others.items()})
    if kind == "half precision":
        identity.tensors["tokens"] = identity.tokens.half()
    identity.save(path)
    return identity


@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("host", [host for host in READERS if host != "kohya"])
def test_an_identitys_own_file_is_refused(tmp_path, host, kind, family):
    save_native(tmp_path / "ada.safetensors", kind, family)
    for opened in WIDTHS:  # whatever model is open in the program
        with pytest.raises(Refused):
            READERS[host](tmp_path / "ada.safetensors", opened)


@pytest.mark.parametrize("kind", NATIVE)
def test_kohyas_script_makes_a_word_of_zeros_of_an_identitys_own_file(tmp_path, kind):
    save_native(tmp_path / "ada.safetensors", kind, "sd1")
    assert torch.equal(READERS["kohya"](tmp_path / "ada.safetensors")[768], torch.zeros(1, 768))
    with pytest.raises(Refused):
        READERS["kohya"](tmp_path / "ada.safetensors", "sdxl")


def test_without_the_mark_it_would_be_registered_and_broken(tmp_path):
    """The check can fail: what files were before."""
    save_file({"tokens": torch.randn(5, 2, 768)}, tmp_path / "ada.safetensors")
    for host in ("a1111", "comfyui", "sdnext"):
        with pytest.raises(AssertionError, match="registered, broken"):
            READERS[host](tmp_path / "ada.safetensors")


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("family", WIDTHS)
def test_the_mark_comes_first_and_is_no_part_of_the_identity(tmp_path, kind, family):
    identity = save_native(tmp_path / "ada.safetensors", kind, family)
    assert next(iter(load_file(tmp_path / "ada.safetensors"))) == MARK
    loaded = Identity.load(tmp_path / "ada.safetensors")
    assert loaded.tensors.keys() == identity.tensors.keys()
    assert all(torch.equal(tensor, identity.tensors[name]) for name, tensor in loaded.tensors.items())


def test_files_without_the_mark_are_read(tmp_path):
    identity = make_identity((5, 2), (768,))
    save_file(identity.tensors, tmp_path / "old.safetensors", metadata={"sefi": identity.header.model_dump_json()})
    assert torch.equal(Identity.load(tmp_path / "old.safetensors").tokens, identity.tokens)


@given(st.from_regex(NAME, fullmatch=True))
def test_no_name_gives_a_word_that_prompts_contain(name):
    stem = make_stem(make_identity((1, 2), (3,), name=name))
    ids = create_tokenizer()(stem, add_special_tokens=False).input_ids
    assert len(ids) > 1
    assert stem.startswith("sefi-")
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("host", READERS)
def test_exports_of_every_family_are_read(tmp_path, host, family, vectors):
    identity = make_identity((5, 2, vectors), WIDTHS[family])
    (path,) = write_exported(export_tokens(identity, HOSTS[host], "mean", None).files, tmp_path)
    read = READERS[host](path, family)
    found = torch.cat([read[width] for width in WIDTHS[family]], dim=-1)
    torch.testing.assert_close(found, identity.stage_tokens.mean((0, 1)))


# ------------------------------------------------------------------ stage files in a host

TIMESTEPS = {
    "karras": list_karras_timesteps, "uniform": list_uniform_timesteps, "exponential": list_exponential_timesteps
}  # fmt: skip
PROMPT = "a photo of {} at the beach"


@pytest.fixture(scope="module")
def host_and_identities(backbone, tmp_path_factory):
    """A pipeline of diffusers with every stage file loaded, and the same tokens as keys and values of ours."""
    pipe = StableDiffusionPipeline(
        vae=backbone.vae, text_encoder=copy.deepcopy(backbone.text_encoder),
        tokenizer=copy.deepcopy(backbone.tokenizer), unet=backbone.unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    torch.manual_seed(11)
    identities = {}
    for stages in (2, 5, 7):
        made = make_identity((stages, 2), (backbone.token_width,), name=f"n{stages}", base_model=backbone.fingerprint)
        folder = tmp_path_factory.mktemp("files")
        exported = export_tokens(made, HOSTS["a1111"], "mean", Sampler())
        for path in write_exported(exported.files, folder):
            pipe.load_textual_inversion(str(path), token=path.stem)
        same = choose_slot(made, "mean")[:, None].expand(-1, 2, -1, -1)
        identities[stages] = Identity({"tokens": same.contiguous()}, made.header)
    return pipe, identities


@pytest.mark.parametrize("stages", [2, 5, 7])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 31])
@pytest.mark.parametrize("schedule", TIMESTEPS)
def test_every_step_in_a_host_reads_our_text_of_its_stage(backbone, host_and_identities, stages, steps, schedule):
    pipe, identities = host_and_identities
    identity = identities[stages]
    prompt = export_tokens(identity, HOSTS["a1111"], "mean", Sampler(schedule, steps)).prompt
    conditioner = IdentityConditioner(backbone, [identity])
    timesteps = TIMESTEPS[schedule](steps)
    stage_numbers = [int(timestep * stages // 1000) for timestep in timesteps]
    if steps > 1 and stage_numbers[0] != stage_numbers[1]:
        timesteps[0] = timesteps[1]  # a word for the first step alone cannot be written: it reads the next one
    for step, timestep in enumerate(timesteps):
        with torch.no_grad():
            theirs, _ = pipe.encode_prompt(read_switching(prompt, step, steps), "cpu", 1, False)
        ours = conditioner.encode_prompts([PROMPT.format(f"<{identity.name}>")], int(timestep))
        key, value = ours.states.chunk(2, dim=-1)
        torch.testing.assert_close(theirs, key, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs, value, rtol=1e-5, atol=1e-5)
