"""The node pack in a host like ComfyUI: every UNet call reads what sefi would give it, and nothing else changes."""

import json
import math
import re
import struct
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from tests.integrations.comfyui_host import PACK, HostModel, HostSampling, load_pack, make_clip, make_folder_paths

import sefi
from sefi.core.rng import create_generator
from sefi.diffusion.attention import copy_with_key_value_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.text import compute_class_row
from sefi.identity.file import Identity, IdentityHeader

STABLE_DIFFUSION = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
SAMPLING = HostSampling((1 - STABLE_DIFFUSION).cumprod(0).float())
SCHEDULES = [("karras", 5), ("karras", 17), ("karras", 20), ("exponential", 13), ("simple", 5), ("normal", 11),
             ("sgm_uniform", 4), ("sgm_uniform", 23), ("normal", 1000)]  # fmt: skip
PROMPT = "a photo of <ada> and <bob> at the beach"


@pytest.fixture
def models(tmp_path):
    (tmp_path / "sefi").mkdir()
    return tmp_path


@pytest.fixture
def pack(models):
    return load_pack(make_folder_paths(models))


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The pack's module of texts, for tests without files."""
    pack = load_pack(make_folder_paths(tmp_path_factory.mktemp("models")))
    return sys.modules[f"{pack.__name__}.encoding"]


def make_identity(backbone, name, stages, vectors=1, seed=1, class_word="person"):
    row = compute_class_row(backbone, class_word)
    shape = (stages, 2, *([vectors] if vectors > 1 else []), len(row))
    noise = torch.randn(shape, generator=create_generator(seed, "moved"))
    widths = backbone.token_widths if len(backbone.token_widths) > 1 else ()
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model=backbone.fingerprint, width=len(row), class_word=class_word,
        widths=widths, schema_version=3 if widths else 2, signature=backbone.signature.dump(),
    )  # fmt: skip
    return Identity({"tokens": row + 0.5 * row.std() * noise}, header)


def load(pack, models, *identities):
    """Save identities where the pack looks for them and load them by its node, one after the other."""
    node, loaded = pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"](), ()
    for identity in identities:
        identity.save(models / "sefi" / f"{identity.name}.safetensors")
        loaded, placeholder = node.load(f"{identity.name}.safetensors", loaded)
        assert placeholder == f"<{identity.name}>"
    return loaded


def encode(pack, backbone, loaded, text, negative="", **options):
    return pack.NODE_CLASS_MAPPINGS["EncodePromptWithSefi"]().encode(
        make_clip(backbone), loaded, text, negative, **options
    )


def apply(pack, backbone):
    (model,) = pack.NODE_CLASS_MAPPINGS["ApplySefiToModel"]().apply(HostModel(backbone.unet))
    return model


# ------------------------------------------------------------------ alone


FRESH_INTERPRETER = """
import importlib.util, sys, types
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sefi", "comfy", "nodes", "diffusers", "transformers", "pydantic", "safetensors"}:
            raise ImportError(f"{name} is imported")
sys.meta_path.insert(0, Refuse())
folder_paths = types.ModuleType("folder_paths")
folder_paths.models_dir, PACK = sys.argv[1:]
folder_paths.folder_names_and_paths = KINDS = {}
folder_paths.add_model_folder_path = lambda kind, path: KINDS.update({kind: ([path], set())})
folder_paths.get_filename_list = lambda kind: []
sys.modules["folder_paths"] = folder_paths
spec = importlib.util.spec_from_file_location("pack", PACK + "/__init__.py", submodule_search_locations=[PACK])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
for node in pack.NODE_CLASS_MAPPINGS.values():
    assert node.INPUT_TYPES()["required"] and hasattr(node, node.FUNCTION)
print(*sorted(pack.NODE_CLASS_MAPPINGS), KINDS)
"""


def test_it_loads_where_neither_sefi_nor_its_libraries_are(tmp_path):
    """A fresh interpreter with torch and a stand-in for `folder_paths`; what is ours or ComfyUI's is refused."""
    command = [sys.executable, "-I", "-c", FRESH_INTERPRETER, tmp_path, PACK]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[:3] == ["ApplySefiToModel", "EncodePromptWithSefi", "LoadSefiIdentity"]
    assert "{'.safetensors'}" in answer.stdout


def test_the_metadata_name_no_dependency_and_sefis_licence():
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == []
    assert (PACK / "LICENSE").read_text() == (PACK.parents[1] / "LICENSE").read_text()


# ------------------------------------------------------------------ which stage


def list_ranges(tools, counts):
    return [
        [first, {"start_percent": tools.get_percent(end), "end_percent": tools.get_percent(first)}]
        for first, end in pairwise(tools.list_borders(counts))
    ]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("counts", [[], [1], [5], [3], [7], [5, 3], [10, 4, 7]])
def test_every_timestep_belongs_to_one_range_whose_stages_are_right(tools, counts):
    ranges = list_ranges(tools, counts)
    for timestep in range(1000):
        (running,) = SAMPLING.list_running(ranges, SAMPLING.sigma(timestep))
        assert [n * running[0] // 1000 for n in counts] == [n * timestep // 1000 for n in counts]


@given(position=st.floats(-3, 1002), stages=st.integers(1, 100))
def test_a_noise_between_timesteps_runs_as_the_timestep_given_to_the_unet(tools, position, stages):
    """ComfyUI rounds noises to timesteps; only halfway between two can both sides of a border run."""
    sigma = SAMPLING.sigma(position) * (1 + max(0, position - 999) / 100)
    ranges = list_ranges(tools, [stages])
    running = SAMPLING.list_running(ranges, sigma)
    if abs(position - math.floor(position) - 0.5) > 1e-2:
        (running,) = running
        assert stages * running[0] // 1000 == stages * SAMPLING.timestep(sigma) // 1000
    assert len(running) >= 1


# ------------------------------------------------------------------ parity with sefi


def compare(pack, backbone, identities, loaded, text, sigmas, **options):
    """Compare text and UNet output of the host with sefi's own at every noise; return the largest differences."""
    model = apply(pack, backbone)
    positive, negative = encode(pack, backbone, loaded, text, "a drawing", **options)
    words = {"strength": options.get("strength", 1.0), "class_slots": []}
    if options.get("class_word_stages"):
        count = identities[0].header.stages
        words["class_slots"] = [(s, slot) for s in range(count - options["class_word_stages"], count) for slot in "KV"]
    conditioner = IdentityConditioner(backbone, identities, **words)
    unet = copy_with_key_value_attention(backbone.unet)
    null = conditioner.encode_negative(1, "a drawing")
    texts, outputs = [], []
    for number, sigma in enumerate(sigmas):
        timestep = SAMPLING.timestep(sigma)
        wanted = conditioner.encode_prompts([text], timestep)
        (found,), (blank,) = (SAMPLING.list_running(one, sigma) for one in (positive, negative))
        texts += [(found[0] - wanted.states).abs().max(), (blank[0] - null.states).abs().max()]
        if wanted.pooled is not None:
            texts.append((found[1]["pooled_output"] - wanted.pooled).abs().max())
        size = (1, backbone.unet.config.in_channels, *[backbone.unet.config.sample_size] * 2)
        noisy = torch.randn(size, generator=create_generator(number, "noisy"))
        for mine, its in ((wanted, found), (null, blank)):
            pooled = {} if mine.pooled is None else {"text_embeds": its[1]["pooled_output"], **mine.extra}
            answer = model.predict(noisy, timestep, its[0], **pooled)
            with torch.no_grad():
                outputs.append((answer - backbone.predict(noisy, torch.tensor([timestep]), mine, unet)).abs().max())
    return float(max(texts)), float(max(outputs))


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone("tiny-portraits")


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.parametrize(("schedule", "steps"), [s for s in SCHEDULES if s[1] <= 23])
def test_the_embedded_unet_gives_what_sefi_gives(pack, models, embedded, schedule, steps):
    people = [make_identity(embedded, "ada", 5, seed=1), make_identity(embedded, "bob", 3, seed=2)]
    loaded = load(pack, models, *people)
    sigmas = SAMPLING.list_sigmas(schedule, steps)
    texts, outputs = compare(pack, embedded, people, loaded, PROMPT, sigmas[:: max(1, steps // 3)])
    assert texts <= 1e-5
    assert outputs <= 1e-5


@pytest.mark.thorough
@pytest.mark.world
@pytest.mark.parametrize(("schedule", "steps"), [s for s in SCHEDULES if s[1] <= 23])
def test_every_step_of_the_embedded_unet(pack, models, embedded, schedule, steps):
    people = [make_identity(embedded, "ada", 5, 2, seed=1), make_identity(embedded, "bob", 7, seed=2)]
    loaded = load(pack, models, *people)
    texts, outputs = compare(pack, embedded, people, loaded, PROMPT, SAMPLING.list_sigmas(schedule, steps))
    assert texts <= 1e-5
    assert outputs <= 1e-5


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("vectors", "class_word"), [(1, "person"), (3, "person"), (2, "smiling dog")])
@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.0}, {"strength": 0.6}, {"strength": 1.3, "class_word_stages": 2}]
)
@pytest.mark.parametrize("family", ["one encoder", "sdxl"])
def test_strength_vectors_and_first_stages(pack, models, backbone, sdxl, family, options, vectors, class_word):
    model = sdxl if family == "sdxl" else backbone
    ada = make_identity(model, "ada", 5, vectors, class_word=class_word)
    loaded = load(pack, models, ada)
    sigmas = SAMPLING.list_sigmas("normal", 6)
    texts, outputs = compare(pack, model, [ada], loaded, "a photo of <ada>, smiling, and a person", sigmas, **options)
    assert texts <= 1e-5
    assert outputs <= 1e-5


def test_two_people_on_sdxl(pack, models, sdxl):
    people = [make_identity(sdxl, "ada", 5, seed=1), make_identity(sdxl, "bob", 2, 2, seed=2, class_word="dog")]
    loaded = load(pack, models, *people)
    texts, outputs = compare(pack, sdxl, people, loaded, "<bob> and <ada> and <bob>", SAMPLING.list_sigmas("karras", 7))
    assert texts <= 1e-5
    assert outputs <= 1e-5


@pytest.mark.slow
def test_at_every_timestep_the_text_is_sefis(pack, models, backbone):
    people = [make_identity(backbone, "ada", 5, seed=1), make_identity(backbone, "bob", 3, seed=2)]
    loaded = load(pack, models, *people)
    positive, _ = encode(pack, backbone, loaded, PROMPT)
    assert len(positive) == 7
    conditioner = IdentityConditioner(backbone, people)
    for timestep in range(1000):
        (found,) = SAMPLING.list_running(positive, SAMPLING.sigma(timestep))
        torch.testing.assert_close(found[0], conditioner.encode_prompts([PROMPT], timestep).states, atol=1e-5, rtol=0)


# ------------------------------------------------------------------ beside others


def test_other_texts_and_the_unpatched_model_stay_as_they_are(pack, models, backbone):
    model = HostModel(backbone.unet)
    (patched,) = pack.NODE_CLASS_MAPPINGS["ApplySefiToModel"]().apply(model)
    text = torch.randn(1, 17, backbone.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    noisy = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    before, processors = model.predict(noisy, 7, text), dict(backbone.unet.attn_processors)
    assert not model.patches
    torch.testing.assert_close(patched.predict(noisy, 7, text), before)  # another node's text
    torch.testing.assert_close(patched.predict(noisy, 7, torch.cat([text, text], dim=-1)), before)
    loaded = load(pack, models, make_identity(backbone, "ada", 5))
    with pytest.raises(RuntimeError):  # without the node that applies: torch refuses the shape
        model.predict(noisy, 7, encode(pack, backbone, loaded, "a photo of <ada>")[0][0][0])
    assert backbone.unet.attn_processors == processors
    assert torch.equal(model.predict(noisy, 7, text), before)


def test_weights_change_the_words_in_brackets_and_no_others(pack, models, backbone, tools):
    loaded = load(pack, models, make_identity(backbone, "ada", 1, 2))
    width = backbone.unet.config.cross_attention_dim
    plain, heavy = (
        encode(pack, backbone, loaded, text)[0][0][0] for text in ("a photo of <ada>", "a photo of (<ada>:1.3)")
    )
    empty = encode(pack, backbone, loaded, "")[0][0][0]
    changed = (plain - heavy).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [4, 5]
    wanted = empty + 1.3 * (plain - empty)
    torch.testing.assert_close(heavy[:, 4:6], wanted[:, 4:6])
    assert plain.shape[-1] == 2 * width


def test_long_prompts_go_on_in_a_second_chunk(pack, models, backbone):
    loaded = load(pack, models, make_identity(backbone, "ada", 5))
    positive, _ = encode(pack, backbone, loaded, "a photo of a cup and " * 4 + "<ada>")
    assert {one[0].shape[1] for one in positive} == {2 * backbone.text_length}


def test_controlnets_get_a_text_of_their_width(pack, models, backbone):
    loaded = load(pack, models, make_identity(backbone, "ada", 5))
    width = backbone.unet.config.cross_attention_dim
    for one in [*(both := encode(pack, backbone, loaded, "a photo of <ada>", "a cup"))[0], *both[1]]:
        assert torch.equal(one[1]["cross_attn_controlnet"], one[0][..., width:])


def test_one_token_for_keys_and_values_is_encoded_once(pack, models, backbone, monkeypatch):
    ada = make_identity(backbone, "ada", 5)
    ada = replace(ada, tensors={"tokens": ada.tokens[:, :1].repeat(1, 2, 1)})
    loaded, clip, calls = load(pack, models, ada), make_clip(backbone), []
    encode_one = clip.encode_one
    clip.encode_one = lambda *arguments: calls.append(1) or encode_one(*arguments)
    positive, _ = pack.NODE_CLASS_MAPPINGS["EncodePromptWithSefi"]().encode(clip, loaded, "a photo of <ada>", "")
    assert len(calls) == len(positive) + 1
    halves = positive[0][0].chunk(2, dim=-1)
    assert torch.equal(*halves)


# ------------------------------------------------------------------ what is refused


def test_what_a_prompt_cannot_say(pack, models, backbone, sdxl):
    loaded = load(pack, models, make_identity(backbone, "ada", 5))
    for text, negative, message in (
        ("a photo of <bob>", "", "names <bob>; loaded: <ada>"),
        ("a photo of <ada>", "no <ada>", "negative prompt names <ada>"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(pack, backbone, loaded, text, negative)
    with pytest.raises(ValueError, match="same name"):
        encode(pack, backbone, (*loaded, *loaded), "a photo of <ada>")
    with pytest.raises(ValueError, match="family it was learned on"):
        encode(pack, sdxl, loaded, "a photo of <ada>")
    assert len(encode(pack, backbone, loaded, "a photo of a dog")[0]) == 1  # nobody is named: one text


def test_a_model_of_another_kind_is_refused(pack, backbone):
    model = HostModel(backbone.unet)
    model.model.model_config.unet_config = {"image_model": "flux"}
    with pytest.raises(ValueError, match=r"Stable Diffusion 1\.x, 2\.x or XL"):
        pack.NODE_CLASS_MAPPINGS["ApplySefiToModel"]().apply(model)


def write_raw(path, entries, data=b""):
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


HEADER = {"name": "ada", "method": "sefi", "stages": 5, "width": 24, "class_word": "person", "schema_version": 2}
TENSOR = {"dtype": "F32", "shape": [5, 2, 24], "data_offsets": [0, 960]}


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({}, {}, "learned no tokens"),
        (None, {"tokens": TENSOR}, "is no identity of sefi"),
        ({"schema_version": 5}, {"tokens": TENSOR}, "newer sefi"),
        ({"schema_version": "2"}, {"tokens": TENSOR}, "damaged"),
        ({"name": "../x"}, {"tokens": TENSOR}, "damaged"),
        ({"name": None}, {"tokens": TENSOR}, "damaged"),
        ({"name": 5}, {"tokens": TENSOR}, "damaged"),
        ({"stages": 10**9}, {"tokens": TENSOR}, "damaged"),
        ({"stages": True}, {"tokens": TENSOR}, "damaged"),
        ({"widths": [24, 24]}, {"tokens": TENSOR}, "missing"),
        ({"widths": 3}, {"tokens": TENSOR}, "damaged"),
        ({"stages": 4}, {"tokens": TENSOR}, "contradicts"),
        ({"width": 12}, {"tokens": TENSOR}, "contradicts"),
        ({}, {"tokens": TENSOR, "unet.conv_in.weight": TENSOR}, "changed weights"),
        ({"shards": ["x"]}, {"tokens": TENSOR}, "changed weights"),
        ({}, {"tokens": {**TENSOR, "shape": [5, 2, 2**40]}}, "another length"),
        ({}, {"tokens": {**TENSOR, "data_offsets": [0, 2**60]}}, "another length"),
        ({}, {"tokens": {**TENSOR, "data_offsets": [-960, 0]}}, "another length"),
        ({}, {"tokens": {**TENSOR, "dtype": "I64"}}, "of a kind"),
        ({}, {"tokens": [1, 2]}, "of a kind"),
    ],
)
def test_files_that_are_refused(pack, models, header, tensors, message):
    metadata = {} if header is None else {"__metadata__": {"sefi": json.dumps(HEADER | header)}}
    write_raw(models / "sefi" / "x.safetensors", metadata | tensors, bytes(960))
    with pytest.raises(ValueError, match=message):
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")


def add_length(content):
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 64, add_length(b"[]"), add_length(b"nope"), add_length(b"[" * 50_000)]
)
def test_bytes_that_are_no_identity(pack, models, content):
    (models / "sefi" / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|cut short"):
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")


def test_tokens_that_are_not_finite(pack, models):
    tokens = torch.full((5, 2, 24), torch.nan)
    save_file({"tokens": tokens}, models / "sefi" / "x.safetensors", metadata={"sefi": json.dumps(HEADER)})
    with pytest.raises(ValueError, match="not finite"):
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")


def test_a_token_longer_than_any_and_a_key_named_twice(pack, models):
    path = models / "sefi" / "x.safetensors"
    save_file({"tokens": torch.full((5, 2, 24), 1e6)}, path, metadata={"sefi": json.dumps(HEADER)})
    with pytest.raises(ValueError, match="longer than any"):
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")
    nameless = json.dumps({key: value for key, value in HEADER.items() if key != "name"})
    write_raw(path, {"__metadata__": {"sefi": nameless}, "tokens": TENSOR}, bytes(960))
    with pytest.raises(ValueError, match="damaged"):  # "None" looks like a name
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")
    header = json.dumps(HEADER)[:-1] + ', "name": "bob"}'
    write_raw(path, {"__metadata__": {"sefi": header}, "tokens": TENSOR}, bytes(960))
    with pytest.raises(ValueError, match="damaged"):
        pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("schema", [1, 2, 3])
def test_every_schema_and_dtype_is_read(pack, models, dtype, schema):
    tokens = {"tokens": torch.randn(5, 2, 24).to(dtype)}
    header = HEADER | {"schema_version": schema}
    if schema == 3:
        tokens["tokens_2"] = torch.randn(5, 2, 40).to(dtype)
        header |= {"width": 64, "widths": [24, 40]}
    save_file(tokens, models / "sefi" / "x.safetensors", metadata={"sefi": json.dumps(header)})
    (one,), _ = pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")
    for found, wanted in zip(one.tokens, tokens.values(), strict=True):
        assert torch.equal(found[:, :, 0], wanted.float())


def test_other_tensors_of_an_identity_are_left_alone(pack, models):
    """Files may have more: what Celeb Basis learned, or a first tensor that keeps programs from misreading them."""
    tokens, basis = torch.randn(5, 2, 24), torch.randn(2, 7, 24)
    metadata = {"sefi": json.dumps(HEADER | {"method": "celeb-basis"})}
    others = {"A MARK: no embedding": torch.zeros(1, 1, dtype=torch.float64), "digest": torch.zeros(32).byte()}
    save_file({**others, "tokens": tokens, "basis": basis}, models / "sefi" / "x.safetensors", metadata=metadata)
    (one,), _ = pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]().load("x.safetensors")
    assert torch.equal(one.tokens[0][:, :, 0], tokens)


def test_the_list_of_files_and_what_shows_a_change(pack, models, backbone):
    load(pack, models, make_identity(backbone, "ada", 5))
    node = pack.NODE_CLASS_MAPPINGS["LoadSefiIdentity"]
    (models / "sefi" / "notes.txt").write_text("x")
    assert node.INPUT_TYPES()["required"]["file"][0] == ["ada.safetensors"]
    before = node.IS_CHANGED("ada.safetensors")
    make_identity(backbone, "ada", 3, seed=9).save(models / "sefi" / "ada.safetensors")
    assert node.IS_CHANGED("ada.safetensors") != before


# ------------------------------------------------------------------ workflows


@pytest.mark.parametrize("path", sorted((PACK / "workflows").glob("*_api.json")), ids=lambda path: path.name)
def test_workflows_name_nodes_inputs_and_outputs_that_there_are(pack, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    ours = 0
    for node in workflow.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in workflow
        if node["class_type"] in pack.NODE_CLASS_MAPPINGS:
            ours += 1
            kinds = pack.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
            assert kinds["required"].keys() <= node["inputs"].keys()
            assert node["inputs"].keys() <= {**kinds["required"], **kinds.get("optional", {})}.keys()
    assert ours >= 3
    assert re.search(r"<ada>", path.read_text(encoding="utf-8"))
