"""The examples and the notebook run, with a few steps."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
QUICK = ["learn.steps=2", "generate.steps=2", "views.latent_pool=0"]
NOTEBOOK = EXAMPLES / "learn_generate_attend.ipynb"
MADE = {
    "learn_and_generate.py": ("out", ["out/sheet.png", "out/ada.safetensors"]),
    "several_people.py": ("out", ["out/0.png", "out/1.png"]),
    "attention_maps.py": ("maps.png", ["maps.png"]),
}


def test_every_example_is_run_and_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == MADE.keys()
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in listed for name in (*MADE, NOTEBOOK.name))


def test_ada_is_the_person_of_the_demo():
    assert (EXAMPLES / "ada.png").read_bytes() == (ROOT / "src/sefi/models/demo/portrait.png").read_bytes()


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.parametrize("name", MADE)
def test_an_example_runs(name, tmp_path):
    out, files = MADE[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(EXAMPLES / name), "--quick", "--out", out]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert [file for file in files if not (tmp_path / file).is_file()] == []


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_has_no_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells())


@pytest.mark.slow
@pytest.mark.world
def test_the_notebook_runs(tmp_path, monkeypatch):
    shutil.copy(EXAMPLES / "ada.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    sources = ["".join(cell["source"]) for cell in code_cells()]
    quick = [source.replace("settings = []", f"settings = {QUICK}") for source in sources]
    assert quick != sources
    variables = {}
    shown = [run_cell(source, variables) for source in quick]
    assert sum(isinstance(value, Image.Image) for value in shown) == 3
    assert shown[-1] == "ada"
    assert (tmp_path / "maps.png").is_file()


def run_cell(source, variables):
    """Run a cell as Jupyter would; return the value of its last line, if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), variables)  # the notebook is a file of this repository
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), variables)
    if isinstance(value, Image.Image):
        value.load()  # Jupyter shows it
    return value
