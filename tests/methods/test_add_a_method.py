"""A reader who does what docs/add-a-method.md says has a method of their own that passes every check."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

import sefi
from sefi.backbone.open import MODELS
from sefi.cli.app import app
from sefi.identity.file import Identity
from sefi.methods import METHODS
from sefi.testing import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-method.md"
BLOCK = re.compile(r"<!-- (file|not run): (\S+)[^\n]* -->\n```(\w+)\n(.*?)```", re.DOTALL)


class Reader:
    """Somebody with an empty folder, `sefi` installed, and the portrait that `sefi demo` writes.

    What `pip install` would do, where no network is needed: put what the build backend would pack of a folder, and the
    entry points of its pyproject.toml, on the path. The program runs in this process, which has the model's code
    loaded.
    """

    def __init__(self, folder: Path, site: Path, programs: Path) -> None:
        self.folder, self.site, self.programs, self.answers = folder, site, programs, dict[str, str]()

    def do(self, command: str) -> None:
        """Carry out one line."""
        match shlex.split(command):
            case ["sefi", *words]:
                found = CliRunner().invoke(app, words)
                assert found.exit_code == 0, found.output
                self.answers[command] = found.stdout
            case ["pip", "install", where]:
                self.install(self.folder / where)
            case _:
                paths = {
                    "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": f"{Path(sefi.__file__).parents[1]}{os.pathsep}{self.site}",
                }
                made = subprocess.run(
                    ["bash", "-euc", command],
                    cwd=self.folder,
                    env={**os.environ, **paths},
                    capture_output=True,
                    text=True,
                )
                assert made.returncode == 0, f"{command}\n{made.stdout}\n{made.stderr}"
                self.answers[command] = made.stdout

    def install(self, folder: Path) -> None:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = self.site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(head, encoding="utf-8")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
        for packed in WheelBuilder(str(folder)).recurse_included_files():
            (self.site / packed.distribution_path).write_bytes(Path(packed.path).read_bytes())
        METHODS.refresh()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    folder, site, programs = (tmp_path / name for name in ("folder", "site", "programs"))
    for made in (folder / "demo", site, programs):
        made.mkdir(parents=True)
    (folder / "demo" / "portrait.png").write_bytes((MODELS / "demo" / "portrait.png").read_bytes())
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(site)
    yield Reader(folder, site, programs)
    monkeypatch.undo()
    METHODS.refresh()
    for name in ("my_method", "my_scaled_method"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.world
def test_the_page_leads_to_a_method_that_passes_every_check(reader: Reader) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [kind for _, _, kind, _ in blocks] == ["sh", "toml", "sh", "python", "sh", "python", "sh"]
    for what, name, _, text in blocks:
        if what == "file":
            (reader.folder / name).write_text(text, encoding="utf-8")
        else:
            for command in text.splitlines():
                reader.do(command)
    assert Identity.load(reader.folder / "ada.safetensors").method == "my-method"
    assert "my-method" in reader.answers["sefi methods"]
    assert "start.scale" in reader.answers["sefi settings --preset my-method"]
    assert "start.scale" not in reader.answers["sefi settings --preset my-method-official"]  # before it had any
    assert Identity.load(reader.folder / "bob.safetensors").header.settings["start"] == {"scale": 0.9}
    assert re.search(r"settings\.start\.scale +0\.9", reader.answers["sefi inspect bob.safetensors"])
    assert METHODS["my-method"].info.title == "Scaled Inversion"
    assert f"{len(CHECKS)} passed" in reader.answers["python -m pytest my-method"]


def test_every_block_of_the_page_is_tried() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^```\w+$", text, re.MULTILINE)) == len(BLOCK.findall(text))
