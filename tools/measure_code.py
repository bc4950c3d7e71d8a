"""Measure the source: files, lines, functions, and which files and functions learning one photo passes.

    python tools/measure_code.py            # a table
    python tools/measure_code.py --json
    python tools/measure_code.py --path     # also the files on the path, with the functions called in each

A function's length is its lines without decorators, once with its docstring and once without. The path is what Python
calls between `sefi.learn` and the saved file, of this package only, with two steps on the embedded model; what of it is
support that any program needs (`core`: seeds, progress, reading and writing files, checks of text) is counted apart,
and so is what is recorded of it (`provenance`: versions, consent), which changes nothing that is learned.
"""

import argparse
import ast
import inspect
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sefi"
WORLD = ROOT / "src" / "tiny_portraits"
SHORT = 3  # lines


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--path", action="store_true", help="list files and functions of the path")
    asked = parser.parse_args()
    path = trace_learning()
    method = {file: names for file, names in path.items() if not file.startswith(("core/", "provenance/"))}
    record: dict[str, object] = {
        "library": measure_files(sorted(SOURCE.rglob("*.py"))),
        "world": measure_files(sorted(WORLD.rglob("*.py"))),
        "learning": {
            "rooms": len({Path(file).parts[0] for file in path if "/" in file} - {"provenance"}),
            "files": len(method),
            "functions": sum(map(len, method.values())),
            "core files": sum(file.startswith("core/") for file in path),
            "provenance files": sum(file.startswith("provenance/") for file in path),
        },
    }
    print(json.dumps(record) if asked.json else format_record(record))
    if asked.path:
        for file, names in sorted(path.items()):
            print(f"{file}: {', '.join(sorted(names))}")


def measure_files(files: list[Path]) -> dict[str, float]:
    """Return the figures of some files."""
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    functions = [one for file in files for one in list_function_lengths(file)]
    lengths, bodies = sorted(length for _, length, _ in functions), sorted(body for *_, body in functions)
    return {
        "files": len(files),
        "lines": sum(lines),
        "file median": statistics.median(lines),
        "functions": len(functions),
        **measure_lengths("function", lengths),
        **measure_lengths("without docstring", bodies),
    }


def measure_lengths(name: str, lengths: list[int]) -> dict[str, float]:
    """Return median, ninth decile and maximum of sorted lengths, and the share of short ones."""
    return {
        f"{name} median": statistics.median(lengths),
        f"{name} p90": lengths[int(0.9 * len(lengths))],
        f"{name} longest": lengths[-1],
        f"{name} share of at most {SHORT} lines": round(sum(one <= SHORT for one in lengths) / len(lengths), 3),
    }


def list_function_lengths(file: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name and length of every function and method, its signature counted, with and without its docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            length = (node.end_lineno or 0) - node.lineno + 1
            yield node.name, length, length - docstring


def trace_learning() -> dict[str, set[str]]:
    """Learn for two steps; returns the functions called, by file."""
    import sefi  # noqa: PLC0415

    if not str(sefi.__file__).startswith(str(SOURCE)):
        raise SystemExit(f"error: Python finds sefi at {sefi.__file__}\n  try: PYTHONPATH={SOURCE.parent}")
    called: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        name = frame.f_code.co_qualname
        is_function = bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)  # no body of a module or a class
        if event == "call" and is_function and file.startswith(str(SOURCE)) and not name.endswith(">"):
            called.setdefault(str(Path(file).relative_to(SOURCE)), set()).add(name)

    backbone, learn = sefi.open_backbone("tiny-portraits"), sefi.learn
    config = sefi.PRESETS["scratch"]  # the method itself; what a name encoder reads comes before it
    config = config.model_copy(update={"learn": config.learn.model_copy(update={"steps": 2})})
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(note)
        try:
            photo = SOURCE / "models" / "demo" / "portrait.png"
            learn(photo, name="ada", backbone=backbone, config=config, seed=0).save(Path(folder) / "a.safetensors")
        finally:
            sys.setprofile(None)
    return called


def format_record(record: dict[str, object]) -> str:
    """Return the figures as lines."""
    return "\n".join(
        f"{part:9} " + ", ".join(f"{name} {value:g}" for name, value in figures.items())
        for part, figures in record.items()
        if isinstance(figures, dict)
    )


if __name__ == "__main__":
    main()
