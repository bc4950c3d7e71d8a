"""Threads by what a process may use; OpenMP that sleeps while it waits; whatever the user has set stays."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sefi
from sefi.core import process

VARIABLES = {*process.WAIT_VARIABLES, *process.COUNT_VARIABLES}
# What a fresh process has once torch is loaded, in a tree of cgroup files and on as many cores as it is told.
REPORT = """
import json, os, sys
from pathlib import Path
system, cores, entry = sys.argv[1], int(sys.argv[2]), sys.argv[3]
assert "torch" not in sys.modules
from sefi.core import process
process.SYSTEM = Path(system)
process.count_affine_cores = lambda: cores
if entry == "program":
    sys.argv = ["sefi", "bench", "list", "--json"]
    sys.stdout = open(os.devnull, "w")
    from sefi.cli.app import app
    try:
        app()
    except SystemExit as end:
        assert not end.code, end.code
    sys.stdout = sys.__stdout__
import torch
print(json.dumps([dict(os.environ), torch.get_num_threads()]))
"""


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def fresh(entry, system="/nowhere", cores=8, **environment):
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    path = str(Path(sefi.__file__).parent.parent)
    found = subprocess.run(
        [sys.executable, "-c", REPORT, str(system), str(cores), entry],
        env={**plain, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    variables, count = json.loads(found.stdout)
    return {name: value for name, value in variables.items() if name in VARIABLES}, count


@functools.cache
def count_threads_of_torch(**environment):
    """Return how many threads torch takes by itself: of cores that share their arithmetic it counts one."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True).stdout)


WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}


def test_importing_sefi_limits_spinning_and_chooses_no_number(tmp_path):
    quota = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"})
    variables, count = fresh("library", quota)
    assert variables == WAITING
    assert count == count_threads_of_torch()


@pytest.mark.slow
def test_the_program_takes_no_more_threads_than_the_quota_pays_for(tmp_path):
    quota = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "170000 100000\n"})
    assert fresh("program", quota) == (WAITING | {"OMP_NUM_THREADS": "1"}, 1)


@pytest.mark.slow
def test_without_a_lower_quota_the_libraries_choose(tmp_path):
    wide = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    assert fresh("program", wide) == (WAITING, count_threads_of_torch())


@pytest.mark.slow
def test_what_the_user_has_set_stays(tmp_path):
    quota = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"})
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}
    assert fresh("program", quota, **chosen) == (chosen, count_threads_of_torch(**chosen))
    assert fresh("program", quota, KMP_BLOCKTIME="200") == ({"KMP_BLOCKTIME": "200", "OMP_NUM_THREADS": "1"}, 1)


def test_a_torch_that_is_loaded_keeps_its_settings(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process, "count_usable_cores", lambda: 1)
    monkeypatch.setattr(process, "count_affine_cores", lambda: 8)
    assert "torch" in sys.modules
    process.limit_spinning()
    process.limit_threads()
    assert not VARIABLES & os.environ.keys()


def test_spinning_is_short_in_this_test_run():
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(os.environ["GOMP_SPINCOUNT"]) <= int(process.SPINS)


V1 = "4:memory:/a\n3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"
V1_FILES = {
    "proc/self/cgroup": V1,
    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
INSIDE = {  # a container sees its own group at the root of the mount, under the host's path
    "proc/self/cgroup": "2:cpu,cpuacct:/docker/abc\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}
NESTED = {
    "proc/self/cgroup": "0::/user.slice/job.scope\n",
    "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/cpu.max": "410000 100000\n",
}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 7),
        ({"proc/self/cgroup": "0::/\n"}, 7),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 7),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "290000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1900000 100000\n"}, 7),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, 7),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 0"}, 7),
        ({"proc/self/cgroup": "garbage\n\n"}, 7),
        (NESTED, 4),
        (V1_FILES, 2),
        (INSIDE, 5),
    ],
)
def test_usable_cores_are_the_least_of_affinity_and_every_quota(monkeypatch, tmp_path, files, cores):
    monkeypatch.setattr(process, "SYSTEM", write(tmp_path, files))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert process.count_usable_cores() == cores


def test_affinity_counts_where_there_is_no_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 11}, raising=False)
    assert process.count_usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert process.count_usable_cores() == 1


LOADS_TORCH = {"torch", "diffusers", "transformers"}
SCRIPTS = sorted(Path(__file__).parents[2].glob("experiments/*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_import_sefi_before_torch(script):
    names: list[str] = []
    for line in ast.parse(script.read_text()).body:
        if isinstance(line, ast.Import):
            names += [each.name.split(".")[0] for each in line.names]
        elif isinstance(line, ast.ImportFrom):
            names.append(str(line.module).split(".")[0])
    assert set(names[: names.index("sefi")] if "sefi" in names else names).isdisjoint(LOADS_TORCH)


def test_there_are_scripts():
    assert len(SCRIPTS) > 5
