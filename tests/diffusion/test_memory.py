"""Where there is no memory for a batch of images, fewer are generated at once; each is the same."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_memory import Circle, run_within_limit

from sefi.api import generate
from sefi.core.config import Config, parse_config
from sefi.core.errors import GenerationError
from sefi.core.progress import SilentProgress
from sefi.diffusion import sampling

PROMPTS = ["a photo of a dog", "a red cup in snow", "a person"]


class Counts(SilentProgress):
    """What the progress is told: for each start the total and the steps after it."""

    def __init__(self):
        self.runs = []

    def start(self, total, label):
        self.runs.append([total, 0])

    def advance(self, **numbers):
        self.runs[-1][1] += 1


def draw(backbone, batch_size, progress=None, scheduler="ddim"):
    settings = {"steps": 2, "count": 3, "batch_size": batch_size, "scheduler": scheduler}
    config = parse_config({"generate": settings}, Config)
    return [
        np.asarray(one.pixels, int) for one in generate(PROMPTS, backbone=backbone, config=config, progress=progress)
    ]


@pytest.fixture
def limit(monkeypatch):
    """Let so many images be decoded at once, and fail as torch does with more; returns the sizes tried."""
    whole, sizes, failed = sampling.decode_images, [], []

    def set_limit(most):
        def decode(pipeline, latents, *arguments):
            sizes.append(len(latents))
            assert all(reference() is None for reference in failed), "what the failed try held is still there"
            if len(latents) > most:
                circle = Circle(latents)
                failed.append(weakref.ref(circle))
                torch.empty(2**60, dtype=torch.uint8)
            return whole(pipeline, latents, *arguments)

        monkeypatch.setattr(sampling, "decode_images", decode)
        return sizes

    return set_limit


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
@pytest.mark.parametrize(("most", "tried"), [(1, [7, 3, *[1] * 9]), (2, [7, 3, *[1] * 9]), (3, [7, 3, 3, 3])])
def test_fewer_images_at_once_are_the_same_images(backbone, limit, most, tried, scheduler):
    alone = draw(backbone, 1, scheduler=scheduler)
    wanted = draw(backbone, tried[-1], scheduler=scheduler)
    sizes, progress = limit(most), Counts()
    found = draw(backbone, 7, progress, scheduler)
    assert sizes == tried
    assert len(found) == 9
    # The texts of a batch are encoded together: of another size they may round differently.
    for others in (wanted, alone):
        assert all(np.abs(one - other).max() <= 1 for one, other in zip(found, others, strict=True))
    assert progress.runs[-1][0] == progress.runs[-1][1]


def test_no_memory_for_one_image_is_an_error(backbone, limit):
    limit(0)
    with pytest.raises(GenerationError, match="not enough memory for one image of 24 x 24") as error:
        draw(backbone, 4)
    assert error.value.lacks_memory


def test_another_error_is_raised_as_it_is(backbone, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(sampling, "decode_images", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        draw(backbone, 4)


@pytest.mark.slow
@pytest.mark.world
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read as Linux tells it")
def test_a_process_that_may_have_no_more_memory_generates_the_same(tmp_path):
    """Real allocations fail, wherever torch and oneDNN make them, with less and less address space."""

    def generate_images(batch_size, limit=0):
        folder = tmp_path / f"{batch_size}-{limit}"
        words = ["generate", "a photo of a dog", "--count", 13, "--batch-size", batch_size, "--steps", 2]
        code, answer, most = run_within_limit(limit, *words, "--out", folder, "--json")
        assert code == 0, answer
        return [np.asarray(Image.open(one["file"]), int) for one in answer["images"]], most

    whole, most = generate_images(13)
    least = generate_images(1)[1]
    for share in (0.7, 0.4):  # what failed tries leave, and the sheet of all images, take some 0.25
        images, _ = generate_images(13, int(least + share * (most - least)))
        for image, other in zip(images, whole, strict=True):
            assert abs(image - other).max() <= 1
