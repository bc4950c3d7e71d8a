"""The table of docs/methods.md is what the methods say of themselves."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from sefi.methods import BUILT_IN

SCRIPT = Path(__file__).parents[2] / "experiments" / "methods_page.py"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_row_of_every_method(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill_page(text) == text
    assert all(f"| `{name}` (" in text for name in BUILT_IN)


def test_a_changed_row_is_noticed(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for before, after in (("two tokens", "three tokens"), ("| `tune.rank` |", "| `tune.size` |")):
        changed = text.replace(before, after)
        assert changed != text
        assert page.fill_page(changed) == text


@pytest.mark.parametrize(("kilobytes", "text"), [(4.7, "4.7 KB"), (107, "107 KB"), (300, "0.3 MB"), (59_000, "59 MB")])
def test_sizes_are_written_as_files_are_listed(page: ModuleType, kilobytes: float, text: str) -> None:
    assert page.format_size(kilobytes) == text
