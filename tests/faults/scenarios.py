"""Short runs whose every operation on files may fail, and what must be true of the folder afterwards."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from tests.faults.injection import ERRORS, Allocations, Ending, Injector, limit_files, run_forked
from tests.suites import SUITE

from sefi.cli import loading

CONSENT = "by=Jane Doe; for=synthetic; scope=tests; date=2026-01-02"
COSTS = ("draw_seconds", "learn_seconds", "class_seconds", "peak_mb")  # are measured: never the same twice
LOCK = re.compile(r"(^|/)\.[^/]*lock$")
TEMPORARY = re.compile(r"\.partial(\.\w+)?(/|$)")
State = dict[str, str]  # SHA-256 by path, of what is the same in every run


@dataclass(frozen=True)
class Scenario:
    """One command, in a folder that is made for it.

    Attributes:
        prepare: makes what it reads.
        words: the command, without the folder: every word with "@" has it put in there.
        codes: exit codes that are an answer; 1 is a crash of every command but `sefi forget`, and of `sefi bench run`
            where it does not say what could not be made.
        repeats: the same command, given again after a failure, ends as if nothing had been.
    """

    name: str
    prepare: Callable[[Path], object]
    words: tuple[str, ...]
    codes: tuple[int, ...] = (0, 2)
    repeats: bool = True

    def list_words(self, folder: Path) -> list[str]:
        """Return the command in a folder."""
        return [word.replace("@", str(folder)) for word in self.words]


def learn_words(seed: int = 0, *more: str, steps: int = 3) -> tuple[str, ...]:
    words = ("learn", "@/photo.png", "--name", "ada", "--out", "@/ada.safetensors", "--seed", str(seed))
    words = (*words, "--set", "learn.batch=1")
    return (*words, "--steps", str(steps), "--no-crop", "--any-style", "--model", "tiny", "--consent", CONSENT, *more)


def make_photo(folder: Path) -> None:
    Image.radial_gradient("L").convert("RGB").resize((53, 61)).save(folder / "photo.png")


def make_identity(folder: Path) -> None:
    make_photo(folder)
    run_well(learn_words(1), folder)


def make_images(folder: Path) -> None:
    make_identity(folder)
    run_well(GENERATE, folder)


def make_suite(folder: Path) -> None:
    (folder / "dogs.toml").write_text(SUITE)
    (folder / "photos").mkdir()
    Image.radial_gradient("L").rotate(20).convert("RGB").resize((41, 37)).save(folder / "photos" / "rex.png")


def make_run(folder: Path) -> None:
    make_suite(folder)
    run_well(BENCH, folder)


def run_well(words: tuple[str, ...], folder: Path) -> None:
    ending = run_forked([word.replace("@", str(folder)) for word in words])
    assert ending.code == 0, ending.output


GENERATE = ("generate", "a photo of <ada>", "-i", "@/ada.safetensors", "--model", "tiny", "--steps", "1")
GENERATE = (*GENERATE, "--out", "@/images")
EXPORT = ("export", "@/ada.safetensors", "--to", "a1111", "--out", "@/exported", "--overwrite")
BENCH = ("bench", "run", "@/dogs.toml", "--model", "tiny", "--photos", "@/photos", "--device", "cpu", "--out", "@/run")
SCENARIOS = {
    one.name: one
    for one in (
        Scenario("learn", make_photo, learn_words()),
        Scenario("learn over another", make_identity, learn_words(0, "--overwrite")),
        Scenario("generate", make_identity, GENERATE, repeats=False),  # every run adds images
        Scenario("export", make_identity, EXPORT),
        Scenario("bench", make_suite, BENCH, codes=(0, 1, 2)),
        Scenario("report", make_run, ("bench", "report", "@/run")),
        Scenario("forget", make_images, ("forget", "@/ada.safetensors", "--yes", "--in", "@"), (0, 1, 2)),
    )
}


@contextmanager
def open_model(backbone: object) -> Iterator[None]:
    """Put a model that is open already in the place of the one that a command names; save after every step."""
    from sefi.training.loop import PeriodicSaver

    before = loading.load_backbone, loading.check_model, PeriodicSaver.save_if_due
    loading.load_backbone = lambda *arguments, **options: backbone
    loading.check_model = lambda model_options: None
    PeriodicSaver.save_if_due = lambda saver: saver.checkpoint and saver.trainer.save(saver.checkpoint)
    try:
        yield
    finally:
        loading.load_backbone, loading.check_model, PeriodicSaver.save_if_due = before


# ------------------------------------------------------------------ what is there


def read_state(folder: Path) -> State:
    """Return what the files of a folder hold, temporary ones and locks apart."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: hash_content(path) for name, path in names.items() if not is_passing(name)}


def is_passing(name: str) -> bool:
    """Return whether a file is a lock or temporary."""
    return bool(LOCK.search(name) or TEMPORARY.search(name))


def hash_content(path: Path) -> str:
    """Return the SHA-256 of a file; of records without what is measured."""
    content = path.read_bytes()
    if path.name == "cells.jsonl" and content.endswith(b"\n"):
        lines = [json.loads(line) for line in content.splitlines()]
        content = json.dumps([drop_costs(line) for line in lines], sort_keys=True).encode()
    if path.name == "records.json":
        content = json.dumps([drop_grid(run) for run in json.loads(content)["runs"]], sort_keys=True).encode()
    if path.name.endswith(".costs.json"):  # measured, and less of a training that was gone on with
        return "whole" if isinstance(json.loads(content), dict) else "half"
    if path.parent.name == "report" or path.name == ".sefi-files.json":
        return "whole" if content.rstrip().endswith((b"}", b"]", b"</html>")) or path.suffix == ".csv" else "half"
    return hashlib.sha256(content).hexdigest()


def drop_costs(record: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if name not in COSTS}


def drop_grid(run: dict[str, object]) -> dict[str, object]:
    """Return a run's record as it is where all images could be written, but not the sheet of them."""
    facts = dict(run["run"])
    facts["images"] = [one for one in facts["images"] if not one["file"].startswith("grid")]
    return {**run, "grid": None, "run": facts}


# ------------------------------------------------------------------ a run with a fault


@dataclass
class Undisturbed:
    """A run in which nothing fails.

    Attributes:
        before: the folder that it starts from.
        seen: the kinds of its operations on files.
        versions: what each file may hold, None for not being there.
        final: what the folder holds at its end.
    """

    scenario: Scenario
    before: Path
    seen: tuple[str, ...] = ()
    versions: dict[str, set[str | None]] = field(default_factory=dict)
    final: State = field(default_factory=dict)

    def start(self, folder: Path) -> list[str]:
        """Make the folder of a run; return the command."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.before, folder)
        return self.scenario.list_words(folder)


def run_undisturbed(scenario: Scenario, place: Path) -> Undisturbed:
    """Run a command without a fault; return what was seen before each of its operations."""
    before, folder = place / "before", place / "run"
    before.mkdir(parents=True)
    scenario.prepare(before)
    found, log = Undisturbed(scenario, before), place / "states.jsonl"

    def watch() -> None:
        with log.open("a") as file:
            file.write(json.dumps(read_state(folder)) + "\n")

    words = found.start(folder)
    ending = run_forked(words, Injector(folder, watch=watch), partial(os.chdir, folder))
    assert ending.code == 0, ending.output
    found.seen, found.final = ending.seen, read_state(folder)
    states = [*(json.loads(line) for line in log.read_text().splitlines()), found.final]
    for name in {name for state in states for name in state}:
        found.versions[name] = {state.get(name) for state in states}
    return found


def find_unexplained_end(run: Undisturbed, ending: Ending) -> list[str]:
    """Return what is wrong with an exit code and with what was printed."""
    faults: list[str] = []
    if ending.code not in run.scenario.codes:
        faults.append(f"exit code {ending.code}: {ending.output[-300:]}")
    if ending.code == 1 and run.scenario.name == "bench" and "\nnot made: " not in ending.output:
        faults.append(f"crashed: {ending.output[-300:]}")
    if ending.code == 2 and not ("error: " in ending.output and "try: " in ending.output):
        faults.append(f"no error is named: {ending.output[-300:]}")
    return faults


def find_faults(run: Undisturbed, folder: Path, ending: Ending, *, removing: bool = False) -> list[str]:
    """Return what is wrong with a folder after an operation failed.

    Args:
        removing: it was a removal that failed, which may leave what it should have removed.
    """
    faults = find_unexplained_end(run, ending)
    state = read_state(folder)
    for name, content in state.items():
        if name not in run.versions:
            faults.append(f"a file that no whole run has: {name}")
        elif content not in run.versions[name]:
            faults.append(f"neither old nor new content: {name}")
    lost = [name for name, versions in run.versions.items() if name not in state and None not in versions]
    faults += [f"lost: {name}" for name in lost]
    left = [path.name for path in folder.rglob("*") if TEMPORARY.search(path.name)]
    if left and not removing:
        faults.append(f"temporary files: {left}")
    if ending.code == 0 and state != run.final and not removing:
        faults.append("it says that all is well, and is not")
    return faults


def find_faults_of_repeating(run: Undisturbed, folder: Path) -> list[str]:
    """Return what is wrong after the same command was given again, with no fault this time."""
    if not run.scenario.repeats or read_state(folder) == run.final:
        return []
    ending = run_forked(run.scenario.list_words(folder), prepare=partial(os.chdir, folder))
    state = read_state(folder)
    if ending.code == 2 and "exists" in ending.output and run.final.items() <= state.items():
        return []  # only what came after the result had failed
    if ending.code:
        return [f"again: exit code {ending.code}: {ending.output[-300:]}"]
    return [] if state == run.final else ["again: the files are others than those of a whole run"]


@dataclass
class Counts:
    """What became of runs in which something failed.

    Attributes:
        tries: how many there were.
        typed: of them ended with a typed error.
        done: of them did all that was asked, in spite of it.
        faults: what was wrong, with what had failed.
    """

    tries: int = 0
    typed: int = 0
    done: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, ending: Ending, faults: list[str]) -> None:
        self.tries += 1
        self.typed += ending.code != 0
        self.done += ending.code == 0
        self.faults += [f"{what}: {fault}" for fault in faults]

    def join(self, other: "Counts") -> None:
        self.tries += other.tries
        self.typed += other.typed
        self.done += other.done
        self.faults += other.faults


def try_error(run: Undisturbed, number: int, error: str, *, repeat: bool = True) -> Counts:
    """Run the command where one operation fails with an error; then, with `repeat`, once more without."""
    counts, folder = Counts(), run.before.parent / "run"
    words = run.start(folder)
    ending = run_forked(words, Injector(folder, number, ERRORS[error]), partial(os.chdir, folder))
    faults = find_faults(run, folder, ending, removing=run.seen[number - 1] == "remove")
    faults += find_faults_of_repeating(run, folder) if repeat else []
    counts.add(f"{run.scenario.name}, {number}, {run.seen[number - 1]}, {error}", ending, faults)
    return counts


def list_sizes(run: Undisturbed) -> list[int]:
    """List bytes that no file may exceed: none, one, half of each file that is written and all but its last byte."""
    place = run.before.parent / "run"
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    return sorted({0, 1, *(size // 2 for size in sizes), *(max(size - 1, 0) for size in sizes)})


def try_size(run: Undisturbed, size: int) -> Counts:
    """Run the command where no file may grow beyond a size, as on a full disk; then once more without."""
    counts, folder = Counts(), run.before.parent / "run"
    words = run.start(folder)
    ending = run_forked(words, prepare=lambda: (os.chdir(folder), limit_files(size)))
    faults = find_faults(run, folder, ending) + find_faults_of_repeating(run, folder)
    counts.add(f"{run.scenario.name}, at most {size} bytes", ending, faults)
    return counts


def count_allocations(run: Undisturbed) -> int:
    """Return how many tensors the command allocates."""
    folder = run.before.parent / "run"
    return len(run_forked(run.start(folder), Allocations(), partial(os.chdir, folder)).seen)


def draw_tensors(run: Undisturbed, most: int, seed: int) -> list[int]:
    """Draw numbers of tensors that the command allocates; all where there are no more."""
    numbers = range(1, count_allocations(run) + 1)
    return random.Random(seed).sample(numbers, min(most, len(numbers)))


def try_allocation(run: Undisturbed, number: int) -> Counts:
    """Run the command where there is no memory for one tensor; then once more without."""
    counts, folder = Counts(), run.before.parent / "run"
    ending = run_forked(run.start(folder), Allocations(number), partial(os.chdir, folder))
    faults = find_faults(run, folder, ending) + find_faults_of_repeating(run, folder)
    counts.add(f"{run.scenario.name}, tensor {number}", ending, faults)
    return counts
