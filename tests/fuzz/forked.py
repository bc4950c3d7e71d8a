"""Read changed files in forked children of bounded memory and time; one that dies is counted, and the rest goes on."""

import faulthandler
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from tests.fuzz.changed_files import memory, out_of_memory

from sefi.core.errors import SefiError

CHUNK = 200  # files of one child
SECONDS = 20  # of a processor that one file may take
WAIT = 600  # seconds of the clock: for a reader that waits for something
MEGABYTES = 2048  # that a child may take more than it had
LONGEST = 300  # letters of a fault


class Task(NamedTuple):
    """One kind of file: what makes the changed file of a seed, and what reads it."""

    change: Callable[[int], object]
    read: Callable[[object], object]


@dataclass
class Outcome:
    """What became of the changed files of one kind.

    Attributes:
        tries: how many there were.
        read: of them could be read.
        refused: of them ended with a typed error.
        slowest: seconds that one took, of a processor.
        faults: seed and error of each that ended in another way, the end of a process included.
    """

    tries: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.tries += other.tries
        self.read += other.read
        self.refused += other.refused
        self.slowest = max(self.slowest, other.slowest)
        self.faults += other.faults


def try_all(task: Task, seeds: range, report: Callable[[int], object] = lambda done: None) -> Outcome:
    """Read the changed file of every seed.

    Args:
        report: called with the number of files that are done, after each child.
    """
    outcome, first = Outcome(), seeds.start
    while first < seeds.stop:
        found, first = try_in_child(task, range(first, min(first + CHUNK, seeds.stop)))
        outcome.add(found)
        report(first - seeds.start)
    return outcome


def try_in_child(task: Task, seeds: range) -> tuple[Outcome, int]:
    """Fork a child that reads the files of some seeds; return what became of them, and the seed to go on with."""
    shared = mmap.mmap(-1, 1 << 20)  # the seed that is read, and what the child found so far
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on forks beside threads
        child = os.fork()
    if not child:
        run_child(task, seeds, shared)
    status = os.waitpid(child, 0)[1]
    at, length = struct.unpack("<qq", shared[:16])
    outcome = Outcome(**json.loads(shared[16 : 16 + length])) if length else Outcome()
    if status == 0 and outcome.tries == len(seeds):
        return outcome, seeds.stop
    code = os.waitstatus_to_exitcode(status)
    how = "it took too long" if code in (-signal.SIGALRM, -signal.SIGPROF) else f"the process ended with {code}"
    outcome.add(Outcome(tries=1, faults=[f"seed {at}: {how}"]))
    return outcome, at + 1


def run_child(task: Task, seeds: range, shared: mmap.mmap) -> None:
    """Read the files in this process and end it; nothing of the parent's is cleaned up here."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        if size := memory("VmSize"):
            resource.setrlimit(resource.RLIMIT_AS, (size + (MEGABYTES << 20), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("error")  # as in the tests: a warning of a library is no end of ours
        warnings.simplefilter("ignore", DeprecationWarning)
        faulthandler.disable()  # pytest's: the parent reports the end of this process
        outcome = Outcome()
        for seed in seeds:
            shared[:8] = struct.pack("<q", seed)
            signal.alarm(WAIT)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome.add(try_one(task, seed))
            text = json.dumps(asdict(outcome)).encode()
            shared[8 : 16 + len(text)] = struct.pack("<q", len(text)) + text
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        code = 0
    finally:
        os._exit(code)


def try_one(task: Task, seed: int) -> Outcome:
    """Read the changed file of one seed."""
    changed, started = task.change(seed), time.process_time()
    outcome = Outcome(tries=1)
    try:
        task.read(changed)
        outcome.read = 1
    except SefiError as error:
        outcome.refused = 1
        if error.exit_code != 2 or out_of_memory(error):
            outcome.faults.append(f"seed {seed}: {error}"[:LONGEST])
    except BaseException as error:
        outcome.faults.append(f"seed {seed}: {type(error).__name__}: {error}"[:LONGEST])
    outcome.slowest = round(time.process_time() - started, 3)
    return outcome
