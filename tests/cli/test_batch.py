"""`sefi batch`: identities, previews, a page and a table of failures; once; and `sefi forget` finds all of it."""

import csv
import json

import pytest
from tests.batch.conftest import make_photos
from tests.cli.conftest import CONSENT

from sefi.batch.plan import ItemProblem
from sefi.cli.batch import PAGE_LOCK, format_batch

WORDS = ("--class-word", "dog", "--steps", 2, "--set", "learn.batch=1", "--set", "generate.steps=1", "--any-style")


@pytest.fixture
def batch(sefi, model_folder, home):
    """Run a batch in a folder of its own; its caches and temporary files are nobody else's."""
    make_photos(home / "work" / "photos")

    def run(*words, consent=CONSENT):
        return sefi("batch", "photos", "--model", model_folder, *WORDS, *consent, *words)

    return run


def read_files(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_becomes_identities_and_a_second_run_does_nothing_and_says_so(batch, tmp_path):
    folder = tmp_path / "work" / "identities"
    (tmp_path / "work" / "photos" / "eve.jpg").write_bytes(b"no photo")
    found = batch("--json")
    assert found.exit_code == 1
    answer = json.loads(found.stdout)
    assert (answer["schema"], answer["learned"], answer["finished"]) == ("batch/1", ["ada", "bob"], [])
    assert [(one["name"], one["tries"], one["put_aside"]) for one in answer["failed"]] == [("eve", 1, True)]
    for name in ("ada.safetensors", "previews/bob.png", "records/eve.json", "index.html"):
        assert (folder / name).is_file()
    rows = list(csv.DictReader((folder / "failures.csv").read_text().splitlines()))
    assert [(row["name"], row["photo"]) for row in rows] == [("eve", "eve.jpg")]
    page = (folder / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "&lt;ada&gt;" in page
    assert "eve.jpg" in page
    before = read_files(folder)
    found = batch()
    assert found.stdout.startswith("nothing to do: 2 are there")
    assert read_files(folder) == before


@pytest.mark.parametrize("name", ["previews", "records"])
def test_a_folder_of_the_batch_that_leads_elsewhere_is_refused(batch, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "work" / "identities").mkdir()
    (tmp_path / "work" / "identities" / name).symlink_to(outside)
    found = batch("--json")
    assert (found.exit_code, json.loads(found.stdout)["error"]) == (
        2,
        f"'identities/{name}' is a link out of its folder.",
    )
    assert not list(outside.iterdir())


@pytest.mark.slow
def test_consent_is_needed_on_a_model_that_can_generate_real_people(batch, tmp_path):
    found = batch("--json", consent=())
    assert found.exit_code == 2
    assert "No consent" in json.loads(found.stdout)["error"]
    table = tmp_path / "people.csv"
    table.write_text(f'name,photo,consent\nada,ada.png,"{CONSENT[1]}"\nbob,bob.png,\n')
    answer = json.loads(batch("--from", table, "--json", consent=()).stdout)
    assert (answer["learned"], [one["name"] for one in answer["failed"]]) == (["ada"], ["bob"])


@pytest.mark.parametrize(
    "words",
    [
        ("--preview", "a photo"),
        ("--preview", "a {} (((("),
        ("-o", "photos/identities"),
        ("-o", "photos"),
        ("--engine", "in-process", "--jobs", 2),
        ("--address", "auto"),
        ("--from", "nothing.csv"),
        ("--steps", 3, "--set", "learn.colour=red"),
        ("--detector", "nothing.onnx"),
        ("--device", "toaster"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_work(batch, words, tmp_path):
    before = read_files(tmp_path / "work")
    found = batch(*words, "--json")
    assert found.exit_code == 2
    assert set(json.loads(found.stdout)) == {"schema", "error", "try"}
    assert read_files(tmp_path / "work") == before


def test_two_batches_never_work_in_one_folder(batch, tmp_path):
    from sefi.core.own_files import hold_output_lock

    (tmp_path / "work" / "identities").mkdir()
    page = tmp_path / "work" / "identities" / "index.html"
    with hold_output_lock(page, page.with_name(PAGE_LOCK)):
        found = batch("--json")
    assert found.exit_code == 2
    assert f"is making '{page.relative_to(tmp_path / 'work')}'" in json.loads(found.stdout)["error"]


@pytest.mark.slow
def test_a_subject_may_be_called_as_the_batchs_own_files(batch, tmp_path):
    names = ["failures", "identities", "index", "previews", "records"]
    make_photos(tmp_path / "work" / "photos", names)
    found = batch("--no-previews", "--json")
    assert json.loads(found.stdout)["learned"] == sorted([*names, "ada", "bob"])


@pytest.mark.slow
def test_forget_finds_all_that_a_batch_wrote_of_somebody_and_leaves_the_others(batch, sefi, tmp_path):
    batch()
    folder = tmp_path / "work" / "identities"
    before = read_files(folder)
    digest = json.loads(before["records/ada.json"][1])["identity"]
    found = sefi("forget", "identities/ada.safetensors", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert not json.loads(found.stdout)["unproven"]
    after = read_files(folder)
    assert {name for name in before if "bob" in name} <= after.keys()
    assert not [name for name, (_, content) in after.items() if "ada" in name or digest[:16].encode() in content]
    assert "index.html" not in after  # `sefi batch` writes it again


@pytest.mark.slow
def test_forget_finds_the_record_of_somebody_whose_learning_was_killed(batch, sefi, tmp_path):
    batch()
    folder = tmp_path / "work" / "identities"
    record = json.loads((folder / "records" / "ada.json").read_text())
    (folder / "ada.safetensors").unlink()
    (folder / "records" / "ada.json").write_text(json.dumps({**record, "state": "started", "identity": ""}))
    found = sefi("forget", "identities/ada.safetensors", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert not (folder / "records" / "ada.json").exists()
    assert (folder / "records" / "bob.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tried", ["refused", "put aside", "no consent"])
def test_forget_finds_somebody_whom_a_batch_could_not_learn(batch, sefi, tmp_path, tried):
    folder, words, consent = tmp_path / "work" / "identities", (), CONSENT
    if tried == "refused":
        (tmp_path / "work" / "photos" / "eve-miller.jpg").write_bytes(b"no photo")
    else:
        make_photos(tmp_path / "work" / "photos", ["eve-miller"])
    if tried == "no consent":  # there is no record then
        table = tmp_path / "people.csv"
        table.write_text(f'name,photo,consent\nada,ada.png,"{CONSENT[1]}"\neve-miller,eve-miller.png,\n')
        words, consent = ("--from", table), ()
    batch(*words, consent=consent)
    if tried == "put aside":
        (folder / "eve-miller.safetensors").unlink()
        record = json.loads((folder / "records" / "eve-miller.json").read_text())
        record |= {"state": "started", "identity": "", "tries": 3, "alone": True, "problem": ""}
        (folder / "records" / "eve-miller.json").write_text(json.dumps(record))
        (folder / "previews" / "eve-miller.png").unlink()
        batch(*words, consent=consent)
    assert "eve-miller" in (folder / "failures.csv").read_text()
    before = read_files(folder)
    found = sefi("forget", "identities/eve-miller.safetensors", "--yes", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert (answer["left"], answer["unproven"]) == ([], [])
    after = read_files(folder)
    assert not [name for name, (_, content) in after.items() if b"eve-miller" in name.encode() + content]
    assert {name for name in before if "ada" in name} <= after.keys()
    assert {"index.html", "failures.csv"}.isdisjoint(after)  # `sefi batch` writes them again


def test_a_page_of_somebody_else_is_not_replaced(batch, tmp_path):
    folder = tmp_path / "work" / "identities"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><p>of my own")
    assert batch("--json").exit_code == 2
    assert (folder / "index.html").read_text().endswith("of my own")
    assert not (folder / "ada.safetensors").exists()


def test_only_images_are_named_as_not_read():
    record = {
        "learned": ["ada"],
        "finished": [],
        "page": "index.html",
        "ignored": ["a/2026/", "a/Thumbs.db", "b.TIF", "notes.txt"],
    }
    assert format_batch(record, [], worked=True).splitlines()[1:] == [
        "left out; of formats that are not read: b.TIF; folders in folders, which are not read: a/2026"
    ]
    assert len(format_batch(record | {"ignored": ["notes.txt"]}, [], worked=True).splitlines()) == 1


def test_a_batch_in_which_all_failed_had_something_to_do():
    record = {"learned": [], "finished": ["ada"], "page": "index.html", "ignored": [], "failures": "failures.csv"}
    failed = [ItemProblem("bob", ("bob.png",), "No face was found in the photo.", "Use another.", tries=1)]
    assert format_batch(record, failed, worked=True).startswith("learned 0, 1 were there: index.html\n")
    assert format_batch(record, failed, worked=False).startswith("nothing to do: 1 are there: index.html\n")
