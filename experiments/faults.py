"""Let each operation on a file fail once in short runs, fill the disk, end the memory: what becomes of the files.

Run it as `python experiments/faults.py`: every opening, write, flush, rename, link and removal of learning, generating,
exporting, a benchmark run and its report fails once as on a full disk, and once more as on a broken one or for want of
memory, in turns; no file may grow beyond sizes from none to all but its last byte; there is no memory for tensors drawn
at random. `--only learn generate` tries fewer; the record keeps the others.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sefi.core.files import write_text
from sefi.core.text import dump_json

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: the parent has one thread
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests.faults.model import make_model  # noqa: E402
from tests.faults.scenarios import (  # noqa: E402
    SCENARIOS,
    Counts,
    Undisturbed,
    draw_tensors,
    list_sizes,
    open_model,
    run_undisturbed,
    try_allocation,
    try_error,
    try_size,
)

RECORD = ROOT / "experiments" / "records" / "faults.json"
TENSORS = 20  # that are tried of each command


def list_trials(run: Undisturbed, seed: int) -> dict[str, list[Callable[[], Counts]]]:
    """Return all trials of a command by what fails in them."""
    numbers = range(1, len(run.seen) + 1)
    others = ("broken disk", "no memory")
    return {
        "full disk": [partial(try_error, run, number, "full disk") for number in numbers],
        "others": [partial(try_error, run, number, others[number % 2], repeat=False) for number in numbers],
        "sizes": [partial(try_size, run, size) for size in list_sizes(run)],
        "tensors": [partial(try_allocation, run, number) for number in draw_tensors(run, TENSORS, seed)],
    }


def try_all(name: str, trials: Sequence[Callable[[], Counts]]) -> dict[str, object]:
    """Make all trials of one kind; return what became of them."""
    counts, started = Counts(), time.monotonic()
    for done, trial in enumerate(trials, 1):
        counts.join(trial())
        left = (time.monotonic() - started) / done * (len(trials) - done)
        sys.stderr.write(f"\r{name}: {done}/{len(trials)}, about {left:.0f} s left   ")
        sys.stderr.flush()
    return asdict(counts)


def main() -> None:
    """Try what is asked for, put it on record, print it, and fail where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), help="these commands")
    parser.add_argument("--seed", type=int, default=0, help="of the tensors")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as place, open_model(make_model(Path(place) / "model")):
        for name in options.only:
            run = run_undisturbed(SCENARIOS[name], Path(place) / name.replace(" ", "-"))
            trials = list_trials(run, options.seed)
            found[name] = {kind: try_all(f"{name}, {kind}", some) for kind, some in trials.items()}
            found[name]["operations"] = len(run.seen)
    earlier = json.loads(options.record.read_text(encoding="utf-8")) if options.record.is_file() else {}
    text = dump_json(earlier | found, indent=1, sort_keys=True) + "\n"
    sys.stdout.write(text)
    write_text(options.record, text)
    if any(isinstance(one, dict) and one["faults"] for part in found.values() for one in part.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
