"""Images of a class: drawn after memory and space were looked at, once for all subjects, with the same bits."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import sefi
from sefi.core.config import override, select_settings
from sefi.core.errors import ConfigError, OutputError
from sefi.core.progress import SilentProgress
from sefi.methods import PRESETS
from sefi.training.finetuning import MOST_CLASSES, ClassImages, generate_class_latents

DRAWING = ("dreambooth", "dreambooth-lora", "custom-diffusion")
FEW = (
    "learn.steps=1", "learn.batch=1", "learn.class_word=dog", "learn.templates=a photo of {}", "views.latent_pool=1",
    "tune.prior_images=2", "generate.steps=1",
)  # fmt: skip


class Labels(SilentProgress):
    """Keeps the names of what was begun."""

    def __init__(self):
        self.begun = []

    def start(self, total, label):
        self.begun.append(label)


def choose(name, *settings):
    return override(PRESETS[name], select_settings(type(PRESETS[name]), (*FEW, *settings)))


@pytest.fixture
def learn(backbone, photo_file):
    """Learn with a method; returns its tensors and what was begun meanwhile."""

    def run(config, seed=1, **options):
        labels = Labels()
        try:
            learned = sefi.learn(
                photo_file, name="ada", backbone=backbone, config=config, seed=seed, crop=False, any_style=True,
                progress=labels, **options,
            )  # fmt: skip
        except sefi.SefiError as error:
            return error, labels.begun
        return learned.tensors, labels.begun

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_memory_and_space_are_looked_at_before_any_is_drawn(learn, tmp_path, monkeypatch, name):
    error, begun = learn(choose(name), memory=2**20)
    assert (type(error), begun) == (ConfigError, [])
    assert "with one sample at a time" in error.problem
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    error, begun = learn(choose(name), checkpoint=tmp_path / "run")
    assert (type(error), begun) == (OutputError, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_they_are_drawn_once_for_all_subjects_and_change_no_bit(learn, name):
    shared = ClassImages()
    for seed in (1, 2):
        alone, begun = learn(choose(name), seed)
        assert begun == ["generating", "learning"]
        together, begun = learn(choose(name), seed, class_images=shared)
        assert begun == (["generating", "learning"] if seed == 1 else ["learning"])
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[key], together[key]) for key in alone)
    assert shared.seconds_needed == 2 * shared.seconds_spared > 0


@pytest.mark.parametrize(
    ("setting", "drawn"),
    [
        ("tune.prior_images=1", True),
        ("tune.prior_weight=0", False),
        ("tune.prior_weight=0.5", False),
        ("learn.class_word=cat", True),
        ("learn.templates=a picture of {}", True),
        ("generate.steps=2", True),
        ("generate.guidance_scale=1", True),
        ("learn.learning_rate=1e-9", False),
    ],
)
def test_others_are_drawn_where_they_depend_on_what_differs(backbone, setting, drawn):
    shared, labels, config = ClassImages(), Labels(), choose("dreambooth")
    shared.collect(backbone, config, SilentProgress())
    latents = shared.collect(backbone, override(config, [setting]), labels)
    assert labels.begun == (["generating"] if drawn else [])
    expected = generate_class_latents(backbone, override(config, [setting]), SilentProgress())
    assert latents is expected if expected is None else torch.equal(latents, expected)
    none = ClassImages()
    none.collect(backbone, override(config, ["tune.prior_weight=0"]), SilentProgress())
    assert none.seconds_needed == 0
    shared.collect(replace(backbone), config, again := Labels())
    assert again.begun == ["generating"], "of another model"


def test_no_more_are_held_than_a_few(backbone):
    shared = ClassImages()
    for number in range(MOST_CLASSES + 1):
        shared.collect(backbone, choose("dreambooth", f"generate.guidance_scale={number}"), SilentProgress())
    shared.collect(backbone, choose("dreambooth", "generate.guidance_scale=1"), labels := Labels())
    assert labels.begun == []
    shared.collect(backbone, choose("dreambooth", "generate.guidance_scale=0"), labels)
    assert labels.begun == ["generating"]
