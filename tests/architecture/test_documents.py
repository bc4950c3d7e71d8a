"""What the documents name exists: links, commands, options, Python names; their commands run where a reader stands."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sefi.bench.suite import open_suite
from sefi.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
DOCUMENTS = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MARKED = re.compile(r"(?:<!-- not run: (.*?) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
# Why a block cannot run in an empty folder; nothing else may be left out.
REASONS = (
    "needs a clone of this repository",
    "needs a clone of this repository, and hours",
    "needs a Stable Diffusion model and a photograph",
    "needs a Stable Diffusion model and photographs",
    "needs the answers of raters",
)


def blocks(language):
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    return [body for text in texts for kind, body in FENCED.findall(text) if kind == language]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8"))
    for file, anchor in ((file, anchor) for file, anchor in links if "://" not in file):
        target = document.parent / file if file else document
        assert target.exists(), file
        assert not anchor or anchor in headings(target), f"{file}#{anchor}"


def headings(document):
    """Return the anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands():
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["sefi"]]


def test_commands_and_options_exist():
    assert len(commands()) > 5
    for words in commands():
        path = words[1:3] if words[1] in ("world", "bench", "study") else words[1:2]
        found = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert found.exit_code == 0, path
        for option in (word for word in words if word.startswith("--")):
            assert option in found.stdout, f"{path} has no {option}"


def test_python_examples_use_public_names():
    import sefi

    for block in blocks("python"):
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sefi"
        }
        assert used
        assert used <= set(sefi.__all__)


def test_blocks_of_commands_are_marked_as_such():
    assert not [block for block in blocks("") if re.search(r"^(sefi|pip|make|python) ", block, re.MULTILINE)]


def test_only_what_cannot_run_is_left_out():
    found = {
        (path.name, reason) for path in DOCUMENTS for reason, _, _ in MARKED.findall(path.read_text("utf-8")) if reason
    }
    assert {reason for _, reason in found} == set(REASONS)


def test_the_suite_of_the_documents_opens(tmp_path):
    for number, block in enumerate(blocks("toml")):
        file = tmp_path / f"suite-{number}.toml"
        file.write_text(block, encoding="utf-8")
        assert open_suite(file).prompts


RUNNABLE = [path for path in DOCUMENTS if any(not reason for reason, *_ in MARKED.findall(path.read_text("utf-8")))]


@pytest.fixture
def shell(tmp_path):
    """Run a script in an empty folder where `make demo` has been, with `sefi` on the path."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sefi"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sefi "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}

    def run(kind, script):
        command = ["bash", "-euc", script] if kind == "sh" else [sys.executable, "-c", script]
        environment = {**os.environ, **paths}
        made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"{script}\n{made.stdout}\n{made.stderr}"
        return made

    run("sh", "sefi demo --quick")
    return run


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("document", RUNNABLE, ids=lambda path: path.name)
def test_every_block_runs_in_an_empty_folder(shell, document):
    for reason, kind, script in MARKED.findall(document.read_text(encoding="utf-8")):
        if not reason:
            shell(kind, script)


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {target for path in DOCUMENTS for target in re.findall(r"\bmake (\w+)", path.read_text())}
    assert named & {"demo", "test"} == {"demo", "test"}
    assert {"demo", "test", "check"} <= set(targets)
