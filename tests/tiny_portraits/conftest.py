"""What tests of several rooms of the embedded model's package need."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def package_files():
    """The script that writes the package's files, as a module."""
    path = Path(__file__).parents[2] / "experiments" / "package_files.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
