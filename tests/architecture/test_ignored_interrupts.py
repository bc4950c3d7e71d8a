"""Tests that send SIGINT set its handler themselves: they pass where it is ignored, as under nohup."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SENDS = ("signal.raise_signal(signal.SIGINT)", "os.kill(os.getpid(), signal.SIGINT)")
# File and the words that pick its tests which send SIGINT.
SENDERS = {
    "tests/training/test_interrupt.py": "interrupt_within or guard",
    "tests/training/test_shared_model.py": "ctrl_c",
    "tests/benchmark/test_workers.py": "interrupted_worker",
    "tests/tiny_portraits/training/test_loop.py": "interrupted_training",
}


def test_the_list_of_files_that_send_sigint_is_complete():
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    found = {path for path in files if any(line in path.read_text(encoding="utf-8") for line in SENDS)}
    assert {str(path.relative_to(ROOT)) for path in found} == set(SENDERS)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell ignores the signal")
def test_they_pass_where_sigint_is_ignored():
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", " or ".join(SENDERS.values())]
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *run, *SENDERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
