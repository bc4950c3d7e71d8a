"""What a benchmark run and its samples hold is read by the fields of their types, never by the keys of the files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TYPED = Path("src/sefi/benchmark/records.py")  # the only place that knows the keys
# Variables that hold a record, or a part of one. Elsewhere `run` and `suite` may be mappings of another kind.
ANYWHERE = {"cell", "sample"}
IN_BENCHMARKS = ANYWHERE | {"about", "info", "run", "run_info", "suite", "way", "variant", "prompt", "c"}
ROOMS = (
    "src/sefi/benchmark/",
    "src/sefi/report/",
    "src/sefi/cli/bench",
    "src/sefi/cli/study",
    "experiments/results.py",
)


def find_key_reads(source, names):
    """Lines that read a text key of one of these variables, or of a part of it, as `name["key"]` or `.get("key")`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(value=value, slice=ast.Constant(value=str())):
                pass
            case ast.Call(func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str()), *_]):
                pass
            case _:
                continue
        if name_of(value) in names:
            yield node.lineno


def name_of(node):
    """The variable that an expression begins with: `run` of `run.suite["ways"][0]`."""
    while isinstance(node, (ast.Subscript, ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def python_files():
    return [file.relative_to(ROOT) for room in ("src", "experiments") for file in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize(
    "line",
    [
        'cell["way"]',
        'about["suite"]["ways"]',
        'run.get("tau")',
        'run.suite["prompts"][0]',
        'sample.get("id", 0.0)',
        "f\"{c['subject']}\"",
        'cell["seed"] = 3',
    ],
)
def test_a_read_by_key_is_found(line):
    assert set(find_key_reads(f"x = 0\n{line}\n", IN_BENCHMARKS)) == {2}


@pytest.mark.parametrize("line", ['names["way"]', "cell[0]", "run[name]", 'cell.get_text("x")', 'f(cell)["way"]'])
def test_other_reads_are_not(line):
    assert not list(find_key_reads(line, IN_BENCHMARKS))


def test_no_record_of_a_benchmark_is_read_by_the_keys_of_its_file():
    found = []
    for path in python_files():
        if path == TYPED:
            continue
        names = IN_BENCHMARKS if path.as_posix().startswith(ROOMS) else ANYWHERE
        source = (ROOT / path).read_text(encoding="utf-8")
        found += [f"{path}:{line}" for line in find_key_reads(source, names)]
    assert found == []
