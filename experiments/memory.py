"""The most memory that learning one subject holds, a fresh process for each method's default preset.

Run it as `python experiments/memory.py`. The number of steps does not change the peak, so there are few.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sefi.backbone.open import MODELS
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.methods import BUILT_IN, get_preset, name_default_preset, select_read_settings

RECORD = Path(__file__).parent / "records" / "memory.json"
FEW = ("learn.steps=4", "tune.prior_images=8")


def measure_peak(*options: str) -> int:
    """Return the peak resident size of `sefi learn` on the embedded model's portrait (Linux)."""
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


def list_options(method: str) -> list[str]:
    """List the options that learn a few steps with a method, few images of the class where it has those."""
    preset = name_default_preset(method)
    few = select_read_settings(get_preset(preset), FEW)
    return ["--preset", preset, *(word for setting in few for word in ("--set", setting))]


def main() -> None:
    """Measure, write the record, print it."""
    record = {name: measure_peak(*list_options(name)) for name in BUILT_IN}
    write_text(RECORD, dump_json(record, indent=1) + "\n")
    sys.stdout.write(dump_json(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
