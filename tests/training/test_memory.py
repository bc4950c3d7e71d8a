"""Where there is no memory for all samples of a step, they are learned from in parts, with the same result."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_interrupt import views
from tests.training.token_training import make_trainer

from sefi.backbone.open import MODELS
from sefi.core.config import override
from sefi.core.errors import ConfigError, Interrupted, make_memory_error
from sefi.core.progress import SilentProgress
from sefi.core.rng import create_generator
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import TrainingOptions, get_class_row
from sefi.methods.custom_diffusion import make_resized_view_drawer
from sefi.training import finetuning, token_inversion
from sefi.training.loop import list_recovery_remarks, train
from sefi.training.together import TrainingGroup
from sefi.training.token_inversion import BatchEncoder, ViewLatents

PORTRAIT = MODELS / "demo" / "portrait.png"
BATCH, STEPS = 5, 4
CONFIG = override(
    PRESETS["paper"], [f"learn.steps={STEPS}", f"learn.batch={BATCH}", "views.latent_pool=3", "learn.dropout=0.2"]
)


class Circle:
    """Holds a tensor, and itself, as the frames of a failed computation may."""

    def __init__(self, tensor):
        self.tensor, self.itself = tensor, self


@pytest.fixture
def limit(monkeypatch):
    """Let the model take at most so many samples at once, and fail as torch does with more."""
    whole, sizes, failed = token_inversion.predict_with_target, [], []

    def set_limit(most):
        def predict(backbone, batch, context, *arguments, **options):
            sizes.append(len(batch.latents))
            assert all(reference() is None for reference in failed), "what the failed try held is still there"
            if len(batch.latents) > most:
                circle = Circle(context.states)
                failed.append(weakref.ref(circle))
                torch.empty(2**60, dtype=torch.uint8)
            return whole(backbone, batch, context, *arguments, **options)

        for module in (token_inversion, finetuning):
            monkeypatch.setattr(module, "predict_with_target", predict)
        return sizes

    return set_limit


def finish(trainer, checkpoint=None):
    numbers = trainer.run(SilentProgress(), checkpoint)
    return trainer.get_result()["tokens"], numbers | trainer.describe_recovery()


@pytest.fixture
def make(backbone):
    return lambda config=CONFIG: make_trainer(backbone, views(backbone, config), config, 1)


@pytest.mark.slow
def test_gradients_of_parts_add_up_to_those_of_all(make):
    gradients = []
    for parts in (1, 2, 3, BATCH):
        trainer = make()
        trainer.recovery.parts = parts
        numbers = trainer.compute_step(3)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.task.weights.parameters()]))
        again = trainer.task.compute_loss(3)[1]
        assert numbers["loss_denoise"] == pytest.approx(float(again["loss_denoise"]), rel=1e-5)
    whole = gradients[0]
    for split in gradients[1:]:
        assert (split - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.slow
def test_learning_goes_on_in_parts_with_the_same_result(make, limit):
    whole, numbers = finish(make())
    sizes = limit(2)
    trainer = make()
    found, found_numbers = finish(trainer)
    assert trainer.recovery.parts == 4
    # All at once, two parts, four parts; and four parts from then on.
    assert sizes == [5, 2, 3, 1, 1, 1, 2, *[1, 1, 1, 2] * (STEPS - 1)]
    assert (found - whole).norm() <= 1e-4 * whole.norm()
    assert list_recovery_remarks(numbers) == []
    assert "taken in 4 parts" in list_recovery_remarks(found_numbers)[0]
    assert found_numbers.pop("parts") == 4
    # The share of the gradients is measured where all samples are there at once.
    assert found_numbers.keys() == numbers.keys() - {"key_gradient_share"}
    assert found_numbers["loss_denoise"] == pytest.approx(numbers["loss_denoise"], rel=1e-3)


@pytest.mark.slow
def test_the_same_parts_give_the_same_bits(make, limit, tmp_path):
    """Found by trying, set from the beginning, or gone on with after a stop."""
    checkpoint = tmp_path / "run"
    sizes = limit(1)
    first = make()
    found, _ = finish(first)
    assert first.recovery.parts == BATCH, "no more than there are samples"
    known = make()
    known.recovery.parts = BATCH
    assert torch.equal(finish(known)[0], found)
    stopped = make()
    take_step = stopped.take_step

    def stop_there(step):
        if step == 2:
            raise KeyboardInterrupt
        return take_step(step)

    stopped.take_step = stop_there
    with pytest.raises(Interrupted):
        stopped.run(SilentProgress(), checkpoint)
    sizes.clear()
    resumed = make()
    resumed.resume(checkpoint)
    assert torch.equal(finish(resumed)[0], found)
    assert set(sizes) == {1}


@pytest.mark.parametrize(("told", "wanted"), [(1, 3), (BATCH, BATCH)])
def test_a_resumed_training_has_the_more_of_the_parts_that_it_found_and_was_told(backbone, tmp_path, told, wanted):
    config = override(CONFIG, ["learn.steps=1"])
    trainer = make_trainer(backbone, views(backbone, config), config, 1)
    trainer.recovery.parts = 3
    trainer.take_step(0)
    trainer.save(tmp_path / "run")
    task = make_trainer(backbone, views(backbone, config), config, 1).task
    assert train(task, config, SilentProgress(), tmp_path / "run", parts=told)[1]["parts"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["custom-diffusion", "dreambooth", "prospect"])
def test_other_methods_learn_in_parts_too(backbone, limit, name):
    few = ["learn.steps=2", "learn.batch=3", "views.latent_pool=2", "tune.prior_images=2", "generate.steps=2"]
    config = override(PRESETS[name], [one for one in few if not one.startswith("tune.") or name != "prospect"])

    def learn():
        options = TrainingOptions(SilentProgress())
        return METHODS[name].learn("ada", views(backbone, config), backbone, config, 1, options)

    whole = learn()
    sizes = limit(1)
    found = learn()
    assert max(sizes) == 3
    assert set(sizes[-3:]) == {1}
    # Together: of a bias to which the model is indifferent, rounding is all there is.
    one, other = (torch.cat([made.tensors[key].flatten() for key in whole.tensors]) for made in (found, whole))
    assert (one - other).norm() <= 1e-3 * other.norm()


def test_no_memory_for_one_sample_is_an_error(make, limit):
    limit(0)
    with pytest.raises(ConfigError, match=r"one sample at a time \(.*allocate") as error:
        finish(make())
    assert error.value.lacks_memory


def test_another_error_is_raised_as_it_is(make, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(token_inversion, "predict_with_target", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        finish(make())


@pytest.fixture
def room(backbone, monkeypatch):
    """Let the autoencoder encode at most so many images at once, and fail as CUDA does with more."""
    whole, sizes = backbone.vae.encode, []

    def set_room(most):
        def encode(pixels, *arguments, **options):
            sizes.append(len(pixels))
            if len(pixels) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return whole(pixels, *arguments, **options)

        monkeypatch.setattr(backbone.vae, "encode", encode)
        return sizes

    return set_room


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_images_are_encoded_in_fewer_at_once_with_the_same_noise(backbone, room, most, seed):
    pixels = torch.rand((5, 3, backbone.resolution, backbone.resolution), generator=create_generator(1, "p")) * 2 - 1

    def encode(encoder):
        random = None if seed is None else create_generator(seed, "noise")
        return encoder.encode(pixels, random), None if random is None else random.get_state()

    whole, state = encode(BatchEncoder(backbone, 5))
    sizes, encoder = room(most), BatchEncoder(backbone, 5)
    found, found_state = encode(encoder)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert state is None or torch.equal(state, found_state)
    assert sizes == {1: [5, 2, 1, 1, 1, 1, 1], 2: [5, 2, 2, 1], 3: [5, 2, 2, 1]}[most]
    assert encoder.at_once == min(most, 2)


def test_a_try_that_fails_after_noise_was_drawn_leaves_the_noise_as_it_was(backbone, monkeypatch):
    pixels = torch.zeros(2, 3, backbone.resolution, backbone.resolution)
    whole = BatchEncoder(backbone).encode(pixels, create_generator(3, "noise"))
    encode_image = type(backbone).encode_image

    def draw_and_fail(self, some, generator):
        latents = encode_image(self, some, generator)
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return latents

    monkeypatch.setattr(type(backbone), "encode_image", draw_and_fail)
    found = BatchEncoder(backbone).encode(pixels, create_generator(3, "noise"))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [("latent_pool=5",), ("latent_pool=5", "pool_noise=fresh"), ("latent_pool=0",)])
def test_views_are_encoded_in_fewer_at_once(backbone, room, settings):
    config = override(PRESETS["paper"], [f"views.{one}" for one in settings])

    def draw():
        source = ViewLatents(backbone, views(backbone, config), config.views, 1)
        return [source(3, step) for step in range(2)]

    whole = draw()
    sizes = room(1)
    for one, other in zip(draw(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert set(sizes[3:]) == {1}, "what was found once is not tried again"


@pytest.mark.slow
def test_images_of_the_class_and_resized_views_are_encoded_in_fewer_at_once(backbone, room):
    few = ["tune.prior_images=3", "generate.steps=1", "views.latent_pool=3", "learn.batch=2"]
    config = override(PRESETS["custom-diffusion"], few)

    def encode():
        row = get_class_row(backbone, config)
        draw = make_resized_view_drawer(backbone, views(backbone, config), config, 1, lambda: torch.stack([row, row]))
        return finetuning.generate_class_latents(backbone, config, SilentProgress()), draw(0).latents

    whole = encode()
    sizes = room(1)
    for one, other in zip(encode(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert sizes == [3, 1, 1, 1] * 2


def test_no_memory_for_one_image_is_an_error(backbone, room):
    room(0)
    with pytest.raises(ConfigError, match=r"encode one image \(CUDA out of memory\)") as error:
        BatchEncoder(backbone).encode(torch.zeros(3, 3, backbone.resolution, backbone.resolution))
    assert error.value.lacks_memory


def test_one_that_cannot_be_encoded_leaves_the_others_that_are_learned_together(backbone, monkeypatch):
    config = override(CONFIG, ["views.latent_pool=0", "learn.steps=1", "learn.batch=1"])
    pair = [make_trainer(backbone, views(backbone, config), config, seed) for seed in (1, 2)]

    def fail(*_arguments):
        raise make_memory_error(ConfigError, "There is not enough memory to encode one image.", "Close some.")

    monkeypatch.setattr(pair[0].task, "draw_step", fail)
    monkeypatch.setattr(pair[0].task, "compute_loss", fail)
    group = TrainingGroup(pair, [None, None])
    for _ in group.take_steps():
        pass
    assert set(group.failed) == {pair[0]}
    assert pair[1].done == 1


LIMITED = """
import re, resource, sys
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from sefi.cli.app import app
try:
    app()
finally:
    print(re.search(r"VmPeak:\\s*(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def run_within_limit(limit, *words):
    """Run a command in so many bytes of address space (0: in any); return its code, its answer and the most it took.

    Without a limit every large block is a mapping of its own, and there is one arena. Otherwise the C library moves its
    threshold as blocks are freed, and what the same command takes differs by some percent from run to run. With a
    limit, `sefi` itself must see to that.
    """
    command = [sys.executable, "-c", LIMITED, str(limit), *map(str, words)]
    steady = {} if limit else {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | steady
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return found.returncode, json.loads(found.stdout), int(found.stderr.split()[-1]) << 10


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read as Linux tells it")
def test_a_process_that_may_have_no_more_memory_learns_the_same(tmp_path):
    """Real allocations fail, wherever torch and oneDNN make them, with less and less address space.

    oneDNN asks the system for the pages of its code, so failed tries must have given theirs back.
    """

    def learn(name, batch, limit=0):
        words = [
            PORTRAIT,
            "--name",
            "ada",
            "--preset",
            "scratch",
            "--out",
            tmp_path / f"{name}.safetensors",
            "--steps",
            2,
        ]
        words += ["--set", f"learn.batch={batch}", "--set", "views.latent_pool=8", "--json"]
        return run_within_limit(limit, "learn", *words)

    code, _, most = learn("whole", 64)
    assert code == 0
    least = learn("small", 4)[2]
    whole = load_file(tmp_path / "whole.safetensors")["tokens"]
    parts = []
    for share in (0.7, 0.35, 0.19):  # 46, 25 and 15 samples at once
        name = f"limited-{share}"
        code, answer, _ = learn(name, 64, int(least + share * (most - least)))
        assert code == 0, answer
        parts.append(answer["metrics"]["parts"])
        found = load_file(tmp_path / f"{name}.safetensors")["tokens"]
        assert (found - whole).norm() <= 1e-4 * whole.norm()
    assert parts == [2, 4, 8]
