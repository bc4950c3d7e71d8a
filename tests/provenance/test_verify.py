"""What an image bears is said without torch: words, the invisible mark, its payload; of every kind of file."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from skimage import data

from sefi.core.errors import PhotoError, SefiError
from sefi.provenance import verify
from sefi.provenance.mark import embed_mark
from sefi.provenance.metadata import ImageRecord, format_parameters, format_xmp, make_png_text
from sefi.provenance.payload import compute_payload
from sefi.provenance.verify import list_images, verify_image

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
RECORD = ImageRecord("a photo of <ada> in space", 7, (512, 512), settings={"steps": 25, "scheduler": "ddim"})
WORDS = format_parameters(RECORD)


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.fromarray(data.astronaut()))


@pytest.fixture(scope="module")
def marked(photo):
    """The photograph with a mark, by key."""
    return {key: embed_mark(photo, compute_payload(WORDS, key)) for key in (None, KEY)}


def save_png(path, pixels, record=RECORD):
    Image.fromarray(pixels).save(path, pnginfo=make_png_text(record, "1.0"))
    return path


def test_an_image_of_sefi_has_all_marks(tmp_path, marked):
    found = verify_image(save_png(tmp_path / "a.png", marked[KEY]), KEY)
    assert found.size == (512, 512)
    assert found.is_declared
    assert found.parameters == WORDS
    assert found.mark.payload == compute_payload(WORDS, KEY)
    assert found.is_ours
    assert found.words_fit is True


@pytest.mark.parametrize(
    ("key", "reader", "ours", "fit"),
    [
        (None, None, False, True),
        (None, KEY, False, True),
        (KEY, KEY, True, True),
        (KEY, None, False, None),
        (KEY, OTHER_KEY, False, None),
    ],
)
def test_only_the_key_shows_whether_the_words_fit(tmp_path, marked, key, reader, ours, fit):
    found = verify_image(save_png(tmp_path / "a.png", marked[key]), reader)
    assert (found.is_ours, found.words_fit) == (ours, fit)
    assert (found.installation == 0) == (key is None)


def test_words_of_another_image_are_found_out(tmp_path, marked):
    other = ImageRecord("somebody else", 8, (512, 512))
    found = verify_image(save_png(tmp_path / "a.png", marked[None], other))
    assert found.mark is not None
    assert found.words_fit is False
    stripped = tmp_path / "b.png"
    Image.fromarray(marked[None]).save(stripped)
    assert verify_image(stripped).words_fit is False
    assert verify_image(stripped).is_marked
    assert not verify_image(stripped).is_declared


def test_a_photograph_bears_nothing(tmp_path, photo):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    found = verify_image(path, KEY)
    assert (found.mark, found.installation, found.words_fit, found.is_marked) == (None, None, None, False)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("encoding", ["UNICODE", "ASCII"])
def test_other_kinds_of_files(tmp_path, marked, kind, encoding):
    """AUTOMATIC1111 writes the parameters of these into EXIF's user comment, piexif in big-endian UTF-16."""
    comment = b"UNICODE\0" + WORDS.encode("utf-16-be") if encoding == "UNICODE" else b"ASCII\0\0\0" + WORDS.encode()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    path = tmp_path / "wrong-suffix.png"  # known by content
    Image.fromarray(marked[None]).save(path, kind, quality=75, exif=exif, xmp=format_xmp("1.0").encode())
    found = verify_image(path)
    assert found.is_declared
    assert found.parameters == WORDS
    assert found.words_fit is True


def test_an_image_is_turned_upright_before_it_is_searched(tmp_path, marked):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(np.rot90(marked[None])).save(path, quality=90, exif=exif)
    assert verify_image(path).mark is not None


def test_files_and_folders_are_listed_once(tmp_path):
    (tmp_path / "inside").mkdir()
    names = ["a.png", "b.JPG", "c.gif", "d.tif", "inside/c.webp"]  # those that are not read are told then
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "round").symlink_to(tmp_path)
    assert list_images([tmp_path, tmp_path / "a.png"]) == [tmp_path / name for name in names]
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(PhotoError):
            list_images([path])


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a" + bytes(40)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(PhotoError):
        verify_image(path)


@pytest.mark.parametrize("kind", ["gif", "tiff", "bmp"])
def test_another_format_is_called_so(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.new("L", (40, 40)).save(path)
    with pytest.raises(PhotoError) as refused:
        verify_image(path)
    assert refused.value.problem == f"{path} cannot be checked: it is no PNG, JPEG or WebP image, or a damaged one."


def test_size_is_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (1100, 1000)).save(path)
    monkeypatch.setattr(verify, "MOST_PIXELS", 1_000_000)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="1100 x 1000"):
        verify_image(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), change=st.binary(min_size=1, max_size=9), cut=st.booleans())
def test_damaged_files_are_refused_by_name(tmp_path, place, change, cut):
    path = save_png(tmp_path / "a.png", np.arange(64 * 67 * 3, dtype=np.uint8).reshape(64, 67, 3))
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + len(change)] = change
    path.write_bytes(bytes(content[:start] if cut else content))
    with contextlib.suppress(SefiError):
        verify_image(path)


@pytest.mark.slow
def test_neither_torch_nor_transformers_is_needed(tmp_path, marked):
    save_png(tmp_path / "a.png", marked[None])
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'diffusers', 'kornia'): sys.modules[name] = None\n"
        "from sefi.cli.app import app\n"
        f"app(['verify', {str(tmp_path)!r}, '--json'])\n"
    )
    source = Path(verify.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["marked"] == 1
    assert record["images"][0]["words_fit"] is True
