"""How the program starts, helps, completes, and what it ships with."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import sefi as package
from sefi.cli.app import app
from sefi.cli.output import SCHEMAS, print_answer

ROOT = Path(__file__).parents[2]


def commands(command, path=()):
    """Every command that does something, as the words that call it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return [path]
    return [found for name, one in inner.items() for found in commands(one, (*path, name))]


COMMANDS = commands(get_command(app))
GROUPS = [(), ("bench",), ("encoder",), ("study",), ("world",)]


def run(*words, **environment):
    command = [sys.executable, "-m", "sefi", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment or None)


@pytest.mark.slow
def test_the_package_is_a_program():
    found = run("--version")
    assert found.returncode == 0
    assert found.stdout == f"sefi {package.__version__}\n"
    assert "Usage: sefi " in run("-h").stdout  # not "python -m sefi" or "__main__.py"


@pytest.mark.parametrize("path", [*GROUPS, *COMMANDS], ids=" ".join)
def test_h_helps_everywhere(path):
    short, long = (CliRunner().invoke(app, [*path, option]) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.stdout == long.stdout
    assert "Usage" in short.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_whole_in_a_narrow_terminal(path):
    found = CliRunner().invoke(app, [*path, "-h"], env={"COLUMNS": "80", "NO_COLOR": "1"}).stdout
    assert "…" not in re.sub(r"--\S+", "", found)  # it stands where a word is cut, as an option's earlier names are
    assert "...}..." not in found


def test_the_shell_completes_commands():
    environment = {"_SEFI_COMPLETE": "complete_bash", "COMP_WORDS": "sefi lea", "COMP_CWORD": "1"}
    found = run(**environment, PYTHONPATH=str(Path(package.__file__).parents[1]), PATH="/usr/bin:/bin")
    assert found.stdout.split() == ["learn"]
    assert "--show-completion" in CliRunner().invoke(app, ["-h"], env={"COLUMNS": "200"}).stdout


def test_the_package_says_that_it_is_typed():
    assert (files("sefi") / "py.typed").is_file()


# ------------------------------------------------------------------ JSON


def test_every_command_that_speaks_json_has_a_schema():
    speaking = {" ".join(path) for path in COMMANDS if "--json" in CliRunner().invoke(app, [*path, "-h"]).stdout}
    assert speaking == set(SCHEMAS)


def test_keys_that_are_not_documented_cannot_be_printed():
    with pytest.raises(AssertionError, match="bench list"):
        print_answer({"suites": {}, "more": 1}, "", as_json=True, command="bench list")
    with pytest.raises(AssertionError, match="bench list"):
        print_answer({}, "", as_json=True, command="bench list")


def documented():
    """Command, version, and key to meaning, as docs/json.md has them."""
    found = {}
    for section in (ROOT / "docs" / "json.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        head, *lines = section.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
        found[head.strip("`")] = {key.strip("`"): meaning for key, meaning in rows}
    return found


def test_the_document_names_exactly_these_keys():
    schemas = {f"{name}/{schema.version}": schema for name, schema in SCHEMAS.items()}
    assert documented() == {name: schema.keys for name, schema in schemas.items()}


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("command", ["methods", "settings", "doctor", "bench list", "world words"])
def test_what_is_printed_has_the_documented_keys(sefi, command):
    import json

    record = json.loads(sefi(*command.split(), "--json").stdout)
    schema = record.pop("schema")
    assert schema == f"{command}/{SCHEMAS[command].version}"
    assert set(record) == set(documented()[schema])
