"""`sefi encoder train`: what it refuses before and after the work."""

import pytest

from sefi.cli.output import SCHEMAS
from sefi.methods.base import CHARACTERS


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("ada lovelace\ngrace hopper\n", encoding="utf-8")
    return file


def test_another_model_needs_names(refused, model_folder, tmp_path):
    assert "list of the names" in refused(
        "encoder", "train", "--model", model_folder, "--out", tmp_path / "e.safetensors"
    )


def test_an_input_is_never_written_over(refused, model_folder, names):
    before = names.read_bytes()
    words = ("encoder", "train", "--model", model_folder, "--names", names, "--out", names)
    assert refused(*words)
    assert refused(*words, "--overwrite")
    assert names.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_names_are_read_before_the_model_is_opened(refused, tmp_path, content):
    (tmp_path / "empty").mkdir()  # a model that is there, and cannot be opened
    file = tmp_path / "listed.txt"
    if content is not None:
        file.write_bytes(content)
    found = refused("encoder", "train", "--model", tmp_path / "empty", "--names", file, "--out", tmp_path / "e.st")
    assert "listed.txt" in found
    assert "opening" not in found


def test_images_without_a_face_are_no_pairs(refused, model_folder, names, tmp_path):
    out = tmp_path / "e.safetensors"
    words = ["encoder", "train", "--model", model_folder, "--names", names, "--out", out, "--count", "1"]
    assert "shows a face" in refused(*words, "--set", "generate.steps=1")
    assert not out.exists()


def test_the_record_names_what_learning_needs():
    assert {"encoder", "words"} <= set(SCHEMAS["encoder train"].keys)
    assert CHARACTERS.is_file()
