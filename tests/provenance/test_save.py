"""Saving a generated image: its marks are in the file, read back before it takes its name; no subject is named."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from sefi import save_image
from sefi.core.errors import OutputError
from sefi.provenance import save
from sefi.provenance.mark import embed_mark, find_mark
from sefi.provenance.metadata import PARAMETERS_KEY, SOURCE_TYPE, ImageRecord, read_source_type
from sefi.provenance.payload import compute_payload
from sefi.provenance.save import SMALLEST_PROMISED, SMALLEST_TRIED, encode_copy, encode_image, read_marking

RECORD = ImageRecord("a photo of <ada> smiling", 7, (512, 512), settings={"steps": 11}, identities=("ab" * 32,))


def read_photo(side=512):
    return Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS)


def open_content(encoded):
    image = Image.open(io.BytesIO(encoded.content))
    image.load()
    return image


def make_noise(side=SMALLEST_PROMISED):
    """Return black and white dots, which leave no room for a mark."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 2, (side, side), np.uint8) * 255)


def test_a_png_has_its_words_and_its_payload_fits_them():
    encoded = encode_image(read_photo(), RECORD)
    image = open_content(encoded)
    words = image.info[PARAMETERS_KEY]
    assert read_source_type(image) == SOURCE_TYPE
    assert words.startswith("a photo of <subject> smiling\n")
    assert "Seed: 7" in words
    assert "ab" * 8 in words
    assert "<ada>" not in encoded.content.decode("latin-1")
    found = find_mark(np.asarray(image))
    assert found is not None
    assert found.payload == compute_payload(words, None) == encoded.payload


def test_the_files_pixels_are_those_of_the_mark():
    photo = read_photo()
    encoded = encode_image(photo)
    assert np.array_equal(np.asarray(encoded.pixels), embed_mark(np.asarray(photo), compute_payload("", None)))
    assert np.array_equal(np.asarray(open_content(encoded)), np.asarray(encoded.pixels))


def test_a_jpeg_has_both_marks():
    encoded = encode_image(read_photo(192), kind="JPEG")
    image = open_content(encoded)
    assert image.format == "JPEG"
    assert read_source_type(image) == SOURCE_TYPE
    assert find_mark(np.asarray(image)) is not None
    assert encoded.invisible_mark


def test_the_same_image_gives_the_same_bytes():
    first, second = (encode_image(read_photo(193), RECORD).content for _ in range(2))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_only_a_flag_leaves_the_mark_out_and_the_file_says_so(tmp_path):
    encoded = encode_image(read_photo(), RECORD, mark=False)
    image = open_content(encoded)
    assert np.array_equal(np.asarray(image), np.asarray(read_photo()))
    assert "Invisible mark: off" in image.info[PARAMETERS_KEY]
    assert read_source_type(image) == SOURCE_TYPE
    assert not encoded.invisible_mark
    encoded.write(tmp_path / "one.png")
    encode_image(read_photo()).write(tmp_path / "two.png")
    read_photo().save(tmp_path / "three.png")
    assert [read_marking(tmp_path / f"{name}.png") for name in ("one", "two", "three")] == [False, True, None]


@pytest.mark.parametrize("colour", [0, 127, 255])
@pytest.mark.parametrize("size", [(SMALLEST_TRIED, 311), (SMALLEST_PROMISED, SMALLEST_PROMISED)])
def test_constant_images_are_marked(size, colour):
    assert encode_image(Image.new("RGB", size, (colour,) * 3)).invisible_mark


def test_a_small_image_has_words_alone_which_say_so():
    encoded = encode_image(read_photo(SMALLEST_TRIED - 1), RECORD)
    image = open_content(encoded)
    assert not encoded.invisible_mark
    assert "Invisible mark: too small" in image.info[PARAMETERS_KEY]
    assert read_source_type(image) == SOURCE_TYPE


def test_an_image_without_room_for_a_mark_is_not_saved(tmp_path):
    path = tmp_path / "noise.png"
    with pytest.raises(OutputError, match="cannot be read back") as caught:
        save_image(make_noise(), path)
    assert "--no-mark" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []
    save_image(make_noise(), path, mark=False)
    assert read_marking(path) is False


def test_a_mark_that_is_not_found_is_embedded_more_strongly_once(monkeypatch):
    used = []

    def embed_weakly(pixels, payload, *, decibels):
        used.append(decibels)
        return embed_mark(pixels, payload, decibels=decibels) if len(used) > 1 else pixels

    monkeypatch.setattr(save, "embed_mark", embed_weakly)
    encoded = encode_image(read_photo(192))
    assert used == [42, 38]
    assert find_mark(np.asarray(encoded.pixels)) is not None


def test_transparency_stays():
    photo = read_photo(200).convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize((200, 200)))
    encoded = encode_image(photo)
    assert encoded.invisible_mark
    assert np.array_equal(np.asarray(open_content(encoded))[..., 3], np.asarray(photo)[..., 3])


def test_metadata_of_the_image_given_is_not_copied():
    photo = read_photo(200)
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    photo.info |= {"exif": exif.tobytes(), "comment": "a secret place"}
    assert b"secret" not in encode_image(photo).content
    assert b"secret" not in encode_image(photo, kind="JPEG").content


def test_a_copy_keeps_the_mark_that_it_has():
    marked = encode_image(read_photo(200)).pixels
    assert np.array_equal(np.asarray(encode_copy(marked).pixels), np.asarray(marked))
    small = encode_copy(read_photo(200))
    assert small.invisible_mark


def test_what_is_read_back_must_be_what_was_written(tmp_path, monkeypatch):
    encoded = encode_image(read_photo(200))
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda _: b"")
    with pytest.raises(OutputError, match="other bytes"):
        encoded.write(tmp_path / "one.png")


def test_images_of_other_programs_are_saved_with_their_words(tmp_path):
    path = tmp_path / "one.png"
    save_image(read_photo(), path, prompt="<ada> at the beach", seed=3, scheduler="ddim", steps=20)
    with Image.open(path) as image:
        assert image.info[PARAMETERS_KEY].startswith("<subject> at the beach\nSteps: 20, Sampler: DDIM, Seed: 3,")
    with pytest.raises(OutputError, match="exists"):
        save_image(read_photo(), path)
