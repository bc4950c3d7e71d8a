"""Bytes on the command line that are no UTF-8, given to the program."""

import json
import os
import shutil

import pytest
from tests.cli.processes import run_forked, run_fresh

from sefi.cli.image_files import append_record, read_records
from sefi.core.errors import OutputError
from sefi.core.files import FileKind, check_output
from sefi.identity.file import Identity

BAD = b"n\xe4mes"  # Latin-1
QUICK = ("--steps", "2")
LEARN = ("learn", "photo.png", "--name", "bea", "--model", "model", "--no-crop", *QUICK)
GENERATE = ("generate", "a photo of person", "--model", "model", *QUICK)
ATTEND = ("attend", "a photo of <ada>", "-i", "ada.safetensors", "--model", "model", *QUICK)

REFUSED = {
    "learn, the name": (("learn", "photo.png", "--name", BAD, "--model", "model"), "cannot be a name"),
    "learn, the output": ((*LEARN, "--out", BAD + b".safetensors"), "is not UTF-8"),
    "learn, the class word": ((*LEARN, "--class-word", BAD), "it is not UTF-8 text"),
    "learn, a file of names": (
        (*LEARN, "--method", "cross-init", "--set", b"basis.names=" + BAD),
        "it is not UTF-8 text",
    ),
    "learn, weights": (
        (*LEARN, "--method", "fastcomposer", "--set", b"compose.weights=" + BAD),
        "it is not UTF-8 text",
    ),
    "learn, a sentence": ((*LEARN, "--set", b"learn.templates=a {} " + BAD), "it is not UTF-8 text"),
    "learn, the rare word": (
        (*LEARN, "--method", "dreambooth", "--set", b"tune.identifier=" + BAD),
        "it is not UTF-8 text",
    ),
    "learn, the method": ((*LEARN, "--method", BAD), "no method"),
    "learn, a setting": ((*LEARN, "--set", BAD + b"=3"), "no setting"),
    "learn, the photo": (("learn", BAD, *LEARN[2:]), "no file"),
    "learn, the model": (("learn", "photo.png", "--name", "bea", "--model", BAD), "no model"),
    "learn, the detector": ((*LEARN[:-3], *QUICK, "--detector", BAD), "no face detector"),
    "learn, judges": ((*LEARN, "--judges", BAD), "no folder"),
    "generate, the prompt": (("generate", BAD, "--model", "model"), "is not UTF-8"),
    "generate, what to avoid": ((*GENERATE, "--negative-prompt", BAD), "it is not UTF-8 text"),
    "generate, the output": ((*GENERATE, "--out", BAD), "is not UTF-8"),
    "generate, a preset": ((*GENERATE, "--preset", BAD), "no preset"),
    "generate, an identity": ((*GENERATE, "-i", BAD), "no identity file"),
    "generate, an identity that is there": ((*GENERATE, "-i", BAD + b".safetensors"), "Rename the file"),
    "attend, the prompt": (("attend", b"a photo of <ada> " + BAD, *ATTEND[2:]), "is not UTF-8"),
    "attend, the output": ((*ATTEND, "--out", BAD + b".png"), "is not UTF-8"),
    "inspect": (("inspect", BAD), "no identity file"),
    "inspect, a file that is there": (("inspect", BAD + b".safetensors"), "is not UTF-8"),
    "demo, the output": (("demo", "--out", BAD), "is not UTF-8"),
    "bench run, the output": (("bench", "run", "quick", "--out", BAD), "is not UTF-8"),
    "bench run, a setting": (("bench", "run", "table1", "--set", b"basis.names=" + BAD), "it is not UTF-8 text"),
    "bench report": (("bench", "report", BAD), "no benchmark run"),
    "study build": (("study", "build", BAD), "no benchmark run"),
}


# One of each kind as a process of its own: those that end before the libraries are loaded, and `inspect`.
AS_PROCESS = [
    "learn, the name", "learn, the output", "learn, a file of names", "generate, the prompt", "generate, the output",
    "attend, the prompt", "attend, the output", "inspect, a file that is there",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, ada, portrait, model_folder):
    """Everything that the command lines name, and an identity whose name is no UTF-8."""
    shutil.copy(ada, tmp_path / "ada.safetensors")
    shutil.copy(portrait, tmp_path / "photo.png")
    (tmp_path / "model").symlink_to(model_folder)
    shutil.copy(ada, tmp_path / os.fsdecode(BAD + b".safetensors"))
    return tmp_path


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_refusal(case, code, printed):
    """Check that what was printed is JSON for every reader, and the typed error of a case."""
    assert code == 2, printed
    answer = json.loads(printed)
    assert set(answer) == {"schema", "error", "try"}
    text = f"{answer['error']} {answer['try']}"
    text.encode("utf-8")  # no half of a character
    assert REFUSED[case][1] in text
    assert "Unexpected" not in text
    assert answer["try"]


@pytest.mark.slow
@pytest.mark.parametrize("case", AS_PROCESS)
def test_a_process_refuses_what_no_file_can_hold(folder, case):
    before = files_in(folder)
    found = run_fresh(folder, *REFUSED[case][0], "--json")
    check_refusal(case, found.returncode, found.stdout.decode("utf-8"))
    assert b"opened" not in found.stderr
    assert files_in(folder) == before


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_file_can_hold_is_refused_before_the_work(sefi, folder, monkeypatch, case):
    monkeypatch.chdir(folder)
    before = files_in(folder)
    found = sefi(*map(os.fsdecode, REFUSED[case][0]), "--json")
    check_refusal(case, found.exit_code, found.stdout)
    assert "opened" not in found.stderr
    assert files_in(folder) == before


@pytest.mark.parametrize("run", [run_forked, pytest.param(run_fresh, marks=pytest.mark.slow)])
def test_the_same_is_said_without_json(folder, run):
    found = run(folder, *LEARN, "--method", "cross-init", "--set", b"basis.names=" + BAD)
    assert found.returncode == 2
    assert not found.stdout
    assert found.stderr.decode("utf-8").startswith("error: basis.names = 'n\\udce4mes': it is not UTF-8 text.\n  try: ")


@pytest.mark.slow
def test_a_folder_above_and_a_photo_need_not_be_utf8(sefi, folder, monkeypatch):
    inside = folder / os.fsdecode(BAD)
    inside.mkdir()
    (folder / "model").rename(inside / "model")
    photo = inside / os.fsdecode(BAD + b".png")
    (folder / "photo.png").rename(photo)
    monkeypatch.chdir(inside)
    found = sefi("learn", photo.name, *LEARN[2:], "--json")
    assert found.exit_code == 0, found.output
    assert Identity.load("bea.safetensors").name == "bea"
    assert {path.name for path in inside.iterdir()} == {"model", photo.name, "bea.safetensors"}


def test_a_link_to_a_name_that_is_not_utf8_is_refused(folder):
    (folder / "out").symlink_to(os.fsdecode(BAD))
    with pytest.raises(OutputError, match="not UTF-8"):
        check_output(folder / "out", FileKind.PNG)


def test_records_name_every_file_and_can_be_read_again(tmp_path):
    name = os.fsdecode(BAD)
    for _ in range(2):  # the second reads what the first wrote
        append_record(tmp_path, {"images": [], "identities": [name], name: 1})
    runs = read_records(tmp_path / "records.json")
    assert runs == [{"images": [], "identities": ["n\\udce4mes"], "n\\udce4mes": 1}] * 2
