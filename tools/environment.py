"""Build `.venv` for one make target, with nothing but the standard library."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "sefi-stamp.json"
TORCH = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Install the package and the extras asked for, or do nothing if they are there."""
    extras = arguments()
    if is_ready(extras):
        return
    started = time.monotonic()
    check_python()
    make_venv()
    install_torch()
    install_package(extras | set(stamp()["extras"]))
    write_stamp(extras | set(stamp()["extras"]))
    step(f"the environment is ready ({time.monotonic() - started:.0f} s)")


def arguments() -> set[str]:
    """The extras named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="", help="comma-separated, e.g. world,dev")
    return set(filter(None, parser.parse_args().extras.split(",")))


def is_ready(extras: set[str]) -> bool:
    """Whether the environment was built from these files with at least these extras."""
    found = stamp()
    return found["key"] == key() and extras <= set(found["extras"]) and interpreter().exists()


def stamp() -> dict[str, object]:
    """What the environment was built from; empty values where there is none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {"key": "", "extras": []}


def key() -> str:
    """A hash of everything that decides what is installed."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def write_stamp(extras: set[str]) -> None:
    """Record a finished installation; an interrupted one leaves no stamp."""
    STAMP.write_text(json.dumps({"key": key(), "extras": sorted(extras)}))


def check_python() -> None:
    """Stop early where the interpreter is too old or cannot make environments."""
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        stop(f"Python {version} is too old", "make PYTHON=python3.11 (or newer)")
    try:
        import ensurepip  # noqa: F401, PLC0415
        import venv  # noqa: F401, PLC0415
    except ImportError:
        stop("this Python has no venv module", "apt-get install python3-venv")


def make_venv() -> None:
    """Create the environment, or replace one whose interpreter is gone."""
    if not interpreter().exists():
        step("creating .venv")
        call(sys.executable, "-m", "venv", "--clear", str(VENV))


def install_torch() -> None:
    """Install torch first: without CUDA the small CPU build, from wherever it can be had."""
    if installed_torch() == TORCH:
        return
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        step(f"installing torch {TORCH}")
        pip(f"torch=={TORCH}")
        return
    step(f"installing torch {TORCH} for the CPU")
    local, official = f"torch=={TORCH}+cpu", ["--index-url", CPU_INDEX]
    if not (tried(local) or tried(local, *official)):
        pip(f"torch=={TORCH}")


def installed_torch() -> str:
    """The torch version in the environment without its build tag, or nothing."""
    query = "import importlib.metadata as m; print(m.version('torch'))"
    found = subprocess.run([str(interpreter()), "-c", query], capture_output=True, text=True, check=False)
    return found.stdout.strip().split("+")[0]


def install_package(extras: set[str]) -> None:
    """Install this package in place, at the versions its tests pass with."""
    names = ",".join(sorted(extras))
    step("installing sefi" + (f" with {names}" if names else ""))
    constraints = ROOT / "constraints.txt"
    pip("-c", str(constraints), "-e", f"{ROOT}[{names}]" if names else str(ROOT))


def interpreter() -> Path:
    """The environment's Python."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(*words: str) -> None:
    """Run pip quietly; its errors are shown, and end the set-up."""
    call(str(interpreter()), "-m", "pip", "install", "-qq", *words)


def tried(*words: str) -> bool:
    """Whether pip could install this; a failure is silent, since another source follows."""
    command = [str(interpreter()), "-m", "pip", "install", "-qq", "--retries", "1", *words]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def call(*command: str) -> None:
    """Run one command, without pip's remarks on newer versions of itself."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    code = subprocess.run(command, check=False, env=environment).returncode
    if code:
        stop(f"this failed with exit code {code}: {' '.join(command)}", "see the lines above")


def step(text: str) -> None:
    """One line for each step, so that a silent minute is never a riddle."""
    print(f"-- {text}", flush=True)


def stop(problem: str, remedy: str) -> None:
    """End with one sentence on what is wrong and one on what to do."""
    sys.exit(f"error: {problem}\n  try: {remedy}")


if __name__ == "__main__":
    main()
