"""A stopped run keeps whole steps only, and its checkpoint serves no other run."""

import copy
import dataclasses
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.training.token_training import learn_tokens, make_trainer

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, override
from sefi.core.errors import ConfigError, Interrupted, OutputError, delay_interrupts
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.methods import PRESETS
from sefi.photo.augment import CropFace, PhotoViews
from sefi.training.checkpoint import KEY, copy_layout
from sefi.training.loop import LoopOptions, PeriodicSaver

CONFIG = override(PRESETS["paper"], ["learn.steps=4", "learn.batch=2", "views.latent_pool=3"])


def views(backbone: Backbone, config: Config = CONFIG, seed: int = 4) -> PhotoViews:
    square = (
        torch.rand((3, backbone.resolution, backbone.resolution), generator=create_generator(seed, "photo")) * 2 - 1
    )
    return PhotoViews(square, config.views)


def stop_in_update(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C inside the update of this step, after the weights moved and before the step is counted."""
    whole, calls = torch.optim.AdamW.step, []

    def step(optimiser: torch.optim.AdamW) -> None:
        whole(optimiser)
        calls.append(0)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.slow
@pytest.mark.usefixtures("answer_interrupts")
def test_an_interrupt_within_an_update_resumes_with_the_same_bits(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress())
    checkpoint = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        stop_in_update(patch, 2)
        with pytest.raises(Interrupted, match="step 2 of 4"):
            learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), checkpoint)
    resumed, _ = learn_tokens(backbone, views(backbone), CONFIG, 1, SilentProgress(), checkpoint)
    assert torch.equal(whole, resumed)


@pytest.mark.usefixtures("answer_interrupts")
def test_the_guard_puts_the_handler_back_and_passes_the_interrupt_on() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with delay_interrupts():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_the_guard_lets_other_threads_through() -> None:
    reached: list[bool] = []

    def work() -> None:
        with delay_interrupts():
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached


def test_a_checkpoint_of_another_photo_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    run = make_trainer(backbone, views(backbone), CONFIG, 1)
    run.take_step(0)
    run.save(checkpoint)
    assert make_trainer(backbone, views(backbone), CONFIG, 1).resume(checkpoint) == 1
    with pytest.raises(ConfigError, match="another training: it is of another photo"):
        make_trainer(backbone, views(backbone, seed=5), CONFIG, 1).resume(checkpoint)


def test_a_checkpoint_with_the_settings_of_all_methods_is_resumed(backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    run = make_trainer(backbone, views(backbone), CONFIG, 1)
    run.take_step(0)
    run.task.training_key["config"] |= {"tune": {"rank": 4}, "basis": {"names": None}}  # as earlier versions saved them
    run.save(checkpoint)
    assert make_trainer(backbone, views(backbone), CONFIG, 1).resume(checkpoint) == 1
    with pytest.raises(ConfigError, match=r"another training: learn\.batch is 3 and was 2\."):
        make_trainer(backbone, views(backbone), override(CONFIG, ["learn.batch=3"]), 1).resume(checkpoint)


@pytest.mark.parametrize("header", ["[]", "3", '{"step": 1}', "no json"])
def test_a_foreign_file_is_no_checkpoint(backbone: Backbone, tmp_path: Path, header: str) -> None:
    checkpoint = tmp_path / "run.safetensors"
    save_file({"a": torch.ones(1)}, checkpoint, metadata={KEY: header})
    with pytest.raises(ConfigError, match="no checkpoint"):
        make_trainer(backbone, views(backbone), CONFIG, 1).resume(checkpoint)


def test_a_checkpoint_that_cannot_be_written_is_a_typed_error(backbone: Backbone, tmp_path: Path) -> None:
    run = make_trainer(backbone, views(backbone), CONFIG, 1)
    with pytest.raises(OutputError, match="Cannot write"):
        run.save(tmp_path / "missing" / "run.safetensors")


@pytest.mark.gpu
def test_a_step_on_a_gpu_gives_the_same_loss(backbone: Backbone) -> None:
    parts = {name: copy.deepcopy(getattr(backbone, name)).to("cuda") for name in ("text_encoder", "vae", "unet")}
    there = dataclasses.replace(backbone, **parts)
    here, away = (make_trainer(model, views(model), CONFIG, 1).take_step(0) for model in (backbone, there))
    assert here["loss_denoise"] == pytest.approx(away["loss_denoise"], rel=1e-2)


@pytest.mark.parametrize(("seconds", "wanted"), [(0.5, [20, 40.5, 61]), (3.0, [20, 83, 146])])
def test_saving_takes_a_twentieth_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, wanted: list[float]
) -> None:
    clock, saved = [0.0], []

    class Run:
        options = LoopOptions(9, "learning")

        def save(self, checkpoint: Path) -> None:
            del checkpoint
            saved.append(clock[0])
            clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    keeper = PeriodicSaver(Run(), tmp_path / "run")  # pyright: ignore[reportArgumentType]
    while len(saved) < len(wanted):
        clock[0] += 0.5
        keeper.save_if_due()
    assert saved == pytest.approx(wanted, abs=0.5)


def test_a_moment_takes_the_layout_of_its_weight() -> None:
    weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    value = torch.arange(96.0).reshape(2, 3, 4, 4)
    found = copy_layout(weight, value)
    assert found.stride() == weight.stride()
    assert torch.equal(found, value)
    assert copy_layout(weight, torch.tensor(7.0)) == 7.0


def test_a_checkpoint_of_another_model_with_the_same_fingerprint_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    unet = copy.deepcopy(backbone.unet)
    with torch.no_grad():
        for weight in unet.mid_block.parameters():
            weight += 1.0
    other = dataclasses.replace(backbone, unet=unet, signature=None)
    assert other.fingerprint == backbone.fingerprint  # it covers two tensors only
    checkpoint = tmp_path / "run.safetensors"
    trainer = make_trainer(backbone, views(backbone), CONFIG, 1)
    trainer.take_step(0)
    trainer.save(checkpoint)
    with pytest.raises(ConfigError, match="another training: it is on another model"):
        make_trainer(other, views(other), CONFIG, 1).resume(checkpoint)


def test_a_checkpoint_that_has_no_signature_yet_is_resumed(backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    trainer = make_trainer(backbone, views(backbone), CONFIG, 1)
    trainer.take_step(0)
    del trainer.task.training_key["signature"]  # as earlier versions saved it
    trainer.save(checkpoint)
    assert make_trainer(backbone, views(backbone), CONFIG, 1).resume(checkpoint) == 1


def save_one_step(backbone: Backbone, photo: PhotoViews, config: Config, checkpoint: Path, *unsaid: str) -> None:
    """Save a training after its first step, its key without what earlier versions did not state."""
    trainer = make_trainer(backbone, photo, config, 1)
    trainer.take_step(0)
    for name in unsaid:
        del trainer.task.training_key[name]
    trainer.save(checkpoint)


def test_a_checkpoint_of_another_face_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    config = override(CONFIG, ["learn.outside_weight=0.5"])
    checkpoint, marks = tmp_path / "run.safetensors", ((0.4, 0.4), (0.6, 0.4))

    def look(left: float) -> PhotoViews:
        return dataclasses.replace(views(backbone), faces=(CropFace((left, 0.3, 0.4, 0.4), marks),))

    save_one_step(backbone, look(0.3), config, checkpoint)
    # The detector's last digits are other ones on another machine.
    assert make_trainer(backbone, look(0.3 + 1e-6), config, 1).resume(checkpoint) == 1
    with pytest.raises(ConfigError, match=r"another training: the face is in another place of its photo\."):
        make_trainer(backbone, look(0.05), config, 1).resume(checkpoint)
    save_one_step(backbone, look(0.3), config, checkpoint, "faces")
    assert make_trainer(backbone, look(0.3), config, 1).resume(checkpoint) == 1


def test_a_checkpoint_of_another_list_of_names_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    checkpoint, names = tmp_path / "run.safetensors", tmp_path / "names.txt"
    few = ["learn.steps=4", "views.latent_pool=3", f"basis.names={names}"]
    config = override(PRESETS["cross-init"], few)
    names.write_text("ada lane\nbob hill\n")
    save_one_step(backbone, views(backbone), config, checkpoint)
    assert make_trainer(backbone, views(backbone), config, 1).resume(checkpoint) == 1
    names.write_text("ada lane\nbob wood\n")
    with pytest.raises(ConfigError, match=r"another training: the file of basis\.names was another\."):
        make_trainer(backbone, views(backbone), config, 1).resume(checkpoint)
    save_one_step(backbone, views(backbone), config, checkpoint, "file of basis.names")
    assert make_trainer(backbone, views(backbone), config, 1).resume(checkpoint) == 1
