"""Outputs are checked before the work and written whole."""

from pathlib import Path

import pytest

from sefi.cli.output import (
    checked_file,
    checked_folder,
    slug,
    write_text,
    write_whole,
)
from sefi.core.errors import OutputError


def test_a_missing_folder_is_made_for_a_folder_but_not_for_a_file(tmp_path):
    assert checked_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(OutputError, match="no folder"):
        checked_file(tmp_path / "c" / "ada.safetensors")


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        checked_file(tmp_path)
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        checked_folder(tmp_path / "taken")


def test_a_place_where_nobody_can_write_is_found_before_the_work():
    # Not even root creates files here; permission bits do not show that.
    with pytest.raises(OutputError, match="Cannot write"):
        checked_folder(Path("/proc/sefi"))


def test_checking_leaves_nothing_behind(tmp_path):
    checked_file(tmp_path / "ada.safetensors")
    checked_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file_and_no_new_one(tmp_path):
    path = tmp_path / "records.json"
    write_text(path, "old")

    def half(partial):
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_output_error(tmp_path):
    def full(partial):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_whole(tmp_path / "a.png", full)


def test_a_prompt_becomes_a_short_file_name():
    assert slug("a photo of <ada> in the SNOW / night?") == "a-photo-of-ada-in-the-snow-night"
    assert slug("<>") == "image"
    assert len(slug("word " * 40)) <= 60
