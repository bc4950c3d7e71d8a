"""Kill a training at each of its steps, and a benchmark run at random moments, with signal 9, and let them go on.

Run it as `python experiments/kill.py`: a training of 60 steps of the tiny model of the tests is killed before and after
each of its saves, and a run at 200 moments that are drawn evenly over the time that it takes undisturbed. `--steps 6
--moments 5` tries fewer, and `--only training` one of both; the record keeps the other.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from sefi.core.files import write_text
from sefi.core.text import dump_json

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: the parent has one thread
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests.faults.kills import Benchmark, Training, draw_moments  # noqa: E402
from tests.faults.model import make_model  # noqa: E402
from tests.faults.scenarios import open_model  # noqa: E402

RECORD = ROOT / "experiments" / "records" / "kill.json"


def try_training(steps: int, folder: Path) -> dict[str, object]:
    """Try a kill before and after the save of each step; return how often the training went on to the same file."""
    training, faults, started = Training.run(steps, folder / "training"), list[str](), time.monotonic()
    for step in range(1, steps + 1):
        for saved in (False, True):
            fault = training.try_kill(folder / "killed", step, saved=saved)
            faults += [fault] if fault else []
        report_progress("training", step, steps, started)
    return {"steps": steps, "kills": 2 * steps, "same_file": 2 * steps - len(faults), "faults": faults}


def try_benchmark(moments: int, seed: int, folder: Path) -> dict[str, object]:
    """Try kills at random moments of a benchmark run; return how often it went on to the same records and images.

    A run that has ended by the moment is none of those that are counted.
    """
    benchmark, faults, started = Benchmark.run(folder / "benchmark"), list[str](), time.monotonic()
    kills, ended = 0, 0
    for seconds in draw_moments(seed, benchmark.seconds):
        killed, fault = benchmark.try_kill(folder / "killed", seconds)
        kills, ended = kills + killed, ended + (not killed)
        faults += [fault] if fault else []
        report_progress("benchmark run", kills, moments, started)
        if kills == moments:
            break
    found = {"moments": moments, "seed": seed, "seconds_undisturbed": round(benchmark.seconds, 2)}
    return {**found, "ended_before": ended, "same_files": moments - len(faults), "faults": faults}


def report_progress(name: str, done: int, total: int, started: float) -> None:
    """Print on one line how many are done, and how long the rest takes."""
    left = (time.monotonic() - started) / max(done, 1) * (total - done)
    sys.stderr.write(f"\r{name}: {done}/{total}, about {left:.0f} s left   ")
    sys.stderr.flush()


def main() -> None:
    """Try what is asked for, put it on record where all was tried, print it, and fail where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of the training")
    parser.add_argument("--moments", type=int, default=200, help="at which the run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=("training", "benchmark"), default=None, help="try one of both")
    parser.add_argument("--record", type=Path, default=None, help="where the record goes; a full run has its own place")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name, open_model(make_model(Path(name) / "model")):
        for part in (options.only,) if options.only else ("training", "benchmark"):
            before = sum(os.times()[:4])
            if part == "training":
                found[part] = try_training(options.steps, Path(name))
            else:
                found[part] = try_benchmark(options.moments, options.seed, Path(name))
            found[part]["seconds_of_a_processor"] = round(sum(os.times()[:4]) - before)
    full = (options.steps, options.moments) == (parser.get_default("steps"), parser.get_default("moments"))
    place = options.record or (RECORD if full else None)
    earlier = json.loads(place.read_text(encoding="utf-8")) if place is not None and place.is_file() else {}
    text = dump_json(earlier | found, indent=1, sort_keys=True) + "\n"
    sys.stdout.write(text)
    if place is not None:
        write_text(place, text)
    if any(part["faults"] for part in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
