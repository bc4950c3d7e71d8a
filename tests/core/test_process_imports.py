"""Large libraries are imported without the garbage collector, in programs only."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

import sefi
from sefi.core.process import import_quickly

PORTRAIT = Path(sefi.__file__).parent / "models" / "demo" / "portrait.png"
IMPORT_NEW_MODULE = """
import gc, sys
from sefi.core.process import import_quickly
collections = []
gc.callbacks.append(lambda phase, _: collections.append(phase))
getattr(gc, sys.argv[1])()
sys.path.insert(0, sys.argv[2])
try:
    import_quickly("many_objects")
except RuntimeError:
    print("failed")
assert gc.isenabled() == (sys.argv[1] == "enable")
print(len(collections), gc.get_freeze_count() > 10_000)
"""
RUN_COMMAND = """
import gc, sys
from sefi.cli.app import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
assert gc.isenabled()
print(gc.get_freeze_count() > 300_000, file=sys.stderr)
"""


def run(program, *words):
    path = str(Path(sefi.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_nothing_is_collected_meanwhile_and_what_is_loaded_is_passed_over_for_good(tmp_path, before):
    (tmp_path / "many_objects.py").write_text("everything = [[] for _ in range(20_000)]\n")
    assert run(IMPORT_NEW_MODULE, before, tmp_path).stdout == "0 True\n"


def test_a_module_that_cannot_be_loaded_leaves_the_collector_as_it_was(tmp_path):
    (tmp_path / "many_objects.py").write_text("everything = [[] for _ in range(20_000)]\nraise RuntimeError\n")
    failed, counts = run(IMPORT_NEW_MODULE, "enable", tmp_path).stdout.splitlines()
    assert (failed, counts.split()[1]) == ("failed", "False")


def test_nothing_is_done_for_modules_that_are_loaded():
    before = gc.get_freeze_count()
    import_quickly("sys", "gc")
    assert gc.get_freeze_count() == before


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "words",
    [
        ("learn", PORTRAIT, "--name", "ada", "--steps", "1", "--out", "ada.safetensors"),
        ("generate", "a photo of a person", "--steps", "1", "--count", "1", "--out", "images"),
        ("attend", "a photo of a person", "--steps", "1", "--out", "maps.png"),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_need_a_model_import_so(words, tmp_path):
    words = [tmp_path / word if before == "--out" else word for before, word in zip(("", *words), words, strict=False)]
    assert run(RUN_COMMAND, *words).stderr.splitlines()[-1] == "True"
