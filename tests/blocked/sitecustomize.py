"""Refuse connections and unpickled classes in this process: Python runs this file by itself where its folder is first.

`tests/conftest.py` runs it in the tests' own process and puts its folder into PYTHONPATH for the programs that tests
start. Every refusal is also written to a file, so that a library that goes on after it does not hide it.
"""

import os
import sys

REPORT = "SEFI_TEST_REFUSED"  # the file
LOOPBACK = "SEFI_TEST_LOOPBACK"  # set: this machine itself may be connected to
NETWORK = "SEFI_TEST_NETWORK"  # set: everything may
LOCAL = ("127.0.0.1", "::1", "localhost")
# Processes of one program hand each other Python objects; those never come from a file.
OWN_PROCESSES = ("multiprocessing.connection", "multiprocessing.queues", "multiprocessing.spawn")
LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname")


class RefusedError(RuntimeError):
    """What no test may do."""


def refuse(event, arguments):
    """Refuse an event of the interpreter (PEP 578); nothing in Python can take this back."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else a path of this machine (AF_UNIX)
        if host is not None:
            refuse_host(event, host)
    elif event in LOOKED_UP:
        refuse_host(event, arguments[0])
    elif event == "pickle.find_class" and not comes_from_own_process():
        fail(f"{event} {arguments[0]}.{arguments[1]}")


def refuse_host(event, host):
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if NETWORK in os.environ or (LOOPBACK in os.environ and name in LOCAL):
        return
    fail(f"{event} {name}")


def comes_from_own_process():
    """Tell whether the caller of the unpickler is one of multiprocessing's own modules, and nothing in between."""
    frame = sys._getframe(2)  # after this function and `refuse`
    while frame is not None and frame.f_globals.get("__name__") == "pickle":  # the unpickler in Python
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in OWN_PROCESSES


def fail(what):
    path = os.environ.get(REPORT)
    if path:
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123  nothing is imported at every start
            file.write(f"{what}\n")
    raise RefusedError(f"no test may do this: {what}")


sys.addaudithook(refuse)
