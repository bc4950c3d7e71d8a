"""What SECURITY.md promises of learning and generating: no network, and nothing unpickled."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")

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
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "events.json").read_text())


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.timeout(600)
def test_learning_and_generating_use_no_network_and_unpickle_nothing(tmp_path):
    assert events_of(RUN, tmp_path, "demo", "--quick") == []
    assert (tmp_path / "demo" / "ada.safetensors").is_file()


def test_the_watch_sees_an_unpickled_class_and_a_connection(tmp_path):
    """What the test above rests on."""
    assert {event for event, _ in events_of(CONTROL, tmp_path)} >= {"pickle.find_class", "socket.connect"}


NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{Path(file).stem}-{test}" for file, test in NAMED])
def test_every_test_that_reliability_names_exists(file, test):
    assert re.search(rf"^def {test or 'test_'}", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_figures_of_reliability_are_those_of_the_record():
    spec = importlib.util.spec_from_file_location("marks", ROOT / "experiments" / "marks.py")
    marks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(marks)
    shown = PAGE.split(marks.BEGIN)[1].split(marks.END)[0].strip()
    assert shown == marks.format_table(json.loads(marks.RECORD.read_text(encoding="utf-8")))
    assert len(NAMED) > 10
