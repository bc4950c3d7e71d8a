"""How long the embedded model takes: learning with the preset `scratch`, a batch of eight images, the program's help.

Run it as `python experiments/embedded_times.py`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sefi  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import torch

from sefi.backbone.open import MODELS
from sefi.core.config import override
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.methods import PRESETS

RECORD = Path(__file__).parent / "records" / "embedded_times.json"
STEPS = 25  # half of the usual 50, as the demo and the benchmarks


def time_help() -> float:
    """Return the wall time of `sefi --help` in a fresh process, best of three."""
    found: list[float] = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([str(Path(sys.executable).parent / "sefi"), "--help"], check=True, capture_output=True)  # noqa: S603
        found.append(time.monotonic() - started)
    return min(found)


def main() -> None:
    """Measure, write the record, print it."""
    backbone = sefi.open_backbone()
    config = override(PRESETS["scratch"], ["generate.count=8", "generate.batch_size=8", f"generate.steps={STEPS}"])
    started = time.monotonic()
    ada = sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=backbone, config=config)
    learned = time.monotonic()
    images = sefi.generate("a photo of <ada> at the beach", [ada], backbone=backbone, config=config)
    generated = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ada.save(Path(folder) / "ada.safetensors")
        size = (Path(folder) / "ada.safetensors").stat().st_size
    record = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "learn_seconds": round(learned - started, 1),
        "seconds_per_image": round((generated - learned) / len(images), 2),
        "steps_per_image": config.generate.steps,
        "help_seconds": round(time_help(), 2),
        "identity_bytes": size,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
