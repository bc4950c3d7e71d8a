"""LoRA and Custom Diffusion leave in files that diffusers loads, and its UNet then gives what ours gives."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from sefi.backbone.open import create_empty_stable_diffusion
from sefi.backbone.weights import ATTENTION_LAYERS, list_cross_attention_weights
from sefi.cli.app import app
from sefi.core.errors import ConfigError
from sefi.hosts.export import HOSTS, get_host, write_exported
from sefi.hosts.weight_files import (
    export_custom_diffusion,
    export_lora,
    is_custom_diffusion,
    is_lora,
    make_diffusers_lora,
    make_kohya_lora,
)
from sefi.identity.file import Identity
from sefi.methods import METHODS, get_preset
from sefi.methods.base import create_header
from sefi.methods.dreambooth_lora import copy_with_matrices, is_adapted

PROMPT = "a photo of <ada> at the beach"


def draw(shape, seed, scale=0.3):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_header(backbone, preset, *settings):
    return create_header("ada", backbone, get_preset(preset, ["learn.class_word=dog", *settings]), 0)


def make_lora(backbone, rank=3):
    _, matrices = copy_with_matrices(backbone, rank)
    tensors = {f"unet.{name}": draw(one.shape, number) for number, (name, one) in enumerate(matrices.items())}
    return Identity(tensors, make_header(backbone, "dreambooth-lora", f"tune.rank={rank}", "tune.identifier=snow"))


def make_custom_diffusion(backbone, parts):
    layers = {"key_value": ("to_k", "to_v"), "cross_attention": ATTENTION_LAYERS}[parts]
    parameters = dict(backbone.unet.named_parameters())
    names = list_cross_attention_weights(backbone.unet, layers)
    tensors = {f"unet.{name}": draw(parameters[name].shape, number) for number, name in enumerate(names)}
    dog = backbone.tokenizer("dog").input_ids[1]
    rows = torch.stack([draw(backbone.token_width, 99), backbone.get_token_row([dog])])
    tensors["tokens"] = rows.expand(1, 2, -1, -1).clone()
    return Identity(tensors, make_header(backbone, "custom-diffusion", f"tune.parts={parts}"))


def build_pipeline(backbone):
    """A pipeline of diffusers with copies of the parts that loading changes."""
    parts = {
        name: copy.deepcopy(getattr(backbone, name))
        for name in ("unet", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        if getattr(backbone, name) is not None
    }
    parts |= {"vae": backbone.vae, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
    if backbone.family == "sdxl":
        return StableDiffusionXLPipeline(**parts)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)


def compute_noise(unet, states, added=None):
    latents = draw((2, unet.config.in_channels, 12, 12), 7, 1.0)
    with torch.no_grad():
        return unet(latents, torch.tensor([901, 13]), states.expand(2, -1, -1), added_cond_kwargs=added).sample


# ------------------------------------------------------------------ LoRA


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("host", ["diffusers", "kohya", "comfyui"])
def test_a_lora_gives_the_same_noise_in_diffusers(backbone, tmp_path, host):
    identity = make_lora(backbone)
    exported = export_lora(identity, get_host(host), "snow dog")
    write_exported(exported.files, tmp_path)
    pipe = build_pipeline(backbone)
    states = draw((1, 17, backbone.token_width), 5, 1.0)
    before = compute_noise(pipe.unet, states)
    pipe.load_lora_weights(str(tmp_path), weight_name="sefi-ada.safetensors")
    ours = METHODS["dreambooth-lora"].apply([identity], backbone).backbone.unet
    wanted = compute_noise(ours, states)
    assert (wanted - before).abs().max() > 1e-2
    torch.testing.assert_close(compute_noise(pipe.unet, states), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("host", ["diffusers", "forge"])
def test_a_lora_of_sdxl_gives_the_same_noise_in_diffusers(sdxl, tmp_path, host):
    identity = make_lora(sdxl, rank=2)
    write_exported(export_lora(identity, get_host(host), "snow dog").files, tmp_path)
    pipe = build_pipeline(sdxl)
    pipe.load_lora_weights(str(tmp_path), weight_name="sefi-ada.safetensors")
    states = draw((1, 17, sdxl.token_width), 5, 1.0)
    added = {"text_embeds": draw((2, 20), 3, 1.0), "time_ids": torch.full((2, 6), 24.0)}
    ours = METHODS["dreambooth-lora"].apply([identity], sdxl).backbone.unet
    torch.testing.assert_close(
        compute_noise(pipe.unet, states, added), compute_noise(ours, states, added), rtol=1e-5, atol=1e-5
    )


def test_kohyas_names_are_those_of_diffusers_own_conversion(backbone):
    identity = make_lora(backbone)
    theirs = convert_state_dict_to_kohya(make_diffusers_lora(identity))
    ours = make_kohya_lora(identity)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor.double(), theirs[name].double()) for name, tensor in ours.items())


def name_as_comfyui(layers):
    """`model_lora_keys_unet` of ComfyUI: a key for every layer of the UNet by diffusers' names."""
    return {"lora_unet_" + layer.replace(".", "_") for layer in layers}


def convert_as_a1111(key):
    """`convert_diffusers_name_to_compvis` of A1111 and Forge, of attention: the name of the published model."""
    found = re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_attentions_(\d+)_(.+)", key)
    if found:
        first = {"down": 1 + int(found[2]) * 3 + int(found[3]), "up": int(found[2]) * 3 + int(found[3])}[found[1]]
        return f"diffusion_model_{'input' if found[1] == 'down' else 'output'}_blocks_{first}_1_{found[4]}"
    found = re.fullmatch(r"lora_unet_mid_block_attentions_(\d+)_(.+)", key)
    return f"diffusion_model_middle_block_1_{found[2]}" if found else key


def test_every_layer_of_stable_diffusion_is_found_by_every_program():
    unet = create_empty_stable_diffusion().unet
    layers = [name for name, _ in unet.named_modules() if is_adapted(name)]
    tensors = {f"unet.{layer}.{kind}": torch.zeros(1, 1) for layer in layers for kind in ("lora_A", "lora_B")}
    keys = {name.rpartition(".")[0].removesuffix(".lora_down").removesuffix(".lora_up")
            for name in make_kohya_lora(Identity(tensors, None)) if not name.endswith(".alpha")}  # fmt: skip
    assert len(keys) == len(layers) == 128
    assert keys <= name_as_comfyui(layers)
    # Of the published model: the blocks with attention of inputs, middle and outputs.
    blocks = [f"input_blocks_{n}_1" for n in (1, 2, 4, 5, 7, 8)] + ["middle_block_1"]
    blocks += [f"output_blocks_{n}_1" for n in range(3, 12)]
    wanted = {
        f"diffusion_model_{block}_transformer_blocks_0_attn{attention}_{layer}"
        for block in blocks
        for attention in (1, 2)
        for layer in ("to_q", "to_k", "to_v", "to_out_0")
    }
    assert {convert_as_a1111(key) for key in keys} == wanted


def test_layers_of_sdxl_have_the_names_of_its_published_code():
    """`SdxlUNet2DConditionModel` of sd-scripts; `network_layer_mapping` of A1111, `model_lora_keys_unet` of ComfyUI."""
    wanted = {
        f"lora_unet_{block}_1_transformer_blocks_{number}_attn1_to_q"
        for block, depth in (
            *((f"input_blocks_{n}", 2) for n in (4, 5)),
            *((f"input_blocks_{n}", 10) for n in (7, 8)),
            ("middle_block", 10),
            *((f"output_blocks_{n}", 10) for n in (0, 1, 2)),
            *((f"output_blocks_{n}", 2) for n in (3, 4, 5)),
        )
        for number in range(depth)
    }
    blocks = [("down_blocks.1", 2, 2), ("down_blocks.2", 2, 10), ("mid_block", 1, 10)]
    blocks += [("up_blocks.0", 3, 10), ("up_blocks.1", 3, 2)]
    layers = [
        f"{block}.attentions.{attention}.transformer_blocks.{number}.attn1.to_q"
        for block, attentions, depth in blocks
        for attention in range(attentions)
        for number in range(depth)
    ]
    tensors = {f"unet.{layer}.{kind}": torch.zeros(1, 1) for layer in layers for kind in ("lora_A", "lora_B")}
    made = make_kohya_lora(Identity(tensors, None), of_sdxl=True)
    assert {name.partition(".")[0] for name in made} == wanted
    assert len(made) == 3 * len(layers)


@pytest.mark.parametrize(("family", "version"), [("sd1", "SD1"), ("sd2", "SD2"), ("sdxl", "SDXL")])
def test_a1111_lists_a_lora_with_the_models_that_it_is_for(backbone, sdxl, family, version):
    made = make_lora(sdxl if family == "sdxl" else backbone)
    header = made.header.model_copy(update={"base_model": f"{family}:9:0123456789abcdef"})
    (file,) = export_lora(Identity(made.tensors, header), get_host("a1111"), "snow dog").files
    found = file.metadata
    # `NetworkOnDisk.detect_version` of A1111 and Forge, which list no LoRA of another version.
    of_sd2 = "SD2" if found.get("ss_v2") == "True" else "SD1"
    assert ("SDXL" if found.get("ss_base_model_version", "").startswith("sdxl_") else of_sd2) == version


@pytest.mark.parametrize(
    ("family", "width", "prediction", "architecture", "version"),
    [
        ("sd1", 768, "epsilon", "stable-diffusion-v1", "sd_v1"),
        ("sd1", 768, "v_prediction", "stable-diffusion-v1", "sd_v1_v"),
        ("sd2", 1024, "epsilon", "stable-diffusion-v2-512", "sd_v2"),
        ("sd2", 1024, "v_prediction", "stable-diffusion-v2-768-v", "sd_v2_v"),
        ("sdxl", 2048, "epsilon", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        ("sdxl", 2048, "v_prediction", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    ],
)
def test_files_say_what_the_model_predicts_as_sd_scripts_does(
    backbone, sdxl, tmp_path, family, width, prediction, architecture, version
):
    """`determine_architecture` of sd-scripts' `sai_model_spec.py`; `get_model_version_str_for_sd1_sd2`."""
    opened = sdxl if family == "sdxl" else replace(backbone, family=family)
    schedule = DDPMScheduler.from_config(opened.scheduler.config, prediction_type=prediction)
    made = make_lora(replace(opened, scheduler=schedule))
    # The width and the name of a published model, in the place of the tiny one's.
    named = made.header.model_copy(update={"base_model": f"{family}:{width}:0123456789abcdef", "width": width})
    Identity(made.tensors, named.model_copy(update={"widths": ()})).save(tmp_path / "ada.safetensors")
    (file,) = export_lora(Identity.load(tmp_path / "ada.safetensors"), get_host("forge"), "snow dog").files
    assert file.metadata["modelspec.architecture"] == f"{architecture}/lora"
    assert file.metadata["modelspec.prediction_type"] == {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    assert file.metadata["ss_base_model_version"] == version
    assert file.metadata["ss_v2"] == str(family == "sd2")


def test_a_lora_says_what_it_is_and_how_it_is_used(backbone, tmp_path):
    make_lora(backbone).save(tmp_path / "ada.safetensors")
    for host, entry in HOSTS.items():
        arguments = ["export", str(tmp_path / "ada.safetensors"), "--to", host, "--out", str(tmp_path / host), "--json"]
        answer = CliRunner().invoke(app, arguments)
        assert answer.exit_code == 0, answer.output
        record = json.loads(answer.stdout)
        assert "snow dog" in record["prompt"]
        assert record["folder"] == entry.lora_folder
        assert ("<lora:sefi-ada:1>" in record["prompt"]) == (host in ("a1111", "forge", "sdnext"))
        with safe_open(tmp_path / host / "sefi-ada.safetensors", "pt") as file:
            assert file.metadata()["modelspec.architecture"].endswith("/lora")
            assert file.metadata()["ss_network_dim"] == "3"


@pytest.mark.parametrize("option", [["--stages"], ["--slot", "key"]])
def test_weights_have_no_stages_and_no_slots(backbone, tmp_path, option):
    make_lora(backbone).save(tmp_path / "ada.safetensors")
    answer = CliRunner().invoke(app, ["export", str(tmp_path / "ada.safetensors"), "--to", "forge", *option])
    assert answer.exit_code == 2
    assert "no stages and no slots" in " ".join(answer.output.split())
    assert f"Leave out {option[0]}." in answer.output


# ------------------------------------------------------------------ Custom Diffusion


@pytest.mark.parametrize("make", [make_lora, lambda backbone: make_custom_diffusion(backbone, "key_value")])
def test_words_of_a_file_add_no_line_to_the_printed_calls_and_move_no_cursor(backbone, tmp_path, make):
    """Calls of Python are printed to be copied: a line end in the class word ended their comment."""
    identity = make(backbone)
    header = identity.header.model_copy(
        update={"class_word": "dog\nimport os\x1b[2J", "consent": "agreed\nIdentity: of somebody else\x1b[2J"}
    )
    replace(identity, header=header).save(tmp_path / "ada.safetensors")
    arguments = ["export", str(tmp_path / "ada.safetensors"), "--to", "diffusers", "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == 0, answer.output
    prompt, [file] = json.loads(answer.stdout)["prompt"], (tmp_path / "out").glob("*-prompt.txt")
    for text in (prompt, file.read_text()):
        assert "\x1b" not in text
        assert not [line for line in text.splitlines() if line.startswith(("import os", "Identity: of"))]
    assert prompt.splitlines()[-1].endswith(r"dog\nimport os\x1b[2J at the beach")


@pytest.mark.parametrize("parts", ["key_value", "cross_attention"])
def test_custom_diffusion_gives_the_same_noise_in_diffusers(backbone, tmp_path, parts):
    identity = make_custom_diffusion(backbone, parts)
    assert is_custom_diffusion(identity)
    assert not is_lora(identity)
    write_exported(export_custom_diffusion(identity, get_host("diffusers")).files, tmp_path)
    model = METHODS["custom-diffusion"].apply([identity], backbone)
    key, value = model.conditioner.encode_prompts([PROMPT], 500).states.chunk(2, dim=-1)
    torch.testing.assert_close(key, value, rtol=1e-5, atol=1e-5)
    wanted = compute_noise(model.backbone.unet, key)

    pipe = build_pipeline(backbone)
    pipe.load_textual_inversion(str(tmp_path / "sefi-ada.safetensors"), token="<sefi-ada>")
    pipe.unet.load_attn_procs(str(tmp_path), weight_name="sefi-ada.weights.safetensors", _pipeline=pipe)
    states, _ = pipe.encode_prompt("a photo of <sefi-ada> dog at the beach", "cpu", 1, False)
    torch.testing.assert_close(states, key, rtol=1e-5, atol=1e-5)
    assert (wanted - compute_noise(backbone.unet, key)).abs().max() > 1e-2
    torch.testing.assert_close(compute_noise(pipe.unet, states), wanted, rtol=1e-4, atol=1e-5)


def test_two_people_of_custom_diffusion_share_a_folder(backbone, tmp_path):
    ada = make_custom_diffusion(backbone, "key_value")
    tensors = {name: tensor + 1 for name, tensor in ada.tensors.items()}
    bob = Identity(tensors, ada.header.model_copy(update={"name": "bob"}))
    for one in (ada, bob):
        write_exported(export_custom_diffusion(one, get_host("diffusers")).files, tmp_path)
    files = {path.stem: load_file(path) for path in tmp_path.iterdir()}
    assert len(files) == 4
    for name in files["sefi-ada.weights"]:
        assert torch.equal(files["sefi-ada.weights"][name] + (".attn2." in name), files["sefi-bob.weights"][name])


@pytest.mark.parametrize("host", [name for name in HOSTS if name != "diffusers"])
def test_custom_diffusion_is_refused_where_no_program_reads_it(backbone, host):
    with pytest.raises(ConfigError, match="Custom Diffusion"):
        export_custom_diffusion(make_custom_diffusion(backbone, "key_value"), get_host(host))


# ------------------------------------------------------------------ every method

EXPORTED = {  # what `sefi export --to diffusers` and `--to comfyui` write; None is refused
    "sefi": ("embedding", "embedding"),
    "textual-inversion": ("embedding", "embedding"),
    "cross-init": ("embedding", "embedding"),
    "celeb-basis": ("embedding", "embedding"),
    "prospect": ("embedding", "embedding"),
    "dreambooth-lora": ("lora", "lora"),
    "custom-diffusion": ("custom", None),
    "dreambooth": (None, None),
    "fastcomposer": (None, None),
}


def make_tensors(method, backbone):
    """Tensors such as the method keeps, by docs/file-format.md."""
    width = backbone.token_width
    match method:
        case "dreambooth-lora":
            return make_lora(backbone).tensors
        case "custom-diffusion":
            return make_custom_diffusion(backbone, "key_value").tensors
        case "dreambooth":
            return {f"unet.{name}": one.data for name, one in backbone.unet.named_parameters()}
        case "fastcomposer":
            return {"image": draw((1, 13), 1), "composer": torch.zeros(32, dtype=torch.uint8)}
        case "celeb-basis":
            more = {"coefficients": draw((2, 5), 1), "basis": draw((2, 6, width), 2)}
            return {"tokens": draw((1, 2, 3, width), 3), **more}
        case "textual-inversion" | "cross-init":
            return {"tokens": draw((1, 1, 2, width), 3).expand(-1, 2, -1, -1).clone()}
    stages = get_preset(method if method != "sefi" else "default").learn.stages
    return {"tokens": draw((stages, 2, width), 3)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [0, 1])
def test_every_method_leaves_in_a_file_or_is_refused(backbone, tmp_path, method, number):
    preset = "default" if method == "sefi" else method
    identity = Identity(make_tensors(method, backbone), make_header(backbone, preset))
    identity.save(tmp_path / "ada.safetensors")
    host = ("diffusers", "comfyui")[number]
    arguments = ["export", str(tmp_path / "ada.safetensors"), "--to", host, "--out", str(tmp_path / "out"), "--json"]
    answer = CliRunner().invoke(app, arguments)
    kind = EXPORTED[method][number]
    if kind is None:
        assert answer.exit_code == 2
        assert "--method" in json.loads(answer.stdout)["try"]
        assert not (tmp_path / "out").exists()
        return
    assert answer.exit_code == 0, answer.output
    files = {path.stem: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    first = files["sefi-ada"]
    match kind:
        case "embedding":
            (vectors,) = first.values()
            assert vectors.shape == (identity.stage_tokens.shape[2], backbone.token_width)
            if identity.header.stages == 1:  # nothing is lost where keys and values are one
                assert torch.equal(vectors, identity.stage_tokens[0, 1])
        case "lora":
            assert len(first) == len(identity.tensors) * (2 if host == "diffusers" else 3) / 2
        case "custom":
            assert list(first) == ["<sefi-ada>"]
            assert sum(len(one) > 0 for one in files["sefi-ada.weights"].values()) == len(identity.tensors) - 1
