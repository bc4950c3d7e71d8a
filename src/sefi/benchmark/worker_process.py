"""The processes of a run: each ends with the process that started it, and holds the run's lock as long as it lives.

Nothing heavy is imported before the parent is watched: loading torch takes seconds, in which the parent may die.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import TYPE_CHECKING, Any

from sefi.core.errors import REMARKS, Interrupted, SefiError, Terminated, answer_termination, make_interrupted

if TYPE_CHECKING:
    from sefi.benchmark.run import OpenRun

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ORPHANED, FAILED = 3, 1
INTERRUPTED, TERMINATED = Interrupted.exit_code, Terminated.exit_code
SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_TO_END = 30.0  # to finish a step and save it


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
class Share:
    """What one worker does.

    Attributes:
        parent: process id of the one that starts it, as that one knows it.
        open_run: opens the run again; must be importable from the worker.
        numbers: of the units of work that it does (`sefi.benchmark.plan.list_work_units`).
        threads: how many threads it may use.
        remark_level: level of the logger of remarks; a command that says them itself has silenced it.
    """

    parent: int
    open_run: "Callable[[], OpenRun]"
    numbers: Iterable[int]
    threads: int
    remark_level: int = field(default_factory=lambda: logging.getLogger(REMARKS).level)


class SharedNumbers:
    """Numbers from 0 that several processes take in turn: who is done takes the next that nobody has taken.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, get_context("spawn").Value("q", 0)

    def __iter__(self) -> Iterator[int]:
        """Yield numbers until all are taken."""
        while True:
            with self.taken.get_lock():
                number = self.taken.value
                self.taken.value = number + 1
            if number >= self.count:
                return
            yield number


@contextmanager
def start_workers(shares: Sequence[Share], lock: int | None) -> Generator[dict[Connection, BaseProcess]]:
    """Start a process for each share; yields them by the pipe of their messages, and leaves none behind."""
    context = get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        for share in shares:
            reading, writing = context.Pipe(duplex=False)
            process = context.Process(target=run_worker, args=(share, writing, InheritedFile(lock)))
            process.start()
            writing.close()  # only the worker has it now: its end is the end of the messages
            workers[reading] = process
        yield workers
    finally:
        for process in workers.values():
            process.terminate()
        for reading, process in workers.items():
            end_process(process)
            reading.close()


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


def run_worker(share: Share, messages: Connection, _lock: object) -> None:
    """Make the images of one share; what goes wrong is sent to the parent and ends this process with an exit code.

    Ctrl-C in a terminal reaches the parent, which asks by SIGTERM to end: the step at work is finished and saved.

    Args:
        share: what to do.
        messages: the writing end of a pipe to the parent.
        _lock: the run's lock file, open here too: the run stays locked until the last worker is gone.
    """
    begin_worker(share.parent, share.threads, share.remark_level)
    try:
        with answer_termination():
            make_share(share, messages)
    except KeyboardInterrupt as stop:
        # An exit code of 0 would say that the share is complete.
        sys.exit(make_interrupted(stop, "", "").exit_code)
    except SefiError as error:
        fail(messages, error)
    except Exception as error:
        fail(messages, f"{type(error).__name__}: {error}")


def make_share(share: Share, messages: Connection) -> None:
    """Open the run and make the images of every unit of a share."""
    run = replace(share.open_run(), learning_progress=PipeProgress(messages))
    # Late on purpose: see the head of this file.
    import cv2  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from sefi.benchmark.samples import make_samples  # noqa: PLC0415

    torch.set_num_threads(share.threads)  # of a torch that the main module had loaded before
    cv2.setNumThreads(share.threads)
    make_samples(run, share.numbers, on_failure=messages.send)


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
