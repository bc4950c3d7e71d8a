"""Try an ONNX file in a child process first: OpenCV can end the whole process on a damaged one.

A changed dimension or attribute makes OpenCV divide by zero or read outside its memory (SIGFPE, SIGSEGV), which no
`except` catches. The networks of the package are not tried.
"""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Literal

from sefi.core.reading import LimitError

PACKAGED = Path(__file__).parents[1] / "models"
PROGRAM = Path(__file__).with_name("trial_run.py")
LONGEST_TRIAL = 60.0  # seconds; YuNet takes 0.3

_passed: set[tuple[str, str]] = set()


def try_network(path: Path, content: bytes, kind: Literal["detector", "recogniser", "classifier"]) -> None:
    """Load and run a network in a child process, once for the same content; what OpenCV refuses by itself passes.

    Raises:
        LimitError: the child process crashed, or took more than 4 GB or a minute.
        OSError: no process could be started.
    """
    if path.resolve().is_relative_to(PACKAGED):
        return
    key = (kind, hashlib.sha256(content).hexdigest())
    if key in _passed:
        return
    command = [sys.executable, "-P", str(PROGRAM), kind]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            input=content,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_TRIAL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LimitError(f"OpenCV needs more than {LONGEST_TRIAL:.0f} seconds for one image") from None
    if done.returncode != 0:
        raise LimitError("OpenCV crashes on it")
    _passed.add(key)
