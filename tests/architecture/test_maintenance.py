"""What maintainers rely on: workflows, hooks, citation and package data are valid and agree with each other."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sefi

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^(\w+):$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def test_there_are_workflows_for_lint_tests_documents_and_releases():
    assert {path.stem for path in WORKFLOWS} >= {"lint", "tests", "docs", "release"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_make_targets_only(path):
    commands = [step["run"] for step in steps(read_yaml(path)) if "run" in step]
    assert commands
    for command in commands:
        assert re.fullmatch(r'make (\w+)( \w+=("[^"]*"|\w+))*', command), command
        assert command.split()[1] in TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_only_read_and_know_no_secret(path):
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in path.read_text(encoding="utf-8")
    wider = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert wider == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_workflows_that_exist_and_name_the_version_of_every_action(path):
    workflow = read_yaml(path)
    used = [each["uses"] for each in [*steps(workflow), *workflow["jobs"].values()] if "uses" in each]
    assert used
    for name in used:
        assert (ROOT / name).is_file() if name.startswith("./") else re.fullmatch(r"[\w/-]+@[\w./]+", name), name


def test_tests_run_on_linux_and_macos_from_the_oldest_supported_python():
    matrix = read_yaml(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert matrix["python-version"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={matrix['python-version'][0]}"


def test_the_hooks_run_the_ruff_of_the_project():
    hooks = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    (ruff,) = [name for name in PROJECT["optional-dependencies"]["dev"] if name.startswith("ruff")]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format"]
    assert all(hook["additional_dependencies"] == [ruff] for hook in hooks)


def test_the_citation_names_this_version_and_the_paper():
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (sefi.__version__, PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2402.00631"}]
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Yang", "Wang", "Dong"]


def test_every_dependency_is_pinned_to_a_version_that_the_project_allows():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pins}
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for one in map(Requirement, PROJECT["dependencies"] + extras):
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), f"{one}: run `make lock`"


# ------------------------------------------------------------------ what the program imports

# Files that are imported where an extra is asked for, and the packages of it that they import.
OF_EXTRAS = {
    "serve/app.py": {"fastapi", "prometheus_client", "starlette"},
    "serve/limits.py": {"starlette"},
    "batch/ray_engine.py": {"ray"},
}


def list_imports_at_start(tree):
    """The first names of all modules that a file imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "sefi").rglob("*.py")), ids=lambda path: path.name)
def test_files_import_dependencies_only_when_they_are_imported(path):
    needed = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    known = {name for name, owners in packages_distributions().items() if needed & {*map(canonicalize_name, owners)}}
    allowed = known | sys.stdlib_module_names | OF_EXTRAS.get(str(path.relative_to(ROOT / "src" / "sefi")), set())
    found = set(list_imports_at_start(ast.parse(path.read_text(encoding="utf-8"))))
    assert found - allowed <= {"sefi", "huggingface_hub", "pydantic_core"}  # they come with diffusers and pydantic
