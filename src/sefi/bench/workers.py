"""COMPOSER: a run in one process, or shared by several that each take some of the subjects."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

import torch

from sefi.bench.cells import planned, run_cells
from sefi.bench.opened import Bench
from sefi.core.errors import SefiError

POLL_SECONDS = 1.0

Failures = SimpleQueue[SefiError | str]


def run_shared(open_bench: Callable[[], Bench], bench: Bench, jobs: int) -> int:
    """Make what is missing in `jobs` processes; returns how many pictures were made.

    Args:
        open_bench: opens the same bench again in another process; must be importable from there.
        bench: opened here already; used as it is when there is only one job.

    Raises:
        SefiError: a worker's, once the others were stopped.
    """
    jobs = min(jobs, len(bench.groups()))
    if jobs <= 1:
        return run_cells(bench)
    before, total = len(bench.run.cells()), len(planned(bench.suite, bench.groups()))
    context = get_context("spawn")
    failures: Failures = context.SimpleQueue()
    workers = [
        context.Process(target=work, args=(open_bench, range(first, len(bench.groups()), jobs), jobs, failures))
        for first in range(jobs)
    ]
    bench.progress.start(max(0, total - before), "pictures")
    try:
        for worker in workers:
            worker.start()
        watch(bench, workers, failures)
    finally:
        for worker in workers:
            worker.terminate()
    bench.progress.finish()
    return len(bench.run.cells()) - before


def watch(bench: Bench, workers: Sequence[BaseProcess], failures: Failures) -> None:
    """Tell of every new line until all have ended; raise what one failed of."""
    told = bench.run.lines()
    while True:
        running = [worker for worker in workers if worker.is_alive()]
        for worker in running[:1]:
            worker.join(POLL_SECONDS)
        now = bench.run.lines()
        for _ in range(now - told):
            bench.progress.advance()
        told = now
        if not failures.empty():
            failure = failures.get()
            raise failure if isinstance(failure, SefiError) else RuntimeError(failure)
        for worker in workers:
            if worker.exitcode:
                raise killed(worker.exitcode)
        if not running:
            return


def killed(exit_code: int) -> SefiError:
    """The error for a worker that ended without a word: its share of the run would be missing from every table."""
    return SefiError(
        f"A worker of this run was killed (exit code {exit_code}), perhaps for want of memory.",
        "Run the same command again: it goes on where it stopped. Fewer --jobs need less memory.",
    )


def work(open_bench: Callable[[], Bench], numbers: range, jobs: int, failures: Failures) -> None:
    """One worker: its groups, one after the other."""
    # Processes share the cores: more threads than that would wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        bench = open_bench()
        for number in numbers:
            run_cells(bench, [number])
    except SefiError as error:
        failures.put(error)
    except KeyboardInterrupt:
        return
    except Exception as error:
        failures.put(f"{type(error).__name__}: {error}")


def end_with(parent: int) -> None:
    """End this process as soon as the one that started it is gone, however that was killed.

    A run that goes on is safe: what is on disk is whole, and a second start would write into the same files.
    """
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
