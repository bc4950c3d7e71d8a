"""`sefi learn` goes on with its unfinished training, bit for bit, and with no other: it says what differs."""

import json
import os
import re
import select
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image

from sefi.cli import loading
from sefi.training.loop import Trainer


@pytest.fixture
def learn(sefi, backbone, tmp_path, portrait, monkeypatch):
    """Learn into tmp_path in five steps, on the tiny model; returns the result of the program."""
    monkeypatch.setattr(loading, "load_backbone", lambda *arguments, **options: backbone)
    monkeypatch.setattr(loading, "check_model", lambda model_options: None)

    def run(*words, out="ada.safetensors", photo=portrait, stop_at=None):
        with monkeypatch.context() as patch:
            if stop_at is not None:
                patch.setattr(Trainer, "take_step", stop_before(Trainer.take_step, stop_at))
            options = ("--no-crop", "--any-style", "--model", "tiny", "--set", "learn.batch=2", "--steps", 5)
            return sefi("learn", photo, "--name", "ada", "--out", tmp_path / out, *options, *words)

    return run


def stop_before(take_step, number):
    def take(trainer, step):
        if step == number:
            raise KeyboardInterrupt
        return take_step(trainer, step)

    return take


def unfinished(folder):
    return sorted(folder.glob(".*.unfinished"))


def problem(found):
    """The error of a refused command as one line."""
    assert found.exit_code == 2, found.output
    return found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--resume"]])
def test_an_interrupted_training_goes_on_with_the_same_bits(learn, tmp_path, words):
    assert learn(out="whole.safetensors").exit_code == 0
    stopped = learn(stop_at=3)
    assert stopped.exit_code == 130
    assert "Stopped at step 3 of 5; the training is saved in" in stopped.stderr
    [file] = unfinished(tmp_path)
    found = learn(*words, "--json")
    assert found.exit_code == 0, found.output
    assert f"note: going on at step 3 of the training in '{file}'; --no-resume starts again" in found.stderr
    assert json.loads(found.stdout)["resumed_at"] == 3
    assert (tmp_path / "ada.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not unfinished(tmp_path)


def test_resume_insists_on_an_unfinished_training(learn, tmp_path):
    assert "There is no unfinished training of" in problem(learn("--resume"))
    assert learn(stop_at=2, out="bob.safetensors").exit_code == 130
    assert "There is no unfinished training of" in problem(learn("--resume"))
    assert not (tmp_path / "ada.safetensors").exists()


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("words", "differences"),
    [
        (["--set", "learn.batch=3"], "learn.batch is 3 and was 2"),
        (["--steps", 6, "--seed", 4], "seed is 4 and was 0; learn.steps is 6 and was 5"),
        (["--preset", "paper"], " and was "),
    ],
)
def test_another_setting_is_named(learn, tmp_path, words, differences):
    assert learn(stop_at=2).exit_code == 130
    [file] = unfinished(tmp_path)
    before = file.read_bytes()
    error = problem(learn(*words, "--resume"))
    assert f"{file} belongs to another training: " in error
    assert differences in error
    assert "photo" not in error.partition("other training")[2].partition("try:")[0]
    assert "remove the file to start again" in error
    assert [one.read_bytes() for one in unfinished(tmp_path)] == [before]
    # Without --resume it is a training of its own, which says that the other one is there.
    begun = learn(*words)
    assert begun.exit_code == 0, begun.output
    assert f"note: '{file}' stays, which belongs to another training: " in begun.stderr
    assert differences in begun.stderr
    assert unfinished(tmp_path) == [file]


def test_another_photo_and_another_model_are_named(learn, tmp_path, backbone, monkeypatch):
    assert learn(stop_at=2).exit_code == 130
    Image.linear_gradient("L").convert("RGB").resize((53, 61)).save(tmp_path / "other.png")
    error = problem(learn("--resume", photo=tmp_path / "other.png"))
    assert "another training: it is of another photo." in error
    monkeypatch.setattr(type(backbone.signature), "compute_digest", lambda signature: "0" * 64)
    assert "another training: it is on another model." in problem(learn("--resume"))


def test_another_list_of_names_is_named(learn, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("dog cup\nbeach photo\n")
    words = ("--method", "cross-init", "--set", f"basis.names={names}", "--set", "views.latent_pool=2")
    assert learn(*words, stop_at=2).exit_code == 130
    [file] = unfinished(tmp_path)
    names.write_text("dog beach\ncup photo\n")
    assert "another training: the file of basis.names was another." in problem(learn(*words, "--resume"))
    found = learn(*words, "--json")
    assert f"'{file}' stays, which belongs to another training: the file of basis.names was another" in found.stderr
    assert json.loads(found.stdout)["resumed_at"] == 0
    (tmp_path / "ada.safetensors").unlink()
    names.write_text("dog cup\nbeach photo\n")
    assert json.loads(learn(*words, "--resume", "--json").stdout)["resumed_at"] == 2


@pytest.mark.slow
def test_a_training_can_be_started_again(learn, tmp_path):
    assert learn(stop_at=3).exit_code == 130
    found = learn("--no-resume", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["resumed_at"] == 0
    assert not unfinished(tmp_path)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_can_be_left(learn, tmp_path):
    assert learn(stop_at=3).exit_code == 130
    [file] = unfinished(tmp_path)
    file.write_bytes(b"damage")
    assert str(file) in problem(learn())
    assert "it cannot be read" in problem(learn("--resume", "--seed", 1))
    assert learn("--no-resume").exit_code == 0


class Step:
    """Programs in processes of their own that stand still in their second step until they may go on."""

    def __init__(self, learn, folder, monkeypatch):
        self.learn, self.folder, self.monkeypatch = learn, folder, monkeypatch
        self.waits, self.go = os.pipe()
        self.ready, self.reached = os.pipe()

    def start(self):
        """Start a program; its answer is in `answers` once it has ended."""
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on forks beside threads
            child = os.fork()
        if not child:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
                self.monkeypatch.setattr(Trainer, "take_step", self.wait_in_second(Trainer.take_step))
                found = self.learn("--json")
                code = found.exit_code
                (self.folder / f"{os.getpid()}.json").write_text(found.stdout)
            finally:
                os._exit(code)
        return child

    def wait_in_second(self, take_step):
        def take(trainer, step):
            if step == 1:
                os.write(self.reached, b"!")
                os.read(self.waits, 1)
            return take_step(trainer, step)

        return take

    def wait_until_reached(self):
        assert select.select([self.ready], [], [], 60)[0], "the program did not come so far"
        assert os.read(self.ready, 1) == b"!"

    def release(self):
        os.write(self.go, b"!")

    def end(self, child):
        """Return the exit code of a program and its answer."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, json.loads((self.folder / f"{child}.json").read_text())


@pytest.fixture
def step(learn, tmp_path, monkeypatch):
    made = Step(learn, tmp_path, monkeypatch)
    yield made
    for handle in (made.waits, made.go, made.ready, made.reached):
        os.close(handle)


@pytest.mark.slow
def test_of_two_processes_that_learn_the_same_name_the_second_is_refused(step, tmp_path):
    first = step.start()
    step.wait_until_reached()
    code, error = step.end(step.start())
    assert code == 2
    assert error["error"] == f"Process {first} is making '{tmp_path / 'ada.safetensors'}'."
    assert error["try"] == "Wait until it has ended, or choose another --out."
    assert not (tmp_path / "ada.safetensors").exists()
    step.release()
    assert step.end(first)[0] == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_finish_and_saves_it(step, learn, tmp_path, number, code):
    program = step.start()
    step.wait_until_reached()
    os.kill(program, number)
    step.release()
    found, error = step.end(program)
    assert found == code
    [file] = unfinished(tmp_path)
    assert error["error"] == f"Stopped at step 2 of 5; the training is saved in {file}."
    assert list(tmp_path.glob(".*")) == [file]
    assert learn("--resume").exit_code == 0
    assert learn(out="whole.safetensors").exit_code == 0
    assert (tmp_path / "ada.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(("numbers", "code"), [((signal.SIGTERM, signal.SIGINT), 130), ((signal.SIGTERM,) * 2, 143)])
def test_a_second_signal_ends_the_program_at_once(step, tmp_path, numbers, code):
    program = step.start()
    step.wait_until_reached()
    for number in numbers:
        os.kill(program, number)
        wait_until_handled(program)
    found, error = step.end(program)  # it is never released
    assert found == code
    assert error["error"] == "Interrupted."
    assert not list(tmp_path.glob(".*"))


def wait_until_handled(program):
    """Wait until a process has no signal that is pending; two of one kind would be one.

    It has to sleep again too: what Python does on a signal comes after the system has handed it over.
    """
    for _ in range(6000):
        status = Path(f"/proc/{program}/status").read_text()
        pending = re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", status)
        if re.search(r"^State:\s*[SZ]", status, re.MULTILINE) and not any(int(mask, 16) for mask in pending):
            return
        time.sleep(0.01)
    raise AssertionError(f"a signal was not handled: {status}")


@pytest.mark.slow
def test_a_training_goes_on_whose_crop_was_written_before(learn, tmp_path):
    crop = ("--show-crop", tmp_path / "crop.png")
    assert learn(*crop, stop_at=3).exit_code == 130
    found = learn(*crop, "--json")
    assert (found.exit_code, json.loads(found.stdout)["resumed_at"]) == (0, 3), found.output
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 20)).save(other)
    assert "exists" in problem(learn("--show-crop", other, out="again.safetensors"))
