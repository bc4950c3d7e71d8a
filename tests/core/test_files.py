"""Outputs are checked before the work, never an input, and written whole."""

import errno
import json
import os
import re
import shutil
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.closed_folders import obey_permissions

from sefi.cli.image_files import BYTES_ON_RECORD, append_record, check_room_on_record, read_records
from sefi.core import files
from sefi.core.errors import OutputError
from sefi.core.files import (
    FileContent,
    FileKind,
    check_folder,
    check_output,
    fit_stem,
    make_folder,
    read_content,
    write_file,
    write_numbered,
    write_output,
    write_text,
)
from sefi.core.text import make_file_name
from sefi.identity.file import Identity, IdentityHeader, write_identity


def identity(name="ada", value=1.0):
    header = IdentityHeader(name=name, method="sefi", stages=3, base_model="tiny", width=7, class_word="person")
    return Identity({"tokens": torch.full((3, 2, 7), value)}, header)


def make(kind, path):
    """A file of a kind."""
    if kind is FileKind.IDENTITY:
        identity().save(path)
    elif kind in (FileKind.SAFETENSORS, FileKind.CHECKPOINT):
        about = {"sefi-run": "{}"} if kind is FileKind.CHECKPOINT else None
        save_file({"a": torch.ones(3)}, path, metadata=about)
    elif kind in (FileKind.PNG, FileKind.IMAGE):
        Image.new("RGB", (3, 5)).save(path, format="PNG" if kind is FileKind.PNG else "JPEG")
    else:
        texts = {
            FileKind.HTML: "<!DOCTYPE html>",
            FileKind.JSON: ' {"a": 1}',
            FileKind.TEXT: "a,b",
            FileKind.EMPTY: "",
            FileKind.OTHER: "\0",
        }
        path.write_text(texts[kind])
    return path


@pytest.mark.parametrize("kind", list(FileKind), ids=lambda kind: kind.name)
def test_a_kind_is_detected_by_content(tmp_path, kind):
    name = "ada" if kind is FileKind.IDENTITY else None
    assert read_content(make(kind, tmp_path / "file.xyz")) == FileContent(kind, name)


@pytest.mark.parametrize(
    "wanted", [FileKind.IDENTITY, FileKind.PNG, FileKind.HTML, FileKind.JSON, FileKind.TEXT], ids=lambda k: k.name
)
@pytest.mark.parametrize("there", list(FileKind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_the_same_kind_is_replaced_and_only_when_asked(tmp_path, wanted, there, overwrite):
    path = make(there, tmp_path / "file")
    before = path.read_bytes()
    allowed = overwrite and there in (wanted, FileKind.EMPTY)
    if allowed:
        check_output(path, wanted, overwrite=True, name="ada" if wanted is FileKind.IDENTITY else None)
    else:
        same = there in (wanted, FileKind.EMPTY)
        with pytest.raises(OutputError, match="--overwrite" if same else "exists and is"):
            check_output(path, wanted, overwrite=overwrite, name="ada" if wanted is FileKind.IDENTITY else None)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_identity_is_not_replaced_even_when_asked(tmp_path):
    path = make(FileKind.IDENTITY, tmp_path / "file")
    with pytest.raises(OutputError, match="<ada>, not <bob>"):
        check_output(path, FileKind.IDENTITY, overwrite=True, name="bob")


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard", "other way", "through a folder"])
def test_an_input_is_found_by_whatever_name(tmp_path, link):
    given = make(FileKind.PNG, tmp_path / "photo.png")
    out, read = tmp_path / "out.png", given
    if link == "symbolic":
        out.symlink_to(given)
    elif link == "hard":
        out.hardlink_to(given)
    elif link == "other way":
        given.rename(out)
        given.symlink_to(out)
    else:
        (tmp_path / "folder").symlink_to(tmp_path)
        out = given if link == "itself" else tmp_path / "folder" / "photo.png"
    before = given.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        check_output(out, FileKind.PNG, inputs=[None, "owner/name", "a\0b", read], overwrite=True)
    assert given.read_bytes() == before


def special(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    else:
        path.symlink_to(path)  # a circle of links
    return path


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "link to a device", "circle"])
def test_only_regular_files_are_written(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = special(kind, Path("out"))
    before = path.lstat()
    with pytest.raises(OutputError):
        check_output(path, FileKind.PNG, overwrite=True)
    with pytest.raises(OutputError):
        write_text(path, "new")
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_device_stays_a_device():
    with pytest.raises(OutputError, match="device"):
        check_output(Path("/dev/null"), FileKind.PNG, overwrite=True)
    with pytest.raises(OutputError, match="device"):
        write_text(Path("/dev/null"), "new")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".gif", ".tiff", ".pdf"])
def test_a_png_gets_no_name_of_another_format(tmp_path, suffix):
    path = tmp_path / f"maps{suffix}"
    with pytest.raises(OutputError, match="name of another format") as refused:
        write_output(path, FileKind.PNG, lambda partial: partial.write_bytes(b""))
    assert refused.value.remedy == "Name it maps.png."
    assert list(tmp_path.iterdir()) == []
    for kind, name in ((FileKind.PNG, "maps.PNG"), (FileKind.PNG, "maps"), (FileKind.IMAGE, f"photo{suffix}")):
        check_output(tmp_path / name, kind)


@pytest.mark.parametrize("follow", [True, False])
def test_a_name_that_is_too_long_is_found_before_the_work(tmp_path, follow):
    path = tmp_path / ("x" * 300)
    with pytest.raises(OutputError, match="Cannot write"):
        check_output(path, FileKind.PNG, follow=follow)
    with pytest.raises(OutputError, match="Cannot write"):
        write_output(path, FileKind.TEXT, lambda _: None, follow=follow)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_a_link_out_of_its_folder_is_written_through_only_where_the_user_named_it(tmp_path, there):
    """In a folder from somebody else, a file that was a link had a result written to wherever it led."""
    outside, link = tmp_path / "outside.txt", tmp_path / "run" / "link.txt"
    link.parent.mkdir()
    link.symlink_to("../outside.txt")
    if there:
        outside.write_text("mine")
    write = files.make_text_writer("new")
    for act in (
        lambda: files.write_file(link, write),
        lambda: check_output(link, FileKind.TEXT, overwrite=True, follow=False),
        lambda: write_output(link, FileKind.TEXT, write, overwrite=True, follow=False),
    ):
        with pytest.raises(OutputError, match=r"link\.txt' is a link out of its folder"):
            act()
    assert outside.exists() is there
    assert link.is_symlink()
    write_output(link, FileKind.TEXT, write, overwrite=True)
    assert outside.read_text() == "new"
    assert link.is_symlink()


def test_a_folder_that_is_a_link_is_written_to(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    write_text(tmp_path / "link" / "a.txt", "new")
    (tmp_path / "run" / "b.txt").symlink_to("a.txt")
    write_text(tmp_path / "link" / "b.txt", "newer")
    assert (tmp_path / "run" / "a.txt").read_text() == "newer"


def test_permissions_are_those_of_a_new_file_or_of_the_old_one(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "new", "a")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    write_file(tmp_path / "ada.safetensors", lambda partial: save_file({"a": torch.zeros(2)}, partial))
    assert (tmp_path / "ada.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    write_text(tmp_path / "new", "b")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o600, 0o640])
def test_a_result_is_replaced_with_the_permissions_that_it_has(tmp_path, mode):
    path = tmp_path / "ada.safetensors"
    with obey_permissions():
        identity(value=1.0).save(path)
        path.chmod(mode)
        seen = []

        def write(partial):
            seen.append(stat.S_IMODE(partial.stat().st_mode) & ~0o600)
            partial.write_text("new", encoding="utf-8")

        check_output(path, FileKind.IDENTITY, overwrite=True, name="ada")
        identity(value=2.0).save(path)
        assert Identity.load(path).tensors["tokens"].unique() == 2
        assert stat.S_IMODE(path.stat().st_mode) == mode
        write_file(path, write)
        assert path.read_text(encoding="utf-8") == "new"
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert seen == [0]  # meanwhile nobody else may read the new content
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made_for_a_folder_but_not_for_a_file(tmp_path):
    wanted = tmp_path / "a" / "b"
    check_folder(wanted)
    assert not list(tmp_path.iterdir())
    assert make_folder(wanted).is_dir()
    with pytest.raises(OutputError, match="no folder"):
        check_output(tmp_path / "c" / "ada.safetensors", FileKind.IDENTITY)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").touch()
    for wanted, said in ((tmp_path / "taken", "is a file; a folder is wanted"), (tmp_path / "taken/a", "Cannot write")):
        with pytest.raises(OutputError, match=said):
            check_folder(wanted)
    assert (tmp_path / "taken").is_file()


def test_a_place_where_nobody_can_write_is_found_before_the_work():
    # Not even root creates files here; permission bits do not show that.
    with pytest.raises(OutputError, match="Cannot write"):
        check_folder(Path("/proc/sefi"))
    with pytest.raises(OutputError, match="Cannot write"):
        check_output(Path("/proc/sefi.png"), FileKind.PNG)


def test_a_check_keeps_the_folders_that_were_there(tmp_path):
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    check_folder(tmp_path / "empty" / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_numbered_files_make_their_folder(tmp_path):
    assert write_numbered(tmp_path / "new" / "er", "a", ".txt", Path.touch).is_file()


def test_checking_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "ada.safetensors", FileKind.IDENTITY)
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file_and_no_new_one(tmp_path):
    path = tmp_path / "records.json"
    write_text(path, "old")

    def half(partial):
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_output_error(tmp_path):
    def full(partial):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_file(tmp_path / "a.png", full)
    assert not list(tmp_path.iterdir())


def test_writers_of_one_file_have_temporary_names_of_their_own(tmp_path):
    path, names = tmp_path / "file", []

    def write(number):
        write_file(path, lambda partial: (names.append(partial), partial.write_text(chr(65 + number) * 9999)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert len(set(names)) == 40
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 9999
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_numbers_go_on_and_nobody_gets_the_same(tmp_path, monkeypatch, links):
    if not links:

        def none(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(files.os, "link", none)
    (tmp_path / "a-3.txt").symlink_to("nowhere")
    with ThreadPoolExecutor(8) as pool:
        texts = [str(n) for n in range(12)]
        paths = list(pool.map(lambda text: write_numbered(tmp_path, "a", ".txt", lambda p: p.write_text(text)), texts))
    assert {path.name for path in paths} == {"a.txt", *(f"a-{n}.txt" for n in range(2, 14) if n != 3)}
    assert [path.read_text() for path in paths] == texts
    assert len(list(tmp_path.iterdir())) == 13


def add_records(folder, first, count):
    for number in range(first, first + count):
        append_record(folder, {"images": [], "number": number})


def test_two_processes_lose_no_record(tmp_path):
    context = get_context("fork")
    workers = [context.Process(target=add_records, args=(tmp_path, first, 15)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    numbers = [run["number"] for run in read_records(tmp_path / "records.json")]
    assert sorted(numbers) == [*range(15), *range(100, 115)]
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


def test_records_are_locked_where_folders_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append_record(tmp_path, {"number": n}), range(12)))
    assert sorted(run["number"] for run in read_records(tmp_path / "records.json")) == list(range(12))
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    (tmp_path / ".lock").touch()
    with pytest.raises(OutputError, match=r"\.lock"):
        append_record(tmp_path, {"number": 12})


def test_the_record_of_an_earlier_version_is_gone_on_with(tmp_path):
    earlier = {"images": [{"file": "a.png"}], "seed": 3}
    (tmp_path / "records.json").write_text(json.dumps(earlier))
    append_record(tmp_path, {"seed": 4})
    assert read_records(tmp_path / "records.json") == [earlier, {"seed": 4}]


@pytest.mark.parametrize("text", ["[1]", "{", "{}", '{"runs": 3}', '{"runs": [3]}', "[" * 9999, '"a"'])
def test_a_foreign_record_is_refused(tmp_path, text):
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(OutputError, match="no record"):
        append_record(tmp_path, {})
    assert (tmp_path / "records.json").read_text() == text


def test_a_prompt_becomes_a_short_file_name():
    assert make_file_name("a photo of <ada> in the SNOW / night?") == "a-photo-of-ada-in-the-snow-night"
    assert make_file_name("<>") == "image"
    assert len(make_file_name("word " * 40)) <= 60


@pytest.mark.parametrize(
    "there", [kind for kind in FileKind if kind is not FileKind.IDENTITY], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_identity_takes_the_place_of_no_other_file(tmp_path, there, overwrite):
    path = make(there, tmp_path / "ada.safetensors")
    before = path.read_bytes()
    if there is FileKind.EMPTY:
        identity().save(path, overwrite=overwrite)
        assert Identity.load(path).name == "ada"
        return
    with pytest.raises(OutputError, match="exists and is"):
        identity().save(path, overwrite=overwrite)
    assert path.read_bytes() == before


def test_an_identity_takes_the_place_of_another_only_when_asked(tmp_path):
    path = make(FileKind.IDENTITY, tmp_path / "ada.safetensors")
    identity(value=2.0).save(path)
    assert Identity.load(path).tokens.unique() == 2
    with pytest.raises(OutputError, match="<ada>, not <bob>"):
        identity("bob").save(path)
    assert Identity.load(path).name == "ada"
    identity("bob").save(path, overwrite=True)
    assert Identity.load(path).name == "bob"


def test_a_header_cannot_have_other_files_removed(tmp_path):
    other = make(FileKind.SAFETENSORS, tmp_path / "other.safetensors")
    made = identity()
    header = made.header.model_copy(update={"shards": ("other.safetensors",)})
    save_file(made.tensors, tmp_path / "ada.safetensors", metadata={"sefi": header.model_dump_json()})
    made.save(tmp_path / "ada.safetensors")
    assert other.is_file()


def test_files_that_another_identity_names_stay(tmp_path):
    for value in (1.0, 2.0):
        tensors = identity(value=value).tensors | {name: torch.full((9,), value) for name in "ab"}
        many = replace(identity(), tensors=tensors)
        write_identity(many, tmp_path / "ada.safetensors", largest=40)
        if value == 1:
            shutil.copy(tmp_path / "ada.safetensors", tmp_path / "copy.safetensors")
    assert Identity.load(tmp_path / "copy.safetensors").tensors["b"].unique() == 1
    assert Identity.load(tmp_path / "ada.safetensors").tensors["b"].unique() == 2
    (tmp_path / "copy.safetensors").unlink()
    write_identity(identity(value=3.0), tmp_path / "ada.safetensors")
    assert len(list(tmp_path.glob("ada.*.safetensors"))) == 3  # of the first identity, which nothing names now


def test_a_name_that_is_too_long_is_a_typed_error(tmp_path):
    with pytest.raises(OutputError, match="too long"):
        write_text(tmp_path / ("a." + "b" * 245), "text")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the same checks while writing


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", [None, *FileKind], ids=lambda kind: kind.name if kind else "nothing")
def test_what_appears_while_the_work_is_done_stays(tmp_path, there, overwrite):
    path = tmp_path / "out"
    check_output(path, FileKind.PNG, overwrite=overwrite)

    def work(partial):
        Image.new("RGB", (7, 11)).save(partial, format="PNG")
        if there is not None:
            make(there, path)

    if there is None or (overwrite and there in (FileKind.PNG, FileKind.EMPTY)):
        write_output(path, FileKind.PNG, work, overwrite=overwrite)
        with Image.open(path) as image:
            assert image.size == (7, 11)
    else:
        with pytest.raises(
            OutputError, match="--overwrite" if there in (FileKind.PNG, FileKind.EMPTY) else "exists and is"
        ):
            write_output(path, FileKind.PNG, work, overwrite=overwrite)
        assert read_content(path).kind is there
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_what_appears_in_the_last_moment_stays(tmp_path, monkeypatch, links):
    path, whole = tmp_path / "out.txt", files.flush_file
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    monkeypatch.setattr(files, "flush_file", lambda partial: (whole(partial), path.write_text("mine")))
    with pytest.raises(OutputError, match=r"out\.txt' exists"):
        write_output(path, FileKind.TEXT, lambda partial: partial.write_text("ours"))
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_that_becomes_the_output_meanwhile_stays(tmp_path):
    path, given = tmp_path / "out.png", make(FileKind.PNG, tmp_path / "in.png")
    before = given.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        write_output(path, FileKind.PNG, lambda _: path.symlink_to(given), inputs=iter([given]), overwrite=True)
    assert given.read_bytes() == before


def test_an_identity_that_appears_meanwhile_stays(tmp_path, monkeypatch):
    path, whole = tmp_path / "ada.safetensors", files.flush_file
    other = make(FileKind.IDENTITY, tmp_path / "other").read_bytes()
    monkeypatch.setattr(files, "flush_file", lambda partial: (whole(partial), path.write_bytes(other)))
    with pytest.raises(OutputError, match="exists"):
        write_identity(identity(value=2.0), path, replace=False)
    assert path.read_bytes() == other
    with pytest.raises(OutputError, match="exists"):
        write_identity(identity(value=2.0), path, replace=False)
    write_identity(identity(value=2.0), path)


def test_only_one_module_knows_locks_and_no_command_writes_past_the_checks():
    source = Path(files.__file__).parents[1]
    texts = {path.relative_to(source).as_posix(): path.read_text(encoding="utf-8") for path in source.rglob("*.py")}
    assert [name for name, text in texts.items() if "import fcntl" in text] == ["core/files.py"]
    writers = {
        name for name, text in texts.items() if name.startswith("cli/") and re.search(r"write_(file|text)\(", text)
    }
    assert writers == {"cli/image_files.py"}  # the record, which is only added to, under a lock


# ------------------------------------------------------------------ long names


@pytest.mark.parametrize("name", ["a." + "b" * 245, "x" * 300, "\u00e9" * 128])
def test_a_name_whose_temporary_name_is_too_long_is_found_before_the_work(tmp_path, name):
    with pytest.raises(OutputError, match="too long"):
        check_output(tmp_path / name, FileKind.PNG)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stem", ["x" * 243, "\u00e9" * 121, "\U0001f600" * 60, "a"])
def test_the_longest_names_can_be_written(tmp_path, stem):
    path = tmp_path / f"{stem}.safetensors"
    check_output(path, FileKind.IDENTITY)
    many = replace(identity(), tensors=identity().tensors | {name: torch.ones(9) for name in "ab"})
    write_identity(many, path, largest=40)
    assert len(list(tmp_path.iterdir())) == 4  # the mark of such files is a tensor too
    assert set(Identity.load(path).tensors) == {"tokens", "a", "b"}
    write_identity(identity(), path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\u2603", "\U0001f600"])
def test_a_stem_is_cut_between_letters_and_not_before_it_must(tmp_path, letter):
    for count in (1, 50, 60, 63, 127, 250):
        stem = fit_stem(tmp_path / (letter * count), 17)
        assert stem == letter * min(count, (255 - 17) // len(letter.encode()))


def test_a_null_in_a_name_is_a_typed_error():
    with pytest.raises(OutputError, match="Cannot write"):
        check_output(Path("a\0b"), FileKind.PNG)


def test_a_record_that_is_too_long_says_what_to_do(tmp_path):
    with (tmp_path / "records.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(OutputError, match="17 MB of records; at most 16 MB") as caught:
        append_record(tmp_path, {})
    assert caught.value.remedy == "Choose another folder with --out."


def test_a_run_that_has_no_room_on_record_is_refused_before_and_after(tmp_path, monkeypatch):
    append_record(tmp_path, {"images": [{"file": "a.png", "prompt": "a"}]})
    before = (tmp_path / "records.json").read_bytes()
    check_room_on_record(tmp_path, ["a", "b"], 10)
    check_room_on_record(tmp_path / "new", ["a", "b"], 10)
    with pytest.raises(OutputError, match="no room for these images: it has at most 16 MB") as caught:
        check_room_on_record(tmp_path, ["a", "b"], 20_000)
    assert caught.value.remedy == "Generate fewer at once, or choose another folder with --out."
    entries = [{"file": f"{number}.png", "prompt": "\u2603" * 60} for number in range(40)]
    monkeypatch.setattr("sefi.cli.image_files.LARGEST_RECORDS", 5000)
    with pytest.raises(OutputError, match="no room for this run") as caught:
        append_record(tmp_path, {"images": entries})
    assert "Its images stay, without a record" in caught.value.remedy
    assert (tmp_path / "records.json").read_bytes() == before


def test_an_image_takes_no_more_bytes_of_a_record_than_are_counted(tmp_path):
    prompt = "\u2603 a very long prompt " * 9
    image = {"file": f"{make_file_name(prompt)}-{2**62}-99999.png", "prompt": prompt, "seed": 2**62}
    entry, hashes = {**image, "invisible_mark": False}, {"file": image["file"], "sha256": "a" * 64}
    for count in (1, 2):
        record = {"images": [entry] * count, "run": {"images": [{**hashes, "pixels_sha256": "a" * 64}] * count}}
        append_record(tmp_path / str(count), record)
    one, two = ((tmp_path / str(count) / "records.json").stat().st_size for count in (1, 2))
    assert 400 < two - one - len(json.dumps(prompt)) <= BYTES_ON_RECORD


def test_a_secret_is_at_no_moment_readable_by_others(tmp_path, monkeypatch):
    seen = []
    publish = files.publish_file

    def watch(partial, path, *, replace):
        seen.append(stat.S_IMODE(partial.stat().st_mode))
        publish(partial, path, replace=replace)

    monkeypatch.setattr(files, "publish_file", watch)

    def write(partial):
        seen.append(stat.S_IMODE(partial.stat().st_mode))
        partial.write_text("secret", encoding="utf-8")

    files.write_file(tmp_path / "key", write, mode=0o600)
    assert seen == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


# ------------------------------------------------------------------ disks that fail


def fail_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_without_hard_links_a_rename_that_fails_leaves_no_empty_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "link", fail_with(errno.ENOTSUP))
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", fail_with(errno.EIO))
        with pytest.raises(OutputError, match="Input/output error"):
            write_file(tmp_path / "a.txt", lambda partial: partial.write_text("new"), replace=False)
    assert list(tmp_path.iterdir()) == []
    write_file(tmp_path / "a.txt", lambda partial: partial.write_text("new"), replace=False)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a.txt", lambda partial: partial.write_text("newer"), replace=False)
    assert (tmp_path / "a.txt").read_text() == "new"


def test_an_interrupt_after_the_rename_does_not_take_the_file_away(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "link", fail_with(errno.ENOTSUP))
    whole = files.Path.replace

    def stop(path, target):
        whole(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.txt", lambda partial: partial.write_text("new"), replace=False)
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(("number", "told"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_folder_that_cannot_be_flushed_is_an_error_unless_none_can(tmp_path, monkeypatch, number, told):
    whole = os.fsync

    def flush(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            fail_with(number)()
        whole(handle)

    monkeypatch.setattr(files.os, "fsync", flush)
    if told:
        with pytest.raises(OutputError, match=os.strerror(number)):
            write_text(tmp_path / "a.txt", "new")
    else:
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_no_memory_while_writing_is_an_output_error_and_the_old_file_stays(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fill(partial):
        partial.write_text("n")
        raise MemoryError

    with pytest.raises(OutputError, match="not enough memory"):
        write_file(tmp_path / "a.txt", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_says_that_the_same_command_goes_on(tmp_path):
    with pytest.raises(OutputError) as error:
        write_file(tmp_path / "a.png", fail_with(errno.ENOSPC))
    assert "run the same command again" in error.value.remedy


def test_what_cannot_be_removed_is_a_typed_error(tmp_path):
    files.remove_file(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be removed"):
        files.remove_file(tmp_path / "folder")
