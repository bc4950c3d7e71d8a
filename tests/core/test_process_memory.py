"""What a process keeps of the memory that it has freed, measured in fresh ones."""

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does with freed memory")

FREED = """
import json, os, re, resource, torch
from sefi.benchmark.worker_process import begin_worker
from sefi.cli.app import set_up
from sefi.core.errors import release_memory

def read_sizes():
    status = open("/proc/self/status").read()
    return [int(re.search(kind + r":\\s*(\\d+)", status)[1]) >> 10 for kind in ("VmRSS", "VmSize")]

if {limited}:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
torch.empty(31 << 20, dtype=torch.uint8)  # from here on glibc keeps tensors of up to 31 MiB when they are freed
{before}
tensors = [torch.ones(8 << 20, dtype=torch.uint8) for _ in range(37)]
last = torch.ones(100_000)  # lies behind them, so that what is freed is not the heap's end
sizes = [read_sizes()]
del tensors
sizes.append(read_sizes())
{after}
sizes.append(read_sizes())
print(json.dumps(sizes))
"""


def measure(before="", after="", limited=False, **variables):
    """Return resident memory and address space in MiB, with 37 tensors of 8 MiB, once they are freed, and after it."""
    return run(FREED.format(before=before, after=after, limited=limited), variables)


def run(text, variables):
    """Run a program with these variables and no others about memory; return the JSON that it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=environment | variables
    )
    return json.loads(found.stdout)


def test_freed_tensors_stay_where_nothing_is_limited():
    """What is mended below, and what is faster where there is memory enough."""
    full, freed, last = measure("set_up()", limited=False)
    assert full[0] - last[0] < 50
    assert full[1] - freed[1] < 50


def test_freed_tensors_go_back_when_memory_is_released():
    full, freed, last = measure(after="release_memory()")
    assert full[0] - freed[0] < 50
    assert full[0] - last[0] > 250


@pytest.mark.parametrize("start", ["set_up()", "begin_worker(os.getppid(), 1, 0)"])
def test_freed_tensors_go_back_at_once_where_the_address_space_is_limited(start):
    """Programs and their workers; the addresses too, which another library may ask for."""
    full, freed, _ = measure(start, limited=True)
    assert full[0] - freed[0] > 250
    assert full[1] - freed[1] > 250


def test_what_the_user_has_set_stays():
    full, freed, _ = measure("set_up()", limited=True, MALLOC_MMAP_THRESHOLD_=str(32 << 20))
    assert full[0] - freed[0] < 50


ARENAS = """
import json, os, re, resource, threading
from sefi.benchmark.worker_process import begin_worker
from sefi.cli.app import set_up

def read_size():
    return int(re.search(r"VmSize:\\s*(\\d+)", open("/proc/self/status").read())[1]) >> 10

def allocate():
    blocks = [bytearray(700) for _ in range(37)]
    barrier.wait()

threading.stack_size(1 << 20)
if {limited}:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
{start}
before, barrier = read_size(), threading.Barrier(4)
threads = [threading.Thread(target=allocate) for _ in range(3)]
for thread in threads:
    thread.start()
barrier.wait()
print(json.dumps(read_size() - before))
"""


@pytest.mark.parametrize(
    ("limited", "variables", "reserved"),
    [
        (False, {}, True),
        (True, {}, False),
        (True, {"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        (True, {"MALLOC_ARENA_MAX": "7"}, True),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=7"}, True),
    ],
)
@pytest.mark.parametrize("start", ["set_up()", "begin_worker(os.getppid(), 1, 0)"])
def test_threads_reserve_no_addresses_where_these_are_limited(start, limited, variables, reserved):
    """Each arena takes 64 MiB of addresses, and how many there are would depend on chance."""
    found = run(ARENAS.format(start=start, limited=limited), variables)
    assert found > 150 if reserved else found < 50


NO_CODE = """
import re, resource, torch
from sefi.core.errors import release_memory, shorten_reason

network = torch.nn.Conv2d(37, 41, 3)
network(torch.randn(2, 37, 13, 13))
images = [torch.randn(2, 37, side, side) for side in (17, 19)]
size = int(re.search(r"VmSize:\\s*(\\d+)", open("/proc/self/status").read())[1]) << 10
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size - (1 << 20), most))
try:
    network(images[0])
except RuntimeError as error:
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    release_memory(shorten_reason(error))
    print(shorten_reason(error))
print(tuple(network(images[1]).shape))
"""


def test_a_thread_that_had_no_memory_for_code_goes_on():
    """Such a thread gets no new primitive of oneDNN, however much memory there is later."""
    found = subprocess.run([sys.executable, "-c", NO_CODE], capture_output=True, text=True, check=True)
    reason, shape = found.stdout.splitlines()
    assert reason == "could not create a primitive"
    assert shape == "(2, 41, 17, 17)"
