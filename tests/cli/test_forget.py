"""Nothing of a likeness is left on disk once it is forgotten, and nobody else's file is touched."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time

from PIL import Image

from sefi.core.own_files import TEMPORARY_MARK, make_temporary_folder
from sefi.identity.file import Identity
from sefi.provenance.leftovers import find_all_leftovers, find_regular_files, is_lock_held, list_temporary_folders
from sefi.provenance.metadata import NOT_LEARNED_YET
from sefi.provenance.save import encode_photo


def test_no_byte_of_a_forgotten_identity_is_left(home, sefi, ada, model_folder):
    shutil.copy(ada, "ada.safetensors")
    shutil.copy(ada, home / "home" / "copy.safetensors")
    made = sefi("generate", "<ada>", "-i", "ada.safetensors", "--model", model_folder, "--steps", 2, "--out", "images")
    assert made.exit_code == 0, made.output
    image_bytes = [path.read_bytes()[60:160] for path in home.rglob("*.png")]
    tokens = Identity.load("ada.safetensors").tokens.numpy().tobytes()[:64]
    for name in (".ada.0123456789ab.unfinished", ".ada.0123456789ab.partial.safetensors"):
        (home / "work" / name).write_bytes(tokens)
    (home / "work" / ".adam.0123456789ab.unfinished").write_bytes(b"of somebody else")
    (home / "work" / "page.png").write_bytes(b"of somebody else")

    found = sefi("forget", "ada", "--in", home, "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["left"] == []
    rest = {path.name: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {".adam.0123456789ab.unfinished", "page.png"} == {name for name in rest if rest[name]}
    for planted in (tokens, *image_bytes, b"<ada>"):
        assert not any(planted in content for content in rest.values())


def test_it_asks_and_a_link_out_of_the_folder_is_not_followed(home, sefi, ada):
    shutil.copy(ada, "ada.safetensors")
    shutil.copy(ada, home / "tmp" / "other.safetensors")
    (home / "work" / "link").symlink_to(home / "tmp")
    assert sefi("forget", "ada", "--json").exit_code == 2
    assert sorted(path.name for path in (home / "work").iterdir()) == ["ada.safetensors", "link"]
    assert sefi("forget", "ada", "--yes").exit_code == 0
    assert (home / "tmp" / "other.safetensors").exists()
    assert [path.name for path in (home / "work").iterdir()] == ["link"]


def test_another_name_of_the_same_file_is_reported(home, sefi, ada):
    shutil.copy(ada, "ada.safetensors")
    os.link("ada.safetensors", home / "tmp" / "hidden")
    found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 1
    assert "hard link" in json.loads(found.stdout)["left"][0]["reason"]


def test_what_a_kill_in_the_middle_of_a_write_left_is_gone_at_once(home, sefi, ada):
    """A file has two names then, both of them the identity's; and the lock is never removed."""
    shutil.copy(ada, "ada.safetensors")
    os.link("ada.safetensors", ".ada.0123456789ab.partial.safetensors")
    (home / "work" / ".ada.lock").write_text("1 nowhere")
    found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert not list((home / "work").iterdir())


def test_a_lock_without_identity_is_removed_unless_it_is_held(home, sefi):
    lock = home / "work" / ".ada.lock"
    lock.write_text("1 nowhere")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sefi("forget", "ada", "--yes").exit_code == 2
        assert lock.exists()
    assert sefi("forget", "ada", "--yes").exit_code == 2
    assert not lock.exists()


def test_leftovers_are_listed_and_removed_unless_young(home, sefi):
    old, young = home / "work" / ".ada.0123456789ab.unfinished", home / "work" / ".x.0123456789ab.partial.png"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    assert str(old) in sefi("doctor", "--json").stdout
    assert sefi("forget", "--leftovers", "--yes").exit_code == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_what_a_killed_training_left_is_forgotten_by_its_name_and_no_other_is(home, sefi):
    work = home / "work"
    for stem in ("ada", "ad", "adam"):
        (work / f".{stem}.0123456789ab.unfinished").write_bytes(stem.encode())
        (work / f"..{stem}.0123456789ab.ba9876543210.partial.unfinished").write_bytes(stem.encode())
    assert sefi("forget", "ada", "--yes", "--json").exit_code == 0
    assert sorted(path.name[:7] for path in work.iterdir()) == ["..ad.01", "..adam.", ".ad.012", ".adam.0"]
    assert sefi("forget", "ada", "--yes", "--json").exit_code == 2


def test_what_only_may_be_of_it_is_named_and_stays(home, sefi, ada, model_folder, portrait):
    shutil.copy(ada, "ada.safetensors")
    more = ("--model", model_folder, "--no-crop", "--steps", 1)
    assert sefi("learn", portrait, "--name", "eve", *more, "--init", "ada.safetensors").exit_code == 0
    listed = home / "work" / "sums.json"  # the user's own list of hashes
    listed.write_text(json.dumps({"ada": hashlib.sha256(ada.read_bytes()).hexdigest()}))
    page = home / "work" / "notes.html"
    page.write_text("<!doctype html><p>" + listed.read_text())
    found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0
    assert [one["file"] for one in json.loads(found.stdout)["unproven"]] == [str(home / "work" / "eve.safetensors")]
    assert {path.name for path in (home / "work").iterdir()} == {"eve.safetensors", "sums.json", "notes.html"}


def test_a_damaged_identity_is_forgotten_too(home, sefi, ada):
    content = bytearray(ada.read_bytes())
    content[-200:] = b"\xff" * 200  # numbers that are none
    (home / "work" / "ada.safetensors").write_bytes(content)
    assert sefi("forget", "ada", "--yes", "--json").exit_code == 0
    assert not list((home / "work").iterdir())


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(home, sefi):
    (home / "work" / ".ada.0123456789ab.unfinished").write_bytes(b"likeness")
    os.mkfifo(home / "work" / ".ada.lock")
    answer = json.loads(sefi("forget", "--leftovers", "--yes", "--json").stdout)
    assert answer["removed"] == [str(home / "work" / ".ada.0123456789ab.unfinished")]  # no process holds the pipe


def test_a_leftover_of_a_living_process_stays_and_one_of_a_dead_process_goes_at_once(home, sefi):
    work = home / "work"
    for name in ("ada", "bob"):
        (work / f".{name}.0123456789ab.unfinished").write_bytes(b"likeness")
        (work / f"..{name}.0123456789ab.ba9876543210.partial.unfinished").write_bytes(b"likeness")
        (work / f".{name}.lock").write_text("1 machine")
    with (work / ".ada.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = sefi("forget", "--leftovers", "--yes", "--json")
        answer = json.loads(found.stdout)
        assert sorted(one["file"] for one in answer["left"]) == sorted(str(one) for one in work.glob("*ada*fin*"))
        assert {one["reason"] for one in answer["left"]} == {"a process is at work"}
        assert len(answer["removed"]) == 2
        found = sefi("forget", "ada", "--yes", "--json")
        assert (found.exit_code, "A process is making" in json.loads(found.stdout)["error"]) == (2, True)
    assert sefi("forget", "ada", "--yes").exit_code == 0
    assert [path.name for path in work.iterdir()] == [".bob.lock"]


def test_what_a_killed_program_left_is_removed_and_other_folders_stay(home, sefi):
    """Only the file that says so makes a temporary folder ours; its lock tells whether the process is alive."""
    temporary = home / "tmp"
    dead, alive, theirs = (temporary / name for name in ("sefi-ab12_x9z", "sefi-ab12_x9y", "sefi-my_model"))
    for folder in (dead, alive, theirs):
        (folder / "content").mkdir(parents=True)
        (folder / "content" / "identity.safetensors").write_bytes(b"likeness")
        (folder / "config.json").touch()
        os.utime(folder, (time.time() - 7200,) * 2)
    for folder in (dead, alive):
        (folder / TEMPORARY_MARK).touch()
    (dead / "content" / "model.safetensors").symlink_to(theirs / "config.json")
    text = sefi("doctor").stdout
    assert (str(dead) in text, str(theirs) in text, "sefi forget --leftovers" in text) == (True, False, True)
    with (alive / TEMPORARY_MARK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sefi("forget", "--leftovers", "--yes").exit_code == 1
    assert [folder.exists() for folder in (dead, alive, theirs)] == [False, True, True]
    assert len(list(theirs.rglob("*.*"))) == 2


def test_a_temporary_folder_that_a_link_leads_to_is_listed_once(home, sefi, monkeypatch):
    folder, link = home / "tmp" / "sefi-ab12_x9z", home / "link"
    (folder / "content").mkdir(parents=True)
    (folder / "content" / ".ada.0123456789ab.partial").touch()
    (folder / TEMPORARY_MARK).touch()
    link.symlink_to(home / "tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(link))
    assert json.loads(sefi("doctor", "--json").stdout)["leftovers"] == [str(folder)]
    assert [one.path for one in find_all_leftovers([home], most=1).unsearched] == [home]


def test_temporary_folders_are_marked_and_locked_while_they_are_used(home):
    with make_temporary_folder() as folder:
        assert list_temporary_folders() == [folder.parent]
        assert is_lock_held(folder.parent / TEMPORARY_MARK)
        assert list(folder.iterdir()) == []
    assert list((home / "tmp").iterdir()) == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    unread = []
    assert list(find_regular_files([tmp_path], unread=unread)) == []
    assert unread == [tmp_path]


def test_an_image_of_a_crop_without_a_result_is_listed(home, sefi, ada):
    shutil.copy(ada, "ada.safetensors")
    encode_photo(Image.new("RGB", (20, 20)), [NOT_LEARNED_YET]).write(home / "work" / "crop.png")
    found = sefi("forget", "ada", "--yes", "--json")
    assert found.exit_code == 0, found.output
    assert [one["file"] for one in json.loads(found.stdout)["unproven"]] == [str(home / "work" / "crop.png")]
