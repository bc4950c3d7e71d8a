"""COMPOSER: a run in one process, or shared by several that each take some of the subjects."""

import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from sefi.bench.cells import run_cells
from sefi.bench.opened import Bench
from sefi.bench.time_left import TimeLeft
from sefi.bench.worker_process import INTERRUPTED, Message, Report, Share, started
from sefi.core.errors import SefiError
from sefi.core.protocols import Progress

POLL_SECONDS = 1.0


def run_shared(open_bench: Callable[[], Bench], bench: Bench, jobs: int, lock: int | None = None) -> int:
    """Make what is missing in `jobs` processes; returns how many images were made.

    Args:
        open_bench: opens the same bench again in another process; must be importable from there.
        bench: opened here already; used as it is when there is only one job.
        jobs: how many processes share the subjects.
        lock: the file descriptor of `RunFolder.alone`, which the workers hold too.

    Raises:
        SefiError: a worker's, once the others were stopped.
        KeyboardInterrupt: a worker was interrupted.
    """
    jobs = min(jobs, len(bench.groups()))
    if jobs <= 1:
        return run_cells(bench)
    before = bench.run.read_samples()
    left = TimeLeft(bench.suite, bench.plan(), before)
    threads = max(1, torch.get_num_threads() // jobs)  # processes share the cores
    shares = [Share(os.getpid(), open_bench, range(first, len(bench.groups()), jobs), threads) for first in range(jobs)]
    bench.progress.start(left.missing, "images")
    with started(shares, lock) as workers:
        watch(bench, workers, left)
    bench.progress.finish()
    return len(bench.run.read_samples()) - len(before)


def watch(bench: Bench, workers: Mapping[Connection, BaseProcess], left: TimeLeft) -> None:
    """Show what the workers do until all have ended well.

    Args:
        bench: its run's folder is read, its progress is told.
        workers: started processes by the reading end of their messages.
        left: the time that the run still takes.

    Raises:
        SefiError: a worker failed, or ended without its share.
        KeyboardInterrupt: a worker was interrupted.
    """
    lines = {reading: WorkerLine(bench.progress.nested()) for reading in workers}
    pipes, place = set(workers), bench.run.size()
    while True:
        running = [process for process in workers.values() if process.is_alive()]
        ready = wait([*pipes, *(process.sentinel for process in running)], POLL_SECONDS)
        for reading in pipes.intersection(ready):
            message = receive(reading)
            if message is None:
                pipes.discard(reading)
            else:
                lines[reading].show(message)
        place = count_images(bench, left, place)
        for reading, process in workers.items():
            # Only once the pipe is empty: the error itself may be in it.
            if reading not in pipes and process.exitcode:
                raise error_of(process.exitcode)
        if not running and not pipes:
            return


def receive(reading: Connection) -> Message | None:
    """Return the next message; None once the worker is gone."""
    try:
        return reading.recv()
    except (EOFError, OSError):
        return None


def count_images(bench: Bench, left: TimeLeft, place: int) -> int:
    """Show every image recorded after a place in the record; returns the place of the next."""
    made, place = bench.run.read_samples_after(place)
    for sample in made:
        left.count(sample)
        bench.progress.estimate(left.seconds())
        bench.progress.advance()
    return place


class WorkerLine:
    """Shows what one worker reports.

    Args:
        progress: for this worker alone.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.report = progress, Report("", 0, 0, ended=True)

    def show(self, message: Message) -> None:
        """Show a report; raise an error."""
        if isinstance(message, SefiError):
            raise message
        if isinstance(message, str):
            raise RuntimeError(message)
        before = self.report
        if before.ended:
            self.progress.start(message.total, message.label)
        for _ in range(message.done - (0 if before.ended else before.done)):
            self.progress.advance()
        if message.ended:
            self.progress.finish()
        self.report = message


def error_of(exit_code: int) -> BaseException:
    """Return the error for a worker that ended without a word: its share would be missing from every table."""
    if exit_code == INTERRUPTED:
        return KeyboardInterrupt()
    return SefiError(
        f"A worker of this run was killed (exit code {exit_code}), perhaps for want of memory.",
        "Run the same command again: it goes on where it stopped. Fewer --jobs need less memory.",
    )
