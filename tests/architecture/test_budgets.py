"""Every file says one thing, no function is long, and the library stays a number of files that one can know."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
LONGEST_FUNCTION = 60  # lines, its docstring not counted
LATER_COMMANDS = ("verify", "compare", "forget", "key", "score", "encoder", "serve", "batch")
LATER_FILES = (
    "benchmark/scored_folder.py",  # layouts of other programs, of no use to a run of our own
    "methods/name_encoder.py",  # it is fitted once a model; the method only asks it
    "methods/other_packages.py",  # around each method of another package, of which most users have none
    "evaluation/second_recogniser.py",  # a network that methods learn with, apart from those that compare them
    "training/memory.py",  # a limit of memory, asked only by who names one
    "training/compiling.py",  # a compiled denoiser and its proof, for who sets learn.compile
    "training/person_loss.py",  # steps by a face recogniser, for who sets learn.person_steps
    "training/together.py",  # identities that share the passes of one model
    # The HTTP service, which nothing else imports: what is asked, who is there, what is drawn at once, the answers.
    *(f"serve/{name}.py" for name in ("__init__", "limits", "identities", "batching", "app")),
    # Photos of hundreds: what is to be learned, one item, and who does it; nothing else imports them.
    *(f"batch/{name}.py" for name in ("__init__", "plan", "run", "workers", "ray_engine")),
)
FILES = sorted(SOURCE.rglob("*.py"))


@pytest.fixture(scope="module")
def tool():
    """The script that measures the code."""
    spec = importlib.util.spec_from_file_location("measure_code", ROOT / "tools" / "measure_code.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_one_docstring_and_short_functions(tool, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a file begins with one sentence on what it does"
    assert not [name for name, _, body in tool.list_function_lengths(path) if body > LONGEST_FUNCTION]


def test_files_and_functions_are_neither_too_many_nor_too_small(tool):
    library, world = (tool.measure_files(sorted(folder.rglob("*.py"))) for folder in (tool.SOURCE, tool.WORLD))
    # What came later: one file for each kind that another program reads, one for each kind of mark, one a command.
    later = [path for room in ("hosts", "provenance") for path in (tool.SOURCE / room).glob("*.py")]
    later += [path for name in LATER_COMMANDS if (path := tool.SOURCE / "cli" / f"{name}.py").is_file()]
    later += [path for name in LATER_FILES if (path := tool.SOURCE / name).is_file()]
    assert library["files"] - len(later) <= 110
    assert world["files"] <= 45
    assert 8 <= library["function median"] <= 14
    assert library["function p90"] <= 30


@pytest.mark.slow
def test_learning_a_photo_passes_few_rooms_and_files(tool):
    """Of the method: what is recorded of learning (`provenance`) is counted apart, as the tool says."""
    path = [file for file in tool.trace_learning() if not file.startswith("provenance/")]
    rooms = {Path(file).parts[0] for file in path if "/" in file}
    assert len(rooms) <= 7
    # Two of them are what an interrupted or failed training goes back to: training/checkpoint.py, training/probe.py;
    # one says whether an encoder can give the start: methods/name_encoder.py.
    assert len([file for file in path if not file.startswith("core/")]) <= 18
