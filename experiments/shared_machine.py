"""What a learning step costs on the machine as it is and on a busy one: default threads, one thread, spinning threads.

Run it as `python experiments/shared_machine.py`; it takes less than six minutes. Each setting has a process of its own
that learns with the embedded model and stands still after a few steps until it is asked for more. The settings take
turns, so whatever else the machine does meets all of them, and are compared within a round. Busy means one endless
loop on each core; spinning threads are left out there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

RECORD = Path(__file__).parent / "records" / "shared_machine.json"
STEPS, ROUNDS, LEAST_ROUNDS, SECONDS = 1, 15, 7, 40  # no round begins after so many seconds if there are enough
# The variables of each setting; "spinning" is GNU OpenMP's own behaviour where nothing is set.
SETTINGS = {"default": {}, "one thread": {"OMP_NUM_THREADS": "1"}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOOP = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"

Seconds = dict[str, float]


class StepwiseProgress:
    """A learning's progress that waits for a line on stdin before every turn, and answers with seconds per step."""

    def start(self, total: int, label: str) -> None:
        """Say that everything is ready, and wait."""
        self.steps = 0
        self.answer({})

    def advance(self, **numbers: float) -> None:
        """Count a step; after the last of a turn, answer and wait."""
        self.steps += 1
        if self.steps % STEPS == 0:
            wall, processor = time.monotonic() - self.wall, time.process_time() - self.processor
            self.answer({"wall": wall / STEPS, "processor": processor / STEPS})

    def finish(self) -> None:
        """Do nothing: the process is ended before."""

    def answer(self, seconds: Seconds) -> None:
        """Write one line, wait for one, and start the clocks."""
        from sefi.core.text import dump_json  # noqa: PLC0415  not while the parent starts its processes

        sys.stdout.write(dump_json(seconds) + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            sys.exit()
        self.wall, self.processor = time.monotonic(), time.process_time()


def learn_in_turns() -> None:
    """Learn as the process of one setting, a few steps a turn."""
    import sefi  # noqa: PLC0415  OpenMP's settings are in place before torch is loaded
    from sefi.backbone.open import MODELS  # noqa: PLC0415
    from sefi.core.config import override  # noqa: PLC0415
    from sefi.core.process import limit_threads  # noqa: PLC0415
    from sefi.methods import PRESETS  # noqa: PLC0415

    limit_threads()
    config = override(PRESETS["scratch"], ["learn.steps=10000"])
    photo = MODELS / "demo" / "portrait.png"
    sefi.learn(photo, name="ada", backbone=sefi.open_backbone(), config=config, progress=StepwiseProgress())


@contextmanager
def start_process(command: list[str], variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process; it is ended on leaving the block."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_answer(process: subprocess.Popen[str]) -> Seconds:
    """Wait for a setting's line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"A setting's process ended with exit code {process.wait()}; its error is above.")
    return json.loads(line)


def take_turn(process: subprocess.Popen[str]) -> Seconds:
    """Return wall and processor seconds per step of a setting's next steps."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return read_answer(process)


def measure(processes: dict[str, subprocess.Popen[str]]) -> dict[str, object]:
    """Return medians over rounds: seconds per step of every setting, and each over one thread's in its round."""
    rounds: list[dict[str, Seconds]] = []
    for process in processes.values():
        take_turn(process)  # warms up
    end = time.monotonic() + SECONDS
    while len(rounds) < ROUNDS and (len(rounds) < LEAST_ROUNDS or time.monotonic() < end):
        order = list(processes.items())[:: 1 if len(rounds) % 2 else -1]
        rounds.append({name: take_turn(process) for name, process in order})
    return {"rounds": len(rounds), **{name: compute_medians(rounds, name) for name in processes}}


def compute_medians(rounds: list[dict[str, Seconds]], name: str) -> Seconds:
    """Return one setting's medians."""
    found: Seconds = {}
    for kind in ("wall", "processor"):
        found[f"{kind}_seconds"] = round(median(each[name][kind] for each in rounds), 3)
        ratios = [each[name][kind] / each["one thread"][kind] for each in rounds]
        found[f"{kind}_over_one_thread"] = round(median(ratios), 2)
    return found


def main() -> None:
    """Measure as the machine is, then busy; write the record, print it."""
    cores = sorted(os.sched_getaffinity(0))
    record: dict[str, object] = {"cores": len(cores), "steps_of_a_turn": STEPS}
    record["load_before"] = round(os.getloadavg()[0], 1)  # what else ran: above 0.5 the machine was not idle
    with ExitStack() as stack:
        processes: dict[str, subprocess.Popen[str]] = {}
        for name, variables in SETTINGS.items():  # one after the other: opening a model is work too
            processes[name] = stack.enter_context(start_process([__file__, "child"], variables))
            read_answer(processes[name])
        record["as found"] = measure(processes)
        for core in cores:
            stack.enter_context(start_process(["-c", LOOP, str(core)], {}))
        del processes["spinning"]  # a step of it takes too long there
        record["busy"] = measure(processes)
    from sefi.core.files import write_text  # noqa: PLC0415  importing sefi changes the environment that is measured
    from sefi.core.text import dump_json  # noqa: PLC0415

    text = dump_json(record, indent=1) + "\n"
    write_text(RECORD, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        learn_in_turns()
    else:
        main()
