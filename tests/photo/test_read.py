"""Reading photos: every mode comes out the same, every bad file is refused in our words."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from sefi.core.errors import PhotoError
from sefi.photo import read
from sefi.photo.read import read_photo

WIDTH, HEIGHT = 53, 41


def gradient() -> Image.Image:
    """A picture without any symmetry."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    red, green = columns * 255 // (WIDTH - 1), rows * 255 // (HEIGHT - 1)
    return Image.fromarray(np.stack([red, green, (red + green) // 3], -1).astype(np.uint8))


def expected(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def png_chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a large picture and whose data is nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def refusal(path: Path) -> str:
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    assert caught.value.remedy
    return caught.value.problem


def test_pixels_are_exact(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    photo = read_photo(str(tmp_path / "a.png"))
    assert photo.pixels.dtype == torch.float32
    assert photo.source == "a.png"
    torch.testing.assert_close(photo.pixels, expected(gradient()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_is_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = gradient() if undo is None else gradient().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", format=kind, exif=exif, quality=100, lossless=True)
    torch.testing.assert_close(read_photo(tmp_path / "a").pixels, expected(gradient()), atol=0.1, rtol=0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA", "I;16", "I"])
def test_every_png_mode(tmp_path: Path, mode: str) -> None:
    if mode == "I;16" or mode == "I":
        grey = np.asarray(gradient().convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    elif mode == "PA":
        image = gradient().convert("P")
        image.info["transparency"] = b"\xff" * 256
    else:
        image = gradient().convert(mode)
    image.save(tmp_path / "a.png")
    pixels = read_photo(tmp_path / "a.png").pixels
    shown = gradient().convert({"1": "1", "P": "P", "PA": "P", "RGBA": "RGB"}.get(mode, "L"))
    torch.testing.assert_close(pixels, expected(shown.convert("RGB")), atol=0.01, rtol=0)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    gradient().convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    torch.testing.assert_close(read_photo(tmp_path / "a.jpg").pixels, expected(gradient()), atol=0.15, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (40, 40)).save(tmp_path / "a.png")  # black, wholly transparent
    assert torch.equal(read_photo(tmp_path / "a.png").pixels, torch.ones(3, 40, 40))


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.txt", format="PNG")
    assert read_photo(tmp_path / "a.txt").pixels.shape == (3, HEIGHT, WIDTH)


def test_a_still_gif_is_a_photo(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.gif")
    assert read_photo(tmp_path / "a.gif").pixels.shape == (3, HEIGHT, WIDTH)


def test_a_phones_two_image_jpeg_gives_the_first(tmp_path: Path) -> None:
    second = Image.new("RGB", (WIDTH, HEIGHT))
    gradient().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=100)
    torch.testing.assert_close(read_photo(tmp_path / "a.jpg").pixels, expected(gradient()), atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a", format=kind, save_all=True, append_images=frames[1:])
    assert "animated" in refusal(tmp_path / "a")


def test_missing_directory_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert "no file" in refusal(tmp_path / "missing.jpg")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe")
    assert "empty" in refusal(tmp_path / "empty.jpg")


@pytest.mark.parametrize("path", ["/dev/zero", "a\x00b", "x" * 400])
def test_odd_paths(path: str) -> None:
    refusal(Path(path))


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n" * 9)
    assert "known format" in refusal(tmp_path / "a.jpg")
    gradient().save(tmp_path / "b.jpg", format="TIFF")
    assert "known format" in refusal(tmp_path / "b.jpg")


@pytest.mark.parametrize("side", [8_001, 12_000, 30_000, 2**31 - 1])
def test_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side, side))
    assert "megapixels" in refusal(tmp_path / "a.png")


def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_BYTES", 100)
    gradient().save(tmp_path / "a.png")
    assert "64 MB" in refusal(tmp_path / "a.png")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux")
def test_a_file_that_is_longer_than_the_system_says_is_read_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that grows meanwhile; those of /proc have 0 bytes by their status."""
    monkeypatch.setattr(read, "MAX_BYTES", 100)
    assert "larger than 64 MB" in refusal(Path("/proc/self/smaps"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (31, 400)])
def test_tiny_images(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert f"{size[0]} x {size[1]}" in refusal(tmp_path / "a.png")


KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")


def encoded(kind: str, image: Image.Image | None = None) -> bytes:
    memory = io.BytesIO()
    image = gradient() if image is None else image
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(memory, quality=95)
    else:
        image.save(memory, format=kind)
    return memory.getvalue()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_formats_of_phones(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(kind))  # known by its content, never by its name
    torch.testing.assert_close(read_photo(tmp_path / "a.jpg").pixels, expected(gradient()), atol=0.15, rtol=0)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_formats_of_phones_are_turned_upright_once(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    memory = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(gradient()).save(memory, quality=95, exif=exif.tobytes())
    else:
        gradient().save(memory, format=kind, exif=exif)
    (tmp_path / "a").write_bytes(memory.getvalue())
    upright = expected(gradient().transpose(Image.Transpose.ROTATE_270))
    torch.testing.assert_close(read_photo(tmp_path / "a").pixels, upright, atol=0.15, rtol=0)


def test_reading_leaves_pillow_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded("HEIF"))
    before = dict(Image.OPEN)
    read_photo(tmp_path / "a")
    assert before.keys() == Image.OPEN.keys()


def test_images_and_arrays_are_read_as_files_are(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    whole = read_photo(tmp_path / "a.png").pixels
    assert torch.equal(read_photo(gradient()).pixels, whole)
    assert torch.equal(read_photo(np.asarray(gradient())).pixels, whole)
    with Image.open(tmp_path / "a.png") as lazy:
        assert torch.equal(read_photo(lazy).pixels, whole)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_large_image_of_the_callers_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(read, "WHOLE_PIXELS", WIDTH * HEIGHT // 4)
    content = io.BytesIO()
    gradient().save(content, kind, quality=100)
    with Image.open(content) as image, Image.open(content) as same:
        pixels = read_photo(image).pixels
        assert image.size == (WIDTH, HEIGHT)
        assert np.array_equal(np.asarray(image), np.asarray(same))
    torch.testing.assert_close(pixels, expected(gradient().reduce(4)), atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])  # of WebP Pillow opens whole files only
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_of_the_callers_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    content = encoded(kind, Image.fromarray(noise))
    with pytest.raises(PhotoError) as caught:
        read_photo(Image.open(io.BytesIO(content[: int(share * len(content))])))
    assert caught.value.problem == "The image is damaged and cannot be decoded."


def test_a_closed_image_is_refused(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(PhotoError):
        read_photo(image)


@pytest.mark.parametrize("array", [np.zeros((40, 40)), np.zeros((40, 40, 3)), np.zeros((40, 40, 4), np.uint8)])
def test_arrays_that_are_no_rgb_image(array: np.ndarray) -> None:
    with pytest.raises(PhotoError, match="no RGB image"):
        read_photo(array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    content = encoded(kind, Image.fromarray(noise))
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    refusal(tmp_path / "a")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=9),
)
def test_damage_gives_a_photo_or_our_error(tmp_path: Path, kind: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(encoded(kind))
    for place, value in changes:
        content[int(place * len(content))] = value
    (tmp_path / "a").write_bytes(content)
    try:
        pixels = read_photo(tmp_path / "a").pixels
    except PhotoError:
        return
    assert pixels.shape[0] == 3
    assert pixels.abs().max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("most", [WIDTH * HEIGHT, WIDTH * HEIGHT - 1, 300, 40])
def test_a_large_photo_is_reduced_in_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    monkeypatch.setattr(read, "WHOLE_PIXELS", most)
    monkeypatch.setattr(read, "ROWS", 16)
    factor = {WIDTH * HEIGHT: 1, WIDTH * HEIGHT - 1: 2, 300: 4, 40: 8}[most]
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "a", format=kind, exif=exif, lossless=True)
    shown = gradient().reduce(factor).transpose(Image.Transpose.ROTATE_270)
    torch.testing.assert_close(read_photo(tmp_path / "a").pixels, expected(shown))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_large_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(read, "WHOLE_PIXELS", WIDTH * HEIGHT // 4)
    gradient().convert(mode).save(tmp_path / "a.jpg", quality=100)
    shown = gradient().reduce(4) if mode != "L" else gradient().convert("L").reduce(4).convert("RGB")
    # Blocks at the edge are filled up by the encoder.
    torch.testing.assert_close(
        read_photo(tmp_path / "a.jpg").pixels[:, :-1, :-1], expected(shown)[:, :-1, :-1], atol=0.05, rtol=0
    )


@pytest.mark.parametrize("size", [(8160, 6144), (8064, 6048), (12000, 9000), (16320, 12240)])
def test_photos_of_every_phone_are_within_the_bounds(size: tuple[int, int]) -> None:
    assert size[0] * size[1] <= read.MAX_JPEG_PIXELS
    assert size[0] > 9000 or size[0] * size[1] <= read.MAX_PIXELS


def test_a_refusal_for_size_does_not_contradict_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_PIXELS", 50_000_000)
    (tmp_path / "a.png").write_bytes(bomb(8160, 6144))
    assert "8160 x 6144 pixels (50.1 megapixels); at most 50 megapixels" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("as_file", [False, True])
def test_lack_of_memory_is_no_damaged_image(tmp_path, monkeypatch, as_file):
    def refuse(image):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 300000000 bytes")

    monkeypatch.setattr(read, "convert_to_pixels", refuse)
    photo = gradient()
    if as_file:
        photo.save(tmp_path / "ada.png")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read_photo(tmp_path / "ada.png" if as_file else photo)
