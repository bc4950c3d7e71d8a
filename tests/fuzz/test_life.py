"""The life of an identity's files as a state machine: learn, kill, go on, overwrite, draw, damage, remove, two at once.

What must hold after every step: a file is whole or absent, has the bytes that its photo, seed and settings give
whatever happened before, and no other file was touched; commands end with 0 or with a typed error.
"""

import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from contextlib import chdir, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from PIL import Image
from typer.testing import CliRunner

from sefi.cli import loading
from sefi.cli.app import app
from sefi.core.errors import SefiError
from sefi.identity.file import read_identity

CONSENT = "by=Jane Doe; for=synthetic; scope=tests; date=2026-01-02"
NAMES, PHOTOS, SEEDS = ("ada", "bob"), ("one.png", "two.png"), (0, 1)
MOST_WRITES = 33  # a run of three steps makes 31
# Everything that may lie in the folder: what a user put there, results, and what a killed program leaves.
KNOWN = re.compile(
    r"(one|two)\.png|(ada|bob)\.safetensors|images/([\w .-]+\.(png|json)|\.[\w.-]+)|images"
    r"|\.(ada|bob)[\w.-]*\.(unfinished|lock)|\.[\w.-]+\.partial(\.\w+)?|\.sefi[\w.-]*"
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REFERENCES: dict[tuple[str, str, int], str] = {}  # SHA-256 of what is learned undisturbed, by name, photo and seed

names, photos, seeds = st.sampled_from(NAMES), st.sampled_from(PHOTOS), st.sampled_from(SEEDS)


def run(*words):
    """Run the program in this process and return its exit code; 1 is a crash."""
    return CliRunner().invoke(app, [str(word) for word in words])


def learn_words(folder, name, photo, seed, overwrite=False):
    words = ["learn", folder / photo, "--name", name, "--out", folder / f"{name}.safetensors", "--seed", seed]
    words += ["--steps", 3, "--no-crop", "--any-style", "--model", "tiny", "--consent", CONSENT]
    return [*words, "--overwrite"] if overwrite else words


def start(words, prepare=lambda: None):
    """Run the program in a child of this process; return its process id."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on forks beside threads
        child = os.fork()
    if not child:
        code = 1
        try:
            prepare()
            code = run(*words).exit_code
        finally:
            os._exit(code)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number, folder):
    """Kill this process at its n-th open for writing, rename, link or removal in a folder, just before it is done."""
    from sefi.training.loop import PeriodicSaver

    PeriodicSaver.save_if_due = lambda saver: saver.trainer.save(saver.checkpoint)  # after every step
    seen = []

    def count(event, arguments):
        changes = event in ("os.rename", "os.link", "os.remove", "os.truncate", "os.chmod")
        changes |= event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        if changes and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(str(folder)):
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def forget_identity(path):
    """Remove an identity and what its trainings left by `sefi forget`; nothing of its name stays."""
    with chdir(path.parent):
        assert run("forget", path, "--yes").exit_code in (0, 2)  # 2: there was nothing
        if path.exists():  # damaged so that nobody can tell what it was: refused, and the user's to remove
            path.unlink()
            assert run("forget", path, "--yes").exit_code in (0, 2)
    assert not [left for left in path.parent.iterdir() if re.fullmatch(rf"\.*{path.stem}\..*", left.name)]


class Life(RuleBasedStateMachine):
    """One folder, two subjects, two photos, two seeds."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sefi-life-"))
        for number, name in enumerate(PHOTOS):
            image = Image.radial_gradient("L").rotate(40 * number).convert("RGB")
            image.resize((53, 61)).save(self.folder / name)
        self.learned: dict[str, tuple[str, int]] = {}  # photo and seed of every identity that must be there
        self.spoilt: set[str] = set()  # names whose file was damaged on purpose
        self.garbled: set[str] = set()  # names whose unfinished training was

    def teardown(self):
        shutil.rmtree(self.folder)

    def remove_unfinished(self, name):
        for path in self.folder.glob(f".{name}*.unfinished"):
            path.unlink()
        self.garbled.discard(name)

    def path(self, name):
        return self.folder / f"{name}.safetensors"

    @rule(name=names, photo=photos, seed=seeds, overwrite=st.booleans())
    def learn(self, name, photo, seed, overwrite):
        there = self.path(name).exists()
        words = learn_words(self.folder, name, photo, seed, overwrite)
        found = run(*words)
        if name in self.garbled and found.exit_code == 2 and ".unfinished" in found.output:
            self.remove_unfinished(name)  # what the error says to do
            found = run(*words)
        if there and not overwrite:
            assert found.exit_code == 2, found.output
        elif name in self.spoilt:  # what cannot be read may be another's file
            assert found.exit_code in (0, 2), found.output
        else:
            assert found.exit_code == 0, found.output
        if found.exit_code == 0:
            self.spoilt.discard(name)
            self.learned[name] = (photo, seed)

    @rule(name=names, photo=photos, seed=seeds, overwrite=st.booleans(), number=st.integers(1, MOST_WRITES))
    def learn_and_die(self, name, photo, seed, overwrite, number):
        before = self.hash(name)
        words = learn_words(self.folder, name, photo, seed, overwrite)
        code = wait(start(words, lambda: kill_at(number, self.folder)))
        assert code in (0, 2, -signal.SIGKILL)
        after = self.hash(name)
        if code == 0 or (code == -signal.SIGKILL and after != before):
            self.spoilt.discard(name)
            self.learned[name] = (photo, seed)
        else:
            assert after == before

    @rule(name=names, photo=photos, seed=seeds)
    def learn_twice_at_once(self, name, photo, seed):
        if self.path(name).exists():
            return
        self.remove_unfinished(name)
        words = learn_words(self.folder, name, photo, seed)
        codes = [wait(child) for child in [start(words), start(words)]]
        assert sorted(codes) in ([0, 0], [0, 2]), codes
        self.learned[name] = (photo, seed)

    @rule(name=names)
    def draw(self, name):
        words = ["generate", f"a photo of <{name}>", "-i", self.path(name), "--model", "tiny", "--steps", 1]
        found = run(*words, "--out", self.folder / "images")
        if name in self.learned:
            assert found.exit_code == 0, found.output
        else:
            assert found.exit_code == 2 or name in self.spoilt, found.output
            assert found.exit_code != 1

    @rule(name=names)
    def forget(self, name):
        forget_identity(self.path(name))
        self.garbled.discard(name)
        assert not [path for path in self.folder.iterdir() if name in path.name]
        training = self.learned.pop(name, None)
        # The same training under another name is a copy of the same tokens, and goes with them.
        self.learned = {other: one for other, one in self.learned.items() if one != training}
        self.spoilt.discard(name)

    @rule(name=names, at=st.floats(0, 1, exclude_max=True), cut=st.booleans())
    def damage(self, name, at, cut):
        path = self.path(name)
        if name not in self.learned:
            return
        content = bytearray(path.read_bytes())
        place = int(at * len(content))
        content[place] ^= 0x55
        path.write_bytes(content[:place] if cut else content)
        del self.learned[name]
        self.spoilt.add(name)
        assert run("inspect", path).exit_code in (0, 2)

    @rule(name=names, content=st.binary(max_size=40))
    def damage_the_unfinished(self, name, content):
        """A checkpoint that cannot be read is named by the command that it belongs to."""
        for path in self.folder.glob(f".{name}*.unfinished"):
            path.write_bytes(content)
            self.garbled.add(name)

    @rule(name=names, content=st.binary(max_size=40))
    def leave_a_partial_file(self, name, content):
        """As of a program that was killed; nobody may take it for a result."""
        (self.folder / f".{name}.0123456789ab.partial.safetensors").write_bytes(content)

    @rule(name=names, photo=photos, overwrite=st.booleans())
    def learn_where_another_kind_of_file_is(self, name, photo, overwrite):
        path = self.path(name)
        if path.exists():
            return
        path.write_text("<!doctype html>")
        found = run(*learn_words(self.folder, name, photo, 0, overwrite))
        assert found.exit_code == 2, found.output
        assert path.read_text() == "<!doctype html>"
        path.unlink()

    def hash(self, name):
        path = self.path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""

    @invariant()
    def identities_are_whole_and_as_they_must_be(self):
        for name in NAMES:
            if name in self.learned:
                photo, seed = self.learned[name]
                assert self.hash(name) == learn_reference(name, photo, seed)
                assert read_identity(self.path(name)).name == name
            elif name in self.spoilt:
                with suppress(SefiError):
                    read_identity(self.path(name))
            else:
                assert not self.path(name).exists()

    @invariant()
    def nothing_else_lies_there(self):
        for path in self.folder.rglob("*"):
            assert KNOWN.fullmatch(path.relative_to(self.folder).as_posix()), path


def learn_reference(name, photo, seed):
    """Return the SHA-256 of what a run that nothing disturbs writes in a folder of its own."""
    key = (name, photo, seed)
    if key not in REFERENCES:
        alone = Life()
        found = run(*learn_words(alone.folder, name, photo, seed))
        assert found.exit_code == 0, found.output
        REFERENCES[key] = alone.hash(name)
        alone.teardown()
    return REFERENCES[key]


@pytest.fixture
def life(backbone, monkeypatch):
    """The machine, with the tiny model in the place of the one that a command line names."""
    monkeypatch.setattr(loading, "load_backbone", lambda *arguments, **options: backbone)
    monkeypatch.setattr(loading, "check_model", lambda model_options: None)
    learn_reference("ada", "one.png", 0)  # loads what every child would load for itself
    return Life


CALM = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.slow
def test_a_life_of_a_few_steps(life):
    few = settings(max_examples=4, stateful_step_count=8, deadline=None, suppress_health_check=CALM, derandomize=True)
    run_state_machine_as_test(life, settings=few)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_long_lives(life):
    many = settings(max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=CALM)
    run_state_machine_as_test(life, settings=many)


@pytest.mark.slow
def test_a_kill_at_every_write_leaves_nothing_or_the_whole(life):
    """The kill that the machine uses, at every fourth place; the next run ends with the same bytes."""
    reached = set()
    for number in range(1, MOST_WRITES + 1, 4):
        machine = life()
        words = learn_words(machine.folder, "ada", "one.png", 0)
        code = wait(start(words, lambda number=number, machine=machine: kill_at(number, machine.folder)))
        reached.add(code)
        assert machine.hash("ada") in ("", learn_reference("ada", "one.png", 0))
        if not machine.hash("ada"):
            assert run(*words).exit_code == 0
        assert machine.hash("ada") == learn_reference("ada", "one.png", 0)
        machine.teardown()
    assert -signal.SIGKILL in reached


def test_a_damaged_unfinished_training_is_named_and_learning_goes_on_without_it(life):
    """What the machine relies on where it damages one."""
    machine = life()
    words = learn_words(machine.folder, "ada", "one.png", 0)
    assert wait(start(words, lambda: kill_at(14, machine.folder))) == -signal.SIGKILL
    [unfinished] = [path for path in machine.folder.glob(".ada*.unfinished") if "partial" not in path.name]
    unfinished.write_bytes(b"x" * 40)
    found = run(*words)
    assert found.exit_code == 2
    assert unfinished.name in found.output.replace("\n", "")
    assert not machine.path("ada").exists()
    unfinished.unlink()
    assert run(*words).exit_code == 0
    assert machine.hash("ada") == learn_reference("ada", "one.png", 0)
    machine.teardown()
