"""Colours are read alike from every mode, with every colour profile and every kind of transparency."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sefi.core.errors import PhotoError
from sefi.photo.read import read_photo

SIDE = 40
# Two halves of the picture, the right one of a colour that is never transparent.
LEFT, RIGHT = (200, 60, 40), (20, 90, 230)
# Names, `tRNS` chunks and what they say of the two colours of a palette.
PALETTE_ALPHAS = (("", b"", (1, 1)), (" index", b"\0", (0, 1)), (" bytes", b"\x50\xff", (80 / 255, 1)))
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def icc_profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile of these tags."""
    start = 132 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    white = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    device = b"prtr" if space == b"CMYK" else b"mntr"
    fields = struct.pack(
        ">I4sI4s4s4s12x4s28x", start + len(content), bytes(4), 0x02100000, device, space, connection, b"acsp"
    )
    return fields + white + bytes(48) + table + content


def grey_profile() -> bytes:
    """Grey whose values are proportional to the light."""
    linear = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100)
    white = b"XYZ " + bytes(4) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return icc_profile(b"GRAY", b"XYZ ", {b"wtpt": white, b"kTRC": linear})


def cmyk_profile() -> bytes:
    """Inks of made-up colours: a table of Lab at every corner of the ink cube."""
    matrix = struct.pack(">9i", *(0x10000 * (n % 4 == 0) for n in range(9)))
    ramp = bytes(range(256))
    corners = np.random.default_rng(3).integers(40, 216, 16 * 3, np.uint8).tobytes()
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + corners + ramp * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": table})


def swapped_profile() -> bytes:
    """The sRGB profile whose red and green primaries change places."""
    content = srgb_profile()
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    return content[:red] + b"gXYZ" + content[red + 4 : green] + b"rXYZ" + content[green + 4 :]


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


PROFILES = {
    "none": (None, b""),
    "srgb": (srgb_profile(), b"RGB"),
    "swapped": (swapped_profile(), b"RGB"),
    "grey": (grey_profile(), b"L"),
    "cmyk": (cmyk_profile(), b"CMYK"),
    "damaged": (b"no profile at all", b""),
    "cut": (swapped_profile()[:200], b""),
}


def png(depth: int, kind: int, samples: np.ndarray, *, profile: bytes | None, trns: bytes, palette: bytes) -> bytes:
    """A PNG of samples `[height, width, channel]`, written without Pillow."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    flat = samples.reshape(len(samples), -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, kind, 0, 0, 0)
    content = chunk(b"IHDR", header)
    content += chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)) if profile else b""
    content += chunk(b"PLTE", palette) if palette else b""
    content += chunk(b"tRNS", trns) if trns else b""
    content += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@dataclass(frozen=True)
class Kind:
    """A kind of PNG: its samples in the two halves, and what they mean."""

    depth: int
    type: int
    left: tuple[int, ...]
    right: tuple[int, ...]
    colours: tuple[tuple[int, ...], tuple[int, ...]]
    alphas: tuple[float, float] = (1, 1)
    trns: bytes = b""


def grey_kinds() -> dict[str, Kind]:
    kinds = {}
    for depth, left, right in ((1, 1, 0), (2, 2, 1), (4, 11, 3), (8, 190, 70), (16, 190 * 256 + 7, 70 * 256 + 3)):
        scale = {1: 255, 2: 85, 4: 17, 8: 1, 16: 1 / 256}[depth]
        colours = ((int(left * scale),), (int(right * scale),))
        kinds[f"grey {depth}"] = Kind(depth, 0, (left,), (right,), colours)
        kinds[f"grey {depth} key"] = Kind(depth, 0, (left,), (right,), colours, (0, 1), struct.pack(">H", left))
    return kinds


def palette_kinds() -> dict[str, Kind]:
    kinds = {}
    for depth in (1, 2, 4, 8):
        for name, trns, alphas in PALETTE_ALPHAS:
            kinds[f"palette {depth}{name}"] = Kind(depth, 3, (0,), (1,), (LEFT, RIGHT), alphas, trns)
    return kinds


def colour_kinds() -> dict[str, Kind]:
    kinds = {}
    for depth, scale in ((8, 1), (16, 257)):
        left, right = (tuple(v * scale for v in colour) for colour in (LEFT, RIGHT))
        key = struct.pack(">3H", *left)
        kinds[f"rgb {depth}"] = Kind(depth, 2, left, right, (LEFT, RIGHT))
        kinds[f"rgb {depth} key"] = Kind(depth, 2, left, right, (LEFT, RIGHT), (0, 1), key)
        half = 102 * scale
        kinds[f"rgba {depth}"] = Kind(depth, 6, (*left, half), (*right, 255 * scale), (LEFT, RIGHT), (0.4, 1))
        grey = ((190,), (70,))
        kinds[f"la {depth}"] = Kind(depth, 4, (190 * scale, half), (70 * scale, 255 * scale), grey, (0.4, 1))
    return kinds


KINDS = grey_kinds() | palette_kinds() | colour_kinds()


def reference(colour: tuple[int, ...], alpha: float, profile: str) -> np.ndarray:
    """The sRGB of one stored colour over white; a profile for other colours changes nothing."""
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[len(colour)]
    value: int | tuple[int, ...] = colour if len(colour) > 1 else next(iter(colour))
    one = Image.new(mode, (1, 1), value)
    content, space = PROFILES[profile]
    if content is not None and space == mode.encode():
        source = ImageCms.ImageCmsProfile(io.BytesIO(content))
        one = ImageCms.profileToProfile(one, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert one is not None
    return np.array(one.convert("RGB").getpixel((0, 0))) * alpha + 255 * (1 - alpha)


def halves(photo: Path | Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """What is read in the left and the right half, in 0..255."""
    pixels = (read_photo(photo).pixels + 1) * 127.5
    assert pixels.shape == (3, SIDE, SIDE)
    found = tuple(pixels[:, :, part].reshape(3, -1) for part in (slice(0, 16), slice(24, SIDE)))
    assert all((half == half[:, :1]).all() for half in found)
    return found[0][:, 0].numpy(), found[1][:, 0].numpy()


def png_of(one: Kind, profile: str) -> bytes:
    samples = np.empty((SIDE, SIDE, PNG_CHANNELS[one.type]), np.int64)
    samples[:, : SIDE // 2], samples[:, SIDE // 2 :] = one.left, one.right
    palette = bytes(LEFT + RIGHT) if one.type == 3 else b""
    return png(one.depth, one.type, samples, profile=PROFILES[profile][0], trns=one.trns, palette=palette)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", KINDS)
def test_png(tmp_path: Path, kind: str, profile: str) -> None:
    one = KINDS[kind]
    (tmp_path / "a.png").write_bytes(png_of(one, profile))
    for found, colour, alpha in zip(halves(tmp_path / "a.png"), one.colours, one.alphas, strict=True):
        assert np.abs(found - reference(colour, alpha, profile)).max() <= 1


TOUCHES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "loaded": lambda image: image,
    "copied": lambda image: image.copy(),
    "cut": lambda image: image.crop((0, 0, SIDE, SIDE)),
}


@pytest.mark.parametrize("profile", ["none", "swapped", "grey"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_png_that_its_caller_has_touched_is_read_as_its_file_is(kind: str, profile: str) -> None:
    """Pillow forgets then how many bits a value had, but keeps the transparent one as it was stored."""
    one = KINDS[kind]
    for name, touch in TOUCHES.items():
        image = Image.open(io.BytesIO(png_of(one, profile)))
        image.load()
        image = touch(image)
        for found, colour, alpha in zip(halves(image), one.colours, one.alphas, strict=True):
            assert np.abs(found - reference(colour, alpha, profile)).max() <= 1, name


def test_a_transparent_grey_that_eight_bits_mean_is_no_other() -> None:
    values = np.full((SIDE, SIDE), 11, np.uint8)
    values[:, SIDE // 2 :] = 187  # 11 of 4 bits
    image = Image.fromarray(values)
    image.info["transparency"] = 11
    left, right = halves(image)
    assert left.round().tolist() == [255] * 3
    assert right.round().tolist() == [187] * 3


def convert_to_lab(image: Image.Image) -> Image.Image:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    made = ImageCms.applyTransform(image, to_lab)
    assert made is not None
    return made


MODES = ("RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "RGBa", "PA", "L", "I", "LA", "La", "1", "P")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_read(mode: str) -> None:
    left, right = {"1": ((255,) * 3, (0,) * 3), "P": ((255, 0, 0), (0, 0, 255))}.get(mode, (LEFT, RIGHT))
    image = Image.new("RGB", (SIDE, SIDE), left)
    image.paste(right, (SIDE // 2, 0, SIDE, SIDE))
    opacity = Image.new("L", image.size, 102)
    opacity.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    grey = mode in ("L", "I", "LA", "La")
    if mode == "LAB":
        image = convert_to_lab(image)
    elif mode == "PA":
        image = image.quantize(4).convert("PA")
        image.putalpha(opacity)
    elif mode in ("RGBA", "RGBa", "LA", "La"):
        image.putalpha(opacity)
        image = image.convert("LA" if grey else "RGBA").convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    shares = (0.4, 1) if mode in ("RGBA", "RGBa", "PA", "LA", "La") else (1, 1)
    for found, colour, share in zip(halves(image), (left, right), shares, strict=True):
        shown = np.full(3, np.dot(colour, (0.299, 0.587, 0.114))) if grey else np.array(colour)
        assert np.abs(found - (shown * share + 255 * (1 - share))).max() <= (
            5 if mode == "HSV" else 2.5
        )  # hue in bytes


def test_a_transparent_colour_of_16_bits_is_one_also_where_the_caller_has_loaded_the_image() -> None:
    key = (0x1234, 0x5678, 0x9ABC)
    samples = np.empty((SIDE, SIDE, 3), np.int64)
    samples[:, : SIDE // 2], samples[:, SIDE // 2 :] = key, (20 * 257, 90 * 257, 230 * 257)
    content = png(16, 2, samples, profile=None, trns=struct.pack(">3H", *key), palette=b"")
    for loaded in (False, True):
        image = Image.open(io.BytesIO(content))
        if loaded:
            image.load()
        pixels = ((read_photo(image).pixels + 1) * 127.5).round()
        assert pixels[:, 0, 0].tolist() == [255, 255, 255]
        assert pixels[:, 0, -1].tolist() == [20, 90, 230]


@pytest.mark.parametrize("mode", ["L", "I", "I;16"])
def test_grey_of_more_bits_is_as_bright_as_its_mode_says(mode: str) -> None:
    values = np.full((SIDE, SIDE), 200 * 256 if mode == "I;16" else 200)
    image = Image.fromarray(values.astype({"L": np.uint8, "I": np.int32, "I;16": np.uint16}[mode]))
    assert image.mode == mode
    assert ((read_photo(image).pixels + 1) * 127.5).round().unique().tolist() == [200]


@pytest.mark.parametrize(("value", "kind", "named"), [
    (256, np.int32, "mode I has values from 0 to 256"), (-1, np.int32, "mode I has values from -1 to 0"),
    (200, np.float32, "mode F"), (0.5, np.float32, "mode F"), (np.nan, np.float32, "mode F"),
])  # fmt: skip
def test_grey_whose_white_is_not_known_is_refused(value: float, kind: type, named: str) -> None:
    values = np.zeros((SIDE, 2 * SIDE), kind)
    values[-1, -1] = value
    with pytest.raises(PhotoError, match=named):
        read_photo(Image.fromarray(values))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str, profile: str) -> None:
    image = Image.new("RGB", (SIDE, SIDE), LEFT)
    image.paste(RIGHT, (24, 0, SIDE, SIDE))
    image.convert(mode).save(tmp_path / "a.jpg", quality=100, subsampling=0, icc_profile=PROFILES[profile][0])
    with Image.open(tmp_path / "a.jpg") as stored:
        colours = [stored.getpixel(place) for place in ((4, 20), (36, 20))]
    for found, colour in zip(halves(tmp_path / "a.jpg"), colours, strict=True):
        values = colour if isinstance(colour, tuple) else (int(colour or 0),)
        assert np.abs(found - reference(values, 1, profile)).max() <= 1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("alpha", [255, 102, 0])
def test_webp(tmp_path: Path, alpha: int, profile: str) -> None:
    image = Image.new("RGBA", (SIDE, SIDE), (*LEFT, alpha))
    image.paste((*RIGHT, 255), (20, 0, SIDE, SIDE))
    image.save(tmp_path / "a.webp", lossless=True, exact=True, icc_profile=PROFILES[profile][0])
    for found, colour, share in zip(halves(tmp_path / "a.webp"), (LEFT, RIGHT), (alpha / 255, 1), strict=True):
        assert np.abs(found - reference(colour, share, profile)).max() <= 1


@pytest.mark.parametrize("colours", [(LEFT, RIGHT), ((0, 0, 0), (255, 255, 255))], ids=["palette", "grey"])
@pytest.mark.parametrize("transparent", [None, 0])
def test_gif(tmp_path: Path, colours: tuple[tuple[int, int, int], ...], transparent: int | None) -> None:
    image = Image.new("P", (SIDE, SIDE), 0)
    image.putpalette([value for colour in colours for value in colour])
    image.paste(1, (20, 0, SIDE, SIDE))
    settings: dict[str, Any] = {} if transparent is None else {"transparency": transparent}
    image.save(tmp_path / "a.gif", optimize=False, **settings)
    left, right = halves(tmp_path / "a.gif")
    np.testing.assert_array_equal(right.round(), colours[1])
    np.testing.assert_array_equal(left.round(), colours[0] if transparent is None else (255, 255, 255))


def test_the_profiles_of_these_tests_change_colours() -> None:
    """Otherwise the tests above would say nothing."""
    np.testing.assert_array_equal(reference(LEFT, 1, "swapped"), (60, 200, 40))
    assert np.abs(reference((190,), 1, "grey") - 190).min() > 20
    naive, printed = reference((90, 20, 200, 30), 1, "none"), reference((90, 20, 200, 30), 1, "cmyk")
    assert np.abs(naive - printed).max() > 20
