"""What `sefi batch` costs beside the steps of learning, and that killed workers lose and repeat nothing.

Run it as `python experiments/batch_photos.py`: a few drawn people are learned by `sefi batch` in this process, as
`--preset default` or `scratch` does it on the embedded model, and the CPU time of the whole (imports, photos,
checkpoints, previews, records, page) is divided by that of the training steps in it. `--photos 100` is the whole.
`--kill processes` or `--kill ray` learns 20 people with two workers instead, kills one with SIGKILL in the middle, and
counts what was lost or repeated.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from sefi.cli import progress
from sefi.cli.app import app
from sefi.core.config import choose_start
from sefi.core.files import write_text
from sefi.core.text import dump_json
from sefi.methods import get_preset
from sefi.provenance.run_record import RunRecord
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import make_portrait, make_test_person

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
RECORD = ROOT / "experiments" / "records" / "batch.json"
SIDE = 256  # pixels of a photo
WHOLE = 100  # photos, of which the ratio is not computed but measured
FEW_STEPS = ("--steps", "2", "--set", "generate.steps=2")


class StepClock:
    """Stands in the place of the terminal's progress, and adds up the CPU time between the steps of trainings."""

    def __init__(self) -> None:
        self.seconds, self.steps, self.last, self.begun = 0.0, 0, 0.0, 0.0

    def begin_item(self) -> "StepClock":
        """Note when the first item begins: by then the model is open."""
        self.begun = self.begun or time.process_time()
        return self

    def start(self, total: int, label: str) -> None:
        """Note where a piece of work begins."""
        self.is_training, self.last = label.endswith(": learning"), time.process_time()

    def advance(self, **numbers: float) -> None:
        """Add the time of a training step."""
        now = time.process_time()
        if self.is_training:
            self.seconds, self.steps, self.last = self.seconds + now - self.last, self.steps + 1, now

    def finish(self) -> None:
        """Do nothing: what comes after the last step is none."""


def draw_people(count: int, folder: Path) -> None:
    """Write portraits of drawn people whom the model has never seen."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(draw(make_portrait(make_test_person(number), number, 0), SIDE)).save(folder / f"p{number}.png")


def measure_costs(count: int, preset: str, options: list[str]) -> dict[str, object]:
    """Learn people by the program itself, in this process; return CPU seconds of the whole and of the steps."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as name:
        before = time.process_time()
        draw_people(count, Path(name) / "photos")
        drawing = time.process_time() - before
        progress.TerminalProgress.nested = clock.begin_item  # type: ignore[method-assign]
        words = [
            "batch",
            f"{name}/photos",
            "-o",
            f"{name}/identities",
            "--no-crop",
            "--preset",
            preset,
            *options,
            "--json",
        ]
        done = CliRunner().invoke(app, words)
        whole = time.process_time() - drawing  # since this process began: with all imports
        again = time.process_time()
        twice = CliRunner().invoke(app, words)
        again = time.process_time() - again
    if done.exit_code or twice.exit_code or json.loads(twice.stdout)["learned"]:
        sys.exit(done.output + twice.output)
    # The ratio of a hundred photos with all steps, from what is spent once, for each photo, and for each step.
    once, step = clock.begun - drawing, clock.seconds / clock.steps
    each, steps = (whole - once - clock.seconds) / count, choose_start(get_preset(preset), encoder=True).learn.steps
    return {
        "preset": preset,
        "photos": count,
        "steps": clock.steps,
        "seconds_once": round(once, 2),
        "seconds_for_each_photo_besides_steps": round(each, 2),
        "seconds_for_each_step": round(step, 4),
        "steps_of_the_preset": steps,
        "computed_ratio_of_100_photos": round((once + 100 * (each + steps * step)) / (100 * steps * step), 4),
        "computed_hours_of_10000_photos": round((once + 10_000 * (each + steps * step)) / 3600, 1),
        "seconds_of_steps": round(clock.seconds, 2),
        "seconds_of_batch": round(whole, 2),
        "seconds_of_a_second_run": round(again, 2),
        "ratio": round(whole / clock.seconds, 4),
    }


# ------------------------------------------------------------------ kills


def read_finished(folder: Path) -> dict[str, int]:
    """Return when the identity of each finished item was written."""
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("[!.]*.json")}
    names = [name for name, record in records.items() if record["state"] == "learned"]
    return {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in names}


def find_workers(parent: int, words: str) -> list[int]:
    """Return the processes below one whose command has some words (Linux)."""
    table: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            above = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            table[int(path.name)] = above, path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    found, below = list[int](), [parent]
    while below:
        above = below.pop()
        children = [number for number, (one, _) in table.items() if one == above]
        found += [number for number in children if words in table[number][1]]
        below += children
    return found


def try_kill(engine: str, people: int, folder: Path) -> dict[str, object]:
    """Try a kill of one of two workers once a quarter is learned; return what was lost and repeated."""
    draw_people(people, folder / "photos")
    out, words = folder / "identities", ["--engine", engine, "--jobs", "2", "--no-crop", *FEW_STEPS, "--json"]
    command = [sys.executable, "-m", "sefi", "batch", str(folder / "photos"), "-o", str(out), *words]
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, text=True
    ) as program:
        while len(read_finished(out)) < people // 4:
            if program.poll() is not None:
                sys.exit("the batch ended too early")
            time.sleep(0.2)
        before = read_finished(out)
        victim = find_workers(program.pid, "spawn_main" if engine == "processes" else "ray::RayWorker")[0]
        os.kill(victim, signal.SIGKILL)
        answer = json.loads(program.communicate()[0])
    after = read_finished(out)
    return {
        "people": people,
        "finished_before_the_kill": len(before),
        "learned": len(answer["learned"]),
        "lost": people - len(after),
        "repeated": sum(after.get(name) != written for name, written in before.items()),
    }


def main() -> None:
    """Measure what is asked for, print it, and put it on record where a place for it is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=2, help="how many people are learned; 100 for the whole")
    parser.add_argument("--preset", choices=("default", "scratch"), default="default", help="how they are learned")
    parser.add_argument("--steps", type=int, default=None, help="of each training; the preset's without")
    parser.add_argument("--no-previews", action="store_true", help="as with `sefi batch --no-previews`")
    parser.add_argument("--kill", choices=("processes", "ray"), default=None, help="kill a worker of this engine")
    parser.add_argument("--people", type=int, default=20, help="with --kill")
    parser.add_argument("--record", type=Path, nargs="?", const=RECORD, default=None, help="where the record goes")
    options = parser.parse_args()
    if options.kill is None:
        steps = [] if options.steps is None else ["--steps", str(options.steps)]
        steps += ["--no-previews"] if options.no_previews else []
        found = measure_costs(options.photos, options.preset, steps)
        name = "cost" if options.preset == "scratch" else f"cost_{options.preset}"
        name += "_no_previews" if options.no_previews else ""
        name += f"_of_{options.photos}" if options.photos >= WHOLE else ""
    else:
        with tempfile.TemporaryDirectory() as folder:
            found, name = try_kill(options.kill, options.people, Path(folder)), f"kill_{options.kill}"
    machine = RunRecord.describe_machine("learn", "cpu", "float32")
    found |= {"device": machine.device_name, "threads": 1, "versions": machine.versions}
    text = dump_json({name: found}, indent=1, sort_keys=True)
    sys.stdout.write(text + "\n")
    if options.record is not None:
        known = json.loads(options.record.read_text(encoding="utf-8")) if options.record.is_file() else {}
        write_text(options.record, dump_json(known | {name: found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
