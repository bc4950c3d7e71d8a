"""Make a run in one process, or in several that take its units of work in turn."""

import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from sefi.benchmark.plan import TimeLeft, list_work_units
from sefi.benchmark.run import OpenRun
from sefi.benchmark.samples import make_samples
from sefi.benchmark.worker_process import (
    INTERRUPTED,
    TERMINATED,
    Message,
    Share,
    SharedNumbers,
    WorkerReport,
    start_workers,
)
from sefi.core.errors import SefiError, TerminationSignal
from sefi.core.progress import Progress

POLL_SECONDS = 1.0


def run_shared(open_run: Callable[[], OpenRun], run: OpenRun, jobs: int, lock: int | None = None) -> int:
    """Make what is missing in `jobs` processes; returns how many images were made.

    Args:
        open_run: opens the run again in another process; must be importable from there.
        run: open here already; used as it is when there is only one job.
        jobs: how many processes share the work; each takes the next unit when it is done with one.
        lock: the file descriptor of `RunFolder.lock`, which the workers hold too.

    Raises:
        SefiError: a worker's, once the others were stopped.
        KeyboardInterrupt: a worker was interrupted.
    """
    units = len(list_work_units(run.suite, len(run.list_groups())))
    jobs = min(jobs, units)
    if jobs <= 1:
        return make_samples(run)
    before = run.folder.read_samples()
    left = TimeLeft(run.suite, run.plan_keys(), before)
    threads = max(1, torch.get_num_threads() // jobs)  # processes share the cores
    numbers = SharedNumbers(units)
    shares = [Share(os.getpid(), open_run, numbers, threads) for _ in range(jobs)]
    run.progress.start(left.missing, "images")
    with start_workers(shares, lock) as workers:
        watch_workers(run, workers, left)
    run.progress.finish()
    return len(run.folder.read_samples()) - len(before)


def watch_workers(run: OpenRun, workers: Mapping[Connection, BaseProcess], left: TimeLeft) -> None:
    """Show what the workers do until all have ended well.

    Args:
        run: its folder is read, its progress advanced.
        workers: started processes by the reading end of their messages.
        left: the time that the run still takes.

    Raises:
        SefiError: a worker failed, or ended without its share.
        KeyboardInterrupt: a worker was interrupted.
    """
    lines = {reading: WorkerLine(run.progress.nested()) for reading in workers}
    pipes, offset = set(workers), run.folder.measure_size()
    while True:
        running = [process for process in workers.values() if process.is_alive()]
        ready = wait([*pipes, *(process.sentinel for process in running)], POLL_SECONDS)
        for reading in pipes.intersection(ready):
            message = receive_message(reading)
            if message is None:
                pipes.discard(reading)
            else:
                lines[reading].handle(message)
        offset = show_new_images(run, left, offset)
        for reading, process in workers.items():
            # Only once the pipe is empty: the error itself may be in it.
            if reading not in pipes and process.exitcode:
                raise make_error(process.exitcode)
        if not running and not pipes:
            return


def receive_message(reading: Connection) -> Message | None:
    """Return the next message; None once the worker is gone."""
    try:
        return reading.recv()
    except (EOFError, OSError):
        return None


def show_new_images(run: OpenRun, left: TimeLeft, offset: int) -> int:
    """Show every image recorded after an offset of the record, in bytes; return the offset of the next."""
    made, offset = run.folder.read_samples_after(offset)
    for sample in made:
        left.record(sample)
        if left.costs_differ:
            run.progress.estimate(left.estimate_seconds())
        run.progress.advance()
    return offset


class WorkerLine:
    """Shows what one worker reports.

    Args:
        progress: for this worker alone.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.report = progress, WorkerReport("", 0, 0, ended=True)

    def handle(self, message: Message) -> None:
        """Show a report, or raise the error that the message is."""
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


def make_error(exit_code: int) -> BaseException:
    """Return the error for a worker that ended without a word: its share would be missing from every table."""
    if exit_code == INTERRUPTED:
        return KeyboardInterrupt()
    if exit_code == TERMINATED:
        return TerminationSignal()
    return SefiError(
        f"A worker of this run was killed (exit code {exit_code}), perhaps for want of memory.",
        "Run the same command again: it goes on where it stopped. Fewer --jobs need less memory.",
    )
