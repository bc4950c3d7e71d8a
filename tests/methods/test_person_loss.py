"""Further steps by the second recogniser: whose gradient it is, what they change, and where they are refused."""

import logging

import pytest
import torch

import sefi
from sefi.backbone.bundle import Backbone
from sefi.core.config import override
from sefi.core.errors import REMARKS, ConfigError, FaceError
from sefi.core.progress import Progress, SilentProgress
from sefi.core.rng import create_generator
from sefi.identity.tokens import IdentityTokens
from sefi.methods import METHODS, PRESETS
from sefi.methods.base import TrainingOptions, get_class_row
from sefi.photo.augment import CropFace, PhotoViews
from sefi.testing import PORTRAIT
from sefi.training import person_loss
from sefi.training.loop import list_recovery_remarks
from sefi.training.person_loss import PersonTask, make_person_config

FACE = CropFace((0.31, 0.23, 0.29, 0.37), ((0.37, 0.37), (0.53, 0.37), (0.45, 0.43), (0.39, 0.51), (0.51, 0.51)))
QUICK = ["learn.steps=2", "learn.batch=2", "views.latent_pool=2"]
MORE = override(PRESETS["default"], [*QUICK, "learn.person_steps=2"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few denoising steps, after which the shipped model's faces are found."""
    monkeypatch.setattr(person_loss, "DENOISING_STEPS", 5)


def make_task(
    embedded: Backbone, config: sefi.Config, seed: int = 3, kind: type[PersonTask] = PersonTask
) -> PersonTask:
    """A task that starts at the class word; the face is where it says."""
    crop = torch.rand((3, 192, 192), generator=create_generator(0, "crop")) * 2 - 1
    views = PhotoViews(crop, config.views, (), (FACE,))
    row = get_class_row(embedded, config)
    tokens = IdentityTokens(row, config.learn, seed, row.expand(config.learn.stages, 2, -1).clone())
    return kind(embedded, views, config, seed, tokens)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_loss(embedded: Backbone, quick: None) -> None:
    """Against differences of the loss, along the gradient itself."""
    task = make_task(embedded, make_person_config(MORE))
    task.generate_images(SilentProgress())
    assert task.landmarks
    loss, numbers = task.compute_loss(1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1 - float(numbers["likeness"]), abs=1e-6)
    table = task.tokens.table
    assert table is not None
    assert table.grad is not None
    gradient, size = table.grad.clone(), 0.02
    direction = gradient / gradient.norm()
    with torch.no_grad():
        table += size * direction
        above = task.compute_loss(1)[0]
        table -= 2 * size * direction
        below = task.compute_loss(1)[0]
    assert float(above - below) / (2 * size) == pytest.approx(float(gradient.norm()), rel=0.1)


@pytest.mark.slow
def test_steps_turn_the_tokens_of_the_inner_stages_and_nothing_else(embedded: Backbone, quick: None) -> None:
    before = sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=override(MORE, ["learn.person_steps=0"]))
    first, second = (sefi.learn(PORTRAIT, name="ada", backbone=embedded, config=MORE) for _ in range(2))
    change = (first.tensors["tokens"].float() - before.tensors["tokens"].float()).flatten(1).norm(dim=1)
    assert [bool(one > 0.01) for one in change] == [False, True, True, True, False]
    norms = [one.tensors["tokens"].float().norm(dim=-1) for one in (first, before)]
    assert torch.allclose(*norms, rtol=1e-3)
    assert torch.equal(first.tensors["tokens"], second.tensors["tokens"])
    assert first.header.settings["learn"]["person_steps"] == 2
    assert "person_steps" not in before.header.settings["learn"]
    assert -1 <= first.header.metrics["likeness"] <= 1
    assert "loss_denoise" in first.header.metrics


@pytest.mark.slow
def test_more_steps_make_predicted_faces_more_alike(embedded: Backbone, quick: None) -> None:
    config = make_person_config(override(MORE, ["learn.person_steps=6"]))
    task = make_task(embedded, config)
    task.generate_images(SilentProgress())
    with torch.no_grad():
        before = sum(float(task.compute_loss(step)[0]) for step in range(3))
    person_loss.train(task, config, SilentProgress())
    with torch.no_grad():
        assert sum(float(task.compute_loss(step)[0]) for step in range(3)) < before - 0.02


class FacelessTask(PersonTask):
    """One in whose images the detector finds no face."""

    def generate_images(self, progress: Progress) -> None:
        """Generate them and forget the faces."""
        super().generate_images(progress)
        self.landmarks.clear()


@pytest.mark.slow
def test_images_without_a_face_leave_the_tokens(
    embedded: Backbone, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task(embedded, make_person_config(MORE), kind=FacelessTask)
    with caplog.at_level(logging.WARNING, logger=REMARKS):
        tensors, numbers = person_loss.make_more_alike(task, SilentProgress())
    assert not tensors
    assert "learn.person_steps had no effect" in caplog.text
    assert "learn.person_steps had no effect" in list_recovery_remarks(numbers)[0]


def test_pets_and_other_models_are_refused(embedded: Backbone, backbone: Backbone) -> None:
    cat = override(MORE, ["learn.class_word=cat"])
    with pytest.raises(ConfigError, match="'cat' is none"):
        METHODS["sefi"].check(embedded, cat, None)
    with pytest.raises(ConfigError, match="for drawn faces only"):
        METHODS["sefi"].check(backbone, override(PRESETS["scratch"], ["learn.person_steps=1"]), None)


def test_a_limit_of_memory_and_photos_without_a_face_are_refused(embedded: Backbone) -> None:
    config = override(PRESETS["scratch"], [*QUICK, "learn.steps=1", "learn.person_steps=1"])
    views = PhotoViews(torch.zeros(3, 192, 192), config.views)
    with pytest.raises(FaceError, match="where the face is"):
        METHODS["sefi"].learn("ada", views, embedded, config, 0, TrainingOptions())
    with pytest.raises(ConfigError, match="limit of memory"):
        METHODS["sefi"].learn("ada", views, embedded, config, 0, TrainingOptions(memory=1 << 30))
