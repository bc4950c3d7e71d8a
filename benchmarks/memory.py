"""The most memory that learning one subject holds, a fresh process for each method's tuned preset.

Run it as `python benchmarks/memory.py`. The number of steps does not change the peak, so there are few.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sefi.backbone.open import MODELS
from sefi.cli.opening import preset_of
from sefi.core.files import write_text
from sefi.core.json_text import dump_json
from sefi.methods import METHODS

RECORD = Path(__file__).parent / "records" / "memory.json"
FEW = ("--set", "learn.steps=4", "--set", "tune.prior_images=8")


def peak_megabytes(*options: str) -> int:
    """Peak resident size of `sefi learn` on the embedded model's portrait (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["learn", MODELS / "demo" / "portrait.png", "--name", "ada", "--out", Path(folder) / "ada.safetensors"]
        command = [str(Path(sys.executable).parent / "sefi"), *map(str, words), *options]
        # Every thread has buffers of its own: with one, the figure is the same on every machine of a kind.
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(  # noqa: S603
            command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return round(used.ru_maxrss / 1024)


def main() -> None:
    """Measure, write the record, print it."""
    record = {name: peak_megabytes("--preset", preset_of(name, None), *FEW) for name in METHODS}
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
