"""Block this process and the programs that it starts, as `sitecustomize.py` says; importing this file does it."""

import os
import runpy
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BLOCK = runpy.run_path(str(FOLDER / "sitecustomize.py"))
REPORTS = tempfile.TemporaryDirectory(prefix="sefi-tests-")
REPORT = Path(REPORTS.name) / "refused"  # of this process and those that it starts
os.environ[BLOCK["REPORT"]] = str(REPORT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))


def refuse_to_load(*arguments: Any, **options: Any) -> None:
    """Stand in the place of torch's reader of pickled files, whose own unpickler tells no audit hook."""
    BLOCK["fail"]("torch.load")


def read_refusals() -> list[str]:
    """Return what was refused since the last time, here and in the programs that were started."""
    if not REPORT.exists():
        return []
    lines = REPORT.read_text(encoding="utf-8").splitlines()
    REPORT.unlink()
    return lines
