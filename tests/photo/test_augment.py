"""Random views: bounded, replayable, and each change does what it says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sefi.core.config import ViewSettings
from sefi.core.rng import create_generator
from sefi.photo.augment import (
    CropFace,
    PhotoViews,
    ViewParameters,
    apply,
    draw_head_mask,
    draw_parameters,
    draw_resized_view,
    locate_in_square,
    swap_box_sides,
)
from sefi.photo.detect import Face, Square

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


def test_draws_fill_their_ranges_and_do_not_depend_on_each_other() -> None:
    stream = generator(8)
    drawn = [draw_parameters(ViewSettings(canvas="edge"), stream) for _ in range(2000)]
    names = ("brightness", "contrast", "saturation", "hue", "scale", "aspect", "left", "top")
    columns = torch.tensor([[getattr(one, name) for name in (*names, "flip")] for one in drawn], dtype=torch.float64)
    ends = [(0.8, 1.2)] * 3 + [(-0.01, 0.01), (0.1, 1), (0.9, 1.1), (0, 1), (0, 1)]
    for name, (low, high), column in zip(names, ends, columns.T, strict=False):
        # Uniform: the mean lies in the middle, and both ends come up.
        size = high - low
        assert float(column.mean()) == pytest.approx((low + high) / 2, abs=0.03 * size), name
        assert float(column.min()) < low + 0.01 * size, name
        assert float(column.max()) > high - 0.01 * size, name
    assert (torch.corrcoef(columns.T) - torch.eye(9)).abs().max() < 0.1
    assert {one.canvas for one in drawn} == {"edge"}


def test_resized_views_are_those_of_custom_diffusion() -> None:
    """Places are seen in the colours: red rises from left to right, green from top to bottom."""
    side = 48
    across = ((torch.arange(side) + 0.5) / side).expand(side, side)
    crop = torch.stack([across, across.T, torch.full((side, side), 0.5)])
    stream, scales, distances = generator(4), [], []
    for _ in range(400):
        view = draw_resized_view(crop, 0.0, stream)
        distances.append(view.distance)
        middle = view.pixels[:2, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].mean((1, 2))
        if view.distance == "near":
            step = float(view.pixels[0, 24, 40] - view.pixels[0, 24, 8]) / 32 * side
            scales.append(1 / step)
            # What is cut out may be any part of the enlarged image.
            assert (middle - 0.5).abs().max() <= (1 - 1 / scales[-1]) / 2 + 0.02
            assert view.pixels[0].diff(dim=0).abs().max() < 1e-4, "red does not change from top to bottom"
        elif view.box is not None:
            left, top, right, bottom = (round(edge * side) for edge in view.box)
            scales.append((right - left) / side)
            small = view.pixels[:, top:bottom, left:right]
            assert (small[2] - 0.5).abs().max() < 1e-3
            torch.testing.assert_close(small.mean((1, 2)), torch.full((3,), 0.5), rtol=0, atol=0.02)
    assert distances.count("near") / 400 == pytest.approx(1 / 3, abs=0.07)
    # Of two thirds, sizes from 1/3 to 1: below 0.6 on grey.
    assert distances.count("far") / 400 == pytest.approx(2 / 3 * (0.6 - 1 / 3) / (2 / 3), abs=0.07)
    far, near = [one for one in scales if one < 1], [one for one in scales if one > 1]
    assert (min(far), max(far)) == pytest.approx((1 / 3, 0.6), abs=0.02)
    assert (min(near), max(near)) == pytest.approx((1.2, 1.4), abs=0.03)
    mirrored = draw_resized_view(crop, 1.0, generator(4)).pixels
    assert torch.equal(mirrored, draw_resized_view(crop.flip(-1), 0.0, generator(4)).pixels)


@given(seed=seeds)
def test_resized_views_are_images_on_grey(seed: int) -> None:
    crop = (torch.rand(3, SIDE, SIDE, generator=generator(5)) - 0.5).sign()  # bicubic sums leave the range
    for stream in (generator(seed), generator(seed + 1), generator(seed + 2)):
        view = draw_resized_view(crop, 0.5, stream)
        assert view.pixels.shape == crop.shape
        assert view.pixels.abs().max() <= 1
        if view.box is not None:
            left, top, right, bottom = (round(edge * SIDE) for edge in view.box)
            around = view.pixels.clone()
            around[:, top:bottom, left:right] = 0
            assert not around.any()
    assert torch.equal(crop.abs(), torch.ones_like(crop))


def test_the_mask_of_a_view_is_of_the_photo_that_it_shows() -> None:
    places = CropFace((0.1, 0.1, 0.2, 0.3)), CropFace((0.6, 0.5, 0.3, 0.2))
    heads = [(2 * draw_head_mask(one.box, SIDE) - 1).expand(3, -1, -1) for one in places]
    still = ViewSettings(brightness=0, contrast=0, saturation=0, hue=0, min_scale=0.5)
    views, seen = PhotoViews(heads[0], still, (heads[1],), places), set()
    for seed in range(12):
        view, mask = views.draw_view_and_mask(generator(seed))
        torch.testing.assert_close(mask, (view[:1] + 1) / 2, rtol=0, atol=1e-5)
        seen.add(bool(torch.equal(views.draw_crop(generator(seed)), heads[0])))
    assert seen == {True, False}


def test_a_mask_does_not_change_with_the_colours() -> None:
    place = CropFace((0.3, 0.3, 0.3, 0.3))
    bright, still = (
        PhotoViews(square(), ViewSettings(brightness=one, contrast=one, saturation=one, hue=one / 2), (), (place,))
        for one in (0.5, 0)
    )
    for seed in range(5):
        found, wanted = (views.draw_view_and_mask(generator(seed))[1] for views in (bright, still))
        assert torch.equal(found, wanted)


def test_places_of_a_face_are_shares_of_the_square() -> None:
    face = Face(30.0, 50.0, 10.0, 20.0, ((32.0, 60.0), (38.0, 60.0), (35.0, 63.0), (33.0, 66.0), (37.0, 66.0)), 0.9)
    found = locate_in_square(face, Square(20, 40, 50))
    assert found.box == pytest.approx((0.2, 0.2, 0.2, 0.4))
    assert found.landmarks[0] == pytest.approx((0.24, 0.4))
    assert found.landmarks[4] == pytest.approx((0.34, 0.52))
    mirrored = (2 * draw_head_mask(swap_box_sides((0.1, 0.3, 0.2, 0.4)), SIDE) - 1).flip(-1)
    assert torch.equal(mirrored, 2 * draw_head_mask((0.1, 0.3, 0.2, 0.4), SIDE) - 1)


def test_flips_come_as_often_as_asked() -> None:
    stream = generator(3)
    share = sum(draw_parameters(ViewSettings(flip=0.3), stream).flip for _ in range(2000)) / 2000
    assert share == pytest.approx(0.3, abs=0.04)


def test_the_image_itself_is_not_changed() -> None:
    views = PhotoViews(square(), ViewSettings())
    for seed in range(5):
        views.draw_view(generator(seed)).fill_(0)
    apply(views.crop, ViewParameters()).fill_(0)
    for seed in range(9):
        draw_resized_view(views.crop, 0.0, generator(seed)).pixels.fill_(0)
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


@pytest.mark.parametrize(("left", "top"), [(0.0, 0.0), (1.0, 0.3), (0.2, 0.9)])
def test_around_the_pasted_image_is_its_mean_or_its_nearest_pixel(left: float, top: float) -> None:
    small = ViewParameters(scale=9 / SIDE, aspect=7 / 9, left=left, top=top)
    black, mean, edge = (apply(square(), replace(small, canvas=canvas)) for canvas in ("black", "mean", "edge"))
    first_row, first_column = round(top * (SIDE - 9)), round(left * (SIDE - 7))
    pasted = black[:, first_row : first_row + 9, first_column : first_column + 7]
    rows, columns = ((torch.arange(SIDE) - n).clamp(0, most) for n, most in ((first_row, 8), (first_column, 6)))
    assert torch.equal(edge, pasted[:, rows][:, :, columns])
    outside = black.eq(-1).all(0)
    assert int(outside.sum()) == SIDE * SIDE - 63
    torch.testing.assert_close(mean[:, outside], pasted.mean((1, 2))[:, None].expand(3, SIDE * SIDE - 63))
    assert torch.equal(mean[:, ~outside], black[:, ~outside])


def test_what_is_too_fine_for_a_small_view_is_its_mean() -> None:
    stripes = torch.tensor([0.9, -0.9]).repeat(30).expand(3, 60, 60)
    for image in (stripes, stripes.mT):
        view = apply(image, ViewParameters(scale=1 / 3, canvas="edge"))
        assert view.abs().max() < 0.2


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
