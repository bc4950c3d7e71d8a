"""A full disk is told before learning, and leaves the last checkpoint, from which the same command goes on."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_interrupt import views
from tests.training.token_training import make_trainer

from sefi.core.config import override
from sefi.core.errors import Interrupted, OutputError
from sefi.core.progress import SilentProgress
from sefi.methods import PRESETS
from sefi.training import checkpoint as checkpoints, loop
from sefi.training.loop import PeriodicSaver

STEPS = 5
CONFIG = override(PRESETS["default"], [f"learn.steps={STEPS}", "learn.batch=2", "views.latent_pool=3"])


@pytest.fixture
def make(backbone):
    return lambda: make_trainer(backbone, views(backbone), CONFIG, 1)


@pytest.fixture
def leave_free(monkeypatch):
    def leave(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=count))

    return leave


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr(PeriodicSaver, "save_if_due", lambda saver: saver.trainer.save(saver.checkpoint))


def find_least_space(leave_free, trainer, folder):
    """Return the fewest bytes with which a training begins."""
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        leave_free(middle)
        try:
            trainer.check_space(folder / "run")
            high = middle
        except OutputError:
            low = middle
    return high


@pytest.mark.slow
def test_too_little_space_is_refused_before_the_first_step(make, leave_free, tmp_path):
    least = find_least_space(leave_free, make(), tmp_path)
    leave_free(least - 1)
    trainer = make()
    with pytest.raises(OutputError, match=r"MiB free in .*, and learning needs .*Free some space") as error:
        trainer.run(SilentProgress(), tmp_path / "run")
    assert "the same command again" in error.value.remedy
    assert trainer.done == 0
    assert not list(tmp_path.iterdir())
    trainer.run(SilentProgress(), None)  # nothing is written
    leave_free(least)
    make().run(SilentProgress(), tmp_path / "run")


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("large", [False, True])
def test_what_is_needed_is_what_is_written(make, leave_free, tmp_path, monkeypatch, large):
    """Two checkpoints, with the best by a probe, and the result; of large weights no copy of a good state is kept."""
    monkeypatch.setattr(loop, "LARGEST_COPY", 0 if large else 1 << 20)
    monkeypatch.setattr(loop, "GOOD_EVERY", 1)  # the copy of a good state has moments too
    trainer = make()
    trainer.probe, trainer.probe_every = lambda _: 0.5, 1
    trainer.run(SilentProgress(), tmp_path / "run")
    saved = sum(one.nbytes for one in load_file(tmp_path / "run").values())
    written = 2 * saved + sum(one.nbytes for one in trainer.get_result().values())
    needed = find_least_space(leave_free, make(), tmp_path / "elsewhere")
    assert written <= needed - (1 << 20) <= 1.05 * written
    least = find_least_space(leave_free, make(), tmp_path)
    assert needed - (tmp_path / "run").stat().st_size <= least <= needed - 0.95 * saved


@pytest.mark.usefixtures("save_always")
def test_a_training_that_began_goes_on_with_the_space_that_is_left(make, leave_free, tmp_path):
    leave_free(find_least_space(leave_free, make(), tmp_path))
    trainer = make()
    trainer.run(SilentProgress(), tmp_path / "run")
    free = find_least_space(leave_free, make(), tmp_path / "elsewhere") - (tmp_path / "run").stat().st_size
    leave_free(free)  # that of the beginning, less what was written
    again = make()
    again.resume(tmp_path / "run")
    again.check_space(tmp_path / "run")


def test_what_cannot_be_measured_is_no_obstacle(make, tmp_path, monkeypatch):
    def fail(_folder):
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    make().check_space(tmp_path / "run")


@pytest.mark.slow_after(1)
@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("saved", [1, 3])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_go_on_from(make, tmp_path, monkeypatch, saved):
    checkpoint = tmp_path / "run"
    whole = make()
    whole.run(SilentProgress(), tmp_path / "whole")
    calls, save_file = [], checkpoints.save_file

    def fill_up(tensors, path, metadata):
        calls.append(1)
        if len(calls) > saved:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", fill_up)
        with pytest.raises(OutputError, match="No space left on device") as error:
            make().run(SilentProgress(), checkpoint)
    assert error.value.remedy.startswith("Free some space and run the same command again: it goes on from")
    assert "--out" not in error.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    resumed = make()
    assert resumed.resume(checkpoint) == saved
    resumed.run(SilentProgress(), checkpoint)
    assert torch.equal(resumed.get_result()["tokens"], whole.get_result()["tokens"])


def test_ctrl_c_on_a_full_disk_says_that_nothing_could_be_saved(make, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class Stop(SilentProgress):
        def advance(self, **numbers):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        make().run(Stop(), tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(Interrupted):
        make().run(Stop(), tmp_path / "run")
