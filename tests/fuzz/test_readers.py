"""Damaged and hostile files: every reader ends with its typed error, quickly and in little memory."""

import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.fuzz.changed_files import KINDS, small_run

from sefi.benchmark.run import RunFolder
from sefi.cli.image_files import append_record
from sefi.core.config import PAPER, override
from sefi.core.errors import ConfigError, FaceError, IdentityError, OutputError, PromptError
from sefi.core.reading import InvalidFileError, parse_object
from sefi.diffusion.text import tokenize_plain
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from sefi.identity.file import HEADER_KEY, read_identity
from sefi.methods.base import read_name_list
from sefi.photo import detect
from sefi.photo.detect import YuNetDetector
from sefi.training.checkpoint import load_training, save_training

MUTATED = 200  # of each kind in the slow tests; none of them all may end in another way than with a typed error
SECONDS, MEGABYTES = 10.0, 300
ROOT = Path(__file__).parents[2]


def header(**changes):
    known = {
        "name": "ada",
        "method": "sefi",
        "stages": 5,
        "base_model": "tiny:7:00",
        "width": 7,
        "class_word": "person",
    }
    return {"schema_version": 1, **known, **changes}


def write_raw(path, entries, data=b"", about=None):
    """A safetensors file with exactly this header."""
    metadata = (
        {} if about is None else {"__metadata__": {HEADER_KEY: about if isinstance(about, str) else json.dumps(about)}}
    )
    text = json.dumps(metadata | entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tokens(shape, dtype="F32", size=None):
    size = int(np.prod(shape)) * 4 if size is None else size
    return {"tokens": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}}


# ------------------------------------------------------------------ one test for each file that was found


@pytest.mark.parametrize(
    ("entries", "size", "about", "message"),
    [
        (tokens((10**8, 2, 0)), 0, header(stages=10**8, width=0), "has a shape"),
        (tokens((5, 2, 7)), 280, header(stages=10**8), "stages"),
        (tokens((5, 2, 7)), 280, header(stages=0), "stages"),
        (tokens((5, 2, 7)), 280, header(width=0), "width"),
        (tokens((5, 2, 40, 7)), 11_200, header(), "tokens are"),
        (tokens((5, 2, 7), "F8_E4M3", 70), 70, header(), "dtype F8_E4M3"),
        (tokens((5, 2, 7)), 280, header(shards=["a.2.0123456789ab.safetensors"] * 60), "names a file twice"),
        (tokens((5, 2, 7)), 280, header(shards=["a.2.0123456789ab.safetensors"] * 30_000), "header"),
        (tokens((5, 2, 7)), 280, header(shards=["bob.safetensors"]), "strange file"),
        (tokens((5, 2, 7)), 280, "[" * 100_000, "damaged"),
        (tokens((5, 2, 7)), 280, header(settings={"learn": {"stages": 3}}), "5 stages, its settings 3"),
        (tokens((5, 2, 7)), 280, header(settings={"learn": {"steps": "many"}}), "settings"),
        (tokens((5, 2, 7)), 280, header(settings={"views": 3}), "settings"),
        (tokens((5, 2, 7)), 280, header(metrics={"loss": 10**400}), "damaged"),
        (tokens((5, 2, 7)), 276, header(), "states 280 bytes"),
        ({}, 0, header(method="textual-inversion"), "no tensors"),
        ({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(9000)}, 0, header(), "9,000"),
    ],
)
def test_an_identity_that_states_what_it_does_not_hold(tmp_path, entries, size, about, message):
    path = write_raw(tmp_path / "ada.safetensors", entries, bytes(size), about)
    started = time.process_time()
    with pytest.raises(IdentityError, match=message):
        read_identity(path)
    assert time.process_time() - started < 1


def test_a_header_of_more_than_a_megabyte(tmp_path):
    path = write_raw(tmp_path / "ada.safetensors", {}, about="x" * 2**20)
    with pytest.raises(IdentityError, match="at most 1,048,576"):
        read_identity(path)


def test_settings_of_another_version_are_readable(tmp_path):
    settings = {"learn": {"stages": 5, "colour": 3}, "unknown": {"a": 1}}
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), header(settings=settings))
    assert read_identity(path).header.settings == settings


@pytest.mark.parametrize("old", ["weights.weight", "adam.0.exp_avg", "adam.1.step"])
def test_a_checkpoint_with_renamed_tensors_changes_nothing(tmp_path, old):
    path, (weights, optimiser) = tmp_path / "a.unfinished", small_run()
    save_training(path, weights, optimiser, 1, {"a": 1})
    path.write_bytes(path.read_bytes().replace(old.encode(), old[:-1].encode() + b"X"))
    other, other_optimiser = small_run()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match="no checkpoint of a training"):
        load_training(path, other, other_optimiser, {"a": 1})
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    "change", [{"prompt": "0"}, {"prompt": 9}, {"subject": "eve"}, {"id": "high"}, {"shown": [True]}, {"image": None}]
)
def test_a_record_without_image(tmp_path, change):
    with pytest.raises(ConfigError, match=r"cells\.jsonl is damaged"):
        write_run(tmp_path, **change).read_samples()


def write_run(folder, **change):
    suite = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "variants": [{"label": "ours"}], "seeds": [0]}
    (folder / "run.json").write_text(
        json.dumps({"schema": 1, "suite": suite, "subjects": ["ada"], "model": {"name": "tiny"}})
    )
    cell = {"subject": "ada", "variant": "ours", "prompt": 0, "seed": 0, "kind": "plain", "text": "person"}
    cell |= {"image": "pictures/0.png", "sha256": "00", "id": 0.5}
    (folder / "cells.jsonl").write_text(json.dumps(cell | change) + "\n")
    return RunFolder(folder)


def test_a_prompt_that_is_no_utf8(tokenizer):
    with pytest.raises(PromptError, match="not UTF-8"):
        tokenize_plain(tokenizer, "a photo \udcff")


@pytest.mark.parametrize("template", ["{} {x}", "{}{:>999999999}"])
def test_a_sentence_with_other_braces(template):
    with pytest.raises(ConfigError):
        override(PAPER, [f"learn.templates={template}"])


def test_a_device_is_no_list_of_names(backbone):
    with pytest.raises(ConfigError, match="not a regular file"):
        read_name_list(backbone, "/dev/zero")


# ------------------------------------------------------------------ random changes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of the changed files of each kind, read one after the other in a process of limited memory."""
    folder = tmp_path_factory.mktemp("changed")
    command = [sys.executable, "-m", "tests.fuzz.changed_files", str(folder), str(MUTATED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=840, check=False)
    sys.stdout.write(done.stdout)  # counts, slowest read and memory for the log
    found = {one["kind"]: one for one in map(json.loads, done.stdout.splitlines())}
    # After a crash of the interpreter itself the kinds that came first are still there.
    return found | {"end": f"exit code {done.returncode}: {done.stderr[-2000:]}"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_end_with_a_typed_error_or_are_read(outcomes, kind):
    assert kind in outcomes, outcomes["end"]
    found = outcomes[kind]
    assert found["tries"] == MUTATED // (5 if kind == "detector" else 1)
    assert found["faults"] == []
    assert found["slowest"] < SECONDS
    assert found["grown"] < MEGABYTES
    # Neither all changes pass nor is everything refused. Of a line of `cells.jsonl` and of a list of names most
    # changes leave something that counts as a line cut short by a kill, or as another name.
    assert found["refused"] > found["tries"] // (40 if kind in ("cells", "names") else 4)
    assert found["read"] > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "no record of generated images: "),
        ('{"runs": [{"a": NaN}], "schema_version": 1}', "no record of generated images: "),
        ('{"images": ' + "9" * 30 + "}", "no record of generated images: "),
        ("\udcff", "no record of generated images: "),
        (" " * 2**24, "has 16 MB of records; at most 16 MB are added to"),
    ],
    ids=["deep", "nan", "integer", "bytes", "large"],
)
def test_a_record_of_images_that_cannot_be_added_to(tmp_path, content, said):
    (tmp_path / "records.json").write_bytes(content.encode("utf-8", "surrogateescape") + b" ")
    with pytest.raises(OutputError, match=said):
        append_record(tmp_path, {"images": []})


# The weights of the first convolution have another name; the first operator is unknown.
DAMAGE = {
    "SIGFPE": (b"\x0eonnx::Conv", b"\x0eonnx:\x10Conv"),
    "SIGSEGV": (b'"\x08Const', b'"\x08C\x84nst'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_network_that_crashes_opencv(tmp_path, damage):
    path, (old, new) = tmp_path / "yunet.onnx", DAMAGE[damage]
    path.write_bytes((EMBEDDED_EVALUATORS / "face_detection.onnx").read_bytes().replace(old, new, 1))
    with pytest.raises(FaceError, match="OpenCV crashes on it"):
        YuNetDetector(path)


def test_a_copy_of_a_network_is_tried_once(tmp_path, monkeypatch):
    path = tmp_path / "yunet.onnx"
    path.write_bytes((EMBEDDED_EVALUATORS / "face_detection.onnx").read_bytes())
    YuNetDetector(path)
    monkeypatch.setattr(detect, "PROGRAM", tmp_path / "missing.py")
    YuNetDetector(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FaceError):
        YuNetDetector(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights.weight", float("nan")),
        ("weights.bias", float("inf")),
        ("adam.0.exp_avg", float("-inf")),
        ("adam.1.exp_avg_sq", -1.0),
        ("adam.0.step", -1.0),
        ("best.kept.a", float("nan")),
    ],
)
def test_a_checkpoint_whose_numbers_would_spoil_the_training(tmp_path, name, value):
    path, (weights, optimiser) = tmp_path / "a.unfinished", small_run()
    best = {"numbers": torch.zeros(4), "kept.a": torch.ones(3)}
    save_training(path, weights, optimiser, 1, {"a": 1}, best)
    assert load_training(path, *small_run(), {"a": 1})[0] == 1
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, path, metadata)
    with pytest.raises(ConfigError, match=re.escape(repr(name))):
        load_training(path, *small_run(), {"a": 1})


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"b": [{"a": 1, "\\u0061": 2}]}'])
def test_a_key_that_is_named_twice(text):
    with pytest.raises(InvalidFileError, match="names a key twice"):
        parse_object(text)


def test_a_header_that_names_a_tensor_twice(tmp_path):
    """Which of the two is meant would be up to the reader."""
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), header())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length][:-1] + b', "tokens": {"dtype": "F32", "shape": [5, 2, 7], "data_offsets": [0, 280]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(IdentityError, match="names a key twice"):
        read_identity(path)


@pytest.mark.parametrize(
    "numbers", [[["loss", "0.5"]], [["loss", None]], [["loss"]], [[1, 0.5]], {}, "x", 5, [["loss", 1.0]] * 65], ids=str
)
def test_a_checkpoint_whose_last_numbers_are_none(tmp_path, numbers):
    path, (weights, optimiser) = tmp_path / "a.unfinished", small_run()
    save_training(path, weights, optimiser, 1, {"a": 1}, numbers={"z": 0.1, "a": 1.0})
    assert list(load_training(path, *small_run(), {"a": 1})[2].items()) == [("z", 0.1), ("a", 1.0)]
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    [(key, text)] = metadata.items()
    save_file(tensors, path, {key: json.dumps(json.loads(text) | {"numbers": numbers})})
    with pytest.raises(ConfigError, match="no checkpoint of a training"):
        load_training(path, *small_run(), {"a": 1})
