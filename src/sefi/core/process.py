"""What this process takes of the machine: cores, threads that sleep while they wait, memory; and quick imports.

This file loads no torch by itself: OpenMP reads its settings once, when torch is loaded.
"""

import gc
import math
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

SYSTEM = Path("/")  # tests put another tree here
# Whoever has set one of these has decided how threads wait.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
# Turns of a loop that does nothing, some ten microseconds: most barriers of these small networks end within that.
SPINS = "10000"
# Whoever has set one of these has decided how many threads run.
COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Whoever has set one of these has decided which memory glibc returns when it is freed, or how many arenas there are.
MEMORY_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
ARENA_VARIABLES = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
# How glibc's malloc.h calls the least bytes that get pages of their own, which go back when they are freed.
M_MMAP_THRESHOLD = -3
MAPPED_BYTES = 1 << 20
# And the most arenas, of which each reserves 64 MiB of addresses or more.
M_ARENA_MAX = -8


def limit_spinning() -> None:
    """Let OpenMP threads spin at a barrier for microseconds only, then sleep; does nothing once torch is loaded.

    A spinning thread keeps a core from whatever else runs there, the other threads of the same computation included:
    on a busy machine every barrier then lasts until the scheduler steps in. Threads that sleep at once are woken
    hundreds of times a step, which costs more than a second core brings: 1.1 times one thread's time on an idle
    machine. GNU's runtime (torch on Linux) follows the first two variables, LLVM's and Intel's (torch on macOS, conda)
    `KMP_BLOCKTIME`, which counts milliseconds. What the user has set stays.
    """
    if "torch" in sys.modules or any(name in os.environ for name in WAIT_VARIABLES):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["GOMP_SPINCOUNT"] = SPINS
    os.environ["KMP_BLOCKTIME"] = "0"


def limit_threads() -> None:
    """Let a program started by us use no more threads than its cgroup's quota pays for; call it before torch is loaded.

    The libraries know the machine's cores and this process's affinity but no quota: in a container of 2 cores on a
    machine of 64 they start 64 threads, which are then stopped for most of the time. Where no quota is lower, nothing
    is set and the libraries' own choice holds. What the user has set stays.
    """
    if "torch" in sys.modules or any(name in os.environ for name in COUNT_VARIABLES):
        return
    usable = count_usable_cores()
    if usable < count_affine_cores():
        os.environ["OMP_NUM_THREADS"] = str(usable)


def count_usable_cores() -> int:
    """Return how many threads can run at the same time, at least 1: affinity and cgroup quota, rounded down.

    Rounded down because threads that compute together wait for the one that the quota has stopped.
    """
    return max(1, math.floor(min([count_affine_cores(), *read_quotas()])))


def count_affine_cores() -> int:
    """Return how many cores this process may run on; where the system has no affinity, how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_quotas() -> Iterator[float]:
    """Yield the CPU quota, in cores, of this process's cgroup and of every group above it that has one."""
    for folder in list_cgroup_folders():
        quota = read_quota(folder)
        if quota is not None:
            yield quota


def list_cgroup_folders() -> Iterator[Path]:
    """Yield the folders of this process's CPU cgroup up to its root, of version 2, version 1 or both."""
    mounts = SYSTEM / "sys/fs/cgroup"
    for line in read_system_file(SYSTEM / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        roots = (mounts / controllers, mounts / "cpu") if controllers else (mounts, mounts / "unified")
        # A container often sees its own group as the root, under the path that the host knows.
        groups = Path(path.strip("/"))
        for root in dict.fromkeys(roots):
            yield from (root / group for group in (groups, *groups.parents))


def read_quota(folder: Path) -> float | None:
    """Return the quota of one cgroup in cores (0.5 is half a core); None where it has none."""
    words = read_system_file(folder / "cpu.max").split() or [
        read_system_file(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        return None  # "max" and -1: no limit
    return int(words[0]) / int(words[1])


def read_system_file(path: Path) -> str:
    """Return the text of a small file, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ------------------------------------------------------------------ memory


def limit_addresses() -> None:
    """Let memory go back as soon as it is freed, and threads share one arena, where `ulimit -v` limits this process.

    For programs and their workers, before they load a model. What the user has set stays.
    """
    if not is_address_space_limited():
        return
    if not any(name in os.environ for name in MEMORY_VARIABLES):
        return_freed_memory()
    if not any(name in os.environ for name in ARENA_VARIABLES):
        limit_arenas()


def is_address_space_limited() -> bool:
    """Return whether the system gives this process a part of the address space only; False but on Linux."""
    if not sys.platform.startswith("linux"):
        return False
    import resource  # noqa: PLC0415  There is none on Windows.

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def return_freed_memory() -> None:
    """Let glibc return freed memory to the system: what is free now, and from now on large tensors when they are freed.

    By itself it keeps freed tensors of up to 32 MB for the next ones: half a gigabyte of a step that failed stays this
    process's, and what other libraries ask the system for (oneDNN for its code) is refused. It stays so for the rest
    of the process, which then clears new pages for every large tensor. Does nothing with other C libraries.
    """
    run_c_function("mallopt", M_MMAP_THRESHOLD, MAPPED_BYTES)
    run_c_function("malloc_trim", 0)


def limit_arenas() -> None:
    """Let glibc give no arenas of their own to threads that are started from now on: each reserves 64 MiB of addresses.

    How many there would be depends on which threads happen to run at the same time, so that the same command is done
    or refused by chance. Does nothing with other C libraries.
    """
    run_c_function("mallopt", M_ARENA_MAX, 1)


def run_c_function(name: str, *numbers: int) -> None:
    """Run a function of this process's C library on Linux; do nothing where it has no such function."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415  Few programs need it.

    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)


# ------------------------------------------------------------------ large libraries


def import_quickly(*names: str) -> None:
    """Import modules without Python's garbage collector, and let it pass over for good what is there by then.

    torch, diffusers and transformers make some 800,000 objects that last as long as the process. The collector walks
    through all of them again and again while they are made, and once more at the end of the program: a fifth of the
    time of the imports each. What is collected is garbage in cycles only; everything else is freed as ever.

    For programs and their workers. A library that others import leaves their collector alone: `gc.freeze` keeps also
    the cycles that are garbage by now. Where all of the modules are loaded already, nothing is done.

    Args:
        names: modules, as `import` takes them.
    """
    if all(name in sys.modules for name in names):
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            import_module(name)
        gc.freeze()
    finally:
        if collecting:
            gc.enable()
