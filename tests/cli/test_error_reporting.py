"""Failures become two short lines, or one JSON object, and an exit code."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sefi.cli.error_reporting import ReportingGroup
from sefi.cli.options import AsJson
from sefi.core.errors import TRACE, SefiError, TerminationSignal

runner = CliRunner()


def program(failure):
    """A program with one command that fails."""
    app = typer.Typer(cls=ReportingGroup)

    @app.callback()
    def root():
        pass

    @app.command()
    def work(count: Annotated[int, typer.Option("--count")] = 1, as_json: AsJson = False):
        raise failure

    return app


TYPED = SefiError("The cup is empty.", "Fill it.")


def test_a_typed_error_is_two_lines_on_stderr():
    found = runner.invoke(program(TYPED), ["work"])
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr == "error: The cup is empty.\n  try: Fill it.\n"


def test_a_typed_error_as_json_is_one_object_on_stdout():
    found = runner.invoke(program(TYPED), ["work", "--json"])
    assert found.exit_code == 2
    assert json.loads(found.stdout) == {"schema": "error/1", "error": "The cup is empty.", "try": "Fill it."}
    assert found.stderr == ""


def test_a_wrong_option_as_json_too():
    found = runner.invoke(program(TYPED), ["work", "--count", "many", "--json"])
    assert found.exit_code == 2
    assert "--count" in json.loads(found.stdout)["error"]


def test_typer_reports_a_wrong_option():
    found = runner.invoke(program(TYPED), ["work", "--count", "many"])
    assert found.exit_code == 2
    assert "--count" in found.stderr


def test_ctrl_c_ends_with_130():
    found = runner.invoke(program(KeyboardInterrupt()), ["work"])
    assert found.exit_code == 130
    assert "Interrupted" in found.stderr


def make_answer(stop, *, is_cause):
    """Return what a library makes of a signal that arrives while it is loaded."""
    error = ImportError("initialization failed")
    if is_cause:
        error.__cause__ = stop
    else:
        error.__context__ = stop
    return error


def make_circle():
    """Return an error whose causes go in a circle."""
    first, other = ImportError("no fallback"), ImportError("no package")
    first.__cause__, other.__context__ = other, first
    return first


def make_crash():
    """Return a crash while a signal was answered, as of a checkpoint that cannot be saved."""
    crash = RuntimeError("the device is gone")
    crash.__context__ = KeyboardInterrupt()
    return crash


@pytest.mark.parametrize(("failure", "words"), [(make_circle(), "no fallback"), (make_crash(), "the device is gone")])
def test_other_errors_near_a_signal_are_crashes(failure, words):
    found = runner.invoke(program(failure), ["work"])
    assert found.exit_code == 1
    assert words in found.stderr


@pytest.mark.parametrize("is_cause", [True, False])
@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (TerminationSignal(), 143)])
def test_a_signal_that_a_library_answers_with_an_error_of_its_own_is_an_interrupt(stop, code, is_cause):
    found = runner.invoke(program(make_answer(stop, is_cause=is_cause)), ["work"])
    assert found.exit_code == code
    assert found.stderr == "error: Interrupted.\n  try: Run the command again.\n"


@pytest.mark.parametrize(("debug", "traces"), [("", 0), ("1", 1)])
def test_a_crash_shows_its_trace_only_when_asked(debug, traces):
    found = runner.invoke(program(RuntimeError("the roof\nfell in")), ["work"], env={TRACE: debug})
    assert found.exit_code == 1
    assert "error: Unexpected RuntimeError: the roof fell in" in found.stderr
    assert "--debug" in found.stderr
    assert found.stderr.count("Traceback") == traces


def test_a_missing_extra_is_named():
    found = runner.invoke(program(ModuleNotFoundError("No module named 'skia'", name="skia")), ["work"])
    assert found.exit_code == 2
    assert "needs the package skia" in found.stderr
    assert 'pip install ".[world]"' in found.stderr
    other = runner.invoke(program(ModuleNotFoundError("No module named 'torch'", name="torch")), ["work"])
    assert other.exit_code == 1
    assert "Unexpected ModuleNotFoundError" in other.stderr


def test_a_reader_who_has_enough_is_no_error():
    command = [sys.executable, "-c", "from sefi.cli.app import app; app()", "learn", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait() == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_a_full_disk_behind_stdout_is_one_error_on_stderr(flag):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sefi", "bench", "list", *flag]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert "The answer could not be written: No space left on device." in found.stderr
    assert found.stderr.startswith("{" if flag else "error:")
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (MemoryError(), "There is not enough memory."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (OSError(errno.EIO, "Input/output error", "a.png"), "'a.png': Input/output error."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device."),
    ],
)
def test_what_the_machine_lacks_is_no_crash(failure, problem):
    found = runner.invoke(program(failure), ["work"])
    assert found.exit_code == 2
    assert problem in found.stderr
    assert "  try: " in found.stderr
    assert "--debug" not in found.stderr


def test_opencv_s_lack_of_memory_is_no_crash():
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((9, 9), np.uint8), (200_000_000, 200_000_000))
    found = runner.invoke(program(caught.value), ["work"])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: There is not enough memory.\n")


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOTDIR, "Not a directory", "a"), RuntimeError("of memory, nothing")]
)
def test_other_errors_of_these_types_stay_crashes(failure):
    assert runner.invoke(program(failure), ["work"]).exit_code == 1
