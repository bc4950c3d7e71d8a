"""Learning with every method: stopped and gone on with, or looked at in between, it ends with the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sefi.backbone.bundle import Backbone
from sefi.backbone.open import MODELS
from sefi.cli.opening import preset_of
from sefi.core.config import Config, override
from sefi.core.errors import Interrupted
from sefi.core.nouns import Identity
from sefi.core.presets import PRESETS
from sefi.core.protocols import SilentProgress
from sefi.generate.sampler import generate
from sefi.methods import METHODS
from sefi.methods.base import RunOptions
from sefi.photo.read import pixels_of
from sefi.photo.views import PhotoViews

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
    return override(PRESETS[preset_of(name, None)], FEW)


def learn(backbone: Backbone, config: Config, options: RunOptions) -> Identity:
    square = pixels_of(Image.open(PORTRAIT).convert("RGB").resize((backbone.resolution,) * 2))
    options = replace(options, judges=backbone.judges)
    return METHODS[config.method].learn("ada", PhotoViews(square, config.views), backbone, config, 1, options)


def same(one: Identity, other: Identity) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("name", LEARNING)
def test_stopped_or_looked_at_it_ends_the_same(embedded: Backbone, tmp_path: Path, name: str) -> None:
    config = settings(name)
    whole = learn(embedded, config, RunOptions())

    kept = tmp_path / "run"
    with pytest.raises(Interrupted, match="step 2 of 3"):
        learn(embedded, config, RunOptions(StopAt(2), kept))
    assert same(learn(embedded, config, RunOptions(checkpoint=kept)), whole)

    looks: list[Identity] = []

    def look(identity: Identity) -> float:
        """Better every time, so that the last one is kept; applied as a probe's pictures do."""
        looks.append(identity)
        model = METHODS[name].apply([identity], embedded)
        prompts, few = ["a photo of <ada>"], override(config, ["generate.steps=1"]).generate
        list(generate(model.backbone, model.conditioner, prompts, [1], few, SilentProgress()))
        return float(len(looks))

    probed = override(config, ["learn.probe_every=1", "learn.patience=9"])
    assert same(learn(embedded, probed, RunOptions(probe=look)), whole)
    assert len(looks) == STEPS
    assert not same(looks[0], looks[-1])
