"""The invisible mark: seen by nobody, found after what happens to images, in no unmarked image."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from skimage import data

from sefi.provenance import mark
from sefi.provenance.mark import FALSE_ALARMS, PUBLIC_KEY, embed_mark, find_mark

PAYLOAD = 3_141_592_653
NAMES = ("astronaut", "coffee", "rocket", "cat", "moon", "grass")


def read_photo(name, side=512):
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    shorter = min(image.size)
    return np.asarray(image.crop((0, 0, shorter, shorter)).resize((side, side), Image.Resampling.LANCZOS))


def save_as(pixels, kind, quality):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, quality=quality)
    with Image.open(content) as image:
        return np.asarray(image.convert("RGB"))


def resize(pixels, scale):
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def crop(pixels, share):
    height, width = (int(length * share / 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[height + 3 : -height, width + 1 : -width])


def add_noise(pixels):
    noise = np.random.default_rng(1).normal(0, 8, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


ATTACKS = {
    "nothing": lambda pixels: pixels,
    "JPEG 90": lambda pixels: save_as(pixels, "JPEG", 90),
    "JPEG 75": lambda pixels: save_as(pixels, "JPEG", 75),
    "JPEG 50": lambda pixels: save_as(pixels, "JPEG", 50),
    "WebP 80": lambda pixels: save_as(pixels, "WEBP", 80),
    "half": lambda pixels: resize(pixels, 0.5),
    "half, JPEG 75": lambda pixels: save_as(resize(pixels, 0.5), "JPEG", 75),
    "double": lambda pixels: resize(pixels, 2),
    "0.83, JPEG 75": lambda pixels: save_as(resize(pixels, 0.83), "JPEG", 75),
    "1.37": lambda pixels: resize(pixels, 1.37),
    "40 % off, JPEG 75": lambda pixels: save_as(crop(pixels, 0.4), "JPEG", 75),
    "noise": add_noise,
    "brighter": lambda pixels: np.clip(pixels * 1.15, 0, 255).astype(np.uint8),
}


@pytest.fixture(scope="module", params=NAMES)
def photos(request):
    """A photograph, plain and marked."""
    photo = read_photo(request.param)
    return photo, embed_mark(photo, PAYLOAD)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_mark_survives(photos, attack):
    found = find_mark(ATTACKS[attack](photos[1]))
    assert found is not None
    assert found.false_alarm <= FALSE_ALARMS
    assert found.payload in (PAYLOAD, None)  # never a wrong one


def test_it_is_not_seen_and_carries_the_payload(photos):
    plain, marked = photos
    assert marked.dtype == np.uint8
    error = np.mean((plain.astype(float) - marked) ** 2)
    assert 10 * math.log10(255**2 / error) == pytest.approx(mark.DECIBELS, abs=0.05)
    assert find_mark(plain) is None
    found = find_mark(marked)
    assert (found.scale, found.angle) == (1, 0)


def test_most_photographs_carry_the_payload_through_halving_and_compression():
    found = [find_mark(ATTACKS["half, JPEG 75"](embed_mark(read_photo(name), PAYLOAD))) for name in NAMES]
    assert [one.payload for one in found].count(PAYLOAD) >= len(NAMES) - 1  # grass hides too much


@pytest.mark.slow
def test_a_mark_without_payload_has_none():
    """Its likeliest symbols pass the checksum once in 250 images: 400 of them would show about two."""
    random = np.random.default_rng(3)
    for _ in range(400):
        small = random.integers(0, 256, (5, 7, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize((150, 131), Image.Resampling.BICUBIC))
        assert find_mark(embed_mark(pixels)).payload is None


def test_scale_and_angle_are_measured(photos):
    turned = np.asarray(Image.fromarray(photos[1]).rotate(1.3, Image.Resampling.BICUBIC))
    assert find_mark(turned).angle == pytest.approx(1.3, abs=0.2)
    assert find_mark(resize(photos[1], 0.71)).scale == pytest.approx(0.71, rel=0.004)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(192, 192), (131, 257), (640, 149), (1024, 1536)])
def test_other_sizes(size):
    photo = np.asarray(Image.fromarray(data.astronaut()).resize(size[::-1], Image.Resampling.LANCZOS))
    marked = embed_mark(photo, 7)
    assert marked.shape == photo.shape
    assert find_mark(marked) is not None
    assert find_mark(photo) is None


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_is_no_trouble(value):
    flat = np.full((256, 256, 3), value, np.uint8)
    assert find_mark(flat) is None
    assert embed_mark(flat, 1).shape == flat.shape
    assert find_mark(np.full((3, 2, 3), value, np.uint8)) is None


def test_another_key_finds_nothing(photos):
    assert find_mark(photos[1], PUBLIC_KEY + 1) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_payload_comes_back_and_a_changed_one_is_noticed(payload):
    symbols = mark._encode_payload(payload)
    assert mark._decode_payload(tuple(symbols)) == payload
    for number in range(len(symbols)):
        changed = [symbol ^ (1 << number) if place == number else symbol for place, symbol in enumerate(symbols)]
        assert mark._decode_payload(tuple(changed)) != payload


@pytest.mark.parametrize("payload", [-1, 2**32])
def test_a_payload_has_32_bits(payload):
    with pytest.raises(ValueError, match="32 bits"):
        mark._encode_payload(payload)


def test_peaks_of_other_keys_are_as_rare_as_the_bound_says():
    """Strengths of 400 keys on one image, against the bound for a single shift at a level that some reach."""
    phases, _ = mark._sample_phases(mark._compute_spectrum(read_photo("coffee", 256), 1024), 1.0, 0.0)
    tiles = np.stack([mark._draw_tile(1, number) for number in range(400)])
    surfaces = mark._add_waves(phases * tiles.conj()) / math.sqrt(np.count_nonzero(phases) / 2)
    assert surfaces.std() == pytest.approx(1, abs=0.02)
    for level in (2.0, 3.0, 4.0):
        assert np.mean(surfaces > level) <= math.exp(-level * level / 2)
    assert surfaces.max() < 7
    strongest = surfaces.max((1, 2))
    for level in (4.4, 4.6, 4.8):  # at the last few of the 400 are as strong
        assert 0 < np.mean(strongest > level) <= mark._compute_false_alarms(level, 1)
    assert mark._compute_false_alarms(9.0, 30) == pytest.approx(30 * mark._compute_false_alarms(9.0, 1))
    assert mark._compute_false_alarms(1.0, 1) == 1
