"""Starting the program loads nothing heavy; measured in fresh interpreters."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "diffusers", "transformers", "kornia", "cv2", "matplotlib", "numpy"}


def run_fresh(code):
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout


def loaded_by(statement):
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    return {name.split(".")[0] for name in json.loads(run_fresh(code))}


def test_importing_sefi_loads_no_torch():
    assert not loaded_by("import sefi") & HEAVY


def test_importing_the_program_loads_no_torch():
    assert not loaded_by("import sefi.cli.app") & HEAVY


def test_public_names_are_there_when_asked_for():
    import sefi

    assert set(sefi.__all__) >= {
        "Config",
        "Identity",
        "PRESETS",
        "SefiError",
        "generate",
        "learn",
        "open_backbone",
    }
    assert all(getattr(sefi, name) is not None for name in sefi.__all__)
    assert set(sefi.__all__) <= set(dir(sefi))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import sefi

    with pytest.raises(AttributeError, match="'sefi' has no attribute 'lern'"):
        _ = sefi.lern


def test_help_loads_no_torch():
    # How long it takes, `python experiments/engine.py start` measures.
    shown = "from sefi.cli.app import app; from typer.testing import CliRunner; found = CliRunner().invoke(app, ['-h'])"
    assert not loaded_by(f"{shown}; assert 'learn' in found.stdout") & HEAVY
