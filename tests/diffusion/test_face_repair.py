"""Small faces are generated again, larger, and pasted back; everything else of the image stays as it was."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from PIL import Image

from sefi.api import generate, open_detector
from sefi.backbone.bundle import Backbone
from sefi.backbone.open import open_backbone
from sefi.core.config import FAST, Config, override, parse_config
from sefi.core.errors import ConfigError, FaceError
from sefi.core.prompts import Box
from sefi.diffusion.conditioning import WordsConditioner
from sefi.diffusion.sampling import ConditionedModel, GeneratedImage, list_repair_remarks, repair_faces
from sefi.diffusion.source_image import NO_SOURCE, SourceImages, cut_and_enlarge, paste_feathered
from sefi.photo.detect import Face, Square

WIDTH, HEIGHT = 72, 48
SETTINGS = parse_config({"generate": {"steps": 5, "width": WIDTH, "height": HEIGHT}}, Config).generate


class KnownFaces:
    """A detector that knows where the faces are: left, top, width and height of each."""

    def __init__(self, *boxes: Box) -> None:
        self.boxes = boxes

    def __call__(self, rgb: NDArray[np.uint8]) -> list[Face]:
        assert rgb.shape == (HEIGHT, WIDTH, 3)
        return [Face(*map(float, box), landmarks=(), score=0.9) for box in self.boxes]


def repair(
    backbone: Backbone, prompt: str, *boxes: Box, source: SourceImages = NO_SOURCE
) -> tuple[GeneratedImage, GeneratedImage]:
    values = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    before = GeneratedImage(Image.fromarray(values).resize((WIDTH, HEIGHT)), prompt, 4, 0)
    model = ConditionedModel(backbone, WordsConditioner(backbone, {"ada": "person", "bob": "dog"}))
    return before, repair_faces(model, before, KnownFaces(*boxes), SETTINGS, source)


def list_changed(before: GeneratedImage, after: GeneratedImage) -> NDArray[np.bool_]:
    return (np.asarray(before.pixels) != np.asarray(after.pixels)).any(-1)


def test_only_the_square_around_the_face_changes(backbone: Backbone) -> None:
    before, after = repair(backbone, "a photo of <ada>", (20, 15, 9, 10))
    assert after.repaired == ((14, 10, 20, 20),)
    changed = list_changed(before, after)
    left, top, width, height = after.repaired[0]
    inside = changed[top : top + height, left : left + width]
    assert inside.mean() > 0.5
    assert changed.sum() == inside.sum()
    assert not inside[0].any()  # the border fades in
    assert replace(after, pixels=before.pixels, repaired=()) == before


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of <ada>", [(44, 9, 20, 20)]),  # the largest alone
        ("a photo of a person and a dog", [(44, 9, 20, 20), (6, 12, 16, 16)]),
        ("a photo of <ada> and <bob>", []),
    ],
)
def test_an_identity_has_one_face(backbone: Backbone, prompt: str, expected: list[Box]) -> None:
    before, after = repair(backbone, prompt, (10, 16, 8, 8), (49, 14, 10, 10))
    assert list(after.repaired) == expected
    assert list_changed(before, after).any() == bool(expected)


@pytest.mark.parametrize("box", [(10, 10, 12, 11), (5, 5, 30, 30), (0, 0, 72, 48)])
def test_a_face_as_large_as_the_models_images_is_left_alone(backbone: Backbone, box: Box) -> None:
    assert backbone.resolution == 24
    before, after = repair(backbone, "a photo of <ada>", box)
    assert after == before


def test_an_image_without_faces_stays_as_it_is(backbone: Backbone) -> None:
    before, after = repair(backbone, "a photo of <ada>")
    assert after is before


def test_what_a_mask_keeps_is_not_repaired(backbone: Backbone) -> None:
    mask = Image.new("L", (WIDTH, HEIGHT), 0)
    mask.paste(255, (24, 0, WIDTH, HEIGHT))
    before, _ = repair(backbone, "a person")
    source = SourceImages((before.pixels,), mask=mask)
    _, after = repair(backbone, "a person", (20, 15, 9, 10), (5, 15, 6, 6), source=source)
    assert after.repaired == ((14, 10, 20, 20),)  # the other lies in the black part
    changed = list_changed(before, after)
    assert changed[:, 24:].any()
    assert not changed[:, :24].any()


def test_the_same_image_is_repaired_the_same(backbone: Backbone) -> None:
    once, again = (repair(backbone, "a photo of <ada>", (20, 15, 9, 10))[1] for _ in range(2))
    assert once.pixels.tobytes() == again.pixels.tobytes()


@given(left=st.integers(-5, 30), top=st.integers(-5, 20), side=st.integers(1, 30))
def test_pasting_back_what_was_cut_out_changes_nothing_outside_and_little_inside(
    left: int, top: int, side: int
) -> None:
    ramp = np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8)
    image, square = Image.fromarray(np.stack([ramp] * 3, -1)), Square(left, top, side)
    white = paste_feathered(image, Image.new("RGB", (9, 9), (255, 255, 255)), square)
    changed = (np.asarray(white) != np.asarray(image)).any(-1)
    changed[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = False
    assert not changed.any()
    if left >= 0 and top >= 0 and left + side <= 50 and top + side <= 40:
        same = paste_feathered(image, cut_and_enlarge(image, square, side), square)
        assert np.abs(np.asarray(same).astype(int) - np.asarray(image)).max() <= 1


def test_what_is_not_repaired_is_said(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    remarks = list_repair_remarks(["<ada> and <bob>", "<ada>, and <ada> again", "a dog", "<ada> and <bob>"])
    assert remarks == ["faces of '<ada> and <bob>' are not repaired: it names several identities"]
    config = parse_config({"generate": {"steps": 3}}, Config)
    with caplog.at_level(logging.WARNING):
        (image,) = generate("a dog", backbone=backbone, config=config, repair_faces=True)
    assert image.repaired == ()
    assert "repaired" not in caplog.text


def test_too_few_steps_and_no_detector_are_refused(backbone: Backbone, tmp_path: Any) -> None:
    few = parse_config({"generate": {"steps": 2}}, Config)
    with pytest.raises(ConfigError, match=r"less than one of 2\. Use --steps 3 or more"):
        generate("a dog", backbone=backbone, config=few, repair_faces=True)
    with pytest.raises(FaceError, match="no face detector"):
        generate("a dog", backbone=backbone, repair_faces=True, detector=tmp_path / "none.onnx")


@pytest.mark.slow
def test_the_embedded_model_repairs_the_faces_that_its_detector_finds() -> None:
    model = open_backbone()
    config = override(FAST, ["generate.steps=20", "generate.width=320", "generate.count=2"])
    plain, repaired = (
        generate("a woman holding a cup at the beach", backbone=model, config=config, repair_faces=wanted)
        for wanted in (False, True)
    )
    assert sum(len(image.repaired) for image in repaired) >= 2
    detect = open_detector(model, None)
    for before, after in zip(plain, repaired, strict=True):
        changed = list_changed(before, after)
        for left, top, width, height in after.repaired:
            assert changed[top : top + height, left : left + width].mean() > 0.3
            changed[top : top + height, left : left + width] = False
            assert any(left <= face.left and face.left + face.width <= left + width for face in detect(
                np.asarray(after.pixels)))  # fmt: skip
        assert not changed.any()


def paint_over(monkeypatch: pytest.MonkeyPatch) -> list[list[Image.Image]]:
    """Let each face that is generated again be of one colour, another for each; return what they were made from."""
    started: list[list[Image.Image]] = []

    def sample(backbone, conditioner, prompts, seeds, settings, progress, source):
        done = sum(map(len, started))
        started.append(list(source.start))
        for number, prompt in enumerate(prompts):
            image = Image.new("RGB", (24, 24), COLOURS[done + number])
            yield GeneratedImage(image, prompt, seeds[number], number)

    monkeypatch.setattr("sefi.diffusion.sampling.sample_images", sample)
    return started


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
LARGE, NEXT, APART = (20, 15, 10, 10), (30, 16, 8, 8), (58, 30, 7, 7)


def test_a_face_that_was_repaired_is_not_written_over(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    started = paint_over(monkeypatch)
    _, alone = repair(backbone, "a photo of a person", LARGE)
    started.clear()
    _, both = repair(backbone, "a photo of a person", NEXT, LARGE)
    assert both.repaired == ((15, 10, 20, 20), (26, 12, 16, 16))
    pixels = np.asarray(both.pixels)
    left, top, width, height = LARGE
    inside = np.s_[top : top + height, left : left + width]
    assert (pixels[inside] == np.asarray(alone.pixels)[inside]).all()
    assert pixels[20, 34].tolist() == list(COLOURS[1])  # the middle of the other one is its own repair
    # It was made from what the first repair left.
    ((_,), (second,)) = started
    assert second.getpixel((1, 12)) == pytest.approx(COLOURS[0], abs=40)


def test_a_face_that_is_left_alone_is_not_written_over(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    paint_over(monkeypatch)
    before, after = repair(backbone, "a photo of <ada>", LARGE, NEXT)  # of an identity only the largest is repaired
    changed = list_changed(before, after)
    left, top, width, height = NEXT
    assert not changed[top : top + height, left : left + width].any()
    assert changed[15:25, 20:27].all()
    large = (10, 5, 30, 30)  # as large as the model's images
    before, after = repair(backbone, "a photo of a person", large, (41, 20, 8, 8))
    assert after.repaired == ((37, 16, 16, 16),)
    assert not list_changed(before, after)[5:35, 10:40].any()


def test_faces_whose_squares_do_not_overlap_are_generated_together(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = paint_over(monkeypatch)
    _, after = repair(backbone, "a photo of a person", LARGE, APART, NEXT)
    assert [len(group) for group in started] == [2, 1]
    assert len(after.repaired) == 3
