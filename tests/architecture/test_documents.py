"""What the documents name exists: links, commands, options, Python names."""

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sefi.cli.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(language):
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    return [body for text in texts for kind, body in FENCED.findall(text) if kind == language]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def commands():
    lines = [line.split("#")[0] for block in blocks("") for line in block.splitlines()]
    return [line.split() for line in lines if line.startswith("sefi ")]


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


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {target for path in DOCUMENTS for target in re.findall(r"\bmake (\w+)", path.read_text())}
    assert named & {"demo", "test"} == {"demo", "test"}
    assert {"demo", "test", "check"} <= set(targets)
