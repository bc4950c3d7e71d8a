"""What the documents name exists: links, commands, options, Python names; their commands run where a reader stands."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sefi.benchmark.suite import list_bundled, open_suite
from sefi.cli.app import app
from sefi.core import __version__
from sefi.provenance.verify import verify_image

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELIABILITY.md", "examples/README.md")
DOCUMENTS = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
# A block that is the content of a file, named before it, is none of the examples: tests of the page use it.
FENCED = re.compile(r"(<!-- file: \S+ -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
MARKED = re.compile(r"(?:<!-- (?:not run: )?([^\n]*?) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
# Why a block cannot run in an empty folder; nothing else may be left out.
REASONS = (
    "installs a package",
    "needs a clone of this repository",
    "needs a clone of this repository, and hours",
    "needs a Stable Diffusion model and a photograph",
    "needs a Stable Diffusion model and photographs",
    "needs several machines",
    "needs the answers of raters",
    "starts a server",
)


def blocks(language):
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    return [body for text in texts for file, kind, body in FENCED.findall(text) if kind == language and not file]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8"))
    for file, anchor in ((file, anchor) for file, anchor in links if "://" not in file):
        target = document.parent / file if file else document
        assert target.exists(), file
        assert not anchor or anchor in headings(target), f"{file}#{anchor}"


def headings(document):
    """Return the anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands():
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["sefi"]]


def test_commands_and_options_exist():
    assert len(commands()) > 5
    for words in commands():
        path = words[1:3] if words[1] in ("world", "bench", "study", "encoder") else words[1:2]
        found = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert found.exit_code == 0, path
        for option in (word for word in words if word.startswith("--")):
            assert option in found.stdout, f"{path} has no {option}"


def test_python_examples_use_public_names():
    import sefi

    for block in blocks("python"):
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sefi"
        }
        assert used
        assert used <= set(sefi.__all__)


def test_blocks_of_commands_are_marked_as_such():
    assert not [block for block in blocks("") if re.search(r"^(sefi|pip|make|python) ", block, re.MULTILINE)]


def test_only_what_cannot_run_is_left_out():
    found = {
        (path.name, reason) for path in DOCUMENTS for reason, _, _ in MARKED.findall(path.read_text("utf-8")) if reason
    }
    assert {reason for _, reason in found if not reason.startswith("file: ")} == set(REASONS)


def test_the_suite_of_the_documents_opens(tmp_path):
    for number, block in enumerate(blocks("toml")):
        file = tmp_path / f"suite-{number}.toml"
        file.write_text(block, encoding="utf-8")
        assert open_suite(file).prompts


def runnable_blocks(document):
    """Return language and text of the blocks that can run in an empty folder."""
    return [(kind, script) for reason, kind, script in MARKED.findall(document.read_text("utf-8")) if not reason]


def pages_to_run():
    """Return the pages with blocks that can run, without those that repeat blocks of an earlier page."""
    pages, seen = [], set()
    for page in DOCUMENTS:
        found = set(runnable_blocks(page))
        if not found <= seen:
            pages.append(page)
        seen |= found
    return pages


# Whether a command runs shows after a few steps; the images of whole learning are looked at in `make demo`.
SHORT_SEFI = """#!/bin/sh
case "$*" in
learn*dreambooth*|learn*custom-diffusion*) set -- "$@" --steps 5 --set tune.prior_images=2 ;;
learn*probe_every*) set -- "$@" --steps 26 ;;
learn*|batch*) set -- "$@" --steps 5 ;;
"bench run"*) set -- "$@" --set learn.steps=5 --set generate.steps=10 ;;
*" --steps "*) ;;
generate*|attend*) set -- "$@" --steps 10 ;;
esac
exec {run} "$@"
"""
SERVER, CLIENT = (Path(__file__).with_name(f"forking_{name}.py") for name in ("server", "client"))


@pytest.fixture(scope="module")
def run_script(tmp_path_factory):
    """Run a script in a folder, with a `sefi` on the path that learns a few steps only."""
    folder = tmp_path_factory.mktemp("bin")
    program, place = folder / "sefi", folder / "socket"
    command = shlex.join([sys.executable, "-ES", str(CLIENT), str(place)])
    program.write_text(SHORT_SEFI.format(run=command), encoding="utf-8")
    program.chmod(0o755)
    paths = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    environment = {**os.environ, **paths}

    def run(folder, kind, script):
        command = ["bash", "-euc", script] if kind == "sh" else [sys.executable, "-c", script]
        made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"{script}\n{made.stdout}\n{made.stderr}"
        return made

    # Most of the time of a fresh process goes into loading libraries; tests/cli and the examples have fresh ones.
    started = [sys.executable, str(SERVER), str(place)]
    with subprocess.Popen(started, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield run
        finally:
            server.kill()


@pytest.fixture(scope="module")
def demonstrated(run_script, tmp_path_factory):
    """Return a folder where `make demo` has been."""
    folder = tmp_path_factory.mktemp("demonstrated")
    run_script(folder, "sh", "sefi demo --quick")
    return folder


@pytest.fixture
def shell(run_script, demonstrated, tmp_path):
    """Run a script in a folder of its own where `make demo` has been."""
    return partial(run_script, shutil.copytree(demonstrated, tmp_path / "folder"))


@pytest.mark.slow
def test_a_script_has_the_program_of_this_clone(run_script, tmp_path):
    made = run_script(tmp_path, "sh", "sefi --version | tee version.txt")
    assert made.stdout == (tmp_path / "version.txt").read_text() == f"sefi {__version__}\n"
    with pytest.raises(AssertionError, match="no identity file"):
        run_script(tmp_path, "sh", "sefi inspect nobody.safetensors")


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("document", pages_to_run(), ids=lambda path: path.name)
def test_every_block_runs_in_an_empty_folder(shell, document):
    for kind, script in runnable_blocks(document):
        shell(kind, script)


DRAWN = {"world.png", "engine.png"}  # by our own programs, not by a model


def test_every_generated_image_of_the_documents_is_marked():
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    found = {picture.name: verify_image(picture) for picture in pictures}
    assert len(found) > len(DRAWN)
    for name, marks in found.items():
        assert (marks.is_declared, marks.mark is not None) == (name not in DRAWN,) * 2, name


def test_suites_exist():
    named = {name for path in DOCUMENTS for name in re.findall(r"\bsuite `([^`]+)`", path.read_text(encoding="utf-8"))}
    assert named
    assert named <= set(list_bundled())


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {target for path in DOCUMENTS for target in re.findall(r"\bmake (\w+)", path.read_text())}
    assert named & {"demo", "test"} == {"demo", "test"}
    assert {"demo", "test", "check"} <= set(targets)
