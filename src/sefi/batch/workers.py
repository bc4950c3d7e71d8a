"""Learn the items of a batch in several processes, each with its device and its model; an idle one takes what waits.

A process that is killed loses nothing that was finished: what it worked on waits again, and another takes its place.
Nothing heavy is imported before the parent is watched: loading torch takes seconds, in which the parent may die.
"""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from sefi.benchmark.worker_process import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    PipeProgress,
    WorkerReport,
    begin_worker,
    end_process,
    fail,
)
from sefi.core.errors import (
    REMARKS,
    Interrupted,
    SefiError,
    TerminationSignal,
    answer_termination,
    make_interrupted,
)
from sefi.core.process import import_quickly

if TYPE_CHECKING:
    from sefi.batch.plan import BatchItem, BatchSettings
    from sefi.batch.run import WorkQueue
    from sefi.benchmark.workers import WorkerLine

MOST_DEATHS = 3  # of workers that had nothing to do yet, one after the other
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ReadyForWork:
    """What a worker sends when its model is open, and after each item."""


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker is started with.

    Attributes:
        parent: process id of the one that starts it, as that one knows it.
        device: where its model is.
        threads: how many it may use.
    """

    parent: int
    settings: "BatchSettings"
    device: str
    threads: int
    remark_level: int = field(default_factory=lambda: logging.getLogger(REMARKS).level)


@dataclass
class RunningWorker:
    """A worker as its parent knows it.

    Attributes:
        place: its number, which says its device.
        item: what it works on; None while it opens its model, and when it is idle.
    """

    place: int
    process: BaseProcess
    line: "WorkerLine"
    item: "BatchItem | None" = None
    is_idle: bool = False


class WorkerGroup:
    """The workers of a batch.

    Args:
        devices: of each worker.
        threads: that each may use.
    """

    def __init__(self, queue: "WorkQueue", devices: list[str], threads: int) -> None:
        self.queue, self.devices, self.threads = queue, devices, threads
        self.running: dict[Connection, RunningWorker] = {}
        self.deaths = 0

    def start_worker(self, place: int) -> None:
        """Start the worker of a place."""
        from sefi.benchmark.workers import WorkerLine  # noqa: PLC0415  see the head of this file

        context = get_context("spawn")
        ours, theirs = context.Pipe()
        options = WorkerOptions(os.getpid(), self.queue.settings, self.devices[place], self.threads)
        process = context.Process(target=run_batch_worker, args=(options, theirs))
        process.start()
        theirs.close()  # only the worker has it now: its end is the end of the messages
        self.running[ours] = RunningWorker(place, process, WorkerLine(self.queue.progress.nested()))

    def run(self) -> None:
        """Give work until none is left, or raise what stops all."""
        for place in range(min(len(self.devices), len(self.queue.waiting))):
            self.start_worker(place)
        while any(worker.item or not worker.is_idle for worker in self.running.values()) or self.queue.waiting:
            for pipe in wait(list(self.running), POLL_SECONDS):
                assert isinstance(pipe, Connection)
                self.answer(pipe)
            for pipe, worker in self.running.items():
                if worker.is_idle:  # an item may have come back
                    self.give_work(pipe, worker)

    def answer(self, pipe: Connection) -> None:
        """Take a worker's message, or note that the worker is gone."""
        worker = self.running[pipe]
        try:
            message: object = pipe.recv()
        except (EOFError, OSError):
            self.replace_worker(pipe, worker)
            return
        if isinstance(message, ReadyForWork):
            self.deaths = 0
            if worker.item is not None:
                self.queue.finish(worker.item)
            worker.item, worker.is_idle = None, True
            self.give_work(pipe, worker)
        elif isinstance(message, (WorkerReport, SefiError, str)):
            worker.line.handle(message)

    def give_work(self, pipe: Connection, worker: RunningWorker) -> None:
        """Give an idle worker the next item, if one waits."""
        item = self.queue.take()
        if item is None:
            return
        worker.item, worker.is_idle = item, False
        try:
            pipe.send(item)
        except OSError:  # it is gone, as reading from it will show
            return

    def replace_worker(self, pipe: Connection, worker: RunningWorker) -> None:
        """Take the work of a worker that is gone, and start another in its place while there is work.

        Raises:
            KeyboardInterrupt: it was interrupted.
            SefiError: one after the other is killed before it works.
        """
        end_process(worker.process)
        pipe.close()
        del self.running[pipe]
        code = worker.process.exitcode
        if code in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt if code == INTERRUPTED else TerminationSignal
        if worker.item is not None:
            self.queue.take_back(worker.item)
        else:
            self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            problem = (
                f"Workers of this batch are killed before they begin (exit code {code}), perhaps for want of memory."
            )
            raise SefiError(problem, "Fewer --jobs need less memory. The same command goes on where it stopped.")
        if self.queue.waiting:
            self.start_worker(worker.place)

    def end(self) -> None:
        """End every worker: what it works on is saved and waits."""
        for worker in self.running.values():
            worker.process.terminate()
        for pipe, worker in self.running.items():
            end_process(worker.process)
            pipe.close()
        self.running.clear()


@contextmanager
def end_workers_after(group: WorkerGroup) -> Generator[WorkerGroup]:
    """Leave no worker of a group behind, however the block ends."""
    try:
        yield group
    finally:
        group.end()


def learn_in_processes(queue: "WorkQueue", devices: list[str], threads: int) -> None:
    """Learn every item in processes, one for each device.

    Args:
        threads: that each process may use.

    Raises:
        SefiError: a worker cannot open the model or write its records, or is killed before it begins.
        KeyboardInterrupt: a worker was interrupted.
    """
    with end_workers_after(WorkerGroup(queue, devices, threads)) as group:
        group.run()


# ------------------------------------------------------------------ in the worker


def run_batch_worker(options: WorkerOptions, pipe: Connection) -> None:
    """Learn item after item as the parent sends them, until it ends this process.

    Ctrl-C in a terminal reaches the parent, which asks by SIGTERM to end: the step at work is finished and saved.
    """
    begin_worker(options.parent, options.threads, options.remark_level)
    try:
        with answer_termination():
            learn_received_items(options, pipe)
    except KeyboardInterrupt as stop:
        sys.exit(make_interrupted(stop, "", "").exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except SefiError as error:
        fail(pipe, error)
    except Exception as error:
        fail(pipe, f"{type(error).__name__}: {error}")


def learn_received_items(options: WorkerOptions, pipe: Connection) -> None:
    """Open the model and learn the items that come through the pipe.

    After an error that nobody foresaw this process ends, so that the next item has a fresh one: a device that has
    failed once refuses everything after it.
    """
    # Late on purpose: see the head of this file.
    import_quickly("sefi.api")
    import torch  # noqa: PLC0415

    from sefi.batch.plan import ItemState  # noqa: PLC0415
    from sefi.batch.run import learn_item, load_model  # noqa: PLC0415
    from sefi.benchmark.identities import Stopwatch  # noqa: PLC0415
    from sefi.training.finetuning import ClassImages  # noqa: PLC0415

    torch.set_num_threads(options.threads)
    backbone, class_images = load_model(options.settings.model, options.device), ClassImages()
    while True:
        pipe.send(ReadyForWork())
        item: BatchItem = pipe.recv()
        steps = Stopwatch(PipeProgress(pipe), f"{item.name}: ")
        record = learn_item(item, options.settings, backbone, steps, class_images=class_images)
        if record.state is ItemState.FAILED and record.problem.startswith("Unexpected"):
            sys.exit(FAILED)
