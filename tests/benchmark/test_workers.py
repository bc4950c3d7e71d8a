"""Worker processes end with the one that started them, however and whenever that ends, and keep the run locked."""

import logging
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sefi
from sefi.benchmark.plan import TimeLeft
from sefi.benchmark.run import RunFolder
from sefi.benchmark.worker_process import ORPHANED, TERMINATED, Share, SharedNumbers, WorkerReport, start_workers
from sefi.benchmark.workers import Failures, watch_workers
from sefi.core.errors import ConfigError, SefiError, TerminationSignal
from sefi.core.progress import SilentProgress

# What a worker opens in these tests: importable there, and it "makes images" as long as it lives.
BENCHES = """
import os, signal, sys, time
from pathlib import Path

FOLDER = Path(__file__).parent

def make_images_with_torch():
    import torch
    make_images()

def make_images():
    for n in range(100_000):
        (FOLDER / f"{os.getpid()}-{n}.png").touch()
        time.sleep(0.01)

def wait_long():
    (FOLDER / f"{os.getpid()}.ready").touch()
    time.sleep(600)

def fail():
    from sefi.core.errors import ConfigError
    raise ConfigError("Nothing fits.", "Try something else.")

def crash():
    raise LookupError("no such thing")

def interrupt():
    # Ignored where the tests were started with nohup or in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def remark():
    import logging
    logging.getLogger("sefi.remarks").warning("this model does not know a word")
    sys.exit(0)

def leave():
    sys.exit(0)

def save_when_asked():
    try:
        (FOLDER / f"{os.getpid()}.ready").touch()
        time.sleep(600)
    finally:
        (FOLDER / f"{os.getpid()}.saved").touch()

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def take_and_note(numbers):
    for number in numbers:
        (FOLDER / f"{number}-{os.getpid()}.taken").touch()
        while len({path.stem.split("-")[1] for path in FOLDER.glob("*.taken")}) < 2:
            time.sleep(0.01)  # until both are at work
"""
STARTER = """
import os, sys, time
import benches
from sefi.benchmark.worker_process import Share, start_workers
if __name__ == "__main__":
    function = getattr(benches, sys.argv[1])
    with start_workers([Share(os.getpid(), function, range(1), 1) for _ in range(2)], None):
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


def shares(function, count=2):
    return [Share(os.getpid(), function, range(n, 2, count), 1) for n in range(count)]


def watched(tmp_path, function, count=2, progress=None):
    # What watching needs of a run: where its images are counted, and whom to tell.
    suite = SimpleNamespace(variants=())
    run = SimpleNamespace(folder=RunFolder(tmp_path), progress=progress or SilentProgress(), suite=suite)
    with start_workers(shares(function, count), None) as workers:
        try:
            watch_workers(run, workers, TimeLeft(suite, [], []), Failures(run))
        finally:
            pids = [process.pid for process in workers.values()]
    return pids


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
        assert lived_on < 2, f"killed after {seconds:.2f} s"
        assert not images


@pytest.mark.slow
def test_workers_do_not_outlive_a_starter_killed_at_any_moment(tmp_path):
    starting = [(seconds, False) for seconds in np.linspace(0.02, 2, 19)]
    working = [(seconds, True) for seconds in np.random.default_rng(17).uniform(0, 2, 4)]
    for number, (seconds, at_work) in enumerate([*starting, *working]):
        folder = tmp_path / str(number)
        folder.mkdir()
        lived_on, images = kill_starter_after(seconds, folder, "make_images_with_torch", at_work=at_work)
        assert lived_on < 2, f"killed after {seconds:.2f} s"
        assert not images
        if at_work:
            assert list(folder.glob("*.png")), "no worker came as far as making images"


def test_a_worker_whose_starter_is_gone_before_it_looks_ends_at_once(benches):
    # A process id that is not its parent's: what it finds if the starter died while Python was starting.
    orphan = Share(1 if os.getpid() != 1 else 2, benches.wait_long, range(1), 1)
    with start_workers([orphan], None) as workers:
        (process,) = workers.values()
        process.join(30)
        assert process.exitcode == ORPHANED
    assert not list(Path(benches.__file__).parent.glob("*.ready"))


def test_a_run_stays_locked_as_long_as_a_worker_lives(tmp_path, benches):
    folder = RunFolder(tmp_path / "run")
    with folder.lock() as lock:
        holding = start_workers(shares(benches.wait_long, 1), lock)
        workers = holding.__enter__()
    try:
        # Here the lock's file is closed; only the worker has it.
        with pytest.raises(ConfigError, match="Another run is at work"), folder.lock():
            pass
    finally:
        holding.__exit__(None, None, None)
    assert all(process.exitcode is not None for process in workers.values())
    with folder.lock():
        pass


def test_a_killed_worker_ends_the_run(tmp_path, benches):
    with pytest.raises(SefiError, match=r"killed \(exit code -9\)"):
        watched(tmp_path, benches.kill)


def test_an_interrupted_worker_interrupts_the_run(tmp_path, benches):
    with pytest.raises(KeyboardInterrupt):
        watched(tmp_path, benches.interrupt, 1)


def test_a_terminated_worker_ends_the_run_as_sigterm_does(tmp_path, benches):
    with pytest.raises(TerminationSignal):
        watched(tmp_path, benches.terminate, 1)


def test_workers_save_their_work_before_they_end(tmp_path, benches):
    """Ctrl-C in a terminal reaches them too, and must not cost them what the parent asks for."""
    with start_workers(shares(benches.save_when_asked), None) as workers:
        pids = {process.pid for process in workers.values()}
        while len(list(tmp_path.glob("*.ready"))) < len(pids):
            assert all(process.is_alive() for process in workers.values())
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, signal.SIGINT)
    assert {process.exitcode for process in workers.values()} == {TERMINATED}
    assert {int(path.stem) for path in tmp_path.glob("*.saved")} == pids


def test_what_a_worker_fails_of_is_raised_and_the_others_end(tmp_path, benches):
    with pytest.raises(ConfigError, match="Nothing fits"):
        watched(tmp_path, benches.fail, 1)
    with pytest.raises(RuntimeError, match="LookupError: no such thing"):
        watched(tmp_path, benches.crash, 1)


def test_no_worker_is_left_when_the_run_ends(benches):
    with start_workers(shares(benches.wait_long), None) as workers:
        processes = list(workers.values())
        assert all(process.is_alive() for process in processes)
    for process in processes:
        assert process.exitcode in (-signal.SIGTERM, TERMINATED)  # before Python was there to answer, or after
        with pytest.raises(ProcessLookupError):  # neither running nor a zombie
            os.kill(process.pid, 0)


def test_workers_take_each_number_once_and_whoever_is_done_takes_the_next(benches, tmp_path):
    numbers, context = SharedNumbers(23), get_context("spawn")
    workers = [context.Process(target=benches.take_and_note, args=(numbers,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken = [path.stem.split("-") for path in tmp_path.glob("*.taken")]
    assert sorted(int(number) for number, _ in taken) == list(range(23))
    assert {int(process) for _, process in taken} == {worker.pid for worker in workers}
    assert list(numbers) == []


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


def send_reports(messages):
    for done, ended in ((0, False), (2, False), (3, True)):
        messages.send(WorkerReport("rex, ours: learning", done, 5, ended))


def test_what_workers_learn_is_shown_beside_the_images(tmp_path):
    context, progress = get_context("spawn"), Lines()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=time.sleep, args=(0.01,))
    process.start()
    send_reports(writing)
    writing.close()
    folder = RunFolder(tmp_path)
    watch_workers(
        run := SimpleNamespace(folder=folder, progress=progress, suite=SimpleNamespace(variants=())),
        {reading: process},
        TimeLeft(run.suite, [], []),
        Failures(run),
    )
    process.join()
    assert [line.told for line in progress.inner] == [[("rex, ours: learning", 5), "step", "step", "step", "end"]]
    assert progress.told == []


@pytest.mark.parametrize(("level", "times"), [(logging.ERROR, 0), (logging.WARNING, 2)])
def test_a_worker_makes_remarks_only_where_its_starter_does(benches, tmp_path, capfd, monkeypatch, level, times):
    monkeypatch.setattr(logging.getLogger("sefi.remarks"), "level", level)
    with start_workers(shares(benches.remark), None) as workers:
        for process in workers.values():
            process.join()
    assert capfd.readouterr().err.count("does not know a word") == times
