"""Random views: bounded, replayable, and each change does what it says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sefi.core.config import ViewSettings
from sefi.core.rng import create_generator
from sefi.photo.augment import PhotoViews, ViewParameters, apply, draw_parameters

SIDE = 23
seeds = st.integers(0, 2**32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square() -> torch.Tensor:
    return torch.rand(3, SIDE, SIDE, generator=generator(5)) * 1.8 - 0.9


@given(seed=seeds, canvas=st.sampled_from(["black", "mean", "edge"]))
@settings(deadline=None)
def test_views_are_images(seed: int, canvas: str) -> None:
    views = PhotoViews(square(), ViewSettings(canvas=canvas))
    view = views.draw_view(generator(seed))
    assert view.shape == (3, SIDE, SIDE)
    assert view.isfinite().all()
    assert view.abs().max() <= 1


@given(seed=seeds)
@settings(deadline=None)
def test_views_can_be_replayed(seed: int) -> None:
    views = PhotoViews(square(), ViewSettings())
    assert torch.equal(views.draw_view(generator(seed)), views.draw_view(generator(seed)))
    assert torch.equal(
        views.draw_view(generator(seed)), apply(square(), draw_parameters(views.settings, generator(seed)))
    )


@given(seed=seeds)
def test_draws_stay_in_their_ranges(seed: int) -> None:
    drawn = draw_parameters(ViewSettings(), generator(seed))
    for factor in (drawn.brightness, drawn.contrast, drawn.saturation):
        assert 0.8 <= factor <= 1.2
    assert abs(drawn.hue) <= 0.01
    assert 0.1 <= drawn.scale <= 1
    assert 0.9 <= drawn.aspect <= 1.1
    assert 0 <= drawn.left <= 1
    assert 0 <= drawn.top <= 1


def test_flips_come_as_often_as_asked() -> None:
    stream = generator(3)
    share = sum(draw_parameters(ViewSettings(flip=0.3), stream).flip for _ in range(2000)) / 2000
    assert share == pytest.approx(0.3, abs=0.04)


def test_the_image_itself_is_not_changed() -> None:
    views = PhotoViews(square(), ViewSettings())
    for seed in range(5):
        views.draw_view(generator(seed)).fill_(0)
    assert torch.equal(views.crop, square())


def test_no_change_is_exact() -> None:
    assert torch.equal(apply(square(), ViewParameters()), square())


def test_two_flips_are_none() -> None:
    flip = ViewParameters(flip=True)
    once = apply(square(), flip)
    assert torch.equal(once, square().flip(-1))
    assert torch.equal(apply(once, flip), square())


def test_neutral_colours_change_nothing() -> None:
    tinted = apply(square(), ViewParameters(hue=1e-9))
    torch.testing.assert_close(tinted, square(), atol=1e-5, rtol=0)


def test_brightness_scales_light() -> None:
    dark = apply(square(), ViewParameters(brightness=0.5))
    torch.testing.assert_close((dark + 1), (square() + 1) / 2, atol=1e-5, rtol=0)


def test_no_saturation_is_grey() -> None:
    grey = apply(square(), ViewParameters(saturation=0.0))
    torch.testing.assert_close(grey[0], grey[1], atol=1e-5, rtol=0)


def test_a_third_of_the_hue_turns_red_to_green() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(3, 1, 1).expand(3, SIDE, SIDE)
    green = apply(red, ViewParameters(hue=1 / 3))
    torch.testing.assert_close(green[:, 0, 0], torch.tensor([-1.0, 1.0, -1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("left", "top"), [(0.0, 0.0), (1.0, 1.0), (0.4, 0.8)])
def test_the_pasted_image_lies_where_the_parameters_say(left: float, top: float) -> None:
    bright = torch.ones(3, SIDE, SIDE)
    parameters = ViewParameters(scale=10 / SIDE, aspect=0.7, left=left, top=top)
    view = apply(bright, parameters)
    rows, columns = (view[0] == 1).nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (10, 7)
    assert rows.min() == round(top * (SIDE - 10))
    assert columns.min() == round(left * (SIDE - 7))
    assert (view == -1).sum() == 3 * (SIDE * SIDE - 70)


def test_canvases() -> None:
    flat = torch.full((3, SIDE, SIDE), 0.5)
    small = ViewParameters(scale=0.4, left=0.5, top=0.5)
    assert apply(flat, small)[0, 0, 0] == -1
    for canvas in ("mean", "edge"):
        torch.testing.assert_close(apply(flat, replace(small, canvas=canvas)), flat)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3.0])
def test_scales_are_held_between_one_pixel_and_the_canvas(scale: float) -> None:
    assert apply(square(), ViewParameters(scale=scale)).shape == (3, SIDE, SIDE)


def test_views_of_several_photos_are_of_each_equally_often() -> None:
    squares = [torch.full((3, 37, 37), value) for value in (-0.5, 0.0, 0.5)]
    plain = ViewSettings(brightness=0, contrast=0, saturation=0, hue=0, min_scale=1, aspect=0)
    views = PhotoViews(squares[0], plain, tuple(squares[1:]))
    generator = create_generator(3, "views")
    means = torch.tensor([float(views.draw_view(generator).mean()) for _ in range(600)])
    for square in squares:
        assert 150 < int(((means - square.mean()).abs() < 0.1).sum()) < 250


def test_a_single_photo_draws_no_number_for_its_choice() -> None:
    first, second = create_generator(3, "views"), create_generator(3, "views")
    views = PhotoViews(square(), ViewSettings())
    views.draw_crop(first)
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


@pytest.mark.parametrize("colours", ["any", "few", "grey", "black and white"])
@pytest.mark.parametrize("hue", [0.01, 0.5])
def test_colours_are_those_of_kornia_to_the_bit(colours: str, hue: float) -> None:
    """What was learned with kornia's functions is learned again: it is the reference here, and no more than that."""
    from kornia import enhance

    random = generator(13)
    for _ in range(5):
        crop = torch.rand(3, SIDE, SIDE, generator=random) * 2 - 1
        crop = {
            "any": crop,
            "few": (crop * 2).round() / 2,
            "grey": crop[:1].expand(3, -1, -1),
            "black and white": crop.sign(),
        }[colours]
        drawn = draw_parameters(ViewSettings(hue=hue, brightness=0.9), random)
        one = ViewParameters(
            brightness=drawn.brightness, contrast=drawn.contrast, saturation=drawn.saturation, hue=drawn.hue
        )
        image = enhance.adjust_brightness_accumulative((crop + 1) / 2, one.brightness)
        image = enhance.adjust_contrast_with_mean_subtraction(image, one.contrast)
        image = enhance.adjust_saturation_with_gray_subtraction(image, one.saturation)
        image = enhance.adjust_hue(image, one.hue * 2 * torch.pi)
        assert torch.equal(apply(crop, one), (image * 2 - 1).clamp(-1, 1))
