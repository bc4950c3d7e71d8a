"""Folders that cannot be read are named, and nothing in them is taken for searched."""

import json
import shutil

import pytest
from tests.closed_folders import obey_permissions

from sefi.core.own_files import TEMPORARY_MARK
from sefi.provenance.leftovers import find_regular_files, list_temporary_folders

CLOSED, LISTED = 0o000, 0o400  # nobody reads it; its names may be read, and it may not be entered


@pytest.fixture
def home(home, ada):
    """Those of every test here, with an identity, and with folders that can be removed again in the end."""
    shutil.copy(ada, "ada.safetensors")
    yield home
    for folder in home.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o700)


def close(folder, mode, content=b"x", name=".ada.0123456789ab.unfinished"):
    """Make a folder with a leftover that only its owner, who is somebody else, may enter."""
    folder.mkdir()
    (folder / name).write_bytes(content)
    folder.chmod(mode)
    return folder


@pytest.mark.parametrize("mode", [CLOSED, LISTED])
def test_temporary_folders_of_other_users_stop_nothing(home, sefi, mode):
    close(home / "tmp" / "sefi-other", mode, name=TEMPORARY_MARK)
    with obey_permissions():
        assert list_temporary_folders() == []
        answer = json.loads(sefi("doctor", "--json").stdout)
        assert answer["leftovers"] == []
        assert sefi("forget", "--leftovers", "--yes", "--json").exit_code == 0
        found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["unproven"] == []


@pytest.mark.parametrize("mode", [CLOSED, LISTED])
def test_a_closed_folder_in_a_searched_one_is_named(home, sefi, mode):
    folder = close(home / "work" / "closed", mode)
    with obey_permissions():
        unread = []
        assert folder not in {path.parent for path in find_regular_files([home / "work"], unread=unread)}
        assert unread == [folder]
        answer = json.loads(sefi("doctor", "--json").stdout)
        assert (answer["leftovers"], answer["not_searched"]) == ([], [f"'{folder}': this folder cannot be read"])
        found = sefi("forget", "--leftovers", "--yes", "--json")
        assert found.exit_code == 1, found.output
        assert [one["file"] for one in json.loads(found.stdout)["left"]] == [str(folder)]
        found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert [one["file"] for one in json.loads(found.stdout)["unproven"]] == [str(folder)]
    assert not (home / "work" / "ada.safetensors").exists()


@pytest.mark.parametrize("mode", [CLOSED, LISTED])
def test_images_in_a_closed_folder_are_not_passed_over(home, sefi, portrait, mode):
    images = home / "work" / "images"
    images.mkdir()
    shutil.copy(portrait, images / "a.png")
    folder = close(images / "closed", mode, name="b.png")
    unread = folder if mode == CLOSED else folder / "b.png"
    with obey_permissions():
        found = sefi("verify", "images", "--json")
        assert found.exit_code == 1, found.output
        answer = json.loads(found.stdout)
        assert [one["file"] for one in answer["images"]] == ["images/a.png"]
        assert [home / "work" / one["file"] for one in answer["unreadable"]] == [unread]
        found = sefi("verify", "images/closed")
        assert found.exit_code == 1
        assert "cannot be read" in found.output


def make_benchmark(folder):
    """Make the folder of a benchmark run with a subject `ada`."""
    folder.mkdir()
    suite = {"prompts": [{"text": "{}"}], "seeds": [5], "variants": [{"label": "ours"}]}
    (folder / "run.json").write_text(json.dumps({"suite": suite, "subjects": ["ada"], "photos": {"ada": []}}))
    return folder


@pytest.mark.parametrize("mode", [CLOSED, LISTED])
def test_a_benchmark_of_somebody_of_this_name_is_named_though_its_identities_are_closed(home, forget, mode):
    bench = make_benchmark(home / "work" / "bench")
    folder = close(bench / "identities", mode, name="ada--ours.safetensors")
    with obey_permissions():
        unproven = [one["file"] for one in forget("ada")["unproven"]]
    assert unproven == [str(folder), str(bench / "run.json")]


@pytest.mark.parametrize("mode", [CLOSED, LISTED])
@pytest.mark.parametrize("name", ["pictures", "report"])
def test_a_subject_goes_though_a_folder_of_its_benchmark_is_closed(home, forget, mode, name):
    bench = make_benchmark(home / "work" / "bench")
    (bench / "identities").mkdir()
    (home / "work" / "ada.safetensors").rename(bench / "identities" / "ada--ours.safetensors")
    folder = close(bench / name, mode, name="ada--ours--0--5.png")
    with obey_permissions():
        answer = forget("bench/identities/ada--ours.safetensors")
    assert [one["file"] for one in answer["unproven"]] == [str(folder)]
    assert json.loads((bench / "run.json").read_text())["subjects"] == []
