"""`sefi doctor`: whether this machine has what the program needs."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import typer

from sefi import __version__
from sefi.cli import options
from sefi.core.errors import suggest_install

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "opencv-python-headless",
)
# Extras: the modules that they bring, and what they are for.
EXTRAS = {
    "world": (("skia", "tokenizers", "onnx"), "drawing and training the embedded model; drawn people for benchmarks"),
    "serve": (("fastapi", "uvicorn", "prometheus_client"), "images over HTTP: sefi serve"),
    "lora": (("peft",), "DreamBooth's LoRA form"),
    "provenance": (("c2pa", "cryptography"), "signed content credentials (C2PA) of images"),
    "ray": (("ray",), "batches on a Ray cluster"),
}
MODEL_PARTS = ("tiny-portraits", "evaluators", "demo")
MOST_SEARCHED = 20_000  # files below a folder: about a second
UNLIKE_LINES = ("problems", "extras", "leftovers", "not_searched")  # findings that are shown in lines of their own
PROBLEM = 1


def run_doctor(as_json: options.AsJson = False) -> None:
    """Check versions, extras, devices, the embedded model, its face detector and the disk; exit code 1 if any fails."""
    from sefi.cli.output import print_answer
    from sefi.core.files import get_current_folder
    from sefi.provenance.leftovers import find_all_leftovers

    problems: list[str] = []
    folder = get_current_folder()
    found = find_all_leftovers([folder], MOST_SEARCHED)
    record: dict[str, object] = {
        "sefi": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: find_version(name, problems) for name in LIBRARIES},
        "extras": {name: describe_extra(name) for name in EXTRAS},
        "devices": list_devices(),
        "embedded_model": find_embedded_model(problems),
        "face_detector": try_detector(problems),
        "leftovers": [str(path) for path in found.paths],
        "not_searched": [f"'{one.path}': {one.reason}" for one in found.unsearched],
        "free_disk": f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB",
    }
    record["problems"] = problems
    print_answer(record, format_findings(record), as_json=as_json, command="doctor")
    if problems:
        raise typer.Exit(PROBLEM)


def find_version(name: str, problems: list[str]) -> str | None:
    """Return the version of a library; a missing one is a problem."""
    try:
        return version(name)
    except PackageNotFoundError:
        problems.append(f"{name} is not installed: pip install {name}")
        return None


def describe_extra(name: str) -> dict[str, object]:
    """Return whether an extra is installed, what it is for, and how to install it; a missing one is no problem."""
    modules, purpose = EXTRAS[name]
    missing = [module for module in modules if find_spec(module) is None]
    return {"installed": not missing, "for": purpose, "install": suggest_install(name) if missing else None}


def try_detector(problems: list[str]) -> str | None:
    """Return what the embedded model's face detector finds in the package's portrait, and try that for photographs."""
    import numpy as np
    from PIL import Image

    from sefi.backbone.open import MODELS
    from sefi.core.errors import FaceError
    from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS
    from sefi.photo.detect import PHOTOGRAPH_DETECTOR, YuNetDetector

    portrait = MODELS / "demo" / "portrait.png"
    try:
        with Image.open(portrait) as image:
            pixels = np.asarray(image.convert("RGB"))
        faces = YuNetDetector(EMBEDDED_EVALUATORS / DETECTOR)(pixels)
        YuNetDetector(PHOTOGRAPH_DETECTOR)(pixels)  # finds no drawn face; that it runs is what is tried
    except (FaceError, OSError) as error:
        problems.append(f"the face detector does not run: {error}")
        return None
    if len(faces) != 1:
        problems.append(
            f"the face detector finds {len(faces)} faces in the package's portrait of one: install sefi again"
        )
    found = f"runs; knows drawn faces ({len(faces)} found in the package's portrait)"
    return f"{found}; the package's YuNet, for photographs, runs too"


def list_devices() -> list[str]:
    """Return where models can run, best first, each as `--device` takes it and with what it is."""
    import torch

    devices = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, f"cpu ({torch.get_num_threads()} threads)"]


def find_embedded_model(problems: list[str]) -> str | None:
    """Return the folder of tiny-portraits; if it, its evaluators or the portrait are missing, that is a problem."""
    from sefi.backbone.open import MODELS

    missing = [part for part in MODEL_PARTS if not (MODELS / part).is_dir()]
    problems += [f"models/{part} is not in this installation: install sefi again" for part in missing]
    folder = MODELS / options.EMBEDDED
    return str(folder) if folder.is_dir() else None


def format_findings(record: dict[str, object]) -> str:
    """Return the findings, one line each, problems last."""
    from sefi.cli.describe import flatten_record, format_entry

    shown = {name: value for name, value in record.items() if name not in UNLIKE_LINES}
    lines = [f"{name:<34} {format_entry(value)}" for name, value in flatten_record("", shown)]
    extras = record["extras"]
    assert isinstance(extras, dict)
    lines += [f"{f'extras.{name}':<34} {format_extra(extra)}" for name, extra in extras.items()]
    leftovers = record["leftovers"]
    assert isinstance(leftovers, list)
    lines += [f"{'leftover':<34} {path}" for path in leftovers]
    if leftovers:
        lines.append(f"{'':<34} they hold likenesses; remove those that no process holds: sefi forget --leftovers")
    not_searched, problems = record["not_searched"], record["problems"]
    assert isinstance(not_searched, list)
    assert isinstance(problems, list)
    lines += [f"{'not searched for leftovers':<34} {text}" for text in not_searched]
    return "\n".join([*lines, *(f"problem: {text}" for text in problems), format_problem_count(len(problems))])


def format_extra(extra: dict[str, object]) -> str:
    """Return one extra as text."""
    return (
        f"installed; for {extra['for']}" if extra["installed"] else f"missing; for {extra['for']}. {extra['install']}"
    )


def format_problem_count(problems: int) -> str:
    """Return the last line."""
    return f"{problems} problem(s) found" if problems else "everything is in place"
