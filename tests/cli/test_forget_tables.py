"""Tables that name who is forgotten, with no image that shows it: cards of data sets, a batch's failures."""

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.test_forget_in_runs import list_files, make_benchmark

from sefi.core.files import FileKind
from sefi.core.own_files import OwnFiles

VARIANTS = [{"label": "2"}, {"label": "word", "control": "class word"}, {"label": "floor", "control": "other"}]
SUITE = {"name": "x", "prompts": [{"text": "{}"}], "seeds": [5], "variants": VARIANTS}
PUBLISHED = ("README.md", "every-eval-ever-2.json", "samples.jsonl", "tables.csv", "tables.json", "tables.tex")


@pytest.fixture
def work(home):
    """The folder to work in."""
    return home / "work"


def write_own(folder, texts):
    """Write texts into a folder as a command does, with its record of own files."""
    folder.mkdir(exist_ok=True)
    files = OwnFiles(folder, dict.fromkeys(texts, FileKind.TEXT))
    for name, text in texts.items():
        files.write(name, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))


def make_lines(*keys):
    """Make lines of a benchmark's samples, of subject, variant and the first letter of the SHA-256."""
    lines = [{"subject": subject, "variant": label, "sha256": letter * 16} for subject, label, letter in keys]
    return "".join(json.dumps(line) + "\n" for line in lines)


def publish(folder, *keys):
    """Write a data set's card as `sefi bench publish` does."""
    write_own(folder, {name: make_lines(*keys) if name == "samples.jsonl" else name for name in PUBLISHED})


@pytest.fixture
def run(work, ada):
    """A benchmark of ada, bob and ada with bob."""
    make_benchmark(work / "run", ["ada", "bob", "ada+bob"], ada, SUITE)
    keys = [("ada", "2", "a"), ("ada", "word", "0"), ("ada", "floor", "b"), ("bob", "2", "b"), ("ada+bob", "2", "c")]
    (work / "run" / "cells.jsonl").write_text(make_lines(*keys))
    return "run/identities/ada--2.safetensors"


def list_unproven(answer, work):
    return sorted(Path(one["file"]).relative_to(work).as_posix() for one in answer["unproven"])


@pytest.mark.parametrize("keys", [[("bob", "2", "b"), ("ada", "2", "a")], [("ada+bob", "2", "c")]])
def test_a_card_with_scores_of_the_subjects_images_goes_and_what_else_is_there_stays(work, forget, run, keys):
    publish(work / "card", *keys)
    (work / "card" / "mine.md").write_text("mine")
    answer = forget(run)
    assert list_files(work / "card") == ["mine.md"]
    assert "card/samples.jsonl" not in list_unproven(answer, work)


@pytest.mark.parametrize(
    "keys",
    [
        [("ada", "2", "d"), ("ada", "word", "0")],  # the plain word's image is the same for whoever is called ada
        [("ada", "floor", "b")],
        [("ada+eve", "2", "e")],
        [("ada", "2", "d"), ("bob", "2", "b")],
    ],
)
def test_a_card_of_another_subject_of_the_name_stays_and_is_named(work, forget, run, keys):
    publish(work / "card", *keys)
    before = list_files(work / "card")
    answer = forget(run)
    assert list_files(work / "card") == before
    assert "card/samples.jsonl" in list_unproven(answer, work)


def test_a_card_of_others_stays_and_is_not_named(work, forget, run):
    publish(work / "card", ("bob", "2", "b"), ("adam", "2", "a"))
    (work / "samples.jsonl").write_text('{"subject": ["ada"]}\n[1]\n{"subject": "ada\n\n')
    answer = forget(run)
    assert set(PUBLISHED) < set(list_files(work / "card"))
    assert not [one for one in list_unproven(answer, work) if "samples" in one]


def test_scores_that_were_changed_or_copied_stay_and_are_named(work, forget, run):
    publish(work / "card", ("ada", "2", "a"))
    publish(work / "changed", ("ada", "2", "a"))
    shutil.copy(work / "card" / "samples.jsonl", work / "samples.jsonl")
    with (work / "changed" / "samples.jsonl").open("a") as file:
        file.write("\n")
    answer = forget(run)
    assert not (work / "card").exists()
    assert set(PUBLISHED) < set(list_files(work / "changed"))
    assert {"changed/samples.jsonl", "samples.jsonl"} <= set(list_unproven(answer, work))


def test_a_card_that_is_too_large_is_named(work, forget, run, monkeypatch):
    monkeypatch.setattr("sefi.provenance.forget_tables.LARGEST_TABLE", 10)
    publish(work / "card", ("ada", "2", "a"))
    assert "card/samples.jsonl" in list_unproven(forget(run), work)


PAGE = '<!doctype html><meta name="sefi-identities" content=""><li>eve-miller (eve-miller.jpg) <li>Zo\u00eb &amp; co'
FAILURES = (
    "name,photo\r\nbob-miller,bob-miller.jpg\r\neve-miller,eve-miller.jpg\r\n'-x,-x.jpg\r\nZo\u00eb & co,zoe.jpg\r\n"
)


@pytest.mark.parametrize("name", ["eve-miller", "-x", "Zo\u00eb & co"])
def test_whoever_a_batch_has_no_record_of_is_taken_out_of_its_page_and_table(work, forget, name):
    """A row of a table of people that lacks its consent, or whose name is none, is not even tried."""
    write_own(work / "identities", {"index.html": PAGE + f"<li>{name}", "failures.csv": FAILURES})
    answer = forget(work / "identities" / f"{name}.safetensors")
    assert sorted(Path(one).name for one in answer["removed"]) == [".sefi-files.json", "failures.csv", "index.html"]
    assert list_files(work / "identities") == []


@pytest.mark.parametrize("name", ["eve", "miller", "bob"])
def test_a_part_of_a_name_is_nobody(work, sefi, name):
    write_own(work / "identities", {"index.html": PAGE, "failures.csv": FAILURES})
    assert sefi("forget", f"identities/{name}.safetensors", "--yes").exit_code == 2
    assert list_files(work / "identities") == [".sefi-files.json", "failures.csv", "index.html"]


def test_a_page_and_a_table_that_were_changed_stay_and_are_named(work, forget):
    write_own(work / "identities", {"index.html": PAGE, "failures.csv": FAILURES})
    (work / "identities" / "records").mkdir()
    record = {"schema": "sefi-batch-item/1", "name": "eve-miller"}
    (work / "identities" / "records" / "eve-miller.json").write_text(json.dumps(record))
    for name in ("index.html", "failures.csv"):
        with (work / "identities" / name).open("a") as file:
            file.write("\n")
    answer = forget("identities/eve-miller.safetensors")
    assert [Path(one).name for one in answer["removed"]] == ["eve-miller.json"]
    assert list_unproven(answer, work) == ["identities/failures.csv", "identities/index.html"]


def test_the_page_goes_by_the_record_alone_where_the_table_is_gone(work, forget):
    write_own(work / "identities", {"index.html": PAGE})
    (work / "identities" / "records").mkdir()
    for name in ("eve-miller", "cy"):
        record = {"schema": "sefi-batch-item/1", "name": name}
        (work / "identities" / "records" / f"{name}.json").write_text(json.dumps(record))
    forget("identities/cy.safetensors")  # whom the page does not name
    assert (work / "identities" / "index.html").is_file()
    forget("identities/eve-miller.safetensors")
    assert list_files(work / "identities") == []


def test_somebody_of_the_name_in_another_batch_is_named(work, forget, ada):
    shutil.copy(ada, "eve-miller.safetensors")
    write_own(work / "identities", {"index.html": PAGE, "failures.csv": FAILURES})
    (work / "mine").mkdir()
    (work / "mine" / "failures.csv").write_text(FAILURES, encoding="utf-8")  # of no batch
    answer = forget("eve-miller")
    (one,) = answer["unproven"]
    assert one["file"] == str(work / "identities" / "failures.csv")
    assert str(work / "identities" / "eve-miller.safetensors") in one["reason"]
