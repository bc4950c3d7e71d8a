"""Worker processes end with the one that started them, however that ends."""

import os
import signal
import subprocess
import sys

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
