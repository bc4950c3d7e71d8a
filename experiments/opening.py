"""What opening costs at Stable Diffusion 1.4's real size, and how much of it the one small call of every part takes.

Builds a model folder and a single file of the same random weights (4.3 GB of disk), and opens each in bfloat16 and in
float32, every time in a process of its own. The call is the last thing that `open_backbone` does
(`sefi/backbone/open.py`); opening without it is the difference.

    python experiments/opening.py --dir /big/disk    # minutes; --keep takes the models that are already there
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import sefi  # noqa: F401  before torch, so that OpenMP threads sleep while they wait

# isort: split

import torch
from real_size import build_models, describe_machine

from sefi.backbone import open as opening
from sefi.backbone.bundle import Backbone
from sefi.core.files import write_text
from sefi.core.text import dump_json

RECORD = Path(__file__).parent / "records" / "opening.json"
DTYPES = ("bfloat16", "float32")
ROUNDS = 3

Seconds = dict[str, float]


def main() -> None:
    """Open everything in turns, and write the record of the medians."""
    options = read_arguments()
    if options.open:
        sys.stdout.write(dump_json(time_opening(options.open, options.dtype)) + "\n")
        return
    options.dir.mkdir(parents=True, exist_ok=True)
    sources = {"folder": options.dir / "model", "file": options.dir / "model.safetensors"}
    if not (options.keep and all(path.exists() for path in sources.values())):
        build_models(sources["folder"], sources["file"], tiny=False)
    pairs = [(kind, dtype) for kind in sources for dtype in DTYPES]
    found: dict[tuple[str, str], list[Seconds]] = {pair: [] for pair in pairs}
    for _ in range(ROUNDS):
        for kind, dtype in pairs:
            found[kind, dtype].append(open_in_process(sources[kind], dtype))
    rows = {f"{kind} {dtype}": summarise_times(times) for (kind, dtype), times in found.items()}
    text = dump_json({"machine": describe_machine(), "rounds": ROUNDS, **rows}, indent=1) + "\n"
    write_text(RECORD, text)
    sys.stdout.write(text)


def read_arguments() -> argparse.Namespace:
    """Return the command line; `--open` and `--dtype` are for the script's own child processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where the models are built")
    parser.add_argument("--keep", action="store_true", help="do not build what is already there")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.open or options.dir):
        parser.error("name a folder with --dir")
    return options


def open_in_process(source: Path, dtype: str) -> Seconds:
    """Return what a fresh process measures."""
    command = [sys.executable, __file__, "--open", str(source), "--dtype", dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return json.loads(done.stdout)


def time_opening(source: str, dtype: str) -> Seconds:
    """Open a model once; return seconds of wall time in all and of the call alone."""
    real, spent = opening.check_calls, list[float]()

    def check_timed(backbone: Backbone) -> None:
        started = time.perf_counter()
        real(backbone)
        spent.append(time.perf_counter() - started)

    opening.check_calls = check_timed
    started = time.perf_counter()
    opening.open_backbone(source, dtype=getattr(torch, dtype))
    return {"open": time.perf_counter() - started, "call": spent[0]}


def summarise_times(times: list[Seconds]) -> dict[str, Any]:
    """Return medians in seconds; the share of the call is the median of the rounds' shares."""
    return {
        "open_seconds": round(median(one["open"] for one in times), 2),
        "without_call_seconds": round(median(one["open"] - one["call"] for one in times), 2),
        "call_seconds": round(median(one["call"] for one in times), 2),
        "call_share": round(median(one["call"] / one["open"] for one in times), 3),
    }


if __name__ == "__main__":
    main()
