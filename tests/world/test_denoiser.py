"""The denoiser's lesson: which places count how much, which timesteps are asked, what it goes on from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import given, settings, strategies as st

from sefi.backbone.open import EMBEDDED, MODELS
from sefi.world import diffusion_training
from sefi.world.data import picture_at
from sefi.world.diffusion_training import (
    EMPTY,
    Batch,
    DiffusionRecipe,
    DiffusionTraining,
    diffusion_loss,
    face_weights,
    new_schedule,
    new_unet,
)
from sefi.world.drawing import UNITS, face_truth, heads
from sefi.world.sampling import PEOPLE_ONLY, Shares, random_picture

RECIPE, SIDE = DiffusionRecipe(), 24


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_weights_have_mean_one_and_no_place_is_left_out(index: int) -> None:
    weights = face_weights([picture_at(7, index), picture_at(7, index + 1)], SIDE, RECIPE)
    assert weights.shape == (2, 1, SIDE, SIDE)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert weights.min() > 0.1


@pytest.mark.parametrize("index", range(7))
def test_a_mouth_counts_more_than_its_head_and_a_head_more_than_the_scene(index: int) -> None:
    picture = random_picture(np.random.default_rng([7, index]), shares=PEOPLE_ONLY)
    subject = picture.subjects[0]
    weights = face_weights([picture], SIDE, RECIPE)[0, 0]

    def at(x: float, y: float) -> float:
        row, column = (int(np.clip(v * SIDE / UNITS, 0, SIDE - 1)) for v in (y, x))
        return float(weights[row, column])

    mouth = np.array(face_truth(subject)["landmarks"][3:]).mean(0)
    assert at(*mouth) > 1.5 * at(subject.x, subject.y - 0.9 * subject.scale) > 1.5 * at(1, 1)


def test_without_extra_weight_every_cell_counts_alike() -> None:
    plain = replace(RECIPE, head_weight=0.0, feature_weight=0.0)
    torch.testing.assert_close(face_weights([picture_at(7, 3)], SIDE, plain), torch.ones(1, 1, SIDE, SIDE))


@pytest.mark.parametrize("index", range(5))
def test_an_animals_face_counts_as_a_persons_does(index: int) -> None:
    picture = random_picture(np.random.default_rng(index), shares=Shares(pet=1.0))
    weights = face_weights([picture], SIDE, RECIPE)[0, 0]
    ((_, _, _, points),) = heads(picture)
    row, column = (int(v * SIDE / UNITS) for v in points[0][::-1])
    assert weights[row, column] > 2 * weights.min()


class Asked:
    """A denoiser that keeps the timesteps it is asked about and answers with what it is shown."""

    device = torch.device("cpu")

    def __init__(self):
        self.steps = []

    def __call__(self, noisy, steps, states):
        self.steps.append(steps)
        return SimpleNamespace(sample=noisy)


@pytest.fixture
def asked(monkeypatch, tokenizer):
    """From a batch's size and a seed to the timesteps of its loss."""
    nothing = torch.zeros(1, 1, 1)
    monkeypatch.setattr(diffusion_training, "encode_named", lambda worded, text, noise: nothing)
    monkeypatch.setattr(diffusion_training, "named_text", lambda tokenizer, said, random: nothing)

    def timesteps(count, seed):
        unet, schedule = Asked(), new_schedule()
        model = SimpleNamespace(unet=unet, words=lambda: None)
        batch = Batch(torch.zeros(count, 4, 2, 2), [EMPTY] * count, torch.ones(count, 1, 2, 2))
        assert torch.isfinite(diffusion_loss(model, tokenizer, batch, RECIPE, schedule, (0, seed)))
        return unet.steps[0].numpy()

    return timesteps


@pytest.mark.parametrize("count", [1, 7, 48])
def test_every_share_of_the_schedule_gives_one_timestep(asked, count):
    for seed in range(20):
        found = np.sort(asked(count, seed))
        shares = np.arange(count) * 1000 / count
        assert (found > shares - 1).all()
        assert (found < shares + 1000 / count).all()


def test_the_timesteps_cover_the_schedule_in_any_order(asked):
    drawn = np.stack([asked(7, seed) for seed in range(300)])
    assert 0 <= drawn.min() < 5
    assert 994 < drawn.max() < 1000
    # Every picture of a batch meets every part of the schedule.
    assert (np.abs(drawn.mean(0) - 500) < 70).all()
    assert (asked(7, 3) == asked(7, 3)).all()


def test_a_denoiser_goes_on_from_a_finished_model(tmp_path, tokenizer):
    torch.manual_seed(8)
    finished = new_unet().half()
    finished.save_pretrained(tmp_path / "unet")
    training = DiffusionTraining(tokenizer, np.zeros((1, 4, 24, 24), np.float16), RECIPE, 1)
    texts = {k: v.clone() for k, v in training.model.worded().items()}
    learning = [id(p) for group in training.optimiser.param_groups for p in group["params"]]
    training.go_on_from(tmp_path)
    found = training.model.unet.state_dict()
    for name, value in finished.float().state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value)
        assert torch.equal(training.averaged[f"unet.{name}"], value)
        assert found[name].data_ptr() != training.averaged[f"unet.{name}"].data_ptr()
    assert all(torch.equal(v, training.model.state_dict()[k]) for k, v in texts.items())
    assert learning == [id(p) for p in training.model.unet.parameters()]
    assert training.averaged.keys() == training.model.state_dict().keys()


def test_the_embedded_models_denoiser_is_of_the_trained_shape():
    embedded = UNet2DConditionModel.from_pretrained(MODELS / EMBEDDED / "unet", use_safetensors=True)
    wanted = {name: value.shape for name, value in new_unet().state_dict().items()}
    assert {name: value.shape for name, value in embedded.state_dict().items()} == wanted
