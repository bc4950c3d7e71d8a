"""`sefi forget` removes nothing for what a foreign identity claims, and nothing that took a listed file's place."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.cli.conftest import list_names

from sefi.core.files import IDENTITY_KEY
from sefi.identity.file import Identity, IdentityHeader
from sefi.provenance.forget import list_traces, read_sought_identity, remove_traces
from sefi.provenance.run_record import compute_file_digest


@pytest.fixture
def work(home, ada):
    """A folder with an identity, a model's weights and a text."""
    folder = home / "work"
    shutil.copy(ada, "bea.safetensors")
    save_file({"weight": torch.arange(300.0)}, "model.safetensors")
    (folder / "thesis.txt").write_text("of my own")
    return folder


def write_foreign(ada, tensors=None, **header):
    """Write `gift.safetensors`: an identity with other tensors, or with another header."""
    with safe_open(ada, framework="pt") as file:
        known = json.loads(file.metadata()[IDENTITY_KEY])
    about = {IDENTITY_KEY: json.dumps({**known, "name": "gift", **header})}
    save_file({**load_file(ada), **(tensors or {})}, "gift.safetensors", metadata=about)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(0, 2, 7), torch.zeros(1, 1, 1), torch.zeros(5, 2, 7), torch.ones(1, 2, 7)]
)
def test_tokens_that_are_everywhere_remove_nothing_else(work, forget, ada, tokens):
    before = list_names(work)
    write_foreign(ada, {"tokens": tokens})
    assert forget("gift")["removed"] == [str(work / "gift.safetensors")]
    assert list_names(work) == before


@pytest.mark.parametrize(
    ("tokens", "kinds"),
    [
        (torch.zeros(5, 2, 7), []),
        (torch.linspace(-1, 1, 70).round().reshape(5, 2, 7), []),
        (torch.linspace(-1, 1, 14).reshape(1, 2, 7), []),  # 56 bytes
        (torch.linspace(-1, 1, 28).reshape(2, 2, 7), [torch.float32]),
        (torch.linspace(-1, 1, 70).reshape(5, 2, 7), [torch.float32, torch.float16]),
    ],
)
def test_an_identity_is_known_by_tokens_that_are_long_and_varied(work, tokens, kinds):
    header = IdentityHeader(
        name="gift", method="sefi", stages=len(tokens), base_model="tiny:7:00", width=7, class_word="person"
    )
    Identity({"tokens": tokens}, header).save("gift.safetensors")
    sought = read_sought_identity(work / "gift.safetensors", is_sound=True)
    assert list(sought.numbers) == [tokens.to(kind).numpy().tobytes() for kind in kinds]
    assert sought.tokens == hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    assert read_sought_identity(work / "gift.safetensors").numbers == ()


@pytest.mark.parametrize(
    "shards", [["thesis.txt", "model.safetensors", "bea.safetensors"], ["bea.1.0123456789ab.safetensors"]]
)
def test_files_that_a_header_names_are_not_further_files_of_it(work, forget, ada, shards):
    shutil.copy("model.safetensors", "bea.1.0123456789ab.safetensors")
    before = list_names(work)
    write_foreign(ada, {"tokens": torch.linspace(-1, 1, 70).reshape(5, 2, 7)}, shards=shards)
    assert forget("gift")["removed"] == [str(work / "gift.safetensors")]
    assert list_names(work) == before


def test_what_takes_a_listed_files_place_stays(work, ada):
    shutil.copy(ada, "ada.safetensors")
    shutil.copy(ada, "copy.safetensors")
    sought = read_sought_identity(work / "ada.safetensors", is_sound=True)
    traces, _ = list_traces(sought, [work])
    assert {trace.path.name for trace in traces} >= {"copy.safetensors", "ada.safetensors"}
    (work / "copy.safetensors").write_text("of my own")
    gone, left = remove_traces(traces, work / "ada.safetensors", [work])
    assert work / "copy.safetensors" not in gone
    assert "changed since it was listed" in {trace.path.name: trace.reason for trace in left}["copy.safetensors"]
    assert (work / "ada.safetensors").is_file()


def test_a_name_that_is_not_utf8_stops_nothing(work, forget, ada):
    shutil.copy(ada, "ada.safetensors")
    strange = os.fsencode(work) + b"/.a\xff.0123456789ab.unfinished"
    with open(strange, "wb") as file:  # noqa: PTH123  a name of bytes
        file.write(b"x")
    forget("ada")
    assert not (work / "ada.safetensors").exists()
    assert os.path.exists(strange)  # noqa: PTH110


def test_a_link_is_refused_with_what_it_leads_to(work, sefi, ada):
    shutil.copy(ada, "real.safetensors")
    (work / "ada.safetensors").symlink_to(work / "real.safetensors")
    found = sefi("forget", "ada", "--yes", "--json")
    assert (found.exit_code, str(work / "real.safetensors") in json.loads(found.stdout)["error"]) == (2, True)
    assert (work / "real.safetensors").is_file()


@pytest.mark.parametrize("name", ["{outside}/mine.csv", "../home/mine.csv", "sub/mine.csv", "sub/mine.safetensors"])
def test_a_record_removes_nothing_outside_of_its_folder(work, forget, ada, name):
    shutil.copy(ada, "ada.safetensors")
    outside = work.parent / "home"
    (work / "sub").mkdir()
    for folder in (outside, work / "sub"):
        (folder / "mine.csv").write_text("a,b")
    digest = hashlib.sha256(b"a,b").hexdigest()
    (work / "index.html").write_text(f'<!doctype html><i data-identities="{compute_file_digest(ada)[:16]}">')
    files = {name.format(outside=outside): [digest], "ada.safetensors": ["0" * 64]}
    (work / ".sefi-files.json").write_text(json.dumps({"schema_version": 1, "files": files}))
    forget("ada")
    assert not (work / "index.html").exists()
    assert (outside / "mine.csv").is_file()
    assert (work / "sub" / "mine.csv").is_file()


def test_another_identity_of_the_same_command_is_named(work, forget, ada):
    for name in ("ada", "control"):
        shutil.copy(ada, f"{name}.safetensors")
    with safe_open(ada, framework="pt") as file:
        about = file.metadata()
    save_file(
        {**load_file(ada), "tokens": torch.linspace(-1, 1, 70).reshape(5, 2, 7)}, "control.safetensors", metadata=about
    )
    record = {"schema_version": 1, "files": {name: ["0" * 64] for name in ("ada.safetensors", "control.safetensors")}}
    (work / ".sefi-files.json").write_text(json.dumps(record))
    assert [one["file"] for one in forget("ada")["unproven"]] == [str(work / "control.safetensors")]
