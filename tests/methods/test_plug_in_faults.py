"""What a method of another package raises or returns in error is an error that names the method and its package."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sefi
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.cli.app import app
from sefi.core.errors import ConfigError, MethodError
from sefi.core.progress import SilentProgress
from sefi.identity.file import Identity
from sefi.methods import METHODS, get_method, get_preset, is_of_tokens
from sefi.methods.base import check_method

PORTRAIT = MODELS / "demo" / "portrait.png"
FEW = ["learn.steps=2", "learn.batch=1", "views.latent_pool=1"]
OWNER = "The method 'mine' of the package 'sefi_mine'"
INSTALL = Callable[..., None]
MINE = """
import errno

from sefi.core.errors import ConfigError
from sefi.identity.file import Identity
from sefi.methods.base import create_header, learn_tokens
from sefi.methods.textual_inversion import TextualInversion


class Late(ImportError):
    pass


def stop(kind):
    try:
        raise kind
    except BaseException:
        raise ImportError("initialization failed")


class Mine(TextualInversion):
    def {member}(self, *arguments, **named):
        {body}
"""


def write_code(body: str, member: str = "learn") -> str:
    return MINE.format(body=body, member=member)


def learn_with(backbone: Backbone, **options: object) -> Identity:
    return sefi.learn(PORTRAIT, name="ada", backbone=backbone, config=get_preset("mine", FEW), **options)


def run(*words: str):
    return CliRunner().invoke(app, [*words])


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("raise KeyError('tokens')", KeyError, "raised KeyError in `learn`: 'tokens'."),
        ("return self.missing", AttributeError, "raised AttributeError in `learn`: 'Mine' object has no attribute"),
        ("raise ValueError('two\\n  lines')", ValueError, "raised ValueError in `learn`: two lines."),
        ("raise AssertionError", AssertionError, "raised AssertionError in `learn`."),
        ("raise FileNotFoundError(errno.ENOENT, 'No file', 'a')", FileNotFoundError, "raised FileNotFoundError in"),
        ("raise Late('x' * 1000)", ImportError, f"raised Late in `learn`: {'x' * 300}."),
        ("return super().learn(*arguments[:4])", TypeError, "raised TypeError in `learn`: TextualInversion.learn() "),
    ],
)
def test_what_learning_raises_is_named_with_its_package(
    embedded: Backbone, install_method: INSTALL, body: str, kind: type, said: str
) -> None:
    install_method("sefi_mine", write_code(body))
    with pytest.raises(MethodError) as refused:
        learn_with(embedded)
    assert refused.value.problem.startswith(f"{OWNER} {said}")
    assert isinstance(refused.value.__cause__, kind)
    assert refused.value.__cause__.__traceback__ is not None
    assert "If sefi_mine is yours" in refused.value.remedy
    assert "--debug" in refused.value.remedy


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "returned None from `learn` in place of Identity."),
        ("return {'tokens': 3}", "returned an object of the type dict from `learn` in place of Identity."),
        ("return Identity", "returned an object of the type type from `learn` in place of Identity."),
        ("return Identity({'tokens': 3}, create_header('ada', *arguments[2:5]))", "an Identity whose tensors are"),
        ("return Identity({}, create_header('ada', *arguments[2:5]))", "an Identity whose tensors are"),
        ("return Identity(None, create_header('ada', *arguments[2:5]))", "an Identity whose tensors are"),
        ("return Identity(super().learn(*arguments).tensors, {})", "an Identity whose header is no IdentityHeader"),
    ],
)
def test_what_is_no_identity_is_named_with_its_package(
    embedded: Backbone, install_method: INSTALL, body: str, said: str
) -> None:
    install_method("sefi_mine", write_code(body))
    with pytest.raises(MethodError) as refused:
        learn_with(embedded)
    assert refused.value.problem.startswith(OWNER)
    assert said in refused.value.problem
    assert "If sefi_mine is yours" in refused.value.remedy


def test_tokens_of_a_wrong_shape_are_named_with_the_package(embedded: Backbone, install_method: INSTALL) -> None:
    code = "from torch import zeros\nfrom sefi.identity.tokens import FreeVectors\n"
    code += write_code("return learn_tokens(FreeVectors(zeros(3), zeros(1, 3)), *arguments)")
    install_method("sefi_mine", code)
    with pytest.raises(MethodError, match=f"{OWNER} cannot be used. .*gives tokens of the shape"):
        learn_with(embedded)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise KeyboardInterrupt", KeyboardInterrupt),
        ("raise SystemExit(3)", SystemExit),
        ("raise MemoryError", MemoryError),
        ("raise RuntimeError('CUDA out of memory')", RuntimeError),
        ("raise OSError(errno.ENOSPC, 'No space left on device')", OSError),
        ("raise ConfigError('Too many steps.', 'Take fewer.')", ConfigError),
        ("stop(KeyboardInterrupt)", ImportError),
    ],
)
def test_interrupts_and_faults_of_the_machine_stay_what_they_are(
    embedded: Backbone, install_method: INSTALL, body: str, kind: type
) -> None:
    install_method("sefi_mine", write_code(body))
    with pytest.raises(kind) as raised:
        learn_with(embedded)
    assert raised.type is kind


INTERRUPTED = "try:\n    raise KeyboardInterrupt\nexcept BaseException:\n    raise ImportError('initialization failed')"


@pytest.mark.parametrize(("code", "kind"), [("raise MemoryError", MemoryError), (INTERRUPTED, ImportError)])
def test_they_stay_what_they_are_while_the_package_is_loaded(install_method: INSTALL, code: str, kind: type) -> None:
    install_method("sefi_mine", code)
    with pytest.raises(kind):
        get_method("mine")


def test_what_the_given_progress_raises_is_no_fault_of_the_method(embedded: Backbone, install_method: INSTALL) -> None:
    class Cancelled(Exception):
        pass

    class Cancel(SilentProgress):
        def advance(self, **numbers: float) -> None:
            raise Cancelled

    install_method("sefi_mine", write_code("return super().learn(*arguments)"))
    with pytest.raises(Cancelled):
        learn_with(embedded, progress=Cancel())


@pytest.mark.parametrize("member", ["check", "learn", "apply", "count_weights"])
def test_every_call_of_a_method_is_named(embedded: Backbone, install_method: INSTALL, member: str) -> None:
    install_method("sefi_mine", write_code("raise KeyError('tokens')", member))
    method, config = get_method("mine"), get_preset("mine", FEW)
    calls = {
        "check": lambda: check_method(method, embedded, config, None),
        "learn": lambda: learn_with(embedded),
        "apply": lambda: sefi.generate("a photo of a person", backbone=embedded, config=config),
        "count_weights": lambda: method.count_weights(embedded, config),
    }
    with pytest.raises(MethodError) as refused:
        calls[member]()
    assert refused.value.problem == f"{OWNER} raised KeyError in `{member}`: 'tokens'."


@pytest.mark.parametrize(("member", "kind"), [("apply", "ConditionedModel"), ("count_weights", "WeightCounts")])
def test_every_result_of_a_method_is_of_its_type(
    embedded: Backbone, install_method: INSTALL, member: str, kind: str
) -> None:
    install_method("sefi_mine", write_code("return 3", member))
    method, config = get_method("mine"), get_preset("mine")
    calls = {
        "apply": lambda: method.apply([], embedded),
        "count_weights": lambda: method.count_weights(embedded, config),
    }
    with pytest.raises(MethodError, match=f"an object of the type int from `{member}` in place of {kind}"):
        calls[member]()


def test_a_fault_within_the_probe_is_named_once(embedded: Backbone, install_method: INSTALL) -> None:
    """Scoring applies the method while it learns."""
    install_method("sefi_mine", write_code("raise KeyError('tokens')", "apply"))
    config = get_preset("mine", [*FEW, "learn.probe_every=1"])
    with pytest.raises(MethodError) as refused:
        sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=config)
    assert refused.value.problem == f"{OWNER} raised KeyError in `apply`: 'tokens'."


def test_it_is_one_of_tokens_and_of_its_own_class(install_method: INSTALL) -> None:
    install_method("sefi_mine", write_code("return None"))
    assert is_of_tokens("mine")
    assert not is_of_tokens("dreambooth")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("debug", [False, True])
def test_the_program_ends_with_2_and_shows_the_trace_when_asked(
    install_method: INSTALL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, debug: bool
) -> None:
    monkeypatch.setenv("SEFI_DEBUG", "")
    install_method("sefi_mine", write_code("raise KeyError('tokens')"))
    words = ["--debug"] if debug else []
    found = run(*words, "learn", str(PORTRAIT), "--name", "ada", "--method", "mine", "--out", str(tmp_path / "a.st"))
    assert found.exit_code == 2
    assert f"error: {OWNER} raised KeyError in `learn`: 'tokens'." in found.stderr
    assert ("sefi_mine.py" in found.stderr) is debug
    assert ("Traceback" in found.stderr) is debug


@pytest.mark.slow
def test_the_others_are_listed_where_one_cannot_count(install_method: INSTALL) -> None:
    install_method("sefi_mine", write_code("raise KeyError('tokens')", "count_weights"))
    found = run("methods", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["methods"].keys() == set(METHODS) - {"mine"}
    assert f"note: {OWNER} raised KeyError in `count_weights`: 'tokens'." in found.stderr
