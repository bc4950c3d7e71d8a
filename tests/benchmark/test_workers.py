"""Worker processes end with the one that started them, however and whenever that ends, and keep the run locked."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import sefi
from sefi.benchmark.run import RunFolder
from sefi.benchmark.worker_process import (
    MOST_DEATHS,
    ORPHANED,
    TERMINATED,
    WorkerGroup,
    WorkerLine,
    WorkerOptions,
    WorkerReport,
    end_process,
    end_workers_after,
    run_worker,
)
from sefi.core.errors import ConfigError, SefiError, TerminationSignal
from sefi.core.progress import SilentProgress

# What a worker opens in these tests: importable there, and it "makes images" as long as it lives.
BENCHES = """
import os, signal, sys, time
from pathlib import Path

FOLDER = Path(__file__).parent

def make_images_with_torch(pipe, threads=1):
    import torch
    make_images(pipe)

def make_images(pipe, threads=1):
    for n in range(100_000):
        (FOLDER / f"{os.getpid()}-{n}.png").touch()
        time.sleep(0.01)

def wait_long(pipe, threads=1):
    (FOLDER / f"{os.getpid()}.ready").touch()
    time.sleep(600)

def fail(pipe, threads=1):
    from sefi.core.errors import ConfigError
    raise ConfigError("Nothing fits.", "Try something else.")

def crash(pipe, threads=1):
    raise LookupError("no such thing")

def interrupt(pipe, threads=1):
    # Ignored where the tests were started with nohup or in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

def kill(pipe, threads=1):
    (FOLDER / f"{os.getpid()}.killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)

def kill_beside_work(pipe, threads=1):
    while not list(FOLDER.glob("*.taken")):
        time.sleep(0.01)
    kill(pipe)

def work_beside_kills(pipe, threads=1):
    from sefi.benchmark.worker_process import MOST_DEATHS, ReadyForWork
    while True:
        pipe.send(ReadyForWork())
        number = pipe.recv()
        (FOLDER / f"{number}.taken").touch()
        while len(list(FOLDER.glob("*.killed"))) < MOST_DEATHS or any(map(is_there, FOLDER.glob("*.killed"))):
            time.sleep(0.01)  # until the last of them is noted

def is_there(file):
    try:
        os.kill(int(file.stem), 0)
    except ProcessLookupError:  # neither running nor a zombie
        return False
    return True

def remark(pipe, threads=1):
    import logging
    logging.getLogger("sefi.remarks").warning("this model does not know a word")

def save_when_asked(pipe, threads=1):
    try:
        (FOLDER / f"{os.getpid()}.ready").touch()
        time.sleep(600)
    finally:
        (FOLDER / f"{os.getpid()}.saved").touch()

def terminate(pipe, threads=1):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def take_and_note(pipe, threads=1):
    from sefi.benchmark.worker_process import ReadyForWork
    while True:
        pipe.send(ReadyForWork())
        number = pipe.recv()
        (FOLDER / f"{number}-{os.getpid()}.taken").touch()
        while len({path.stem.split("-")[1] for path in FOLDER.glob("*.taken")}) < 2:
            time.sleep(0.01)  # until both are at work

def report(pipe, threads=1):
    from sefi.benchmark.worker_process import ReadyForWork, WorkerReport
    pipe.send(ReadyForWork())
    pipe.recv()
    for done, ended in ((0, False), (2, False), (3, True)):
        pipe.send(WorkerReport("rex, ours: learning", done, 5, ended))
    pipe.send(ReadyForWork())
    pipe.recv()
"""
STARTER = """
import sys, time
from types import SimpleNamespace
import benches
from sefi.benchmark.worker_process import WorkerGroup, end_workers_after
from sefi.core.progress import SilentProgress
if __name__ == "__main__":
    work = getattr(benches, sys.argv[1])
    with end_workers_after(WorkerGroup(SimpleNamespace(progress=SilentProgress()), [work] * 2, 1)) as group:
        for place in range(2):
            group.start_worker(place)
        print("started", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def benches(tmp_path, monkeypatch):
    """The module of benches, importable here and in workers."""
    (tmp_path / "benches.py").write_text(BENCHES)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("benches", None)
    yield __import__("benches")
    sys.modules.pop("benches", None)


LONGEST_LIFE = 60  # seconds; most of what a worker lives on it needs to start Python, and make_images takes 1000


class Numbers:
    """Hands out numbers."""

    def __init__(self, count, progress=None):
        self.waiting, self.progress, self.finished = deque(range(count)), progress or SilentProgress(), []

    def take(self):
        return self.waiting.popleft() if self.waiting else None

    def finish(self, number, result):
        self.finished.append((number, result))


@contextmanager
def started(function, count=2, lock=None):
    """Start workers, and yield their processes."""
    with end_workers_after(WorkerGroup(Numbers(count), [function] * count, 1, lock)) as group:
        for place in range(count):
            group.start_worker(place)
        yield [worker.process for worker in group.running.values()]


def work_off(numbers, function, count=2):
    with end_workers_after(WorkerGroup(numbers, [function] * count, 1)) as group:
        group.run()


def wait_for_image(folder, most=120.0):
    """Wait until a worker has made an image."""
    begun = time.monotonic()
    while not list(folder.glob("*.png")) and time.monotonic() - begun < most:
        time.sleep(0.01)


def kill_starter_after(seconds, folder, function="make_images", *, at_work=False):
    """Kill the starter of two workers after a while; returns how long they lived on, and the images made after.

    Args:
        at_work: count the seconds from the first image, however long a busy machine takes to get there.
    """
    (folder / "benches.py").write_text(BENCHES)
    (folder / "starter.py").write_text(STARTER)
    paths = os.pathsep.join([str(folder), str(Path(sefi.__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, str(folder / "starter.py"), function]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as starter:
        if at_work:
            wait_for_image(folder)
        time.sleep(seconds)
        starter.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        # The workers hold the other end of this pipe: it closes when all are gone.
        starter.stdout.read()
        lived_on = time.monotonic() - killed
    assert starter.returncode == -signal.SIGKILL, "the starter had ended by itself"
    before = set(folder.glob("*.png"))
    time.sleep(0.3)
    return lived_on, set(folder.glob("*.png")) - before


@pytest.mark.slow
def test_workers_do_not_outlive_a_starter_killed_while_they_start(tmp_path):
    for number, seconds in enumerate(np.random.default_rng(16).uniform(0.05, 1.0, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        lived_on, images = kill_starter_after(seconds, folder)
        assert lived_on < LONGEST_LIFE, f"killed after {seconds:.2f} s"
        assert not images


@pytest.mark.slow
def test_workers_do_not_outlive_a_starter_killed_at_any_moment(tmp_path):
    starting = [(seconds, False) for seconds in np.linspace(0.02, 2, 19)]
    working = [(seconds, True) for seconds in np.random.default_rng(17).uniform(0, 2, 4)]
    for number, (seconds, at_work) in enumerate([*starting, *working]):
        folder = tmp_path / str(number)
        folder.mkdir()
        lived_on, images = kill_starter_after(seconds, folder, "make_images_with_torch", at_work=at_work)
        assert lived_on < LONGEST_LIFE, f"killed after {seconds:.2f} s"
        assert not images
        if at_work:
            assert list(folder.glob("*.png")), "no worker came as far as making images"


def test_a_worker_whose_starter_is_gone_before_it_looks_ends_at_once(benches):
    # A process id that is not its parent's: what it finds if the starter died while Python was starting.
    orphan, context = WorkerOptions(1 if os.getpid() != 1 else 2, benches.wait_long, 1), get_context("spawn")
    process = context.Process(target=run_worker, args=(orphan, context.Pipe()[1], None))
    process.start()
    end_process(process)
    assert process.exitcode == ORPHANED
    assert not list(Path(benches.__file__).parent.glob("*.ready"))


def test_a_run_stays_locked_as_long_as_a_worker_lives(tmp_path, benches):
    folder = RunFolder(tmp_path / "run")
    with folder.lock() as lock:
        holding = started(benches.wait_long, 1, lock)
        [worker] = holding.__enter__()
    try:
        # Here the lock's file is closed; only the worker has it.
        with pytest.raises(ConfigError, match="Another run is at work"), folder.lock():
            pass
    finally:
        holding.__exit__(None, None, None)
    assert worker.exitcode is not None
    with folder.lock():
        pass


def test_workers_that_are_killed_before_they_begin_end_the_run(tmp_path, benches):
    with pytest.raises(SefiError, match=r"killed before they begin \(exit code -9\)"):
        work_off(Numbers(1), benches.kill)
    assert len(list(tmp_path.glob("*.killed"))) == MOST_DEATHS


def test_a_place_whose_workers_never_begin_is_given_up_where_another_works(tmp_path, benches):
    numbers, remarks = Numbers(3), []
    works = [benches.work_beside_kills, benches.kill_beside_work]
    with end_workers_after(WorkerGroup(numbers, works, 1, on_remark=remarks.append)) as group:
        group.run()
    assert sorted(numbers.finished) == [(number, None) for number in range(3)]
    assert len(list(tmp_path.glob("*.killed"))) == MOST_DEATHS
    killed = "workers are killed before they begin (exit code -9), perhaps for want of memory"
    assert remarks == [f"{killed}; 1 of 2 go on"]


def test_an_interrupted_worker_interrupts_the_run(benches):
    with pytest.raises(KeyboardInterrupt):
        work_off(Numbers(1), benches.interrupt)


def test_a_terminated_worker_ends_the_run_as_sigterm_does(benches):
    with pytest.raises(TerminationSignal):
        work_off(Numbers(1), benches.terminate)


def test_workers_save_their_work_before_they_end(tmp_path, benches):
    """Ctrl-C in a terminal reaches them too, and must not cost them what the parent asks for."""
    with started(benches.save_when_asked) as workers:
        pids = {process.pid for process in workers}
        while len(list(tmp_path.glob("*.ready"))) < len(pids):
            assert all(process.is_alive() for process in workers)
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGINT)
    assert {process.exitcode for process in workers} == {TERMINATED}
    assert {int(path.stem) for path in tmp_path.glob("*.saved")} == pids


def test_what_a_worker_fails_of_is_raised_and_the_others_end(benches):
    with pytest.raises(ConfigError, match="Nothing fits"):
        work_off(Numbers(1), benches.fail)
    with pytest.raises(RuntimeError, match="LookupError: no such thing"):
        work_off(Numbers(1), benches.crash)


def test_no_worker_is_left_when_the_run_ends(benches):
    with started(benches.wait_long) as processes:
        assert all(process.is_alive() for process in processes)
    for process in processes:
        assert process.exitcode in (-signal.SIGTERM, TERMINATED)  # before Python was there to answer, or after
        with pytest.raises(ProcessLookupError):  # neither running nor a zombie
            os.kill(process.pid, 0)


def test_workers_take_each_number_once_and_whoever_is_done_takes_the_next(benches, tmp_path):
    numbers = Numbers(23)
    work_off(numbers, benches.take_and_note)
    taken = [path.stem.split("-") for path in tmp_path.glob("*.taken")]
    assert sorted(int(number) for number, _ in taken) == list(range(23))
    assert sorted(numbers.finished) == [(number, None) for number in range(23)]
    assert len({process for _, process in taken}) == 2


class Lines:
    """Progress that keeps what it is told."""

    def __init__(self):
        self.told, self.inner = [], []

    def start(self, total, label):
        self.told.append((label, total))

    def advance(self, **numbers):
        self.told.append("step")

    def finish(self):
        self.told.append("end")

    def estimate(self, seconds):
        self.told.append(seconds)

    def nested(self):
        self.inner.append(Lines())
        return self.inner[-1]


def test_what_workers_learn_is_shown_beside_the_images(benches):
    progress = Lines()
    work_off(Numbers(1, progress), benches.report)
    assert [line.told for line in progress.inner] == [[("rex, ours: learning", 5), "step", "step", "step", "end"]]
    assert progress.told == []


def test_what_is_shown_of_a_worker_ends_with_it():
    line = WorkerLine(shown := Lines())
    line.end()
    assert shown.told == []
    line.handle(WorkerReport("rex, ours: learning", 1, 5))
    line.end()
    assert shown.told == [("rex, ours: learning", 5), "step", "end"]


@pytest.mark.parametrize(("level", "times"), [(logging.ERROR, 0), (logging.WARNING, 2)])
def test_a_worker_makes_remarks_only_where_its_starter_does(benches, tmp_path, capfd, monkeypatch, level, times):
    monkeypatch.setattr(logging.getLogger("sefi.remarks"), "level", level)
    with started(benches.remark) as workers:
        for process in workers:
            process.join()
    assert capfd.readouterr().err.count("does not know a word") == times
