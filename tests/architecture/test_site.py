"""The documentation site has every page and every public name, and builds without warnings."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sefi

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name():
    paths = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    homes = dict(reversed(path.rsplit(".", 1)) for path in paths)
    assert homes.keys() == set(sefi.__all__)
    for name, home in homes.items():
        assert getattr(importlib.import_module(home), name) is getattr(sefi, name)


def test_every_page_is_in_the_menu():
    named = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_start_page_and_the_readme_have_the_same_example():
    code = [
        re.search(r"```python\n.*?```", path.read_text("utf-8"), re.DOTALL)[0]
        for path in (ROOT / "README.md", DOCS / "index.md")
    ]
    assert code[0] == code[1]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra `docs` (MkDocs)")
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "results" / "table1.html").is_file()
    assert 'id="sefi.api.learn"' in (tmp_path / "api.html").read_text(encoding="utf-8")
