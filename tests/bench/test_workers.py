"""Worker processes end with the one that started them, however that ends; one that is killed ends the run."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

from sefi.bench.records import RunFolder
from sefi.bench.workers import watch
from sefi.core.errors import SefiError
from sefi.core.protocols import SilentProgress

STARTER = """
import subprocess, sys, time
worker = "import os, threading, time; from sefi.bench.workers import end_with;"
worker += "threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start();"
worker += "print(os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", worker])
time.sleep(600)
"""


def test_a_worker_does_not_outlive_a_killed_starter():
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        worker = int(starter.stdout.readline())
        starter.send_signal(signal.SIGKILL)
        try:
            # The worker has the other end of this pipe: it closes when both are gone.
            assert starter.communicate(timeout=30)[0] == ""
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def test_a_killed_worker_ends_the_run(tmp_path):
    # What watching needs of a bench: where its lines are counted, and whom to tell.
    bench = SimpleNamespace(run=RunFolder(tmp_path), progress=SilentProgress())
    context = get_context("spawn")
    lasting = context.Process(target=time.sleep, args=(600,))
    killed = context.Process(target=time.sleep, args=(600,))
    try:
        lasting.start()
        killed.start()
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        with pytest.raises(SefiError, match=r"killed \(exit code -9\)"):
            watch(bench, [lasting, killed], context.SimpleQueue())
    finally:
        lasting.kill()
        killed.kill()


def test_workers_that_end_well_end_the_run_well(tmp_path):
    bench = SimpleNamespace(run=RunFolder(tmp_path), progress=SilentProgress())
    context = get_context("spawn")
    workers = [context.Process(target=time.sleep, args=(0.01,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    watch(bench, workers, context.SimpleQueue())
    assert [worker.exitcode for worker in workers] == [0, 0]
