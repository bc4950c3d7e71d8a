"""An invisible mark in the light of an image: embedded where it is saved, found again after resizing and compression.

A tile of 128 pixels is repeated over the image, weakly where it is smooth and strongly where it is textured. Its
frequencies have phases that a key gives. To find it, the phases of an image at these frequencies are compared with
the key's: summed up for every shift of the tile, they agree in marked images only. Four further tiles carry 32 bits
with a checksum, as their shifts against the first.

Source: spread-spectrum watermarking (Cox et al. 1997) and phase-only correlation; the shift that suits an image best is
taken, as informed embedding does (Miller, Cox and Bloom 2000).
"""

import binascii
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Complex = NDArray[np.complex64]
Pixels = NDArray[np.uint8]

PUBLIC_KEY = 20260102  # of the mark that everybody may find
TILE = 128  # pixels
LOWEST, HIGHEST = 0.05, 0.2  # frequencies of the tile, in cycles a pixel
DECIBELS = 42.0  # peak signal-to-noise ratio of a marked image
CONTRAST_BOX = 9  # pixels that contrast is measured over
LEAST_CONTRAST, MOST_CONTRAST = 2.0, 12.0  # grey levels
LARGEST_RESIDUAL = 2.0  # of normalised light, so that no edge counts alone
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

SYMBOLS, GRID = 4, 64  # of the payload, each one of 64 x 64 shifts of two pixels
SYMBOL_BITS, CHECK_BITS, PAYLOAD_BITS = 12, 16, 32
CANDIDATES = 4  # of a symbol, tried until the checksum is right
# Sum of the strengths of a payload's symbols. Of images without one the likeliest shifts add up to 16.1 at most (40
# photographs, whole and halved), and their checksum would be right once in 250; payloads after halving and JPEG 75
# have 19.7 and more.
SAFE_SYMBOLS = 17.5
SMALLEST_WITH_PAYLOAD = 256  # pixels of the shorter side
SHARES = (0.5, 0.6, 0.7)  # of the first tile's energy; the payload has the rest
# After the attacks that an embedded mark is tried with; at usual scales 8.1 is found. Crops in other places than are
# tried leave less: of 100 photographs with eight random crops each 9.0 at the least, 8.2 with a limit of 8.6.
SAFE_STRENGTH = 9.5

FALSE_ALARMS = 1e-9  # for an image
EXACT_SCALES = (1.0, 0.5, 2.0, 0.75, 1.5, 1.25)
SCALES = (0.4, 2.2)
ANGLES = (-2.0, 2.0)  # degrees
SEARCHED_SIDE = 512  # pixels: the middle of an image, which unknown scales are searched in
ANALYSED_SIDE = 1024
BATCH = 64


@dataclass(frozen=True)
class FoundMark:
    """A mark in an image.

    Attributes:
        strength: peak over spread; 8.7 at the least.
        false_alarm: at most so often would an unmarked image show one as strong.
        scale: of the image since it was marked.
        angle: degrees that it was turned by.
        payload: 32 bits; None if it has none or they cannot be read.
    """

    strength: float
    false_alarm: float
    scale: float
    angle: float
    payload: int | None


def embed_mark(
    pixels: Pixels, payload: int | None = None, key: int = PUBLIC_KEY, *, decibels: float = DECIBELS
) -> Pixels:
    """Return an image with the mark.

    The payload gets as much of the mark as leaves it safe to find; a small image, or one whose texture hides too much,
    carries none.

    Args:
        pixels: sRGB `[height, width, 3]`.
        payload: 32 bits.
        decibels: peak signal-to-noise ratio of the marked image; fewer are a stronger mark.
    """
    for share in SHARES if payload is not None and min(pixels.shape[:2]) >= SMALLEST_WITH_PAYLOAD else ():
        marked = _add_tiles(pixels, payload, share, key, decibels)
        if _is_safe(marked, payload, key):
            return marked
    return _add_tiles(pixels, None, 1.0, key, decibels)


def _is_safe(marked: Pixels, payload: int | None, key: int) -> bool:
    """Return whether a mark would be found, and its payload read, after what commonly happens to an image."""
    for attacked, scale in _list_attacks(marked):
        spectrum = _compute_spectrum(attacked, ANALYSED_SIDE)
        strength, _, angle, shift = _find_best(spectrum, [(scale, 0.0)], key)
        if strength < SAFE_STRENGTH or (scale != 1 and _read_payload(spectrum, scale, angle, shift, key) != payload):
            return False
    return True


def find_mark(pixels: Pixels, key: int = PUBLIC_KEY, *, search: bool = True) -> FoundMark | None:
    """Find the mark in an image `[height, width, 3]`, scaled by 0.4 to 2.2 or turned by up to 2 degrees; None: none.

    Args:
        search: False looks at the usual scales alone, as for an image that was just saved.
    """
    spectrum = _compute_spectrum(pixels, ANALYSED_SIDE)
    exact = [(scale, 0.0) for scale in EXACT_SCALES]
    found = _find_best(spectrum, exact, key)
    trials = 2 * len(exact)  # half of the false alarms are theirs
    if search and _compute_false_alarms(found[0], trials) > FALSE_ALARMS:
        searched = list(_list_poses(min(SEARCHED_SIDE, *pixels.shape[:2])))
        # An image that is no larger than the searched middle has one spectrum.
        middle = spectrum if max(pixels.shape[:2]) <= SEARCHED_SIDE else _compute_spectrum(pixels, SEARCHED_SIDE)
        best = _find_best(middle, searched, key)
        found, trials = _estimate_pose(spectrum, best, key), 4 * len(searched)
    strength, scale, angle, shift = found
    chance = _compute_false_alarms(strength, trials)
    if chance > FALSE_ALARMS:
        return None
    return FoundMark(strength, chance, scale, angle, _read_payload(spectrum, scale, angle, shift, key))


def _compute_false_alarms(strength: float, trials: int) -> float:
    """Return how often at most an unmarked image shows a peak as strong in so many trials.

    Whatever the image is, the key's phases are independent and uniform, so the sum of n cosines is above
    `strength * sqrt(n / 2)` with a chance of at most `exp(-strength^2 / 2)` (Hoeffding 1963; the moment-generating
    function of such a cosine is below that of a normal variable); every shift of every trial may be.
    """
    return min(1.0, TILE * TILE * trials * math.exp(-strength * strength / 2))


# ------------------------------------------------------------------ tiles


@cache
def _list_frequencies() -> NDArray[np.int32]:
    """List the tile's frequencies, `[frequency, 2]` (down, across), in cycles a tile; of each opposite pair one."""
    numbers = np.fft.fftfreq(TILE, 1 / TILE).astype(np.int32)
    down, across = np.meshgrid(numbers, numbers, indexing="ij")
    radius = np.hypot(down, across) / TILE
    chosen = (radius >= LOWEST) & (radius <= HIGHEST) & ((across > 0) | ((across == 0) & (down > 0)))
    return np.stack([down[chosen], across[chosen]], axis=1)


@cache
def _draw_tile(key: int, number: int) -> Complex:
    """Draw the values of a tile's frequencies, of size 1 and with phases uniform in [0, 2 pi), `[frequency]`."""
    phases = np.random.default_rng([key, number]).uniform(0, 2 * np.pi, len(_list_frequencies()))
    return np.exp(1j * phases).astype(np.complex64)


def _move_tile(values: Complex, shift: tuple[int, int]) -> Complex:
    """Return a tile's frequencies moved down and to the right, in pixels."""
    turns = _list_frequencies() @ np.array(shift) / TILE
    return (values * np.exp(-2j * np.pi * turns)).astype(np.complex64)


def _add_waves(values: Complex) -> Floats:
    """Add waves up: `[..., frequency]` to tiles `[..., 128, 128]`, the real part of `sum value * exp(2 pi i k x)`."""
    spectrum = np.zeros((*values.shape[:-1], TILE, TILE // 2 + 1), np.complex64)
    down, across = _list_frequencies().T
    spectrum[..., down, across] = values
    zero = across == 0  # the opposite of these lies in the same column
    spectrum[..., -down[zero], 0] = values[..., zero].conj()
    return np.fft.irfft2(spectrum, s=(TILE, TILE)).astype(np.float32) * np.float32(TILE * TILE / 2)


def _add_tiles(pixels: Pixels, payload: int | None, share: float, key: int, decibels: float) -> Pixels:
    """Add the first tile and those of a payload to an image, at the shift that its light suits best."""
    parts = [(math.sqrt(share), _draw_tile(key, 0))]
    for number, symbol in enumerate([] if payload is None else _encode_payload(payload), 1):
        offset = (2 * (symbol // GRID), 2 * (symbol % GRID))
        parts.append((math.sqrt((1 - share) / SYMBOLS), _move_tile(_draw_tile(key, number), offset)))
    values = np.sum([weight * tile for weight, tile in parts], axis=0).astype(np.complex64)
    phases, _ = _sample_phases(_compute_spectrum(pixels, ANALYSED_SIDE), 1.0, 0.0)
    fit = _add_waves(phases * values.conj())
    down, across = (int(place) for place in np.unravel_index(int(fit.argmax()), fit.shape))
    tile = _add_waves(_move_tile(values, (down, across)))
    height, width = pixels.shape[:2]
    rows, columns = ((np.arange(length) - length // 2) % TILE for length in (height, width))
    contrast = np.clip(_measure_contrast(pixels @ LUMA)[1], LEAST_CONTRAST, MOST_CONTRAST)
    return _add_light(pixels, contrast * tile[rows][:, columns], decibels)


def _add_light(pixels: Pixels, light: Floats, decibels: float) -> Pixels:
    """Add light `[height, width]` to an image, as much as leaves so many decibels after rounding."""
    wanted = 255 * 10 ** (-decibels / 20)
    light = light * np.float32(wanted / max(float(np.sqrt(np.mean(light**2))), 1e-9))
    marked = pixels
    for _ in range(3):
        marked = np.clip(np.rint(pixels + light[..., None]), 0, 255).astype(np.uint8)
        difference = marked.astype(np.float32) - pixels
        light = light * np.float32(wanted / max(float(np.sqrt(np.mean(difference**2))), 1e-9))
    return marked


# ------------------------------------------------------------------ light and its phases


def _measure_contrast(luma: Floats) -> tuple[Floats, Floats]:
    """Return local mean and spread of light `[height, width]`."""
    box = (CONTRAST_BOX, CONTRAST_BOX)
    mean = cv2.blur(luma, box)
    variance = cv2.blur(luma * luma, box) - mean * mean
    return np.asarray(mean, np.float32), np.sqrt(np.maximum(variance, 0)).astype(np.float32)


def _compute_spectrum(pixels: Pixels, side: int) -> Complex:
    """Return the half spectrum of the normalised light of an image's middle, its centre at the origin, padded."""
    height, width = pixels.shape[:2]
    top, left = max(0, height // 2 - side // 2), max(0, width // 2 - side // 2)
    middle = pixels[top : top + side, left : left + side]
    luma = (middle @ LUMA).astype(np.float32)
    mean, spread = _measure_contrast(luma)
    residual = np.clip((luma - mean) / np.maximum(spread, LEAST_CONTRAST), -LARGEST_RESIDUAL, LARGEST_RESIDUAL)
    rows, columns = residual.shape
    size = -(-2 * max(rows, columns) // (2 * TILE)) * 2 * TILE
    padded = np.zeros((size, size), np.float32)
    down, across = height // 2 - top, width // 2 - left
    padded[:rows, :columns] = residual
    padded = np.roll(padded, (-down, -across), (0, 1))
    return np.fft.rfft2(padded).astype(np.complex64)


def _sample_phases(spectrum: Complex, scale: float, angle: float) -> tuple[Complex, Floats]:
    """Return the tile's frequencies in an image of a scale and angle: values of size 1 or 0, and their sizes.

    Args:
        spectrum: of `_compute_spectrum`.
        angle: degrees.
    """
    size = spectrum.shape[0]
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / (TILE * scale)
    places = _list_frequencies() @ matrix.T
    inside = np.abs(places).max(1) < 0.5
    places = places * size
    opposite = places[:, 1] < 0
    places[opposite] *= -1
    low = np.floor(places).astype(np.int32)
    part = (places - low).astype(np.float32)
    columns = np.clip(np.stack([low[:, 1], low[:, 1] + 1]), 0, spectrum.shape[1] - 1)
    rows = np.stack([low[:, 0], low[:, 0] + 1]) % size
    upper = (1 - part[:, 1]) * spectrum[rows[0], columns[0]] + part[:, 1] * spectrum[rows[0], columns[1]]
    lower = (1 - part[:, 1]) * spectrum[rows[1], columns[0]] + part[:, 1] * spectrum[rows[1], columns[1]]
    values = (1 - part[:, 0]) * upper + part[:, 0] * lower
    values = np.where(opposite, values.conj(), values)
    sizes = np.where(inside, np.abs(values), 0).astype(np.float32)
    return np.where(sizes > 0, values / np.maximum(sizes, 1e-12), 0).astype(np.complex64), sizes


Peak = tuple[float, float, float, tuple[int, int]]  # strength, scale, angle, shift


def _find_best(spectrum: Complex, poses: list[tuple[float, float]], key: int) -> Peak:
    """Find the strongest peak over scales and angles."""
    found: list[Peak] = []
    for start in range(0, len(poses), BATCH):
        some = poses[start : start + BATCH]
        phases = np.stack([_sample_phases(spectrum, scale, angle)[0] for scale, angle in some])
        surfaces = _add_waves(phases * _draw_tile(key, 0).conj())
        counts = np.maximum(np.count_nonzero(phases, axis=1), 1)
        for surface, count, (scale, angle) in zip(surfaces, counts, some, strict=True):
            down, across = (int(place) for place in np.unravel_index(int(surface.argmax()), surface.shape))
            found.append((float(surface[down, across]) / math.sqrt(count / 2), scale, angle, (down, across)))
    return max(found, key=lambda peak: peak[0])


# ------------------------------------------------------------------ unknown scale and angle


def _list_poses(side: int) -> Iterator[tuple[float, float]]:
    """List scales, and angles at the usual ones, so close that a mark in so many pixels lies between two of them."""
    step = min(0.05, 0.005 * SEARCHED_SIDE / side)
    low, high = SCALES
    count = math.ceil(math.log(high / low) / math.log1p(step))
    yield from ((low * (high / low) ** (number / count), 0.0) for number in range(count + 1))
    turn = math.degrees(step)
    angles = np.arange(ANGLES[0], ANGLES[1] + turn / 2, turn)
    yield from ((scale, float(angle)) for scale in EXACT_SCALES[:3] for angle in angles)


def _estimate_pose(spectrum: Complex, peak: Peak, key: int) -> Peak:
    """Return a peak with scale and angle as exactly as the whole image tells."""
    _, scale, angle, _ = peak
    steps = np.linspace(-0.004, 0.004, 9)  # the fifth is none
    return _find_best(spectrum, [(scale * (1 + float(step)), angle) for step in steps], key)


# ------------------------------------------------------------------ payload


def _encode_payload(payload: int) -> list[int]:
    """Return 32 bits and their checksum as four symbols of 12 bits."""
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise ValueError(f"a payload has {PAYLOAD_BITS} bits, not {payload}")
    word = payload << CHECK_BITS | binascii.crc_hqx(payload.to_bytes(4, "big"), 0)
    return [word >> (SYMBOL_BITS * number) & (GRID * GRID - 1) for number in reversed(range(SYMBOLS))]


def _decode_payload(symbols: tuple[int, ...]) -> int | None:
    """Return the 32 bits of four symbols; None if their checksum is wrong."""
    word = 0
    for symbol in symbols:
        word = word << SYMBOL_BITS | symbol
    payload, check = word >> CHECK_BITS, word & ((1 << CHECK_BITS) - 1)
    return payload if binascii.crc_hqx(payload.to_bytes(4, "big"), 0) == check else None


def _read_payload(spectrum: Complex, scale: float, angle: float, shift: tuple[int, int], key: int) -> int | None:
    """Read the payload behind the first tile's shift: the likeliest symbols whose checksum is right."""
    phases, sizes = _sample_phases(spectrum, scale, angle)
    # What is weak has been overwritten by compression; its phases say little.
    weighted = phases * np.sqrt(np.minimum(sizes / max(float(np.median(sizes)), 1e-12), 2.0))
    spread = math.sqrt(max(float(np.sum(np.abs(weighted) ** 2)), 1e-12) / 2)
    likeliest: list[list[tuple[float, int]]] = []
    for number in range(1, SYMBOLS + 1):
        surface = _add_waves(weighted * _draw_tile(key, number).conj()) / spread
        values = np.roll(surface, (-shift[0], -shift[1]), (0, 1))[::2, ::2].ravel()
        best = np.argsort(values)[::-1][:CANDIDATES]
        likeliest.append([(float(values[place]), int(place)) for place in best])
    strong = [some for some in itertools.product(*likeliest) if sum(value for value, _ in some) >= SAFE_SYMBOLS]
    strong.sort(key=lambda some: -sum(value for value, _ in some))
    decoded = (_decode_payload(tuple(symbol for _, symbol in some)) for some in strong)
    return next((payload for payload in decoded if payload is not None), None)


def _list_attacks(marked: Pixels) -> Iterator[tuple[Pixels, float]]:
    """Return what becomes of an image that is passed on: halved and compressed, cropped and compressed; with scales."""
    height, width = marked.shape[:2]
    half = cv2.resize(marked, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    yield _compress(np.asarray(half, np.uint8)), 0.5
    down, right = 2 * (height // 5), 2 * (width // 5)  # as far as a crop may go
    for top, left in ((down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)):
        yield _compress(marked[top : top + height - down, left : left + width - right]), 1.0


def _compress(pixels: Pixels) -> Pixels:
    """Return an image as JPEG of quality 75 leaves it."""
    content = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    decoded = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])
