"""Learning with every method: stopped and gone on with, or scored in between, it ends with the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sefi.api import find_evaluators
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.cli.loading import choose_preset
from sefi.core.config import Config, override, select_settings
from sefi.core.errors import ConfigError, Interrupted
from sefi.core.progress import SilentProgress
from sefi.diffusion.sampling import sample_images
from sefi.evaluation.encoders import DETECTOR, EMBEDDED_EVALUATORS, RECOGNISER, hash_face_networks
from sefi.identity.file import Identity
from sefi.methods import METHODS, PRESETS, celeb_basis
from sefi.methods.base import TrainingOptions
from sefi.photo.augment import PhotoViews
from sefi.photo.read import convert_to_pixels

PORTRAIT = MODELS / "demo" / "portrait.png"
STEPS = 3
FEW = [f"learn.steps={STEPS}", "learn.batch=1", "views.latent_pool=2", "tune.prior_images=1", "generate.steps=2"]
LEARNING = [name for name in METHODS if name != "fastcomposer"]


class StopAt(SilentProgress):
    """Ctrl-C after so many steps of learning."""

    def __init__(self, step: int) -> None:
        self.left, self.learning = step, False

    def start(self, total: int, label: str) -> None:
        self.learning = label == "learning"

    def advance(self, **numbers: float) -> None:
        self.left -= self.learning
        if self.learning and not self.left:
            raise KeyboardInterrupt


def settings(name: str) -> Config:
    preset = PRESETS[choose_preset(name, None)]
    return override(preset, select_settings(type(preset), FEW))


def learn(backbone: Backbone, config: Config, options: TrainingOptions, *, photos: int = 1) -> Identity:
    square = convert_to_pixels(Image.open(PORTRAIT).convert("RGB").resize((backbone.resolution,) * 2))
    options = replace(options, evaluators=find_evaluators(backbone))
    others = tuple(square * 0.8**n for n in range(1, photos))
    return METHODS[config.method].learn("ada", PhotoViews(square, config.views, others), backbone, config, 1, options)


def same(one: Identity, other: Identity) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_stopped_or_scored_it_ends_the_same(embedded: Backbone, tmp_path: Path, name: str) -> None:
    config = settings(name)
    whole = learn(embedded, config, TrainingOptions())

    checkpoint = tmp_path / "run"
    with pytest.raises(Interrupted, match="step 2 of 3"):
        learn(embedded, config, TrainingOptions(StopAt(2), checkpoint))
    assert same(learn(embedded, config, TrainingOptions(checkpoint=checkpoint)), whole)

    looks: list[Identity] = []

    def look(identity: Identity) -> float:
        """Better every time, so that the last one is the best; applied as a probe does."""
        looks.append(identity)
        model = METHODS[name].apply([identity], embedded)
        prompts, few = ["a photo of <ada>"], override(config, ["generate.steps=1"]).generate
        list(sample_images(model.backbone, model.conditioner, prompts, [1], few, SilentProgress()))
        return float(len(looks))

    probed = override(config, ["learn.probe_every=1", "learn.patience=9"])
    assert same(learn(embedded, probed, TrainingOptions(probe=look)), whole)
    assert len(looks) == STEPS
    assert not same(looks[0], looks[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_further_photos_are_learned(embedded: Backbone, name: str) -> None:
    config = settings(name)
    one, three = (learn(embedded, config, TrainingOptions(), photos=n) for n in (1, 3))
    assert not same(one, three)


def test_a_checkpoint_belongs_to_the_networks_that_its_photo_is_read_with(
    embedded: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, checkpoint = settings("celeb-basis"), tmp_path / "run"
    with pytest.raises(Interrupted):
        learn(embedded, config, TrainingOptions(StopAt(2), checkpoint))
    with monkeypatch.context() as patch:
        patch.setattr(celeb_basis, "hash_face_networks", lambda folder: f"others than in {folder}")
        with pytest.raises(ConfigError, match="its photo was read with other networks"):
            learn(embedded, config, TrainingOptions(checkpoint=checkpoint))
    learn(embedded, config, TrainingOptions(checkpoint=checkpoint))


def test_networks_of_faces_are_known_by_their_content(tmp_path: Path) -> None:
    for name in (DETECTOR, RECOGNISER):
        (tmp_path / name).write_bytes((EMBEDDED_EVALUATORS / name).read_bytes())
    assert hash_face_networks(tmp_path) == hash_face_networks(EMBEDDED_EVALUATORS)
    (tmp_path / RECOGNISER).write_bytes(b"another")
    assert hash_face_networks(tmp_path) != hash_face_networks(EMBEDDED_EVALUATORS)


def test_a_checkpoint_belongs_to_all_of_its_photos(embedded: Backbone, tmp_path: Path) -> None:
    config, checkpoint = settings("textual-inversion"), tmp_path / "run"
    with pytest.raises(Interrupted):
        learn(embedded, config, TrainingOptions(StopAt(2), checkpoint), photos=3)
    with pytest.raises(ConfigError, match="of another photo"):
        learn(embedded, config, TrainingOptions(checkpoint=checkpoint), photos=2)
    whole = learn(embedded, config, TrainingOptions(), photos=3)
    assert same(learn(embedded, config, TrainingOptions(checkpoint=checkpoint), photos=3), whole)
