"""The block that all tests run under: what it refuses here and in programs that tests start, and what it lets by."""

import collections
import io
import multiprocessing
import pickle
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress

import numpy as np
import pytest
import torch


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
LOOKUP = "import socket; socket.getaddrinfo('example.invalid', 80)"
LOCAL = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
UNPICKLE = "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict))"
IN_PYTHON = "import pickle, io, collections; pickle._Unpickler(io.BytesIO(pickle.dumps(collections.deque()))).load()"


@pytest.mark.parametrize("code", [CONNECT, LOOKUP, LOCAL, UNPICKLE, IN_PYTHON])
def test_programs_that_tests_start_are_refused_too(code, refusals):
    made = run_python(code)
    assert made.returncode == 1
    assert "no test may do this" in made.stderr
    assert len(refusals()) == 1


def send_datagram(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (host, 53))


def test_connections_are_refused_here(refusals):
    for reach in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: send_datagram("192.0.2.1"),
        lambda: urllib.request.urlopen("http://example.invalid/"),
    ):
        with pytest.raises(RuntimeError, match="no test may do this"):
            reach()
    assert len(refusals()) == 5


def test_a_refusal_in_a_thread_or_behind_an_except_is_still_counted(refusals):
    def hide():
        with suppress(RuntimeError):
            socket.getaddrinfo("example.invalid", 80)

    thread = threading.Thread(target=hide)
    thread.start()
    thread.join()
    assert refusals() == ["socket.getaddrinfo example.invalid"]


def test_unpickling_is_refused_here(tmp_path, refusals):
    whole = pickle.dumps(collections.OrderedDict(a=1))
    (tmp_path / "a.npy").write_bytes(io.BytesIO(whole).getvalue())
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    for read in (
        lambda: pickle.loads(whole),
        lambda: pickle.load(io.BytesIO(whole)),
        lambda: pickle.Unpickler(io.BytesIO(whole)).load(),
        lambda: pickle._Unpickler(io.BytesIO(whole)).load(),
        lambda: np.load(tmp_path / "a.npy", allow_pickle=True),
        lambda: torch.load(tmp_path / "a.pt"),
        lambda: torch.load(tmp_path / "a.pt", weights_only=False),
    ):
        with pytest.raises((RuntimeError, pickle.UnpicklingError), match=r"no test may do this|Failed to interpret"):
            read()
    assert len(refusals()) == 7


@pytest.mark.loopback
def test_a_test_may_say_that_it_connects_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        made = run_python(LOCAL.replace("9)", f"{server.getsockname()[1]})"))
    assert made.returncode == 0, made.stderr


@pytest.mark.loopback
def test_the_loopback_mark_allows_no_other_address(refusals):
    with pytest.raises(RuntimeError, match="no test may do this"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert len(refusals()) == 1


def send_back(connection):
    connection.send(collections.OrderedDict(a=1))


def test_processes_of_one_program_may_send_each_other_objects():
    near, far = multiprocessing.Pipe()
    send_back(far)
    assert near.recv() == {"a": 1}
