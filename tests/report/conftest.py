"""The made-up run of tests/bench as a fixture."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "bench" / "synthetic.py"


@pytest.fixture(scope="session")
def synthetic():
    """The module itself: `make_run`, `make_cells`, `write_run`."""
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
