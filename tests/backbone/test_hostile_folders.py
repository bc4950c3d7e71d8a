"""Model folders made to harm: sizes out of bounds, paths that lead elsewhere, requests for code or the network."""

import json
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sefi.backbone import files
from sefi.backbone.open import MODELS, open_backbone
from sefi.core.errors import BackboneError
from sefi.diffusion.composer import load_clip_vision
from sefi.evaluation.encoders import ClipEncoder

UNET = "diffusion_pytorch_model"
SECONDS, BYTES = 10, 1 << 30


@pytest.fixture
def copy(learnable_copy: Path) -> Path:
    return learnable_copy


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def refusal(source: Path) -> str:
    """Open within bounded time and memory; return why it is refused."""
    started, before = time.process_time(), peak_memory()
    with pytest.raises(BackboneError) as caught:
        open_backbone(str(source))
    assert time.process_time() - started < SECONDS
    assert peak_memory() - before < BYTES
    return str(caught.value)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Block every socket; return the attempts."""
    attempts: list[str] = []

    def refuse(*args: object, **rest: object) -> None:
        attempts.append(repr(args)[:80])
        raise OSError("the network is blocked")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return attempts


KERNEL = "kernels-community/flash-attn"
CODE = {"AutoModel": "evil--modeling_evil.Evil", "AutoTokenizer": ["evil--t.T", None]}
REQUESTS: list[tuple[str, dict]] = [
    ("text_encoder/config.json", {"_attn_implementation": KERNEL}),
    ("text_encoder/config.json", {"attn_implementation": KERNEL}),
    ("text_encoder/config.json", {"_attn_implementation_internal": "flash_attention_2"}),
    ("text_encoder/config.json", {"auto_map": CODE, "trust_remote_code": True}),
    ("text_encoder/config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
    ("text_encoder/config.json", {"_name_or_path": "evil/model", "torch_dtype": "float8_e4m3fn", "dtype": "int8"}),
    ("text_encoder/config.json", {"architectures": ["EvilModel"], "return_dict": False, "output_hidden_states": True}),
    ("text_encoder/config.json", {"adapter_kwargs": {}, "peft_config": {}, "transformers_weights": "../x.safetensors"}),
    ("unet/config.json", {"quantization_config": {"quant_method": "gguf", "compute_dtype": "float32"}}),
    ("unet/config.json", {"auto_map": CODE, "_name_or_path": "evil/model", "trust_remote_code": True}),
    ("vae/config.json", {"quantization_config": {"quant_method": "torchao"}, "auto_map": CODE}),
    ("tokenizer/tokenizer_config.json", {"auto_map": CODE, "tokenizer_file": "/etc/passwd", "vocab_file": "evil"}),
    ("tokenizer/tokenizer_config.json", {"tokenizer_class": "EvilTokenizer", "processor_class": "Evil"}),
    ("tokenizer/tokenizer_config.json", {"chat_template": "{{ 1 }}", "fix_mistral_regex": True, "model_type": "x"}),
    ("model_index.json", {"_class_name": "EvilPipeline", "_name_or_path": "evil/model"}),
    ("model_index.json", {"safety_checker": ["evil", "Evil"], "image_encoder": ["os", "system"]}),
    ("text_encoder/adapter_config.json", {"base_model_name_or_path": "evil/model", "peft_type": "LORA"}),
    ("text_encoder/generation_config.json", {"_from_model_config": True, "x": KERNEL}),
]


@pytest.mark.parametrize(
    "requests",
    [REQUESTS, *(pytest.param([one], marks=pytest.mark.slow) for one in REQUESTS)],
    ids=["all", *(f"{file}-{next(iter(values))}" for file, values in REQUESTS)],
)
def test_requests_for_code_or_network_are_passed_over(
    copy: Path, no_network: list[str], requests: list[tuple[str, dict]]
) -> None:
    plain = open_backbone(str(copy))
    for file, values in requests:
        edit(copy / file, **values)
    opened = open_backbone(str(copy))
    assert no_network == []
    assert opened.text_encoder.config._attn_implementation == "sdpa"
    assert opened.fingerprint == plain.fingerprint
    ids = torch.tensor([[0, 5, 7, 1]])
    assert torch.equal(opened.text_encoder(ids).last_hidden_state, plain.text_encoder(ids).last_hidden_state)
    assert opened.tokenizer("a photo").input_ids == plain.tokenizer("a photo").input_ids


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("unet", ["evil_module", "Evil"]),
        ("unet", ["diffusers", "FluxTransformer2DModel"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", ["transformers", "LlamaTokenizer"]),
    ],
)
def test_classes_of_other_kinds_are_refused(copy: Path, no_network: list[str], part: str, entry: list[str]) -> None:
    edit(copy / "model_index.json", **{part: entry})
    assert part in refusal(copy)
    assert no_network == []


OUTSIDE = ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".x.safetensors", "C:\\x.safetensors"]


@pytest.mark.parametrize("name", [*OUTSIDE, "x.bin", "x\n.safetensors", "x" * 300 + ".safetensors"])
def test_shards_stay_in_their_folder(copy: Path, name: str) -> None:
    weights = copy / "unet" / f"{UNET}.safetensors"
    weights.rename(copy / "x.safetensors")
    index = {"weight_map": {"conv_in.weight": name}}
    (copy / "unet" / f"{UNET}.safetensors.index.json").write_text(json.dumps(index))
    assert "`weight_map`" in refusal(copy)


@pytest.mark.parametrize("named", [None, [], {}, {"a": 1}, "x", {"a": ["b"]}])
def test_indexes_of_another_shape(copy: Path, named: object) -> None:
    (copy / "unet" / f"{UNET}.safetensors").unlink()
    (copy / "unet" / f"{UNET}.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert "`weight_map`" in refusal(copy)


def test_one_shard_named_very_often(copy: Path) -> None:
    weights = copy / "unet" / f"{UNET}.safetensors"
    weights.rename(copy / "unet" / "x.safetensors")
    index = {"weight_map": {f"w{k}": "x.safetensors" for k in range(30_000)}}
    path = copy / "unet" / f"{UNET}.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert "30,000 weights" in refusal(copy)
    path.write_text(json.dumps({"weight_map": {f"w{k}": "x.safetensors" for k in range(300_000)}}))
    assert "more than" in refusal(copy)
    path.write_text(json.dumps({"weight_map": {f"w{k}": f"x{k}.safetensors" for k in range(300)}}))
    assert "300 files" in refusal(copy)


def test_many_empty_tensors(copy: Path) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header_of(path, lambda entries: entries | {f"t{k}": empty for k in range(10_000)})
    assert "tensors" in refusal(copy)
    header_of(path, lambda entries: entries | {f"t{k}": empty for k in range(50_000)})
    assert "header" in refusal(copy)


def test_a_configuration_larger_than_its_weights(copy: Path) -> None:
    """Every size is within bounds, and together they would take 60 GB."""
    edit(copy / "text_encoder" / "config.json", hidden_size=24, num_attention_heads=2, intermediate_size=32768,
         num_hidden_layers=64, vocab_size=1_000_000)  # fmt: skip
    message = refusal(copy)
    assert "weights, and the files hold" in message
    assert "text_encoder" in message


@pytest.mark.parametrize("part", ["unet/config.json", "model_index.json", "tokenizer/tokenizer_config.json",
                                  "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])  # fmt: skip
@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "null", "[]", '"x"',
     "\ufeff{}", '{"a": ' + "9" * 5000 + "}", ""],
    ids=["lists", "objects", "nan", "infinity", "large", "null", "list", "text", "mark", "digits", "empty"],
)  # fmt: skip
def test_files_that_are_no_bounded_json(copy: Path, part: str, content: str) -> None:
    (copy / part).write_text(content)
    assert part.split("/")[0] in refusal(copy)


@pytest.mark.parametrize("part", ["unet/config.json", "model_index.json", f"unet/{UNET}.safetensors"])
def test_pipes_and_devices_are_no_files(copy: Path, part: str) -> None:
    (copy / part).unlink()
    os.mkfifo(copy / part)
    refusal(copy)
    (copy / part).unlink()
    (copy / part).symlink_to("/dev/zero")
    refusal(copy)
    (copy / part).unlink()
    (copy / part).symlink_to(copy / "nowhere")
    refusal(copy)


def test_a_large_configuration_is_not_read(copy: Path) -> None:
    with (copy / "unet" / "config.json").open("r+b") as file:
        file.truncate(8 << 30)  # sparse: takes no room on disk
    assert f"more than {files.MAX_JSON_BYTES:,}" in refusal(copy)


def header_of(path: Path, change: Callable[[dict], dict]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**12]},
        {"shape": [-1]},
        {"shape": [2**62, 2**62]},
        {"shape": [1] * 100},
        {"shape": [True]},
        {"shape": "x"},
        {"dtype": "F8_E4M3"},
        {"dtype": "F999"},
        {"dtype": 5},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": [0.0, 96.0]},
    ],
    ids=str,
)
def test_headers_at_odds_with_their_file(copy: Path, change: dict) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    header_of(path, lambda entries: entries | {"conv_in.bias": entries["conv_in.bias"] | change})
    assert "conv_in.bias" in refusal(copy)


def test_a_header_that_states_its_own_size_wrongly(copy: Path) -> None:
    path = copy / "unet" / f"{UNET}.safetensors"
    content = path.read_bytes()
    for length in (0, 1, 2**20 + 1, 2**63, 2**64 - 1, len(content)):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        assert UNET in refusal(copy)


WORDS: list[tuple[Callable[[dict], dict], str]] = [
    (lambda t: t | {"model": t["model"] | {"vocab": {}}}, "no words"),
    (lambda t: t | {"model": t["model"] | {"vocab": {"a": 10**12}}}, "number"),
    (lambda t: t | {"model": t["model"] | {"vocab": {"a": -1}}}, "number"),
    (lambda t: t | {"model": t["model"] | {"vocab": {"a": 1, "b": 1}}}, "two words"),
    (lambda t: t | {"model": t["model"] | {"vocab": {"a": "1"}}}, "number"),
    (lambda t: t | {"model": t["model"] | {"vocab": [["a", 1]]}}, "no words"),
    (lambda t: t | {"model": t["model"] | {"merges": [5]}}, "merge"),
    (lambda t: t | {"model": t["model"] | {"merges": ["a b c"]}}, "merge"),
    (lambda t: t | {"model": t["model"] | {"merges": [["no", "such"]]}}, "tokenizer"),
    (lambda t: t | {"model": t["model"] | {"type": "Unigram"}}, "byte-pair"),
    (lambda t: t | {"model": None}, "byte-pair"),
    (lambda t: t | {"added_tokens": {"a": 1}}, "`added_tokens`"),
    (lambda t: t | {"added_tokens": [{"id": 10**12, "content": "x"}]}, "number 1000000000000"),
    (lambda t: t | {"added_tokens": [{"id": "0", "content": "x"}]}, "added token"),
    (lambda t: t | {"added_tokens": [7]}, "added token"),
]


@pytest.mark.parametrize(("change", "named"), WORDS, ids=[str(k) for k in range(len(WORDS))])
def test_tokenizers_that_are_refused(copy: Path, change: Callable[[dict], dict], named: str) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert named in refusal(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"model_max_length": 0},
        {"model_max_length": "77"},
        {"model_max_length": True},
        {"bos_token": 5},
        {"eos_token": {"content": None}},
        {"pad_token": "x" * 10_000},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        {"added_tokens_decoder": {"999999": {"content": "y"}}},
        {"bos_token": "<unknown>"},
    ],
    ids=str,
)
def test_tokenizer_settings_that_are_refused(copy: Path, change: dict) -> None:
    edit(copy / "tokenizer" / "tokenizer_config.json", **change)
    message = refusal(copy)
    assert "tokenizer" in message
    field = next(iter(change))
    assert field in message or "row" in message or "number" in message


def test_patterns_of_a_tokenizer_are_not_run(copy: Path) -> None:
    """A pattern with nested repeats takes exponential time in a text of forty letters."""
    path = copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    path.write_text(json.dumps(content | {"pre_tokenizer": split, "normalizer": {"type": "Evil"}}))
    started = time.process_time()
    assert open_backbone(str(copy)).tokenizer("a" * 40 + "!").input_ids
    assert time.process_time() - started < SECONDS


def test_a_tokenizer_without_a_length_reads_what_the_encoder_reads(copy: Path) -> None:
    path = copy / "tokenizer" / "tokenizer_config.json"
    for length in (None, 10**30):
        edit(path, model_max_length=length)
        assert open_backbone(str(copy)).text_length == 17


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """The embedded model's CLIP, for a test to change."""
    return Path(shutil.copytree(MODELS / "evaluators" / "clip", tmp_path / "clip"))


def test_the_clip_of_the_metrics_follows_no_requests_either(clip: Path, no_network: list[str]) -> None:
    plain = ClipEncoder(clip).encode_texts(["a photo of a dog"])
    towers = json.loads((clip / "config.json").read_text())
    request_ = {"_attn_implementation": KERNEL, "auto_map": CODE, "quantization_config": {"quant_method": "awq"}}
    edit(clip / "config.json", **request_, text_config=towers["text_config"] | request_,
         vision_config=towers["vision_config"] | request_)  # fmt: skip
    edit(clip / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil--p.P"})
    edit(clip / "tokenizer_config.json", auto_map=CODE)
    edit(clip / "adapter_config.json", base_model_name_or_path="evil/model", peft_type="LORA")
    assert (ClipEncoder(clip).encode_texts(["a photo of a dog"]) == plain).all()
    assert no_network == []


def test_the_image_encoder_of_fastcomposer_follows_no_requests_either(clip: Path, no_network: list[str]) -> None:
    plain = load_clip_vision(clip)
    towers = json.loads((clip / "config.json").read_text())
    request_ = {"_attn_implementation": KERNEL, "auto_map": CODE, "quantization_config": {"quant_method": "awq"}}
    edit(clip / "config.json", **request_, vision_config=towers["vision_config"] | request_)
    edit(clip / "adapter_config.json", base_model_name_or_path="evil/model", peft_type="LORA")
    opened = load_clip_vision(clip)
    assert no_network == []
    assert opened.config._attn_implementation == "sdpa"
    pixels = torch.linspace(-1, 1, 3 * opened.config.image_size**2).reshape(1, 3, opened.config.image_size, -1)
    assert torch.equal(opened(pixel_values=pixels).pooler_output, plain(pixel_values=pixels).pooler_output)
    edit(clip / "config.json", vision_config=towers["vision_config"] | {"num_hidden_layers": 64})
    with pytest.raises(BackboneError, match="describes"):
        load_clip_vision(clip)


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", {"projection_dim": 10**12}, "`projection_dim`"),
        ("config.json", {"text_config": {"hidden_size": 10**9}}, "`text_config.hidden_size`"),
        ("config.json", {"vision_config": {"image_size": "224"}}, "`vision_config.image_size`"),
        ("config.json", {"vision_config": {"num_hidden_layers": 64}}, "describes"),
        ("config.json", {"text_config": None}, "`text_config`"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 10**9}}, "`size`"),
        ("preprocessor_config.json", {"image_processor_type": "SamImageProcessor"}, "SamImageProcessor"),
        ("tokenizer.json", {"model": {}}, "words"),
    ],
)
def test_a_clip_out_of_bounds_is_refused(clip: Path, file: str, change: dict, named: str) -> None:
    edit(clip / file, **change)
    with pytest.raises(BackboneError) as caught:
        ClipEncoder(clip)
    assert named in str(caught.value)
