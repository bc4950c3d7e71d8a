"""`sefi doctor`: whether this machine has what the program needs."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import typer

from sefi import __version__
from sefi.cli import options

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "kornia",
    "opencv-python-headless",
)
EXTRAS = {"world": "skia", "lora": "peft"}
MODEL_PARTS = ("tiny-portraits", "judges", "demo")
PROBLEM = 1


def doctor(as_json: options.AsJson = False) -> None:
    """Check versions, devices, the embedded model and the disk; exit code 1 if something lacks."""
    from sefi.cli.output import answer

    problems: list[str] = []
    record: dict[str, object] = {
        "sefi": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: installed(name, problems) for name in LIBRARIES},
        "extras": {name: find_spec(module) is not None for name, module in EXTRAS.items()},
        "devices": devices(),
        "embedded model": embedded_model(problems),
        "free disk here": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB",
    }
    record["problems"] = problems
    answer(record, told(record), as_json=as_json)
    if problems:
        raise typer.Exit(PROBLEM)


def installed(name: str, problems: list[str]) -> str | None:
    """The version of a library; a missing one is a problem."""
    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"{name} is not installed: pip install {name}")
        return None


def devices() -> list[str]:
    """Where models can run, best first."""
    import torch

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, f"cpu ({torch.get_num_threads()} threads)"]


def embedded_model(problems: list[str]) -> str | None:
    """Where tiny-portraits and its judges lie; what is missing is a problem."""
    from sefi.backbone.open import MODELS

    missing = [part for part in MODEL_PARTS if not (MODELS / part).is_dir()]
    problems += [f"models/{part} is not in this installation: install sefi again" for part in missing]
    folder = MODELS / options.EMBEDDED
    return str(folder) if folder.is_dir() else None


def told(record: dict[str, object]) -> str:
    """The findings, one line each, problems last."""
    from sefi.cli.inspect import flattened

    lines = [f"{name:<34} {value}" for name, value in flattened("", record) if name != "problems"]
    problems = record["problems"]
    assert isinstance(problems, list)
    return "\n".join([*lines, *(f"problem: {text}" for text in problems), verdict(len(problems))])


def verdict(problems: int) -> str:
    """The last line."""
    return f"{problems} problem(s) found" if problems else "everything is in place"
