"""Make a run in one process, or in several that take its units of work in turn."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from sefi.benchmark.plan import TimeLeft, UnitFailure, list_work_units
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
LEAST_FAILURES = 3  # after so many without an image a run may end


@dataclass(frozen=True)
class RunOutcome:
    """How far a call came: how many images it made, and why others are missing."""

    made: int
    failures: tuple[UnitFailure, ...] = ()


class Failures:
    """The units that failed in this call.

    Args:
        run: whose record says what was made meanwhile.
    """

    def __init__(self, run: OpenRun) -> None:
        self.folder, self.offset, self.works = run.folder, run.folder.measure_size(), False
        self.listed: list[UnitFailure] = []
        tested = [variant for variant in run.suite.variants if variant.control is None]
        self.labels = {variant.label for variant in tested}
        learned = {run.suite.find_learning_variant(variant).label for variant in tested}
        self.most = max(LEAST_FAILURES, len(learned) + 1)  # of two subjects: what is wrong is not the one

    def add(self, failure: UnitFailure) -> None:
        """Add a unit that failed.

        Raises:
            SefiError: nothing was made of any variant under test, and more units failed than one subject has: what is
                wrong is the model or the settings, and every unit would fail.
        """
        self.listed.append(failure)
        made, self.offset = self.folder.read_samples_after(self.offset)
        self.works = self.works or any(sample.variant in self.labels for sample in made)
        alike = [one for one in self.listed if one.variant in self.labels and not one.of_photo]
        if not self.works and len(alike) >= self.most:
            raise make_fruitless_error(alike)

    def finish(self, made: int) -> RunOutcome:
        """Return the outcome of a call that made so many images.

        Raises:
            SefiError: units failed, and the run has no image at all.
        """
        if self.listed and not self.folder.read_samples():
            raise make_fruitless_error(self.listed)
        return RunOutcome(made, tuple(self.listed))


def make_fruitless_error(failures: Sequence[UnitFailure]) -> SefiError:
    """Return the error for a run in which all that was tried failed: the first says what is wrong."""
    first = failures[0]
    problem = f"Nothing could be made in {len(failures)} tries; {format_place(first)}: {first.problem}"
    return SefiError(problem, first.remedy)


def format_place(failure: UnitFailure) -> str:
    """Return where a unit failed, as a person reads it."""
    return f"{failure.subject}, {failure.variant}"


def run_shared(open_run: Callable[[], OpenRun], run: OpenRun, jobs: int, lock: int | None = None) -> RunOutcome:
    """Make what is missing in `jobs` processes; what one unit of work fails of stops no other.

    Args:
        open_run: opens the run again in another process; must be importable from there.
        run: open here already; used as it is when there is only one job.
        jobs: how many processes share the work; each takes the next unit when it is done with one.
        lock: the file descriptor of `RunFolder.lock`, which the workers hold too.

    Raises:
        SefiError: what must end the run (`describe_unit_failure`), or what all units fail of; no worker is left.
        KeyboardInterrupt: a worker was interrupted.
    """
    failures = Failures(run)
    units = len(list_work_units(run.suite, len(run.list_groups())))
    jobs = min(jobs, units)
    if jobs <= 1:
        return failures.finish(make_samples(run, on_failure=failures.add))
    before = run.folder.read_samples()
    left, recorded = TimeLeft(run.suite, run.plan_keys(), before), len(before)
    del before  # as in `make_samples`
    threads = max(1, torch.get_num_threads() // jobs)  # processes share the cores
    numbers = SharedNumbers(units)
    shares = [Share(os.getpid(), open_run, numbers, threads) for _ in range(jobs)]
    run.progress.start(left.missing, "images")
    with start_workers(shares, lock) as workers:
        watch_workers(run, workers, left, failures)
    run.progress.finish()
    return failures.finish(len(run.folder.read_samples()) - recorded)


def watch_workers(run: OpenRun, workers: Mapping[Connection, BaseProcess], left: TimeLeft, failures: Failures) -> None:
    """Show what the workers do until all have ended well.

    Args:
        run: its folder is read, its progress advanced.
        workers: started processes by the reading end of their messages.
        left: the time that the run still takes.
        failures: gets the units that fail.

    Raises:
        SefiError: a worker failed, or ended without its share; or every unit fails.
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
            elif isinstance(message, UnitFailure):
                left.give_up(message.places)
                failures.add(message)
            else:
                lines[reading].handle(message)
        offset = show_new_images(run, left, offset)
        for reading, process in workers.items():
            # Only once the pipe is empty: the error itself may be in it.
            if reading not in pipes and process.exitcode:
                raise make_error(process.exitcode)
        if not running and not pipes:
            return


def receive_message(reading: Connection) -> Message | UnitFailure | None:
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
