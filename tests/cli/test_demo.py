"""The demo end to end on a tiny model: everything it promises is there."""

import html
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sefi.cli import demo
from sefi.cli.loading import load_config
from sefi.core.errors import OutputError
from sefi.core.progress import SilentProgress
from sefi.identity.file import Identity

PROMPTS = (("scene", "a photo of <ada> in snow"), ("style", "a drawing of <ada>"))


class Labels(SilentProgress):
    """What is said to begin."""

    def __init__(self):
        self.begun = []

    def start(self, total, label):
        self.begun.append(label)


LABELS = Labels()


@pytest.fixture(scope="module")
def made(backbone, portrait, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    config, learning = (load_config(preset, list(demo.QUICK)) for preset in ("default", "fast"))
    run = demo.DemoRun(backbone, config, learning, 0, LABELS, PROMPTS)
    demo.make_demo(demo.DemoPortrait(portrait, {"hair": "red curls"}), run, demo.prepare_demo_files(folder))
    return folder


@pytest.mark.slow
def test_everything_is_written(made):
    assert sorted(path.name for path in made.iterdir()) == [
        ".sefi-files.json",
        "ada.safetensors",
        "attention.png",
        "index.html",
        "learned.safetensors",
        "one-token.safetensors",
        "portrait.png",
        "sheet.png",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("made")
def test_progress_says_which_row_of_the_sheet_is_made():
    learned = [f"{row}: learning" for row in ("SeFi-IDE", "attention loss", "one token")]
    generated = [f"{row}: generating" for row in ("SeFi-IDE", "attention loss", "one token", "person")]
    assert [label for label in LABELS.begun if ": " in label] == learned + generated


@pytest.mark.slow
def test_the_commands_on_the_page_name_files_that_are_there(made):
    listed = re.search(r"<pre>(.*?)</pre>", (made / "index.html").read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(html.unescape(line)) for line in listed[1].strip().splitlines()]
    assert [words[1] for words in commands] == ["learn", "generate", "attend"]
    files = [word for words in commands for word in words if word.startswith(str(made))]
    assert files
    assert all(Path(file).is_file() for file in files)


@pytest.mark.slow
def test_the_control_is_one_token_without_attention_loss(made):
    control, learned = (Identity.load(made / f"{name}.safetensors") for name in ("one-token", "learned"))
    assert control.tokens.shape[0] == 1
    assert (control.tokens[:, 0] == control.tokens[:, 1]).all()
    assert control.header.settings["learn"]["attention_weight"] == 0
    assert learned.tokens.shape[0] == 5
    assert (learned.tokens[:, 0] != learned.tokens[:, 1]).any()


@pytest.mark.slow
def test_the_page_shows_every_prompt_four_times(made):
    page = (made / "index.html").read_text(encoding="utf-8")
    assert page.count('<figure class="card">') == len(PROMPTS)
    assert page.count("data:image/png;base64,") == 2 + 4 * len(PROMPTS)
    assert "red curls" in page


@pytest.mark.slow
def test_the_sheet_has_a_row_for_each_variant(made):
    with Image.open(made / "sheet.png") as sheet:
        assert sheet.width > 3 * 160
        assert sheet.height > 4 * 160


def test_traits_come_from_the_truth(tmp_path, monkeypatch):
    monkeypatch.setattr("sefi.backbone.open.MODELS", tmp_path)
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "portrait.png").touch()
    truth = {"traits": {"hair": "red curls", "age": 4}, "seed": 3}
    (folder / "truth.json").write_text(json.dumps(truth))
    assert demo.load_portrait().truth == {"hair": "red curls"}


def test_a_missing_portrait_is_said(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("sefi.backbone.open.MODELS", tmp_path)
    assert "portrait" in refused("demo", "--out", tmp_path / "out")


@pytest.mark.slow
def test_a_demo_can_be_made_again_where_it_was_made(made):
    demo.prepare_demo_files(made).check()
    page = made / "index.html"
    ours = page.read_bytes()
    page.write_bytes(ours + b" ")
    try:
        with pytest.raises(OutputError, match="was changed"):
            demo.prepare_demo_files(made).check()
        demo.prepare_demo_files(made, overwrite=True).check()
    finally:
        page.write_bytes(ours)
