"""Read changed images and files of every kind in children of bounded memory and time: what escapes but typed errors.

Run it as `python experiments/fuzz.py`: 20,000 images and 20,000 files, seeded. `--count 400` tries fewer of each, and
`--first 100000` others.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sefi.core.files import write_text
from sefi.core.text import dump_json

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: the parent has one thread
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzz.forked import CHUNK, MEGABYTES, SECONDS, Task, try_all  # noqa: E402
from tests.fuzz.tasks import SHARES, file_tasks, image_tasks, share_out  # noqa: E402

RECORD = ROOT / "experiments" / "records" / "fuzz.json"


def measure(tasks: dict[str, Task], counts: dict[str, int], first: int) -> dict[str, object]:
    """Return what became of the files of each kind, and the seconds of a processor that all took."""
    before, kinds = sum(os.times()[:4]), dict[str, dict[str, object]]()
    for name, task in tasks.items():
        started = time.monotonic()
        seeds = range(first, first + counts[name])
        outcome = try_all(task, seeds, partial(report_progress, name, len(seeds), started))
        kinds[name] = asdict(outcome)
        sys.stderr.write("\n")
    totals = {key: sum(int(str(one[key])) for one in kinds.values()) for key in ("tries", "read", "refused")}
    faults = sum(len(list(one["faults"])) for one in kinds.values() if isinstance(one["faults"], list))
    return {**totals, "faults": faults, "seconds": round(sum(os.times()[:4]) - before), "kinds": kinds}


def report_progress(name: str, total: int, started: float, done: int) -> None:
    """Print on one line how many files are done, and how long the rest takes."""
    left = (time.monotonic() - started) / max(done, 1) * (total - done)
    sys.stderr.write(f"\r{name}: {done}/{total}, about {left:.0f} s left   ")
    sys.stderr.flush()


def main() -> None:
    """Try both kinds of tasks, write the record where all were tried, print it, and fail where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="images, and as many files")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--record", type=Path, default=None, help="where the record goes; a full run has its own place")
    options = parser.parse_args()
    import torch  # noqa: PLC0415  after the threads were set

    torch.set_num_threads(1)
    record: dict[str, object] = {"first_seed": options.first, "files_of_a_child": CHUNK}
    record |= {"seconds_of_a_file": SECONDS, "megabytes_of_a_child": MEGABYTES}
    with tempfile.TemporaryDirectory() as folder:
        images, files = image_tasks(Path(folder)), file_tasks(Path(folder))
        record["images"] = measure(images, share_out(options.count, list(images)), options.first)
        record["files"] = measure(files, share_out(options.count, list(files), SHARES), options.first)
    text = dump_json(record, indent=1) + "\n"
    sys.stdout.write(text)
    place = options.record or (RECORD if options.count == parser.get_default("count") else None)
    if place is not None:
        write_text(place, text)
    if any(one["faults"] for one in (record["images"], record["files"]) if isinstance(one, dict)):
        sys.exit(1)


if __name__ == "__main__":
    main()
