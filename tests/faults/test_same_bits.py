"""The same seed on the same stack gives the same bytes, in two processes that know nothing of each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.model import make_model
from tests.faults.scenarios import hash_content, is_passing

ROOT = Path(__file__).parents[2]
MEASURED = ("cells.jsonl", ".costs.json")  # have times in them; whatever else they have is compared


def make_in_a_process(folder, seed, model):
    """Start a fresh process with another place, another home and another order of Python's sets."""
    folder.mkdir(parents=True)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "PYTHONHASHSEED": str(seed), "HOME": str(folder.parent)}
    command = [sys.executable, "-m", "tests.faults.same_bits", str(folder), str(model)]
    return subprocess.Popen(
        command, cwd=folder.parent, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    folders = [tmp_path / "one" / "files", tmp_path / "the other one" / "its files"]
    make_model(tmp_path / "model")
    for seed, folder in enumerate(folders, 1):
        process = make_in_a_process(folder, seed, tmp_path / "model")
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in folders]
    assert names[0] == names[1]
    kinds = {name.name for name in names[0]}
    assert {"ada.safetensors", "unfinished", "records.json", "run.json", "cells.jsonl", "grid.png"} <= kinds
    for name in names[0]:
        if is_passing(name.as_posix()):
            continue
        read = hash_content if name.name.endswith(MEASURED) else Path.read_bytes
        assert read(folders[0] / name) == read(folders[1] / name), name
