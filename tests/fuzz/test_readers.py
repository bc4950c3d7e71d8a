"""Damaged and hostile files: every reader ends with its typed error, quickly and in little memory."""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sefi.bench.answers import read_sheet
from sefi.bench.records import RunFolder
from sefi.bench.suite import open_suite
from sefi.conditioning.names import names_for
from sefi.conditioning.prompt import plain_ids
from sefi.core.config import override
from sefi.core.errors import ConfigError, IdentityError, PromptError, SefiError
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.presets import PAPER
from sefi.identity.file import HEADER_KEY, read_identity
from sefi.learn.checkpoint import load_run, save_run

MUTATED = 400  # of each kind in the slow tests; 0 of 2,400 may end in another way than with a typed error
SECONDS = 10.0


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
        (tokens((5, 2, 7), "F8_E4M3", 70), 70, header(), "number type F8_E4M3"),
        (tokens((5, 2, 7)), 280, header(shards=["a.2.0123456789ab.safetensors"] * 60), "names a file twice"),
        (tokens((5, 2, 7)), 280, header(shards=["a.2.0123456789ab.safetensors"] * 30_000), "header"),
        (tokens((5, 2, 7)), 280, header(shards=["bob.safetensors"]), "strange file"),
        (tokens((5, 2, 7)), 280, "[" * 100_000, "damaged"),
        (tokens((5, 2, 7)), 280, header(settings={"learn": {"stages": 3}}), "5 stages, its settings 3"),
        (tokens((5, 2, 7)), 280, header(settings={"learn": {"steps": "many"}}), "settings"),
        (tokens((5, 2, 7)), 280, header(settings={"tune": 3}), "settings"),
        (tokens((5, 2, 7)), 280, header(metrics={"loss": 10**400}), "damaged"),
        (tokens((5, 2, 7)), 276, header(), "states 280 bytes"),
        ({}, 0, header(method="textual-inversion"), "no tokens"),
        ({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(9000)}, 0, header(), "9,000"),
    ],
)
def test_an_identity_that_states_what_it_does_not_hold(tmp_path, entries, size, about, message):
    path = write_raw(tmp_path / "ada.safetensors", entries, bytes(size), about)
    started = time.monotonic()
    with pytest.raises(IdentityError, match=message):
        read_identity(path)
    assert time.monotonic() - started < 1


def test_a_header_of_more_than_a_megabyte(tmp_path):
    path = write_raw(tmp_path / "ada.safetensors", {}, about="x" * 2**20)
    with pytest.raises(IdentityError, match="at most 1,048,576"):
        read_identity(path)


def test_settings_of_another_version_are_readable(tmp_path):
    settings = {"learn": {"stages": 5, "colour": 3}, "unknown": {"a": 1}}
    path = write_raw(tmp_path / "ada.safetensors", tokens((5, 2, 7)), bytes(280), header(settings=settings))
    assert read_identity(path).header.settings == settings


def small_run():
    weights = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return weights, optimiser


@pytest.mark.parametrize("old", ["weights.weight", "adam.0.exp_avg", "adam.1.step"])
def test_a_checkpoint_with_renamed_tensors_changes_nothing(tmp_path, old):
    path, (weights, optimiser) = tmp_path / "a.unfinished", small_run()
    save_run(path, weights, optimiser, 1, {"a": 1})
    path.write_bytes(path.read_bytes().replace(old.encode(), old[:-1].encode() + b"X"))
    other, other_optimiser = small_run()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match="no checkpoint of a learning run"):
        load_run(path, other, other_optimiser, {"a": 1})
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    "change", [{"prompt": "0"}, {"prompt": 9}, {"subject": "eve"}, {"id": "high"}, {"shown": [True]}, {"picture": None}]
)
def test_a_record_that_is_no_picture(tmp_path, change):
    with pytest.raises(ConfigError, match=r"cells\.jsonl is damaged"):
        write_run(tmp_path, **change).cells()


def write_run(folder, **change):
    suite = {"name": "s", "prompts": [{"text": "{}", "kind": "plain"}], "ways": [{"label": "ours"}], "seeds": [0]}
    (folder / "run.json").write_text(
        json.dumps({"schema": 1, "suite": suite, "subjects": ["ada"], "model": {"name": "tiny"}})
    )
    cell = {"subject": "ada", "way": "ours", "prompt": 0, "seed": 0, "kind": "plain", "text": "person"}
    cell |= {"picture": "pictures/0.png", "sha256": "00", "id": 0.5}
    (folder / "cells.jsonl").write_text(json.dumps(cell | change) + "\n")
    return RunFolder(folder)


def test_a_prompt_that_is_no_utf8(tokenizer):
    with pytest.raises(PromptError, match="not UTF-8"):
        plain_ids(tokenizer, "a photo \udcff")


@pytest.mark.parametrize("template", ["{} {x}", "{}{:>999999999}"])
def test_a_sentence_with_other_braces(template):
    with pytest.raises(ConfigError):
        override(PAPER, [f"learn.templates={template}"])


def test_a_device_is_no_list_of_names(backbone):
    with pytest.raises(ConfigError, match="not a regular file"):
        names_for(backbone, "/dev/zero")


# ------------------------------------------------------------------ random changes


def mutate(content: bytes, chance: np.random.Generator) -> bytes:
    """One to four changes: bytes, cuts, repeats, splices, and numbers, brackets and words of JSON and TOML."""
    changed = bytearray(content)
    hostile = (
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"9" * 30,
        b"[" * 5000,
        b"null",
        b'"x"',
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"F8_E4M3",
    )
    for _ in range(chance.integers(1, 5)):
        place = int(chance.integers(0, max(len(changed), 1)))
        end = place + int(chance.integers(1, 40))
        kind = int(chance.integers(0, 6))
        if kind == 0 and changed:
            changed[place] = int(chance.integers(0, 256))
        elif kind == 1:
            del changed[place:end]
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = changed[place:end]
        else:
            changed[place : place if kind == 4 else end] = hostile[chance.integers(len(hostile))]
    if len(changed) > 8 and content[8:9] == b"{" and chance.random() < 0.7:
        # Let the length of the header fit again, so that what stands in it is read.
        grown = len(changed) - len(content)
        changed[:8] = struct.pack("<Q", max(0, struct.unpack("<Q", content[:8])[0] + grown))
    return bytes(changed)


def kinds(folder: Path):
    """Kind to a whole file's bytes and what reads a file of it."""
    file = folder / "whole"
    made = IdentityHeader(**header(settings={"learn": {"stages": 5}}))
    Identity({"tokens": torch.zeros(5, 2, 7)}, made).save(file)
    weights, optimiser = small_run()
    save_run(folder / "run", weights, optimiser, 1, {"a": 1})
    write_run(folder)
    answer = {"question": "quality", "comparison": "q", "order": ["B", "A"], "chosen": "A", "milliseconds": 900}
    key = {"ways": {"A": "ours", "B": "rival"}, "checks": {}}
    sheet = {"schema": 1, "study": "s", "rater": "r", "answers": [answer], "key": key}
    suite = 'about = "b"\nseeds = [1, 2]\n[[prompts]]\ntext = "a {}"\n[[ways]]\nlabel = "ours"\nstrength = 0.5\n'

    def run_of(name):
        def read(path):
            (folder / name).write_bytes(path.read_bytes())
            RunFolder(folder).cells()
            write_run(folder)

        return read

    return {
        "identity": (file.read_bytes(), read_identity),
        "checkpoint": ((folder / "run").read_bytes(), lambda path: load_run(path, *small_run(), {"a": 1})),
        "run": ((folder / "run.json").read_bytes(), run_of("run.json")),
        "cells": ((folder / "cells.jsonl").read_bytes(), run_of("cells.jsonl")),
        "answers": (json.dumps(sheet).encode(), read_sheet),
        "suite": (suite.encode(), open_suite),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "checkpoint", "run", "cells", "answers", "suite"])
def test_changed_files_end_with_a_typed_error_or_are_read(tmp_path, kind):
    whole, read = kinds(tmp_path)[kind]
    path, refused = tmp_path / "changed.toml", 0
    for seed in range(MUTATED):
        path.write_bytes(mutate(whole, np.random.default_rng(seed)))
        started = time.monotonic()
        try:
            read(path)
        except SefiError as error:
            assert error.exit_code == 2  # noqa: PT017
            refused += 1
        assert time.monotonic() - started < SECONDS, f"seed {seed}"
    # Of a record most changes leave a line that is no JSON, which counts as cut short by a kill.
    assert refused > MUTATED // (40 if kind == "cells" else 4)
