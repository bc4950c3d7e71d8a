"""The pages' tables are what the records give."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_equal_the_records(results, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert results.BLOCK.search(text)
    assert results.filled(text) == text


def test_a_changed_number_is_noticed(results):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = results.BLOCK.search(text)[0]
    assert results.filled(text.replace(found, found.replace("0.", "1."))) == text
    assert found.replace("0.", "1.") != found


def test_the_default_beats_the_paper_preset_on_twelve_people(results):
    row = results.block("main; ours - paper: id_prompt").splitlines()[2]
    assert "**+0.5" in row
