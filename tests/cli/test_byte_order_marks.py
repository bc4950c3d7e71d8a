"""Text files of editors that begin with a byte order mark: it belongs to no prompt, name or key in them."""

import json

import pytest
from PIL import Image

from sefi.benchmark.scored_folder import FolderHints, find_images
from sefi.benchmark.suite import read_toml
from sefi.cli.score import read_prompts
from sefi.cli.serve import read_api_key
from sefi.methods.base import read_listed_names

KEY = "a-key-of-many-letters"
TEXTS = {
    "prompts": ("a dog\na cat\n", read_prompts),
    "names": ("Ada Lovelace\nAlan Turing\n", read_listed_names),
    "key": (KEY, read_api_key),
    "suite": ('about = "Of two people."\n', read_toml),
}


@pytest.mark.parametrize(("text", "read"), TEXTS.values(), ids=TEXTS)
def test_a_text_of_an_editor_is_read_as_without_its_mark(tmp_path, text, read):
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / encoding
        path.write_text(text, encoding=encoding)
        found.append(read(path))
    assert found[0] == found[1]


def write_dreambench(folder, encoding):
    for part in ("tgt_image", "text", "src_image"):
        (folder / part / "ada").mkdir(parents=True)
        if part != "text":
            Image.new("RGB", (64, 64)).save(folder / part / "ada" / "0_0.jpg")
    (folder / "text" / "ada" / "0_0.txt").write_text("a photo of a dog", encoding=encoding)


def write_list(folder, encoding):
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    line = {"image": "a.png", "prompt": "a photo of a dog", "subject": "ada", "seed": 1}
    (folder / "images.jsonl").write_text(json.dumps(line), encoding=encoding)


@pytest.mark.parametrize("write", [write_dreambench, write_list])
def test_images_of_another_program_have_their_prompts_without_the_mark(tmp_path, write):
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        write(tmp_path / encoding, encoding)
        found.append(find_images(tmp_path / encoding, FolderHints()).images)
    assert found[0] == found[1]
