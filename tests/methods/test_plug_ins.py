"""Methods of other packages have their names everywhere; a broken one is named with its package and harms no other."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sefi
import sefi.methods.textual_inversion as original
from sefi.backbone.open import MODELS
from sefi.benchmark.suite import open_suite
from sefi.cli.app import app
from sefi.core.config import list_setting_names
from sefi.core.errors import ConfigError, IdentityError, MethodError
from sefi.identity.file import Identity, IdentityHeader, read_saved_config
from sefi.methods import METHODS, PRESETS, get_method, get_preset, is_of_tokens

INSTALLED = tuple(METHODS)  # built in, and of packages that are installed where the tests run
PORTRAIT = MODELS / "demo" / "portrait.png"
COPY = Path(original.__file__).read_text(encoding="utf-8")
OWN_SETTINGS = """

from pydantic import Field

from sefi.core.config import Section, require_config


class StartSettings(Section, frozen=True):
    scale: float = Field(1.0, gt=0, description="of the first vectors")
    words: tuple[str, ...] = Field(("a",), description="rare words")
    file: str | None = Field(None, description="none: nothing")
    option: Literal[1, 2] = Field(2, description="which")


class ScaledConfig(Config, frozen=True):
    start: StartSettings = StartSettings()


class ScaledInversion(TextualInversion):
    presets = {**PRESETS, "": {**PRESETS[""], "start": {"scale": 2.0}}}
    config_type = ScaledConfig

    def learn(self, name, views, backbone, config, seed, options):
        row = get_class_row(backbone, config)
        first = row.expand(config.learn.vectors, -1) * require_config(config, ScaledConfig).start.scale
        return learn_tokens(FreeVectors(row, first), name, views, backbone, config, seed, options)
"""
SCALED = (
    COPY.replace("from pathlib import Path", "from pathlib import Path\nfrom typing import Literal", 1) + OWN_SETTINGS
)
SUITE = """
about = "A method of another package."
prompt_lists = ["short"]
[[variants]]
label = "mine"
preset = "mine-official"
"""

Install = Callable[..., None]


@pytest.fixture
def install(install_method: Install) -> Install:
    """Install a package whose module is a copy of a method of this one, or has another text."""

    def add(package: str, code: str = COPY, method: str = "mine", place: str = "TextualInversion") -> None:
        install_method(package, code, method=method, place=place)

    return add


def run(*words: str):
    return CliRunner().invoke(app, [*words])


def test_a_copied_file_is_a_method_of_another_name(install: Install, tmp_path: Path) -> None:
    install("sefi_mine")
    assert set(METHODS) == {*INSTALLED, "mine"}
    assert type(get_method("mine").method).__module__ == "sefi_mine"
    assert is_of_tokens("mine")
    for ending in ("", "-official", "-diffusers"):
        preset, copied = get_preset(f"textual-inversion{ending}"), get_preset(f"mine{ending}")
        assert copied == preset.model_copy(update={"method": "mine"})
        assert f"mine{ending}" in list(PRESETS)
    file = tmp_path / "suite.toml"
    file.write_text(SUITE)
    suite = open_suite(file)
    assert suite.make_config(suite.variants[0]).method == "mine"


@pytest.mark.slow
def test_the_program_lists_it(install: Install) -> None:
    install("sefi_mine")
    listed = json.loads(run("methods", "--json").stdout)["methods"]
    assert listed["mine"] | {"presets": []} == listed["textual-inversion"] | {"presets": []}
    assert listed["mine"]["presets"] == ["mine", "mine-official", "mine-diffusers"]
    settings = json.loads(run("settings", "--preset", "mine", "--json").stdout)
    assert settings["method"] == "mine"
    assert settings["settings"]["learn.vectors"]["value"] == 2


@pytest.mark.slow
def test_settings_of_its_own_are_set_saved_and_read_back(install: Install, tmp_path: Path) -> None:
    install("sefi_mine", SCALED, place="ScaledInversion")
    kind = get_method("mine").config_type
    assert [get_preset(name).start.scale for name in ("mine", "mine-official")] == [2, 1]
    typed = get_preset("mine", ["start.words=x;y", "start.file=none", "start.option=1", "start.scale=3"]).start
    assert (typed.words, typed.file, typed.option, typed.scale) == (("x", "y"), None, 1, 3)

    listed = json.loads(run("settings", "--preset", "mine", "--json").stdout)["settings"]
    assert listed["start.scale"] == {"value": 2.0, "about": "of the first vectors"}
    assert list(listed) == list_setting_names(kind)

    out, norms = tmp_path / "ada.safetensors", []
    for scale in (1, 3):
        assigned = (f"start.scale={scale}", "learn.learning_rate=1e-9", "learn.batch=1", "views.latent_pool=1")
        settings = [word for setting in assigned for word in ("--set", setting)]
        words = ("--name", "ada", "--method", "mine", "--steps", "1", *settings, "--out", str(out), "--overwrite")
        found = run("learn", str(PORTRAIT), *words)
        assert found.exit_code == 0, found.output
        identity = Identity.load(out)
        assert read_saved_config(identity.header, kind).start.scale == scale
        norms.append(float(identity.tokens.norm()))
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-3)
    assert "start.scale" in run("inspect", str(out)).stdout


def test_settings_of_any_type_are_listed(install: Install) -> None:
    """A list without entries and a path were listed until values that depend on the start were."""
    words = 'words: tuple[str, ...] = Field(("a",), '
    assert words in SCALED
    code = SCALED.replace(words, 'folder: Path = Field(Path("here"), description="where")\n    ' + words)
    install("sefi_mine", code.replace('("a",)', "()"), place="ScaledInversion")
    listed = json.loads(run("settings", "--preset", "mine", "--json").stdout)["settings"]
    assert (listed["start.folder"]["value"], listed["start.words"]["value"]) == ("here", [])
    lines = {line.split()[0]: line.split()[1] for line in run("settings", "--preset", "mine").stdout.splitlines()}
    assert (lines["start.folder"], lines["start.words"]) == ("here", "none")


def test_settings_of_its_own_are_refused_for_other_methods(install: Install) -> None:
    install("sefi_mine", SCALED, place="ScaledInversion")
    with pytest.raises(ConfigError, match=r"start\.scale is a setting of mine; sefi has none of this name"):
        get_preset("default", ["start.scale=3"])
    with pytest.raises(ConfigError, match=r"tune\.rank is a setting of dreambooth-lora; mine has none of this name"):
        get_preset("mine", ["tune.rank=3"])
    with pytest.raises(ConfigError, match=r"Did you mean 'start\.scale'\? It is a setting of mine; prospect has none"):
        get_preset("prospect", ["start.skale=3"])
    with pytest.raises(ConfigError, match=r"start\.scale = '0'"):
        get_preset("mine", ["start.scale=0"])


def test_saved_settings_of_its_own_are_checked_when_they_are_read(install: Install) -> None:
    install("sefi_mine", SCALED, place="ScaledInversion")
    header = IdentityHeader(
        name="ada", method="mine", stages=1, base_model="tiny:7:aa", width=7, class_word="person", seed=0,
        library_versions={}, settings={"start": {"scale": -1, "later": 3}, "tune": {"rank": 2}},
    )  # fmt: skip
    with pytest.raises(IdentityError, match=r"settings of 'ada' are damaged: start\.scale"):
        read_saved_config(header, get_method("mine").config_type)
    header.settings["start"]["scale"] = 4
    assert read_saved_config(header, get_method("mine").config_type).start.scale == 4


def test_settings_made_for_another_method_are_refused(install: Install) -> None:
    install("sefi_mine", SCALED, place="ScaledInversion")
    mine, plain = get_preset("mine"), get_preset("default")
    for config in (plain.model_copy(update={"method": "mine"}), mine.model_copy(update={"method": "sefi"})):
        with pytest.raises(ConfigError, match="needs settings of the type"):
            sefi.learn(PORTRAIT, name="ada", config=config)


def test_nothing_is_imported_before_it_is_looked_up(install: Install) -> None:
    install("sefi_mine", "raise RuntimeError")
    assert "mine" in METHODS
    assert get_preset("default").method == "sefi"
    assert get_preset("prospect").method == "prospect"
    with pytest.raises(ConfigError, match="no method 'min'") as refused:
        get_method("min")
    assert "Did you mean 'mine'?" in refused.value.remedy
    assert "sefi_mine" not in sys.modules


WITHOUT_APPLY = "class Mine:\n    info = presets = config_type = count_weights = check = learn = None\n"
NO_INFO = "class Mine:\n    info = presets = config_type = count_weights = check = learn = apply = None\n"


@pytest.mark.parametrize(
    ("code", "place", "reason"),
    [
        ("import package_that_is_not_there", "Mine", "No module named 'package_that_is_not_there'"),
        ("class Mine(", "Mine", "SyntaxError"),
        ("", "Mine", "no attribute 'Mine'"),
        ("Mine = 3", "Mine", "'int' object is not callable"),
        ("class Mine:\n    def __init__(self, name): ...\n", "Mine", "required positional argument"),
        (WITHOUT_APPLY, "Mine", "has no apply"),
        (NO_INFO, "Mine", "is no MethodInfo"),
        (COPY.replace('    "": make_', '    "mine": make_'), "TextualInversion", "no preset of its own name"),
        (
            COPY.replace('"steps": 200', '"stops": 200'),
            "TextualInversion",
            "no setting 'learn.stops'. Did you mean 'learn.steps'?",
        ),
        (COPY.replace('"steps": 200', '"steps": 0'), "TextualInversion", "steps of 0 learn nothing"),
        (
            COPY.replace("unread=(", 'unread=("learn.droput", '),
            "TextualInversion",
            "`info.unread` names learn.droput, but it has no such setting",
        ),
        (SCALED.replace('{"scale": 2.0}', '{"skale": 2.0}'), "ScaledInversion", "no setting 'start.skale'"),
        (SCALED.replace(" = StartSettings()", ""), "ScaledInversion", "start have no default"),
        (SCALED.replace("(Config, frozen=True)", "(Section, frozen=True)"), "ScaledInversion", "nor derived from it"),
        (
            SCALED.replace("start: StartSettings =", "rank: int = 3\n    start: StartSettings ="),
            "ScaledInversion",
            "rank are in no section",
        ),
    ],
)
def test_a_broken_method_is_named_with_its_package(install: Install, code: str, place: str, reason: str) -> None:
    install("sefi_mine", code, place=place)
    for look_up in (get_method, get_preset):
        with pytest.raises(MethodError) as refused:
            look_up("mine")
        assert refused.value.problem.startswith("The method 'mine' of the package 'sefi_mine' cannot be used. ")
        assert reason in refused.value.problem
        assert refused.value.remedy.startswith("If sefi_mine is yours, correct it and install it again; ")
        assert "pip uninstall sefi_mine" in refused.value.remedy
    assert list(PRESETS) == [name for name in PRESETS if get_preset(name).method in INSTALLED]
    with pytest.raises(ConfigError, match="no preset 'fancy'"):
        get_preset("fancy")


@pytest.mark.parametrize(("method", "reason"), [("m y", "other signs"), ("default", "is that of a preset")])
def test_a_name_that_cannot_be_used_is_refused(install: Install, method: str, reason: str) -> None:
    install("sefi_mine", method=method)
    with pytest.raises(MethodError, match=reason):
        get_method(method)
    assert get_preset("default").method == "sefi"


@pytest.mark.slow
def test_the_program_lists_the_others_and_names_the_broken_one(install: Install) -> None:
    install("sefi_mine", "raise RuntimeError('too old')")
    found = run("methods", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["methods"].keys() == set(INSTALLED)
    assert "note: The method 'mine' of the package 'sefi_mine' cannot be used. RuntimeError: too old." in found.stderr
    refused = run("settings", "--preset", "mine")
    assert refused.exit_code == 2
    assert "sefi_mine" in refused.stderr


def test_two_packages_with_one_name_are_named(install: Install) -> None:
    install("sefi_mine")
    install("sefi_yours")
    with pytest.raises(MethodError, match="comes from several packages: 'sefi_mine' and 'sefi_yours'") as refused:
        get_method("mine")
    assert "pip uninstall sefi_yours" in refused.value.remedy
    assert get_method("prospect")


def test_a_package_cannot_take_the_name_of_a_method_of_sefi(install: Install) -> None:
    install("sefi_mine", method="prospect")
    with pytest.raises(MethodError, match="from sefi itself and from 'sefi_mine'") as refused:
        get_preset("prospect-official")
    assert "pip uninstall sefi_mine" in refused.value.remedy
    assert get_method("sefi")
