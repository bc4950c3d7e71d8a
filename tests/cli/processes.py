"""The program in a process of its own: a fresh one, or a child of this one that has the libraries loaded."""

import logging
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO

from sefi.cli.app import app


def run_fresh(folder: Path, *words: str | bytes | Path) -> CompletedProcess[bytes]:
    """Run the program in a fresh interpreter, in a folder."""
    command = [sys.executable, "-m", "sefi", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False)


def run_forked(folder: Path, *words: str | bytes | Path) -> CompletedProcess[bytes]:
    """Run the program in a child of this process, in a folder, with the streams and loggers of a program.

    Nothing is imported again, which takes a fresh interpreter several seconds.
    """
    arguments = [os.fsdecode(word) for word in words]
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on forks beside threads
            child = os.fork()
        if not child:
            os._exit(run_here(folder, arguments, out, err))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return CompletedProcess(arguments, code, out.read(), err.read())


def run_here(folder: Path, arguments: list[str], out: IO[bytes], err: IO[bytes]) -> int:
    """Run the program in this process, which is made like a fresh one; return its exit code."""
    code = 1
    try:
        os.chdir(folder)
        for number, stream in ((1, out), (2, err)):
            os.dup2(stream.fileno(), number)
        # As Python opens them.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        logging.getLogger().handlers.clear()  # pytest's
        sys.argv = ["sefi", *arguments]
        app(prog_name="sefi")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code
