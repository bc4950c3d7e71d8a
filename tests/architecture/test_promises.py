"""Promises name tests that there are, and figures their records; learning uses no network and unpickles nothing."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCH = """
import json, socket, sys
events = []

def record(event, args):
    if event in ("pickle.find_class", "socket.connect", "socket.sendto", "socket.getaddrinfo"):
        events.append([event, str(args)])

sys.addaudithook(record)
"""
RUN = """
sys.argv = ["sefi", *sys.argv[1:]]
from sefi.cli.app import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
"""
CONTROL = """
import pickle, collections
pickle.loads(pickle.dumps(collections.OrderedDict))
try:
    socket.create_connection(("127.0.0.1", 1), timeout=1)
except OSError:
    pass
"""


def events_of(code, folder, *words):
    report = f"print(json.dumps(events), file=open({str(folder / 'events.json')!r}, 'w'))"
    command = [sys.executable, "-c", f"{WATCH}{code}{report}", *words]
    # These programs watch by themselves, and one of them does on purpose what all tests refuse.
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "."))
    plain["PYTHONPATH"] = path
    done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "events.json").read_text())


@pytest.mark.slow
@pytest.mark.world
def test_learning_and_generating_use_no_network_and_unpickle_nothing(tmp_path):
    assert events_of(RUN, tmp_path, "demo", "--quick") == []
    assert (tmp_path / "demo" / "ada.safetensors").is_file()


def test_the_watch_sees_an_unpickled_class_and_a_connection(tmp_path):
    """What the test above rests on."""
    assert {event for event, _ in events_of(CONTROL, tmp_path)} >= {"pickle.find_class", "socket.connect"}


# ------------------------------------------------------------------ what SECURITY.md and RELIABILITY.md name

PROMISES = ("SECURITY.md", "RELIABILITY.md")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
RECORD = re.compile(r"`(experiments/records/[\w./-]+\.json)`")
COMMAND = re.compile(r"`python (experiments/\w+\.py|tools/\w+\.py)( [^`]*)?`")


def find_promises(text):
    """Return the lines of lists and tables that promise something; some headings say that theirs do not."""
    promising, lines = True, []
    for line in text.splitlines():
        if line in ("<!-- marks -->", "<!-- end -->"):  # a table that a script writes and a test compares
            promising = line == "<!-- end -->"
        elif line.startswith("#"):
            promising = not re.search(r"(?i)not promised|could go wrong|supported|report a", line)
        elif promising and (line.startswith("- ") or re.match(r"\| (?!-)", line)):
            lines.append(line)
    return lines


def is_heading_of_table(line):
    return line.startswith(("| figure |", "| file |", "| promise |"))


def names_what_shows_it(line):
    return NAMED_TEST.search(line) or (RECORD.search(line) and COMMAND.search(line))


def find_faults(text):
    """Return the promises that name no test, and the figures that name no command or record."""
    return [line for line in find_promises(text) if not (is_heading_of_table(line) or names_what_shows_it(line))]


@pytest.mark.parametrize("document", PROMISES)
def test_every_promise_names_a_test_and_every_figure_a_record(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert find_promises(text)
    assert find_faults(text) == []


@pytest.mark.parametrize("document", PROMISES)
def test_what_promises_name_is_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = []
    for path, name in set(NAMED_TEST.findall(text)):
        file = ROOT / path
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{path}::{name}")
    places = [*RECORD.findall(text), *(script for script, _ in COMMAND.findall(text))]
    assert missing + [place for place in places if not (ROOT / place).is_file()] == []


def test_a_promise_without_a_test_is_found():
    """What the tests above rest on."""
    text = "# A\n- Nothing is lost. (`tests/a.py::test_b`)\n- All is well.\n| figure | value |\n|---|---|\n| x | 5 |\n"
    assert find_faults(text) == ["- All is well.", "| x | 5 |"]
    assert find_faults("## What is not promised\n- All is well.\n") == []


def test_the_figures_of_changed_files_are_those_of_the_record():
    record = json.loads((ROOT / "experiments" / "records" / "fuzz.json").read_text(encoding="utf-8"))
    text = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    for name in ("images", "files"):
        found = record[name]
        assert found["tries"] == 20_000
        assert found["faults"] == 0
        assert found["tries"] == found["read"] + found["refused"]
        value = ", ".join(f"{found[key]:,}" for key in ("tries", "read", "refused", "faults"))
        assert f"| changed {name}: tried, read, refused, anything else | {value} |" in text
    assert f"| {record['images']['seconds'] + record['files']['seconds']} |" in text


def test_the_figures_of_marks_are_those_of_the_record():
    spec = importlib.util.spec_from_file_location("marks", ROOT / "experiments" / "marks.py")
    marks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(marks)
    page = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    shown = page.split(marks.BEGIN)[1].split(marks.END)[0].strip()
    assert shown == marks.format_table(json.loads(marks.RECORD.read_text(encoding="utf-8")))


FAULTS = {
    "an operation on a file fails: tried, typed error, all done, anything else": ("full disk", "others"),
    "the disk is full by a file's size: tried, typed error, all done, anything else": ("sizes",),
    "no memory for a tensor: tried, typed error, all done, anything else": ("tensors",),
}


def test_the_figures_of_kills_and_faults_are_those_of_the_records():
    records = ROOT / "experiments" / "records"
    text = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    kills = json.loads((records / "kill.json").read_text(encoding="utf-8"))
    training, run = kills["training"], kills["benchmark"]
    assert (training["steps"], run["moments"]) == (60, 200)
    assert not training["faults"] + run["faults"]
    assert f"the same file in the end | {training['kills']}, {training['same_file']} |" in text
    assert f"the same files in the end | {run['moments']}, {run['same_files']} |" in text
    commands = json.loads((records / "faults.json").read_text(encoding="utf-8"))
    for label, kinds in FAULTS.items():
        found = [one[kind] for one in commands.values() for kind in kinds]
        value = [sum(one[key] for one in found) for key in ("tries", "typed", "done")]
        value.append(sum(len(one["faults"]) for one in found))
        assert value[0] == value[1] + value[2]
        assert f"| {label} | {', '.join(f'{number:,}' for number in value)} |" in text
