"""Kill the program in a forked child, at a step of a training or at a moment of a benchmark run, and let it go on."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.injection import Ending, fork, run_forked, run_program
from tests.faults.scenarios import State, learn_words, make_photo, read_state

from sefi.core.reading import read_tensors
from sefi.training.checkpoint import KEY, LIMITS

KILLED = -signal.SIGKILL
STEPS_LEFT = re.compile(r"learning (\d+)/\d+, done")
SUITE = """
about = "Dogs, so that no face is needed."
kind = "dog"
seeds = [5, 7]
settings = ["learn.steps=5", "learn.batch=1", "generate.steps=1"]

[[prompts]]
text = "a photo of {} at the beach"
kind = "scene"

[[variants]]
label = "ours"

[[variants]]
label = "values only"
learned_by = "ours"
class_slots = ["K"]

[[variants]]
label = "word"
control = "class word"
"""
DOGS = ("rex", "bello")


def list_words(words: tuple[str, ...], folder: Path) -> list[str]:
    return [word.replace("@", str(folder)) for word in words]


# ------------------------------------------------------------------ at a step of a training


@dataclass(frozen=True)
class Training:
    """A training that nothing disturbs.

    Attributes:
        content: the bytes of its identity.
    """

    steps: int
    content: bytes

    @classmethod
    def run(cls, steps: int, place: Path) -> "Training":
        """Learn in a folder of its own."""
        folder = make_folder_with_photo(place / "undisturbed")
        ending = run_forked(list_words(learn_words(0, steps=steps), folder))
        assert ending.code == 0, ending.output
        return cls(steps, (folder / "ada.safetensors").read_bytes())

    def try_kill(self, folder: Path, step: int, *, saved: bool) -> str:
        """Kill a training at a step, before or after its state is saved, and go on; return what is wrong, or nothing.

        What is saved must be of that step or of the one before, and only the steps after it may be taken again.
        """
        make_folder_with_photo(folder)
        words = list_words(learn_words(0, steps=self.steps), folder)
        ending = run_forked(words, prepare=partial(die_at_step, step, saved=saved))
        if ending.code != KILLED or (folder / "ada.safetensors").exists():
            return f"not killed at step {step}: exit code {ending.code}: {ending.output[-300:]}"
        wanted, found = step if saved else step - 1, read_saved_step(folder)
        if found != wanted:
            return f"killed at step {step}, step {found} is saved instead of {wanted}"
        return self.find_fault(run_forked(words), folder, self.steps - wanted)

    def find_fault(self, ending: Ending, folder: Path, left: int) -> str:
        """Return what is wrong with a training that was gone on with."""
        if ending.code:
            return f"it does not go on: {ending.output[-300:]}"
        taken = STEPS_LEFT.search(ending.output)
        if left and (taken is None or int(taken[1]) != left):
            return f"it takes {taken[1] if taken else 'no'} steps instead of {left}"
        if (folder / "ada.safetensors").read_bytes() != self.content:
            return "the identity is another one"
        names = sorted(path.name for path in folder.iterdir())
        return "" if names == ["ada.safetensors", "photo.png"] else f"left: {names}"


def make_folder_with_photo(folder: Path) -> Path:
    """Make a folder anew, with nothing but a photo."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_photo(folder)
    return folder


def die_at_step(step: int, *, saved: bool) -> None:
    """Let this process save its training after every step, and kill itself before or after one of the saves."""
    from sefi.training.loop import PeriodicSaver

    def save(saver: PeriodicSaver) -> None:
        ours = saver.trainer.done == step
        if ours and not saved:
            os.kill(os.getpid(), signal.SIGKILL)
        if saver.checkpoint is not None:
            saver.trainer.save(saver.checkpoint)
        if ours:
            os.kill(os.getpid(), signal.SIGKILL)

    PeriodicSaver.save_if_due = save


def read_saved_step(folder: Path) -> int:
    """Return the steps that an unfinished training has made; 0 where there is none."""
    steps = [json.loads(read_tensors(path, LIMITS)[0][KEY])["step"] for path in folder.glob(".*.unfinished")]
    return max(steps, default=0)


# ------------------------------------------------------------------ at a moment of a benchmark run


@dataclass(frozen=True)
class Benchmark:
    """A benchmark run that nothing disturbs.

    Attributes:
        seconds: that it took.
        final: what its folder holds, but for what is measured.
    """

    seconds: float
    final: State

    @classmethod
    def run(cls, place: Path) -> "Benchmark":
        """Make the run in a folder of its own."""
        words, folder = make_suite_folder(place / "undisturbed")
        started = time.monotonic()
        ending = run_forked(words)
        assert ending.code == 0, ending.output
        return cls(time.monotonic() - started, read_state(folder))

    def try_kill(self, folder: Path, seconds: float) -> tuple[bool, str]:
        """Kill a run after so many seconds and go on; return whether it was killed, and what is wrong, or nothing."""
        words, folder = make_suite_folder(folder)
        code = run_and_kill(words, seconds)
        if code not in (0, KILLED):
            return False, f"exit code {code}"
        ending = run_forked(words)
        if ending.code:
            return code == KILLED, f"after {seconds:.3f} s it does not go on: {ending.output[-300:]}"
        state = read_state(folder)
        differing = sorted(name for name in {*state, *self.final} if state.get(name) != self.final.get(name))
        return code == KILLED, f"after {seconds:.3f} s: others are {differing}" if differing else ""


def make_suite_folder(folder: Path) -> tuple[list[str], Path]:
    """Make a folder anew, with a suite and photos; return the command that makes the run, and the folder."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    (folder / "dogs.toml").write_text(SUITE)
    for number, name in enumerate(DOGS):
        image = Image.radial_gradient("L").rotate(20 * number).convert("RGB")
        image.resize((41, 37)).save(folder / "photos" / f"{name}.png")
    words = ("bench", "run", "@/dogs.toml", "--model", "tiny", "--photos", "@/photos", "--device", "cpu")
    return list_words((*words, "--out", "@/run"), folder), folder


def draw_moments(seed: int, longest: float) -> Iterator[float]:
    """Draw seconds evenly, from none to the longest."""
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0.0, longest)


def run_and_kill(words: list[str], seconds: float, prepare: Callable[[], object] = int) -> int:
    """Run the program in a child, kill it after so many seconds, and return how it ended."""
    child = fork()
    if not child:
        code = 1
        try:
            prepare()
            code, _ = run_program(words)
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
