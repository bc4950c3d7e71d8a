"""Run the node pack in ComfyUI itself, with the embedded model's weights, and compare every UNet call with sefi's own.

Started by `tests/integrations/test_comfyui_itself.py` with a folder of ComfyUI; prints one JSON line.
"""

import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from tests.conftest import LENGTH, PROMPT_WORDS, WIDTH_2, make_sdxl, make_text_encoder
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

import sefi
from sefi.core.rng import create_generator
from sefi.diffusion.attention import copy_with_key_value_attention
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.text import get_class_token_ids
from sefi.identity.file import Identity, IdentityHeader
from tiny_portraits.text.tokenizing import build_tokenizer

FOLDER, PACK = Path(sys.argv[1]), Path(__file__).with_name("comfyui-sefi").resolve()
MODELS = Path(tempfile.mkdtemp())
sys.argv = ["main.py", "--cpu", "--base-directory", str(MODELS), "--force-fp32", "--fp32-text-enc"]
sys.path.insert(0, str(FOLDER))
os.chdir(MODELS)
(MODELS / "models" / "sefi").mkdir(parents=True)


class Absent(ModuleType):
    """A library that only models of other kinds use."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name)


for name in ("torchvision", "torchaudio"):
    if importlib.util.find_spec(name) is None:
        sys.modules |= {name: Absent(name), f"{name}.transforms": Absent(f"{name}.transforms")}

import comfy.options

comfy.options.enable_args_parsing()

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.utils
import execution
import folder_paths
import nodes

PROMPT, NEGATIVE = "a photo of <ada> and <bob> at the beach", "a drawing"
SAMPLERS = [("euler", "normal", 5), ("dpmpp_2m", "karras", 8), ("euler_ancestral", "simple", 5),
            ("lcm", "sgm_uniform", 4), ("heun", "exponential", 4), ("dpmpp_sde", "karras", 4),
            ("uni_pc", "ddim_uniform", 5)]  # fmt: skip


# ------------------------------------------------------------------ the embedded model as ComfyUI has models


def make_clip(backbone):
    folder = MODELS / "tokenizer"
    backbone.tokenizer.save_pretrained(folder)
    text, length = backbone.text_encoder.config, backbone.text_length
    start, end, padding = (getattr(backbone.tokenizer, f"{one}_token_id") for one in ("bos", "eos", "pad"))

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, **arguments):
            sizes = {"max_length": length, "embedding_size": text.hidden_size}
            super().__init__(tokenizer_path=str(folder), **sizes, **arguments)

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, **arguments):
            marks = {"start": start, "end": end, "pad": padding}
            super().__init__(max_length=length, textmodel_json_config=text.to_dict(), special_tokens=marks,
                             return_projected_pooled=False, **arguments)  # fmt: skip

    class Target:
        params = {"clip_model": Encoder}  # noqa: RUF012
        clip = comfy.sd1_clip.SD1ClipModel

        @staticmethod
        def tokenizer(**arguments):
            data = arguments.pop("tokenizer_data")
            return comfy.sd1_clip.SD1Tokenizer(tokenizer=Tokenizer, tokenizer_data=data, **arguments)

    clip = comfy.sd.CLIP(Target(), embedding_directory=[])
    load_text_encoder(clip.cond_stage_model.clip_l, backbone.text_encoder)
    return clip


def load_text_encoder(encoder, source):
    """Give ComfyUI's text encoder the weights of one of transformers; its table has a row for each of CLIP's tokens."""
    weights = {
        name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in source.state_dict().items()
    }
    table = weights["text_model.embeddings.token_embedding.weight"]
    whole = torch.zeros(49408, table.shape[1])
    whole[: len(table)] = table
    weights["text_model.embeddings.token_embedding.weight"] = whole
    missing, _ = encoder.load_sd(weights)
    assert set(missing) <= {"text_projection.weight"}, missing


def make_small_sdxl():
    """A small SDXL of random weights, whose pooled text is as wide as its second encoder: ComfyUI knows no other."""
    tokenizer = build_tokenizer(MODELS / "words", sorted(PROMPT_WORDS), LENGTH)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    start, end, *words = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    numbers = {word: number for number, word in enumerate([start, end, *reversed(words)])}
    merges = [tuple(pair) for pair in vocabulary["merges"]]
    second = CLIPTokenizer(vocab=numbers, merges=merges, pad_token=words[0], model_max_length=LENGTH)
    sizes = {"hidden_size": WIDTH_2, "num_hidden_layers": 4, "num_attention_heads": 2, "projection_dim": WIDTH_2}
    torch.manual_seed(17)
    return replace(
        make_sdxl(tokenizer, second),
        text_encoder=make_text_encoder(tokenizer, num_hidden_layers=3).eval(),
        text_encoder_2=make_text_encoder(second, CLIPTextModelWithProjection, **sizes).eval(),
    )


def make_sdxl_clip(backbone):
    """ComfyUI's CLIP of SDXL with the small one's tokenizers and weights."""
    tokenizers = {}
    for key, tokenizer in zip("lg", backbone.tokenizers, strict=True):
        tokenizer.save_pretrained(MODELS / f"tokenizer_{key}")
        sizes = {"max_length": LENGTH, "embedding_size": 0, "embedding_key": f"clip_{key}"}
        tokenizers[f"clip_{key}"] = comfy.sd1_clip.SDTokenizer(
            tokenizer_path=str(MODELS / f"tokenizer_{key}"), pad_token=tokenizer.pad_token_id, **sizes
        )

    def make_tokenizer(**_arguments):
        made = comfy.sdxl_clip.SDXLTokenizer()
        vars(made).update(tokenizers)
        return made

    class Target:
        params = {}  # noqa: RUF012
        clip, tokenizer = comfy.sdxl_clip.SDXLClipModel, staticmethod(make_tokenizer)

    encoders = dict(zip(("clip_l", "clip_g"), backbone.text_encoders, strict=True))
    options = {f"{name}_model_config": encoder.config.to_dict() for name, encoder in encoders.items()}
    clip = comfy.sd.CLIP(Target(), embedding_directory=[], model_options=options)
    for (name, encoder), tokenizer in zip(encoders.items(), backbone.tokenizers, strict=True):
        part = getattr(clip.cond_stage_model, name)
        marks = {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
        part.special_tokens = marks
        load_text_encoder(part, encoder)
    return clip


class Times(float):
    """A factor of channels that need not be whole."""

    def __mul__(self, other):
        return round(float(self) * other)

    __rmul__ = __mul__


def make_model(backbone):
    config = backbone.unet.config

    class Operations(comfy.ops.disable_weight_init):
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, num_groups, num_channels, *arguments, **options):
                super().__init__(config.norm_num_groups, num_channels, *arguments, **options)

    class Latents(comfy.latent_formats.LatentFormat):
        latent_channels, scale_factor = config.in_channels, 1.0

    class Kind(comfy.supported_models_base.BASE):
        unet_extra_config = {"num_heads": config.attention_head_dim, "num_head_channels": -1}  # noqa: RUF012
        latent_format, custom_operations = Latents, Operations

    first, channels = config.block_out_channels[0], config.block_out_channels
    down = [int("CrossAttn" in kind) for kind in config.down_block_types]
    unet_config = {
        "image_size": 32, "in_channels": config.in_channels, "out_channels": config.out_channels,
        "model_channels": first, "num_res_blocks": [config.layers_per_block] * len(channels),
        "channel_mult": [Times(one / first) for one in channels], "transformer_depth": down,
        "transformer_depth_middle": 1,
        "transformer_depth_output": [one for one in down for _ in range(config.layers_per_block + 1)],
        "use_spatial_transformer": True, "legacy": False, "context_dim": config.cross_attention_dim,
        "dtype": torch.float32, "use_linear_in_transformer": False, "use_temporal_attention": False,
    }  # fmt: skip
    kind = Kind(unet_config)
    velocity = backbone.prediction_type == "v_prediction"
    model = comfy.model_base.BaseModel(kind, getattr(comfy.model_base.ModelType, "V_PREDICTION" if velocity else "EPS"))
    names = comfy.utils.unet_to_diffusers(unet_config)
    weights = backbone.unet.state_dict()
    model.diffusion_model.load_state_dict({names[name]: value for name, value in weights.items()})
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


# ------------------------------------------------------------------ run and compare


def make_identity(backbone, name, stages, vectors, seed):
    row = backbone.get_token_row(get_class_token_ids(backbone, "person"))
    shape = (stages, 2, *([vectors] if vectors > 1 else []), len(row))
    noise = torch.randn(shape, generator=create_generator(seed, "moved"))
    widths = backbone.token_widths if len(backbone.token_widths) > 1 else ()
    header = IdentityHeader(
        name=name, method="sefi", stages=stages, base_model=backbone.fingerprint, width=len(row), class_word="person",
        widths=widths, schema_version=3 if widths else 2, signature=backbone.signature.dump(),
    )  # fmt: skip
    return Identity({"tokens": row + 0.5 * row.std() * noise}, header)


def load_people(*people):
    """Save identities in ComfyUI's folder and load them by the node."""
    loaded = ()
    for person in people:
        person.save(MODELS / "models" / "sefi" / f"{person.name}.safetensors")
        loaded, _ = call("LoadSefiIdentity", f"{person.name}.safetensors", loaded)
    return loaded


def record_calls(model):
    """Record, of every call of the UNet, each row: its input, timestep, side, text and answer."""
    unet, calls = model.model.diffusion_model, []
    original = unet.forward

    def forward(x, timesteps=None, context=None, *, transformer_options, **more):
        answer = original(x, timesteps, context, transformer_options=transformer_options, **more)
        sides = transformer_options["cond_or_uncond"]
        sides = [side for side in sides for _ in range(len(x) // len(sides))]
        calls.extend(zip(sides, x.clone(), timesteps.tolist(), context.clone(), answer.clone(), strict=True))
        return answer

    unet.forward = forward
    return calls


def call(name, *arguments, **options):
    node = nodes.NODE_CLASS_MAPPINGS[name]
    return getattr(node(), node.FUNCTION)(*arguments, **options)


def compare_samplers(backbone, people, patched, texts):
    """Sample with guidance, two images at once, and compare every row of every call."""
    conditioner = IdentityConditioner(backbone, people)
    null, unet = conditioner.encode_negative(1, NEGATIVE), copy_with_key_value_attention(backbone.unet)
    calls, rows = record_calls(patched), []
    size = backbone.unet.config.sample_size
    latent = torch.zeros(2, backbone.unet.config.in_channels, size, size)
    noise = torch.randn(latent.shape, generator=create_generator(0, "noise"))
    for sampler, scheduler, steps in SAMPLERS:
        calls.clear()
        comfy.sample.sample(patched, noise, steps, 4.0, sampler, scheduler, *texts, latent, seed=0, disable_pbar=True)
        differences = []
        for side, noisy, timestep, text, answer in calls:
            wanted = null if side else conditioner.encode_prompts([PROMPT], int(timestep))
            mine = backbone.predict(noisy[None], torch.tensor([int(timestep)]), wanted, unet)
            differences.append([float((text - wanted.states[0]).abs().max()), float((answer - mine[0]).abs().max())])
        timesteps = {one[2] for one in calls}
        both = all(sum(one[0] == side and one[2] == t for one in calls) >= 2 for side in (0, 1) for t in timesteps)
        rows.append(
            {"sampler": f"{sampler} {scheduler} {steps}", "calls": len(calls), "timesteps": len(timesteps),
             "both_sides": both, "texts": max(d[0] for d in differences), "outputs": max(d[1] for d in differences)}
        )  # fmt: skip
    return rows


def compare_weights(clip, loaded):
    """Return how far a weighted name is from the line through the empty text's state and its own."""
    texts = ["a photo of <ada>", "a photo of (<ada>:1.3)", ""]
    plain, heavy, empty = (call("EncodePromptWithSefi", clip, loaded, text, "")[0][0][0] for text in texts)
    wanted = plain.clone()
    wanted[:, 4] = empty[:, 4] + 1.3 * (plain[:, 4] - empty[:, 4])
    return float((heavy - wanted).abs().max())


def compare_plain_text(clip, model, patched):
    """Return how far the patched model is from the model itself with the text of ComfyUI's own node."""
    (text,) = call("CLIPTextEncode", clip, "a photo of a dog")
    config = model.model.model_config.unet_config
    latent = torch.zeros(1, config["in_channels"], 24, 24)
    noise = torch.randn(latent.shape, generator=create_generator(1, "noise"))
    first, second = (
        comfy.sample.sample(one, noise, 2, 3.0, "euler", "normal", text, text, latent, seed=0, disable_pbar=True)
        for one in (model, patched)
    )
    return float((first - second).abs().max())


def list_controlnet_texts(backbone, patched, texts):
    """Sample with a ControlNet of random weights; return, for each call of it, whether it read a value text alone."""
    config = dict(patched.model.model_config.unet_config)
    for name in ("out_channels", "transformer_depth_output"):
        del config[name]
    operations = patched.model.model_config.custom_operations
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=operations).eval()
    for one in network.parameters():
        torch.nn.init.normal_(one, std=0.02, generator=create_generator(one.numel(), "controlnet"))
    read, original = [], network.forward

    def forward(x, hint, timesteps, context, **more):
        read.extend(context.clone())
        return original(x=x, hint=hint, timesteps=timesteps, context=context, **more)

    network.forward = forward
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    size = backbone.unet.config.sample_size
    image = torch.rand(1, 8 * size, 8 * size, 3, generator=create_generator(2, "hint"))
    controlled = call("ControlNetApplyAdvanced", *texts, control, image, 1.0, 0.0, 1.0)
    latent = torch.zeros(1, backbone.unet.config.in_channels, size, size)
    noise = torch.randn(latent.shape, generator=create_generator(0, "noise"))
    free, held = (
        comfy.sample.sample(patched, noise, 4, 4.0, "euler", "normal", *some, latent, seed=0, disable_pbar=True)
        for some in (texts, controlled)
    )
    assert not torch.equal(free, held)
    values = [one[0][0].chunk(2, dim=-1)[1] for some in texts for one in some]
    return [any(one.shape == value.shape and torch.equal(one, value) for value in values) for one in read]


def compare_sdxl():
    """Return how far text and pooled text of a small SDXL are from sefi's own."""
    backbone = make_small_sdxl()
    people = [make_identity(backbone, "ada", 5, 2, 3), make_identity(backbone, "bob", 2, 1, 4)]
    clip = make_sdxl_clip(backbone)
    positive, negative = call("EncodePromptWithSefi", clip, load_people(*people), PROMPT, "a drawing")
    conditioner = IdentityConditioner(backbone, people)
    pairs = [(negative[0], conditioner.encode_negative(1, "a drawing"))]
    for one in positive:
        middle = 999 * (1 - (one[1]["start_percent"] + one[1]["end_percent"]) / 2)
        pairs.append((one, conditioner.encode_prompts([PROMPT], int(middle))))
    return [
        max(float((one[0] - wanted.states).abs().max()) for one, wanted in pairs),
        max(float((one[1]["pooled_output"] - wanted.pooled).abs().max()) for one, wanted in pairs),
    ]


def validate_workflows():
    """Ask ComfyUI whether it would run the example workflows, with empty files of the names that they choose."""
    checkpoints = MODELS / "models" / "checkpoints"
    checkpoints.mkdir()
    valid = {}
    for path in sorted((PACK / "workflows").glob("*_api.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        (checkpoints / workflow["1"]["inputs"]["ckpt_name"]).touch()
        valid[path.name] = bool(asyncio.run(execution.validate_prompt("1", workflow, None))[0])
    return valid


@torch.no_grad()
def main():
    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    backbone = sefi.open_backbone("tiny-portraits")
    people = [make_identity(backbone, "ada", 5, 1, 1), make_identity(backbone, "bob", 3, 2, 2)]
    loaded = load_people(*people)
    assert folder_paths.get_filename_list("sefi") == ["ada.safetensors", "bob.safetensors"]
    clip, model = make_clip(backbone), make_model(backbone)
    texts = call("EncodePromptWithSefi", clip, loaded, PROMPT, NEGATIVE)
    (patched,) = call("ApplySefiToModel", model)
    answer = {
        "samplers": compare_samplers(backbone, people, patched, texts),
        "weights": compare_weights(clip, loaded),
        "plain_text": compare_plain_text(clip, model, patched),
    }
    answer["controlnet_reads_values"] = list_controlnet_texts(backbone, patched, texts)
    answer["sdxl_texts"], answer["sdxl_pooled"] = compare_sdxl()
    print(json.dumps(answer | {"workflows": validate_workflows()}))


main()
