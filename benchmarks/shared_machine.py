"""What learning costs on the machine as it is and on a busy one: default threads, one thread, and threads that spin.

Run it as `python benchmarks/shared_machine.py`. Each setting has a process of its own with the embedded model open;
they learn a few steps in turn, so that whatever else the machine does meets all of them. Busy means two endless loops.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

RECORD = Path(__file__).parent / "records" / "shared_machine.json"
STEPS, ROUNDS = 6, 5
# The variables of each setting; "spinning" is GNU OpenMP's own behaviour where nothing is set.
SETTINGS = {"default": {}, "one thread": {"OMP_NUM_THREADS": "1"}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def learn_when_asked() -> None:
    """Be one setting's process: for every line on stdin learn, and answer with wall and processor seconds per step."""
    import sefi  # noqa: PLC0415  OpenMP's settings are in place before torch is loaded
    from sefi.backbone.open import MODELS  # noqa: PLC0415
    from sefi.core.config import override  # noqa: PLC0415
    from sefi.core.presets import PRESETS  # noqa: PLC0415
    from sefi.core.threads import limit_threads  # noqa: PLC0415

    limit_threads()
    backbone = sefi.open_backbone()
    config = override(PRESETS["default"], [f"learn.steps={STEPS}"])
    for _ in sys.stdin:
        wall, cpu = time.monotonic(), time.process_time()
        sefi.learn(MODELS / "demo" / "portrait.png", name="ada", backbone=backbone, config=config)
        seconds = [(time.monotonic() - wall) / STEPS, (time.process_time() - cpu) / STEPS]
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


@contextmanager
def started(command: list[str], variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended on leaving the block."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    process = subprocess.Popen(  # noqa: S603
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def seconds_per_step(process: subprocess.Popen[str]) -> list[float]:
    """Wall and processor seconds of one turn."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure() -> dict[str, dict[str, float]]:
    """Median seconds per step of every setting, taken in turn; the first turn warms up."""
    found: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    child = [sys.executable, __file__, "child"]
    with (
        started(child, SETTINGS["default"]) as default,
        started(child, SETTINGS["one thread"]) as one,
        started(child, SETTINGS["spinning"]) as spinning,
    ):
        for turn in range(ROUNDS + 1):
            for name, process in zip(SETTINGS, (default, one, spinning), strict=True):
                seconds = seconds_per_step(process)
                if turn:
                    found[name].append(seconds)
    return {
        name: {kind: median(turn[place] for turn in turns) for place, kind in enumerate(("wall", "cpu"))}
        for name, turns in found.items()
    }


def with_ratios(seconds: dict[str, dict[str, float]]) -> dict[str, object]:
    """The seconds, and each as a multiple of one thread's."""
    one = seconds["one thread"]
    return {
        name: {f"{kind}_seconds": round(value, 3) for kind, value in own.items()}
        | {f"{kind}_over_one_thread": round(value / one[kind], 2) for kind, value in own.items()}
        for name, own in seconds.items()
    }


def main() -> None:
    """Measure as the machine is, then busy; write the record, print it."""
    record: dict[str, object] = {"cores": os.cpu_count(), "steps": STEPS, "rounds": ROUNDS}
    record["load_before"] = round(os.getloadavg()[0], 1)  # what else ran: above 0.5 the machine was not idle
    record["as found"] = with_ratios(measure())
    loop = [sys.executable, "-c", "while True: pass"]
    with started(loop, {}), started(loop, {}):
        record["busy"] = with_ratios(measure())
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        learn_when_asked()
    else:
        main()
