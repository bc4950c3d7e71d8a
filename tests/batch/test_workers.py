"""Workers that are killed with signal 9 lose and repeat nothing, in processes and on Ray; all end with the batch."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tests.batch.conftest import make_photos

ROOT = Path(__file__).parents[2]
PEOPLE = 20
FAST = ("--steps", "1", "--set", "learn.batch=1", "--set", "generate.steps=1", "--no-crop", "--any-style")
# A worker process imports the program's main file again: there somebody's training kills it, or fails.
PROGRAM = """
import os, signal
import sefi.batch.run

whole = sefi.batch.run.learn

def learn(crops, **options):
    if options["name"] == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    if options["name"] == "worse":
        raise RuntimeError("CUDA error: device-side assert triggered")
    return whole(crops, **options)

sefi.batch.run.learn = learn
if __name__ == "__main__":
    from sefi.cli.app import app
    app()
"""


def start(folder, *words, program=("-m", "sefi")):
    # Ray's own processes connect to each other on this machine and unpickle what they send: no block of ours there.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, "batch", "photos", *words, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def read_finished(folder):
    """Return when the identity of each item that is finished was written."""
    finished = {}
    for path in (folder / "identities" / "records").glob("[!.]*.json"):  # none that is being written
        if json.loads(path.read_text())["state"] == "learned":
            finished[path.stem] = (folder / "identities" / f"{path.stem}.safetensors").stat().st_mtime_ns
    return finished


def read_process_table():
    """Return parent and words of each process of this machine."""
    table = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            table[int(path.name)] = (parent, path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, ValueError):
            continue
    return table


def find_workers(parent, words):
    """Return the processes below one whose command has some words."""
    table, found, below = read_process_table(), [], [parent]
    while below:
        above = below.pop()
        children = [pid for pid, (one, _) in table.items() if one == above]
        found += [pid for pid in children if words in table[pid][1]]
        below += children
    return found


def is_running(pid):
    """Return whether a process runs; one that has ended stays in the table as a zombie where nobody asks for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_finished(program, folder, count):
    while len(read_finished(folder)) < count:
        assert program.poll() is None, program.communicate()
        time.sleep(0.2)


def draw_people(folder, count):
    """Write portraits of drawn people."""
    pytest.importorskip("skia")
    from tiny_portraits.drawing.image import draw
    from tiny_portraits.drawing.sampling import make_portrait, make_test_person

    folder.mkdir()
    for number in range(count):
        Image.fromarray(draw(make_portrait(make_test_person(number), number, 0), 128)).save(folder / f"p{number}.png")


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_twenty_people_are_learned_though_a_worker_is_killed_and_none_twice(tmp_path, engine):
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    draw_people(tmp_path / "photos", PEOPLE)
    program = start(tmp_path, "--engine", engine, "--jobs", "2", *FAST)
    try:
        wait_for_finished(program, tmp_path, 5)
        before = read_finished(tmp_path)
        victim = find_workers(program.pid, "spawn_main" if engine == "processes" else "ray::RayWorker")[0]
        os.kill(victim, signal.SIGKILL)
        answer, errors = program.communicate()
    finally:
        program.kill()
    assert program.returncode == 0, errors
    assert len(json.loads(answer)["learned"]) == PEOPLE
    after = read_finished(tmp_path)
    assert len(after) == PEOPLE
    assert before.items() <= after.items()
    again = start(tmp_path, *FAST)
    answer, errors = again.communicate()
    assert (json.loads(answer)["learned"], len(json.loads(answer)["finished"])) == ([], PEOPLE)
    assert read_finished(tmp_path) == after


@pytest.mark.slow
@pytest.mark.world
def test_somebody_who_kills_each_worker_is_put_aside_and_the_others_are_learned(tmp_path):
    make_photos(tmp_path / "photos", ("bad", "worse", "good", "best"))
    (tmp_path / "program.py").write_text(PROGRAM)
    program = start(tmp_path, "--jobs", "2", "--tries", "2", "--no-previews", *FAST, program=("program.py",))
    answer, errors = program.communicate()
    assert program.returncode == 1, errors
    answer = json.loads(answer)
    assert answer["learned"] == ["best", "good"]
    assert {one["name"]: (one["tries"], one["put_aside"]) for one in answer["failed"]} == {
        "bad": (2, True),
        "worse": (2, True),
    }
    assert "killed" in answer["failed"][0]["problem"]
    assert "device-side" in answer["failed"][1]["problem"]


@pytest.mark.slow
@pytest.mark.world
def test_a_batch_that_is_killed_ends_its_workers_and_its_items_are_not_to_blame(tmp_path):
    draw_people(tmp_path / "photos", 4)
    program = start(tmp_path, "--jobs", "2", "--tries", "1", *FAST)
    wait_for_finished(program, tmp_path, 1)
    workers = find_workers(program.pid, "spawn_main")
    assert len(workers) == 2
    program.kill()
    program.communicate()
    begun = time.monotonic()
    while any(map(is_running, workers)):
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    before = read_finished(tmp_path)
    program = start(tmp_path, "--jobs", "2", "--tries", "1", *FAST)
    _, errors = program.communicate()
    assert program.returncode == 0, errors
    assert before.items() <= read_finished(tmp_path).items()


@pytest.mark.slow
@pytest.mark.world
def test_an_interrupted_batch_says_how_far_it_is_and_goes_on(tmp_path):
    draw_people(tmp_path / "photos", 4)
    program = start(tmp_path, "--jobs", "2", *FAST)
    wait_for_finished(program, tmp_path, 1)
    program.send_signal(signal.SIGTERM)
    answer, _ = program.communicate()
    assert program.returncode == 143
    assert "of 4 identities are in" in json.loads(answer)["error"]
    assert not any(
        json.loads(path.read_text())["state"] == "started" for path in tmp_path.glob("identities/records/*.json")
    )
