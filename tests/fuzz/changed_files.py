"""Read changed files of every kind in this process, which may take 1 GB more than it has; a line of JSON for a kind.

python -m tests.fuzz.changed_files FOLDER TRIES [KIND...]
"""

import json
import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from tests.conftest import PROMPT_WORDS, make_backbone
from tests.fuzz import changes

from sefi.api import generate
from sefi.backbone.bundle import Backbone
from sefi.benchmark.evaluators import KEY as MAPS_KEY, read_maps
from sefi.benchmark.run import RunFolder, describe_suite
from sefi.benchmark.suite import open_suite
from sefi.cli.image_files import append_record
from sefi.core.config import PAPER, override
from sefi.core.errors import SefiError
from sefi.diffusion.composer import describe_model, read_composer
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS, read_labels
from sefi.identity.file import Identity, IdentityHeader, read_identity, write_identity
from sefi.methods.base import find_name_rows, read_name_list
from sefi.photo.detect import YuNetDetector
from sefi.training.checkpoint import load_training, save_training
from sefi.user_study.study import read_answer_file

GIGABYTE = 1 << 30
ONE_STEP = override(PAPER, ["generate.steps=1", "generate.count=1"])
KINDS = (
    "identity", "shard", "checkpoint", "composer", "maps", "run", "cells", "records", "answers", "suite",
    "labels", "names", "detector",
)  # fmt: skip

SUITE = """
about = "b"
prompt_lists = ["short"]
settings = ["learn.steps=2", "views.flip=0.5"]
seeds = [1, 2]
subjects = 2
class_word = "woman"
photos = "both"
[[prompts]]
text = "a {}"
wanted = [["object", "cup"]]
[[ways]]
label = "ours"
settings = ["learn.attention_weight=0.003"]
strength = 0.5
[[ways]]
label = "keys"
learned_by = "ours"
class_slots = ["V", "0K"]
[[ways]]
label = "weights"
preset = "dreambooth"
learning_seed = 3
[[ways]]
label = "word"
control = "class word"
[[ways]]
label = "theirs"
images = "folder"
"""


class Kind(NamedTuple):
    """A whole file's bytes, what reads a file of this kind, and what changes its structure."""

    whole: bytes
    read: Callable[[Path], object]
    change: Callable[[bytes, random.Random], bytes]


def tiny_backbone(folder: Path) -> Backbone:
    from tiny_portraits.text.tokenizing import build_tokenizer

    return make_backbone(build_tokenizer(folder / "tokenizer", PROMPT_WORDS, 17))


def small_run() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    weights = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return weights, optimiser


def header(**changed: object) -> IdentityHeader:
    known = {"name": "ada", "method": "sefi", "stages": 5, "base_model": "tiny:7:00", "width": 7}
    return IdentityHeader(**{"class_word": "person", **known, **changed})


def identity_kinds(folder: Path, backbone: Backbone) -> dict[str, Kind]:
    """Return identities, which are applied where they can be read, and further files of one."""

    def draw(path: Path) -> None:
        identity = read_identity(path)
        generate(f"a photo of <{identity.name}>", [identity], backbone=backbone, config=ONE_STEP)

    settings = {"learn": {"stages": 5, "steps": 3, "class_word": "person"}}
    about = header(
        base_model=backbone.fingerprint, width=backbone.token_width, settings=settings, metrics={"loss": 0.5}
    )
    Identity({"tokens": torch.full((5, 2, backbone.token_width), 0.1)}, about).save(folder / "whole")
    first = folder / "shards" / "ada.safetensors"
    tensors = {name: torch.ones(5, 3) for name in ("unet.a", "unet.b")}
    write_identity(Identity(tensors, header(method="dreambooth", stages=1)), first, 70)
    second = first.with_name(read_identity(first).header.shards[0])

    def read_shard(path: Path) -> None:
        second.write_bytes(path.read_bytes())
        read_identity(first)

    return {
        "identity": Kind((folder / "whole").read_bytes(), draw, changes.change_tensors),
        "shard": Kind(second.read_bytes(), read_shard, changes.change_tensors),
    }


def weight_kinds(folder: Path, backbone: Backbone) -> dict[str, Kind]:
    """Return checkpoints, weights and attention maps."""
    save_training(folder / "run", *small_run(), 1, {"a": 1}, numbers={"loss": 0.5})
    arrays = {"composer.a": np.ones((5, 3), np.float32), "unet.b": np.ones(7, np.float32)}
    save_arrays(arrays, folder / "composer", describe_model(backbone))
    about = json.dumps({"words": ["a", "ada"], "placeholders": [1]})
    maps = {name: np.ones((2, 3, 3), np.float32) for name in ("maps", "reference")}
    save_arrays(maps, folder / "maps", {MAPS_KEY: about})
    readers = {
        "run": lambda path: load_training(path, *small_run(), {"a": 1}),
        "composer": lambda path: read_composer(path, backbone),
        "maps": read_maps,
    }
    kinds = {name: Kind((folder / name).read_bytes(), read, changes.change_tensors) for name, read in readers.items()}
    return {"checkpoint": kinds.pop("run"), **kinds}


def text_kinds(folder: Path, backbone: Backbone) -> dict[str, Kind]:
    """Return records, suites, answers, labels and names."""
    suite = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "variants": [{"label": "ours"}], "seeds": [0]}
    run = json.dumps({"schema": 1, "suite": suite, "subjects": ["ada"], "model": {"name": "tiny"}}).encode()
    cell = {"subject": "ada", "variant": "ours", "prompt": 0, "seed": 0, "kind": "plain", "text": "person"}
    cells = json.dumps(cell | {"image": "pictures/0.png", "sha256": "00", "id": 0.5}).encode() + b"\n"
    answer = {"question": "quality", "comparison": "q", "order": ["B", "A"], "chosen": "A", "milliseconds": 900}
    key = {"variants": {"A": "ours", "B": "rival"}, "checks": {}}
    sheet = {"schema": 1, "study": "s", "rater": "r", "answers": [answer], "key": key}
    records = {"schema_version": 1, "runs": [{"images": [{"file": "a.png", "seed": 3, "prompt": "a dog"}]}]}

    def run_of(name: str) -> Callable[[Path], object]:
        def read(path: Path) -> None:
            (folder / "run.json").write_bytes(run)
            (folder / "cells.jsonl").write_bytes(cells)
            (folder / name).write_bytes(path.read_bytes())
            RunFolder(folder).read_samples()

        return read

    def append(path: Path) -> None:
        (folder / "records.json").write_bytes(path.read_bytes())
        append_record(folder, {"images": []})

    return {
        "run": Kind(run, run_of("run.json"), changes.change_object),
        "cells": Kind(cells, run_of("cells.jsonl"), changes.change_line),
        "records": Kind(json.dumps(records).encode(), append, changes.change_object),
        "answers": Kind(json.dumps(sheet).encode(), read_answer_file, changes.change_object),
        "suite": Kind(SUITE.encode(), lambda path: describe_suite(open_suite(path)), changes.change_toml),
        "labels": Kind(b'{"attributes": ["hat", "beard"], "hair": ["red"]}', read_labels, changes.change_object),
        "names": Kind(
            "photo dog\nsnow beach\ncup zoë\n".encode(),
            lambda path: find_name_rows(backbone, read_name_list(backbone, str(path))),
            changes.change_parts,
        ),
    }


def network_kinds() -> dict[str, Kind]:
    """Return a detector, which runs once where it can be read; each is tried in a process of its own."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    whole = (EMBEDDED_EVALUATORS / "face_detection.onnx").read_bytes()
    return {"detector": Kind(whole, lambda path: YuNetDetector(path)(grey), changes.change_fields)}


def memory(name: str) -> int:
    """Return a figure of this process in bytes: `VmSize` now, `VmHWM` its largest resident memory so far."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error goes back to memory that could not be had."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def measure_work() -> float:
    """Return the seconds of a processor that this process has taken, and those of its children that have ended."""
    return sum(os.times()[:4])


def try_changes(kind: Kind, path: Path, tries: int) -> dict[str, object]:
    """Change a file in as many ways, half of them in its structure, and read each."""
    counts, faults, slowest, before = {"read": 0, "refused": 0}, list[str](), 0.0, memory("VmHWM")
    for seed in range(tries):
        change = kind.change if seed % 2 else changes.change_parts
        path.write_bytes(change(kind.whole, random.Random(seed)))
        started = measure_work()
        try:
            kind.read(path)
            counts["read"] += 1
        except SefiError as error:
            counts["refused"] += 1
            if error.exit_code != 2 or out_of_memory(error):
                faults.append(f"seed {seed}: {error}")
        except Exception as error:
            faults.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        slowest = max(slowest, measure_work() - started)
    grown = round((memory("VmHWM") - before) / 2**20)
    return {"tries": tries, **counts, "slowest": round(slowest, 3), "grown": grown, "faults": faults}


def main(folder: Path, tries: int, *chosen: str) -> None:
    torch.set_num_threads(1)
    backbone = tiny_backbone(folder)
    kinds = identity_kinds(folder, backbone) | weight_kinds(folder, backbone) | text_kinds(folder, backbone)
    kinds |= network_kinds()
    path = folder / "changed.toml"
    for kind in kinds.values():  # everything is imported before memory is limited
        path.write_bytes(kind.whole)
        kind.read(path)
    if size := memory("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, resource.RLIM_INFINITY))
    for name in chosen or KINDS:
        fewer = 5 if name == "detector" else 1  # a process for each
        sys.stdout.write(json.dumps({"kind": name} | try_changes(kinds[name], path, tries // fewer)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
