"""What SECURITY.md promises of learning and generating: no network, and nothing unpickled."""

import json
import os
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
@pytest.mark.timeout(600)
def test_learning_and_generating_use_no_network_and_unpickle_nothing(tmp_path):
    assert events_of(RUN, tmp_path, "demo", "--quick") == []
    assert (tmp_path / "demo" / "ada.safetensors").is_file()


def test_the_watch_sees_an_unpickled_class_and_a_connection(tmp_path):
    """What the test above rests on."""
    assert {event for event, _ in events_of(CONTROL, tmp_path)} >= {"pickle.find_class", "socket.connect"}
