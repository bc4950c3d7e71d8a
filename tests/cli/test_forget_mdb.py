"""What a record or a benchmark's folder says is believed only as far as the file itself shows it."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sefi.provenance.forget_records import (
    RunsOnRecord,
    find_run_subjects,
    read_runs,
)
from sefi.provenance.run_record import compute_file_digest
from sefi.provenance.save import encode_photo

ADA = "a" * 64
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("a./\0\ud800", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["file", "sha256", "subject", "images", "identities", "ada"]), inner)
    ),
    max_leaves=6,
)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with a home, cache and temporary folder of the test's own beside it."""
    for name, variable in (("home", "HOME"), ("cache", "XDG_CACHE_HOME"), ("tmp", "TMPDIR"), ("work", "PWD")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def forget(sefi, *words):
    """Forget, and return what was removed, left and not proven, by the names of the files."""
    found = sefi("forget", *words, "--yes", "--json")
    assert found.exit_code == 0, found.output
    answer = json.loads(found.stdout)
    assert answer["left"] == []
    return [sorted({one.rpartition("/")[2] for one in answer["removed"]})] + [
        sorted({one["file"].rpartition("/")[2] for one in answer["unproven"]})
    ]


def test_a_record_without_hashes_removes_only_what_names_the_identity(work, sefi, ada):
    shutil.copy(ada, "ada.safetensors")
    digest = compute_file_digest(ada)
    named = {"identities": ["ada.safetensors"], "run": {"identities": {"ada": digest}}}
    runs = [{"images": [{"file": "thesis.docx"}, {"file": "own.png"}, {"file": "ours.png"}], "grid": "photo.png"}]
    (work / "records.json").write_text(json.dumps({"schema_version": 2, "runs": [{**run, **named} for run in runs]}))
    for name in ("own.png", "photo.png"):
        Image.new("RGB", (19, 23), "red").save(name)
    (work / "thesis.docx").write_text("years of work")
    encode_photo(Image.new("RGB", (19, 23)), [digest]).write(work / "ours.png")
    removed, unproven = forget(sefi, "ada")
    assert removed == ["ada.safetensors", "ours.png", "records.json"]
    assert unproven == ["own.png", "photo.png", "thesis.docx"]
    assert sorted(path.name for path in work.iterdir()) == unproven


@pytest.mark.parametrize("named", ["ada.safetensors", "work/ada.safetensors", "../ada.safetensors"])
def test_an_old_record_names_an_identity_only_from_its_own_folder(work, sefi, ada, named):
    shutil.copy(ada, "ada.safetensors")
    project = work / "project"
    project.mkdir()
    Image.new("RGB", (19, 23), "red").save(project / "photo.png")
    run = {"images": [{"file": "photo.png"}], "identities": [named]}
    (project / "records.json").write_text(json.dumps({"runs": [run]}))
    before = (project / "records.json").read_bytes()
    removed, unproven = forget(sefi, "ada")
    ours = named.startswith("..")
    assert removed == ["ada.safetensors", *["records.json"] * ours]
    assert unproven == ["photo.png", *["records.json"] * (not ours)]
    assert (project / "photo.png").is_file()
    assert ours or (project / "records.json").read_bytes() == before


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["images", "runs", "identities", "grid", "run"]), JSON), JSON)
def test_a_record_of_any_shape_is_read_or_passed_over(tmp_path_factory, record, inner):
    folder = tmp_path_factory.mktemp("any")
    identity = folder / "ada.safetensors"
    identity.touch()
    for content in (record, {"images": [inner], "identities": [inner]}, {"runs": [record, {"run": inner, **record}]}):
        (folder / "records.json").write_text(json.dumps(content))
        found = RunsOnRecord(folder / "records.json", identity, frozenset([ADA]))
        runs = read_runs(folder / "records.json") or []
        assert found.list_images(runs) == []
        assert found.list_pixel_digests(runs) is not None
        assert [one.path for one in found.list_unproven(runs) if one.path != identity] == []
        assert not found.list_ours()
        assert not found.has_namesake("bob")
