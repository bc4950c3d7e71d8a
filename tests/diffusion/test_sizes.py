"""Images that are not of the trained size: which are generated, which are refused, and what their maps look like."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from sefi.api import generate
from sefi.backbone.bundle import Backbone, TextEncoding
from sefi.core.config import Config, GenerateSettings, parse_config
from sefi.core.errors import ConfigError
from sefi.diffusion.attention import AttentionRecorder, average_word_maps, copy_with_key_value_attention
from sefi.diffusion.sampling import check_size, draw_initial_noise, get_latent_size
from sefi.evaluation.metrics import measure_share_inside


def sized(**size: int | None) -> Config:
    return parse_config({"generate": {"steps": 3, **size}}, Config)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 56), (8, 8), (None, 40), (72, None)])
def test_images_have_the_size_that_is_asked_for(backbone: Backbone, width: int | None, height: int | None) -> None:
    (image,) = generate("a dog", backbone=backbone, config=sized(width=width, height=height))
    side = backbone.resolution
    assert image.pixels.size == (width or side, height or side)
    assert np.asarray(image.pixels).std() > 1


def test_the_trained_size_in_numbers_is_the_same_image(backbone: Backbone) -> None:
    side = backbone.resolution
    (plain,), (stated,) = (
        generate("a dog", backbone=backbone, config=config) for config in (sized(), sized(width=side, height=side))
    )
    assert plain.pixels.tobytes() == stated.pixels.tobytes()


@pytest.mark.parametrize(
    ("side", "near"), [(12, "8 or 16"), (100, "96 or 104"), (9, "8 or 16"), (4095, "4088 or 4096")]
)
@pytest.mark.parametrize("name", ["width", "height"])
def test_a_side_between_two_cells_names_its_neighbours(backbone: Backbone, name: str, side: int, near: str) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 8 pixels, and the {name} is {side}. Use a {name} of {near}"):
        generate("a dog", backbone=backbone, config=sized(**{name: side}))


@pytest.mark.parametrize("side", [0, 7, -8, 4104, 10**9])
def test_a_side_out_of_bounds_is_no_setting(side: int) -> None:
    with pytest.raises(ConfigError, match=r"generate\.width"):
        sized(width=side)


def test_too_many_pixels_are_refused_before_any_work(backbone: Backbone) -> None:
    check_size(backbone, GenerateSettings(width=4096, height=1024))
    with pytest.raises(ConfigError, match=r"4096 x 1032 are 4\.2 megapixels"):
        generate("a dog", backbone=backbone, config=sized(width=4096, height=1032))


@given(width=st.integers(1, 512), height=st.integers(1, 512))
def test_an_allowed_size_is_a_whole_number_of_cells(backbone: Backbone, width: int, height: int) -> None:
    settings = GenerateSettings(width=8 * width, height=8 * height)
    if 64 * width * height <= 2048 * 2048:
        check_size(backbone, settings)
        rows, columns = get_latent_size(backbone, settings)
        assert (rows * backbone.latent_factor, columns * backbone.latent_factor) == (8 * height, 8 * width)


def test_the_noise_of_the_trained_size_is_what_it_was(backbone: Backbone) -> None:
    size = backbone.latent_size
    assert torch.equal(draw_initial_noise(backbone, [3, 4]), draw_initial_noise(backbone, [3, 4], (size, size)))
    assert draw_initial_noise(backbone, [3], (5, 7)).shape == (1, backbone.latent_channels, 5, 7)


@pytest.mark.parametrize("size", [(7, 13), (12, 4), (5, 5), (1, 9)])
def test_maps_have_the_latents_rows_and_columns(backbone: Backbone, size: tuple[int, int]) -> None:
    """A map that is wide must not be read as one that is high: rows of a layer's map follow the latent's rows."""
    recorder = AttentionRecorder(keep_maps=True, latent_size=size)
    unet = copy_with_key_value_attention(backbone.unet, recorder)
    text = torch.randn(1, backbone.text_length, 2 * backbone.token_width, generator=torch.Generator().manual_seed(2))
    noisy = draw_initial_noise(backbone, [1], size)
    backbone.predict(noisy, torch.tensor([500]), TextEncoding(text), unet)
    shapes = {tuple(maps.shape[-2:]) for maps in recorder.maps.values()}
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    assert shapes == {size, half}
    averaged = average_word_maps(recorder, size)
    assert averaged.shape == (1, backbone.text_length, *size)
    torch.testing.assert_close(averaged.sum(1), torch.ones(1, *size))


def test_the_share_inside_a_box_of_maps_that_are_not_square() -> None:
    maps = np.zeros((1, 3, 5))
    maps[0, 2, 4] = 2.0  # the last row and column
    assert float(measure_share_inside(maps, (0.8, 2 / 3, 1.0, 1.0))[0]) == pytest.approx(1)
    assert float(measure_share_inside(maps, (0.0, 0.0, 0.8, 1.0))[0]) == pytest.approx(0)
    even = float(measure_share_inside(np.ones((3, 5)), (0.1, 0.2, 0.6, 0.9)))
    assert even == pytest.approx(0.5 * 0.7)
