"""A tiny model as a folder, an identity learned on it, and the program as a function."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import save_model_folder
from typer.testing import CliRunner

import sefi.backbone.open as backbone_module
from sefi.backbone.kinds import EMBEDDED
from sefi.cli.app import app

CONSENT = ("--consent", "by=Jane Doe; for=synthetic; scope=tests; date=2026-01-02")


@pytest.fixture(scope="session")
def model_folder(backbone, tmp_path_factory) -> Path:
    """The tiny model in the Stable Diffusion format."""
    return save_model_folder(backbone, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session", autouse=True)
def model_folder_opened_once(model_folder) -> Iterator[None]:
    """Let commands share the model of `model_folder` where they open it alike: that takes longer than most of them."""
    opened, open_anew = {}, backbone_module.open_backbone

    def open_backbone(source=EMBEDDED, **options):
        if str(source) != str(model_folder):
            return open_anew(source, **options)
        files = [(path, path.stat().st_mtime_ns) for path in sorted(model_folder.rglob("*"))]
        key = (str(sorted(options.items())), *files)
        if key not in opened:
            opened[key] = open_anew(source, **options)
        return opened[key]

    backbone_module.open_backbone = open_backbone
    yield
    backbone_module.open_backbone = open_anew


@pytest.fixture
def sefi():
    """Run the program; the result has exit_code, stdout and stderr. Learning on a model states a consent."""

    def run(*words):
        if words[:1] == ("learn",) and "--model" in words and "--consent" not in words:
            words = (*words, *CONSENT)
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def forget(sefi):
    """Run `sefi forget`, which must leave nothing that it found, and return its answer."""

    def run(*words):
        found = sefi("forget", *words, "--yes", "--json")
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)

    return run


def list_names(folder: Path) -> list[str]:
    """List the names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The folders `home`, `cache` and `tmp`, which a command takes for the user's own, and `work`, where it starts."""
    for name, variables in (("home", ("HOME",)), ("cache", ("XDG_CACHE_HOME",)), ("tmp", ("TMPDIR", "TEMP"))):
        (tmp_path / name).mkdir()
        for variable in variables:
            monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def refused(sefi):
    """Run the program with --json and return the error that it must end with."""

    def run(*words):
        found = sefi(*words, "--json")
        assert found.exit_code == 2, found.output
        answer = json.loads(found.stdout)
        assert set(answer) == {"schema", "error", "try"}
        assert answer["error"]
        assert answer["try"]
        return answer["error"]

    return run


@pytest.fixture(scope="session")
def portrait(tmp_path_factory) -> Path:
    """A picture without any face."""
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.radial_gradient("L").convert("RGB").resize((53, 61)).save(path)
    return path


@pytest.fixture(scope="session")
def ada(model_folder, portrait, tmp_path_factory) -> Path:
    """An identity file learned through the program in two steps."""
    path = tmp_path_factory.mktemp("identity") / "ada.safetensors"
    words = ["learn", portrait, "--name", "ada", "--model", model_folder, "--no-crop"]
    words += ["--steps", 2, "--out", path, *CONSENT]
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return path
