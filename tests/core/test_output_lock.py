"""One process makes a file at a time: the second is refused by name, and what a killed one leaves is in no way."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sefi.core import own_files
from sefi.core.errors import OutputError
from sefi.core.own_files import hold_output_lock

HOLD = """
import sys
from pathlib import Path
from sefi.core.own_files import hold_output_lock
with hold_output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ada.safetensors until its input ends."""
    source = str(Path(own_files.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "ada.safetensors")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_a_second_process_is_refused_and_the_first_is_named(holder, tmp_path):
    (tmp_path / "link.safetensors").symlink_to("ada.safetensors")
    for name in ("ada.safetensors", "link.safetensors"):
        with pytest.raises(OutputError) as error, lock(tmp_path / name):
            pass
        assert error.value.problem == f"Process {holder.pid} is making '{tmp_path / name}'."  # no machine: it is this
    with lock(tmp_path / "bob.safetensors"):
        pass
    holder.communicate("")
    assert not list(tmp_path.glob(".*"))
    with lock(tmp_path / "ada.safetensors"):
        pass


def test_the_lock_of_a_killed_process_blocks_nobody(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".ada.lock").is_file()
    with lock(tmp_path / "ada.safetensors"):
        assert (tmp_path / ".ada.lock").read_text() == f"{os.getpid()} {platform.node()}"
    assert not list(tmp_path.iterdir())


def test_one_process_is_refused_too_and_another_machine_is_named(tmp_path, monkeypatch):
    path = tmp_path / "ada.safetensors"
    with lock(path):
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "elsewhere")
            with pytest.raises(OutputError, match=f"Process {os.getpid()} on .+ is making"), lock(path):
                pass
        (tmp_path / ".ada.lock").write_bytes(b"")
        with pytest.raises(OutputError, match=r"^Another process is making"), lock(path):
            pass
    with pytest.raises(RuntimeError), lock(path):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_without_locks_of_the_system(tmp_path, monkeypatch):
    """As on Windows, where what is left by a process that has ended can be removed."""
    monkeypatch.setattr(own_files, "fcntl", None)
    monkeypatch.setattr(own_files, "take_lock", lambda handle, wait: None)
    (tmp_path / ".ada.lock").write_text("1 elsewhere")
    with lock(tmp_path / "ada.safetensors"):
        assert (tmp_path / ".ada.lock").read_text().startswith(str(os.getpid()))
        monkeypatch.setattr(Path, "unlink", lambda path: (_ for _ in ()).throw(PermissionError(path)))
        with pytest.raises(OutputError, match=f"Process {os.getpid()} is making"), lock(tmp_path / "ada.safetensors"):
            pass
        monkeypatch.undo()


lock = hold_output_lock


@pytest.mark.parametrize("content", [b"my own notes", b"\xff\xff" * 300, b"17 notes\nof mine"])
def test_somebody_elses_file_of_that_name_is_not_touched(tmp_path, content):
    (tmp_path / ".ada.lock").write_bytes(content)
    with pytest.raises(OutputError, match="is another file"), lock(tmp_path / "ada.safetensors"):
        pass
    assert (tmp_path / ".ada.lock").read_bytes() == content


@pytest.mark.parametrize("kind", ["link to nothing", "link to an empty file", "pipe", "folder"])
def test_a_lock_is_a_file_itself(tmp_path, kind):
    """A link there was followed, and made a file wherever it led; a pipe was waited for without end."""
    place, outside = tmp_path / ".ada.lock", tmp_path / "outside"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(outside)
    if kind == "link to an empty file":
        outside.touch()
    before = outside.exists()
    with pytest.raises(OutputError, match="is another file"), lock(tmp_path / "ada.safetensors"):
        pass
    assert outside.exists() is before
    assert not before or outside.read_bytes() == b""
    assert os.path.lexists(place)
