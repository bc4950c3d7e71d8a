"""Processes that share the work of a run or a batch: an idle one takes what waits, and one that is killed is replaced.

Each ends with the process that started it, and holds its lock as long as it lives.

Nothing heavy is imported before the parent is watched: loading torch takes seconds, in which the parent may die.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sefi.core.errors import (
    REMARKS,
    Interrupted,
    SefiError,
    Terminated,
    TerminationSignal,
    answer_termination,
    make_interrupted,
)
from sefi.core.process import limit_addresses
from sefi.core.progress import Progress, RunProgress

if TYPE_CHECKING:
    from sefi.benchmark.run import OpenRun

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ORPHANED, FAILED = 3, 1
INTERRUPTED, TERMINATED = Interrupted.exit_code, Terminated.exit_code
SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_TO_END = 30.0  # to finish a step and save it
POLL_SECONDS = 1.0
MOST_DEATHS = 3  # of workers of one place that had nothing to do yet, one after the other
LOGGER = logging.getLogger(REMARKS)
Work = TypeVar("Work")


@dataclass(frozen=True)
class WorkerReport:
    """How far one piece of work inside a worker is.

    Attributes:
        label: what is done.
        done: steps of it.
        total: all of them.
        ended: whether it is over, also when fewer steps were needed.
    """

    label: str
    done: int
    total: int
    ended: bool = False


Message = WorkerReport | SefiError | str  # a text is an error that nobody foresaw


@dataclass(frozen=True)
class UnitTry:
    """A unit of work that is handed out.

    Attributes:
        number: of the unit (`sefi.benchmark.plan.list_work_units`).
        kills: how many workers were killed at it before.
    """

    number: int
    kills: int = 0


@dataclass(frozen=True)
class ReadyForWork:
    """What a worker sends when its model is open, and after each piece of work.

    Attributes:
        result: of that piece, where there is more to say than that it is over.
    """

    result: object = None


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker is started with.

    Attributes:
        parent: process id of the one that starts it, as that one knows it.
        work: opens what is needed, sends `ReadyForWork`, does what it receives, and so on; must be importable.
        threads: how many it may use, which `work` gets too: a torch that was loaded before did not see the number.
        remark_level: level of the logger of remarks; a command that says them itself has silenced it.
    """

    parent: int
    work: Callable[[Connection, int], None]
    threads: int
    remark_level: int = field(default_factory=lambda: logging.getLogger(REMARKS).level)


class WorkSource(Protocol[Work]):
    """Hands out work, piece by piece; what may be done again waits again."""

    @property
    def waiting(self) -> Sized:
        """What nobody works on."""
        ...

    @property
    def progress(self) -> RunProgress:
        """Shows how far all is."""
        ...

    def take(self) -> Work | None:
        """Return the next piece; None if none waits."""
        ...

    def finish(self, work: Work, result: object, /) -> None:
        """Take back a piece that was worked on; the result is that of `ReadyForWork`."""
        ...

    def take_back(self, work: Work, exit_code: int | None, /) -> None:
        """Take back a piece whose worker was killed."""
        ...


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

    def end(self) -> None:
        """End what is shown of a worker that is gone."""
        if not self.report.ended:
            self.progress.finish()


@dataclass
class RunningWorker(Generic[Work]):
    """A worker as its parent knows it.

    Attributes:
        place: its number.
        item: what it works on; None while it opens its model, and when it is idle.
        is_idle: its model is open, and it waits for work.
    """

    place: int
    process: BaseProcess
    line: WorkerLine
    item: Work | None = None
    is_idle: bool = False


class WorkerGroup(Generic[Work]):
    """Processes that share work: an idle one takes what waits, and one that is killed is replaced.

    Args:
        source: of the work.
        works: what the worker of each place does, as `WorkerOptions.work`.
        threads: that each may use.
        lock: the file descriptor of a lock that they hold too, as long as they live.
        on_remark: is called with what a person should know at once: there are fewer workers now.
    """

    def __init__(
        self,
        source: WorkSource[Work],
        works: Sequence[Callable[[Connection, int], None]],
        threads: int,
        lock: int | None = None,
        on_remark: Callable[[str], None] = LOGGER.warning,
    ) -> None:
        self.source, self.works, self.threads, self.lock, self.on_remark = source, works, threads, lock, on_remark
        self.running: dict[Connection, RunningWorker[Work]] = {}
        self.deaths = Counter[int]()  # by place

    def start_worker(self, place: int) -> None:
        """Start the worker of a place."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        options = WorkerOptions(os.getpid(), self.works[place], self.threads)
        process = context.Process(target=run_worker, args=(options, theirs, InheritedFile(self.lock)))
        process.start()
        theirs.close()  # only the worker has it now: its end is the end of the messages
        self.running[ours] = RunningWorker(place, process, WorkerLine(self.source.progress.nested()))

    def run(self, on_poll: Callable[[], None] | None = None) -> None:
        """Give work until none is left, or raise what stops all.

        Args:
            on_poll: is called after messages, and at least each second.

        Raises:
            SefiError: a worker cannot begin, or one after the other is killed before it does, and no other has begun.
            RuntimeError: a worker failed of what nobody foresaw.
            KeyboardInterrupt: a worker was interrupted.
        """
        for place in range(min(len(self.works), len(self.source.waiting))):
            self.start_worker(place)
        while any(worker.item is not None for worker in self.running.values()) or self.source.waiting:
            for pipe in wait(list(self.running), POLL_SECONDS):
                assert isinstance(pipe, Connection)
                self.answer(pipe)
            if on_poll is not None:
                on_poll()
            for pipe, worker in self.running.items():
                if worker.is_idle:  # a piece may have come back
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
            self.deaths[worker.place] = 0
            item, worker.item, worker.is_idle = worker.item, None, True
            if item is not None:
                self.source.finish(item, message.result)
            self.give_work(pipe, worker)
        elif isinstance(message, (WorkerReport, SefiError, str)):
            worker.line.handle(message)

    def give_work(self, pipe: Connection, worker: RunningWorker[Work]) -> None:
        """Give an idle worker the next piece, if one waits."""
        item = self.source.take()
        if item is None:
            return
        worker.item, worker.is_idle = item, False
        with suppress(OSError):  # it is gone, as reading from it will show
            pipe.send(item)

    def replace_worker(self, pipe: Connection, worker: RunningWorker[Work]) -> None:
        """Take the work of a worker that is gone, and start another in its place while there is work.

        A place whose workers never begin is given up where others work: what they finish is worth more than its error.
        """
        end_process(worker.process)
        pipe.close()
        del self.running[pipe]
        worker.line.end()
        code = worker.process.exitcode
        if code in (INTERRUPTED, TERMINATED):
            raise KeyboardInterrupt if code == INTERRUPTED else TerminationSignal
        if worker.item is not None:
            self.source.take_back(worker.item, code)
        else:
            self.deaths[worker.place] += 1
        if self.deaths[worker.place] >= MOST_DEATHS:
            killed = f"killed before they begin (exit code {code}), perhaps for want of memory"
            if not any(other.item is not None or other.is_idle for other in self.running.values()):
                remedy = "Fewer --jobs need less memory. The same command goes on where it stopped."
                raise SefiError(f"Workers are {killed}.", remedy)
            self.on_remark(f"workers are {killed}; {len(self.running)} of {len(self.works)} go on")
        elif self.source.waiting:
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
def end_workers_after(group: WorkerGroup[Work]) -> Generator[WorkerGroup[Work]]:
    """Leave no worker of a group behind, however the block ends."""
    try:
        yield group
    finally:
        group.end()


class InheritedFile:
    """An open file that a started process gets too, whatever becomes of this one.

    A lock of `flock` belongs to the open file: it lasts until every process that has it is gone.
    """

    def __init__(self, file: int | None) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_inherited, (None if self.file is None else reduction.DupFd(self.file),))


def open_inherited(file: Any) -> InheritedFile:  # noqa: ANN401  multiprocessing's own, private type
    """Return the file in the process that was started."""
    return InheritedFile(None if file is None else file.detach())


def end_process(process: BaseProcess) -> None:
    """Wait for a process that was asked to end, and end it by force if it does not, so that no zombie stays."""
    process.join(SECONDS_TO_END)
    if process.is_alive():
        process.kill()
        process.join()


# ------------------------------------------------------------------ in the worker


def run_worker(options: WorkerOptions, pipe: Connection, _lock: object) -> None:
    """Do what the parent sends until it ends this process; what goes wrong is sent there and ends it too.

    Ctrl-C in a terminal reaches the parent, which asks by SIGTERM to end: the step at work is finished and saved.

    Args:
        pipe: to the parent.
        _lock: the parent's lock file, open here too: it stays locked until the last worker is gone.
    """
    begin_worker(options.parent, options.threads, options.remark_level)
    try:
        with answer_termination():
            options.work(pipe, options.threads)
    except KeyboardInterrupt as stop:
        sys.exit(make_interrupted(stop, "", "").exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except SefiError as error:
        fail(pipe, error)
    except Exception as error:
        fail(pipe, f"{type(error).__name__}: {error}")


def make_received_units(open_run: "Callable[[], OpenRun]", pipe: Connection, threads: int) -> None:
    """Open a run and make the images of every unit of work that comes through the pipe.

    Args:
        open_run: opens the run again; must be importable from here.
        threads: how many threads may be used.
    """
    run = replace(open_run(), learning_progress=PipeProgress(pipe))
    # Late on purpose: see the head of this file.
    import cv2  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from sefi.benchmark.samples import make_samples  # noqa: PLC0415

    torch.set_num_threads(threads)  # of a torch that the main module had loaded before
    cv2.setNumThreads(threads)
    failures, begun = list[object](), list[int]()

    def receive_numbers() -> Iterator[int]:
        while begun:
            yield begun.pop()
        while True:
            pipe.send(ReadyForWork(failures.pop() if failures else None))
            unit: UnitTry = pipe.recv()
            if unit.kills:  # its images may be on record by now
                begun.append(unit.number)
                return
            yield unit.number

    while True:  # each time the record is read
        make_samples(run, receive_numbers(), on_failure=failures.append)


def fail(messages: Connection, problem: SefiError | str) -> None:
    """Send the parent what went wrong and end this process."""
    messages.send(problem)
    sys.exit(FAILED)


def begin_worker(parent: int, threads: int, remark_level: int) -> None:
    """Make this process a worker: it ends with its parent, has so many threads, and leaves Ctrl-C to the parent.

    Args:
        parent: as `end_with_parent` takes it.
        threads: of OpenMP and MKL; called before torch is loaded.
        remark_level: of the parent's logger of remarks.
    """
    end_with_parent(parent)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    limit_addresses()
    logging.getLogger(REMARKS).setLevel(remark_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent(parent: int) -> None:
    """End this process at once if its parent is gone, and from now on as soon as it is, however that one ends.

    A run that goes on alone is unsafe: a second start would write into the same files.

    Args:
        parent: the process id that the parent has handed over. Asked for here, it would be that of whoever adopted
            this process if the parent died before.
    """
    if sys.platform == "linux":
        # The kernel kills us even while a C library is busy.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    starter = parent_process()
    if starter is not None:
        threading.Thread(target=end_after, args=(starter.sentinel,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(ORPHANED)


def end_after(sentinel: int) -> None:
    """End this process when the pipe that only its parent holds is closed; for systems without a death signal."""
    wait([sentinel])
    os._exit(ORPHANED)


class PipeProgress:
    """Sends progress to the parent process, at most twice a second.

    Args:
        messages: the writing end of the pipe.
    """

    def __init__(self, messages: Connection) -> None:
        self.messages, self.report, self.sent = messages, WorkerReport("", 0, 0), 0.0

    def start(self, total: int, label: str) -> None:
        """Report a piece of work of `total` steps."""
        self.report = WorkerReport(label, 0, total)
        self.send()

    def advance(self, **numbers: float) -> None:
        """Count one step; report it if the last report is old enough."""
        self.report = replace(self.report, done=self.report.done + 1)
        if time.monotonic() - self.sent >= SECONDS_BETWEEN_REPORTS:
            self.send()

    def finish(self) -> None:
        """Report that the piece of work is over."""
        self.report = replace(self.report, ended=True)
        self.send()

    def send(self) -> None:
        """Send the present state."""
        self.sent = time.monotonic()
        self.messages.send(self.report)
