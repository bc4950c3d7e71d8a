"""A path that the system refuses is answered as one that is not there, by every command that takes one."""

import json
import os
import shutil

import pytest
from tests.closed_folders import obey_permissions

LONG = "n" * 300  # more than a file's name may have
MODEL = ("--model", "{model}", "--device", "cpu")
LEARN = ("learn", "{photo}", "--name", "a", "--no-crop", "--steps", "1", *MODEL)
GENERATE = ("generate", "a dog", "--steps", "1", *MODEL)
SCORE = ("score", "{photo}", "--subject", "a={photo}", "--class-word", "dog", "--out", "scored")
COMMANDS = [
    ("verify", "{path}"),
    ("verify", "{photo}", "{path}"),
    ("compare", "{path}", "{path}"),
    ("compare", "{ada}", "{path}"),
    ("compare", "{path}", "{ada}"),
    ("forget", "{path}", "--yes"),
    ("forget", "{path}.safetensors", "--yes"),
    ("forget", "x", "--in", "{path}", "--yes"),
    ("forget", "--leftovers", "--in", "{path}", "--yes"),
    ("inspect", "{path}"),
    ("inspect", "{ada}", "--photo", "{path}"),
    ("export", "{path}", "--to", "a1111"),
    ("export", "{ada}", "--to", "a1111", "--out", "{path}"),
    ("import", "{path}", "--name", "a", *MODEL),
    ("demo", "--out", "{path}"),
    (*GENERATE, "--out", "{path}"),
    (*GENERATE, "-i", "{path}"),
    (*GENERATE, "--init-image", "{path}"),
    (*GENERATE, "--control", "{path}", "--controlnet", "{path}"),
    (*GENERATE, "--repair-faces", "--detector", "{path}"),
    ("generate", "a dog", "--model", "{path}"),
    ("attend", "a photo of <ada>", "-i", "{path}", *MODEL),
    ("attend", "a photo of <ada>", "-i", "{ada}", *MODEL, "--steps", "1", "--out", "{path}"),
    ("learn", "{path}", "--name", "a", *MODEL),
    (*LEARN, "--out", "{path}"),
    (*LEARN, "--show-crop", "{path}"),
    (*LEARN, "--init", "{path}"),
    (*LEARN, "--evaluators", "{path}"),
    ("learn", "{photo}", "--name", "a", "--steps", "1", *MODEL, "--detector", "{path}"),
    ("batch", "{path}", "-o", "people"),
    ("batch", "{folder}", "-o", "{path}", *MODEL),
    ("batch", "{folder}", "-o", "people", *MODEL, "--from", "{path}"),
    ("batch", "{folder}", "-o", "people", *MODEL, "--detector", "{path}"),
    ("batch", "{folder}", "-o", "people", *MODEL, "--evaluators", "{path}"),
    ("bench", "report", "{path}"),
    ("bench", "publish", "{path}"),
    ("bench", "run", "{path}"),
    ("study", "build", "{path}"),
    ("study", "analyse", "{path}"),
    ("score", "{path}", "--subject", "a={photo}", "--class-word", "dog", "--out", "scored"),
    ("score", "{photo}", "--subject", "a={path}", "--class-word", "dog", "--out", "scored"),
    ("score", "{photo}", "--subject", "{path}", "--class-word", "dog", "--out", "scored"),
    ("score", "{photo}", "--photos", "{path}", "--class-word", "dog", "--out", "scored"),
    ("score", "{photo}", "--subject", "a={photo}", "--class-word", "dog", "--out", "{path}"),
    (*SCORE, "--prompts", "{path}"),
    (*SCORE, "--detector", "{path}"),
    (*SCORE, "--recogniser", "{path}"),
    (*SCORE, "--clip", "{path}"),
    (*SCORE, "--dino", "{path}"),
    ("serve", "--identities", "{path}", *MODEL),
    ("serve", "--identities", "{folder}", "--api-key-file", "{path}", *MODEL),
    ("encoder", "train", "--names", "{path}", *MODEL),
    ("encoder", "train", "--out", "{path}", *MODEL),
    ("encoder", "train", "--detector", "{path}", *MODEL),
    # From here on it takes a second, to read what a suite needs.
    ("bench", "run", "table2", "--out", "{path}", "--photos", "{folder}", *MODEL),
    ("bench", "run", "table2", "--out", "run", "--photos", "{path}", *MODEL),
    ("bench", "run", "table2", "--out", "run", "--photos", "{folder}", "--evaluators", "{path}", *MODEL),
    ("bench", "run", "table2", "--out", "run", "--photos", "{folder}", "--detector", "{path}", *MODEL),
    ("bench", "run", "table2", "--out", "run", "--photos", "{folder}", "--clip", "{path}", *MODEL),
]


@pytest.fixture
def work(home, ada, portrait):
    """A folder with an identity, photos, a circle of links and a folder that nobody enters."""
    folder = home / "work"
    (folder / "photos").mkdir()
    shutil.copy(ada, "ada.safetensors")
    shutil.copy(portrait, folder / "photos" / "a.png")
    (folder / "circle").symlink_to("circle")
    (folder / "closed").mkdir()
    (folder / "closed" / "inside").mkdir()
    (folder / "closed").chmod(0)
    yield folder
    (folder / "closed").chmod(0o700)


def fill(words, path, model_folder):
    """Return a command with the paths that it is about."""
    places = {
        "path": path,
        "model": model_folder,
        "photo": "photos/a.png",
        "folder": "photos",
        "ada": "ada.safetensors",
    }
    return [word.format(**places) for word in words]


@pytest.mark.slow_after(len(COMMANDS) - 5)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("path", [LONG, f"{LONG}/a", "circle", "circle/a", "closed/inside"])
def test_a_path_that_the_system_refuses_is_named(work, sefi, model_folder, words, path):
    with obey_permissions():
        found = sefi(*fill(words, path, model_folder), "--json")
    assert found.exit_code == 2, found.output
    answer = json.loads(found.stdout)
    assert "Unexpected" not in answer["error"]
    assert answer["try"]


@pytest.mark.parametrize("text", ["²", "౩³", "-1"])
def test_a_digit_that_is_no_number_is_none(sefi, model_folder, portrait, text):
    words = ("learn", portrait, "--name", "a", "--model", model_folder)
    for more in (("--set", f"learn.attention_option={text}"), ("--device", f"cuda:{text}")):
        found = sefi(*words, *more, "--json")
        assert found.exit_code == 2, found.output
        assert "Unexpected" not in json.loads(found.stdout)["error"]


@pytest.mark.parametrize("words", [("forget", "ada", "--yes"), ("forget", "--leftovers", "--yes"), ("doctor",)])
def test_a_current_folder_that_was_deleted_is_said(work, sefi, words):
    (work / "gone").mkdir()
    os.chdir(work / "gone")
    (work / "gone").rmdir()
    found = sefi(*words, "--json")
    assert (found.exit_code, json.loads(found.stdout)["error"]) == (2, "The folder that this runs in is gone.")
