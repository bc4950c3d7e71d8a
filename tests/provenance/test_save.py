"""Whatever leaves the program as an image of ours bears the marks, and what is a photo does not."""

import base64
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from skimage import data

import sefi
from sefi.core.errors import OutputError
from sefi.provenance import save
from sefi.provenance.mark import embed_mark, find_mark
from sefi.provenance.metadata import SOURCE_TYPE, ImageRecord, format_parameters, read_source_type
from sefi.provenance.payload import KEY_VARIABLE, compute_payload, create_installation_key, read_installation_key
from sefi.provenance.save import encode_image, encode_shown, is_marked, mark_pixels, save_generated_image
from sefi.provenance.verify import verify_image

RECORD = ImageRecord("a photo of <ada> at the beach", 3, (512, 512), settings={"steps": 2, "scheduler": "ddim"})


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(data.astronaut())


def read(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def test_words_and_mark_are_in_the_finished_file(photo):
    encoded = encode_image(photo, RECORD)
    image = read(encoded.content)
    words = format_parameters(RECORD)
    assert encoded.has_mark
    assert read_source_type(image) == SOURCE_TYPE
    assert image.info["parameters"] == words
    assert np.array_equal(np.asarray(image), embed_mark(np.asarray(photo), compute_payload(words, None)))


def test_the_name_is_said_only_where_it_is_asked_for(photo):
    assert b"ada" not in encode_image(photo, RECORD).content
    said = ImageRecord(RECORD.prompt, 3, (512, 512), names=True)
    assert "<ada>" in read(encode_image(photo, said).content).info["parameters"]


def test_without_the_mark_the_words_say_so(photo):
    encoded = encode_image(photo, RECORD, mark=False)
    image = read(encoded.content)
    assert not encoded.has_mark
    assert np.array_equal(np.asarray(image), np.asarray(photo))
    assert read_source_type(image) == SOURCE_TYPE
    assert "Invisible mark: off" in image.info["parameters"]


@pytest.mark.parametrize("size", [(127, 131), (64, 64), (1, 1), (300, 127)])
def test_small_images_have_words_only(photo, size):
    encoded = encode_image(photo.resize(size))
    assert not encoded.has_mark
    assert read_source_type(read(encoded.content)) == SOURCE_TYPE


@pytest.mark.parametrize("value", [0, 90, 255])
def test_images_of_one_colour_have_words_only(value):
    encoded = encode_image(Image.new("RGB", (256, 256), (value, value, value)))
    assert not encoded.has_mark


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(128, 400), height=st.integers(128, 400))
def test_whatever_is_generated_is_marked_or_refused(seed, width, height):
    """Smooth grounds with a few edges: the hardest to mark."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (int(random.integers(1, 9)), int(random.integers(1, 9)), 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), random.choice([0, 1, 2, 3]))
    encoded = encode_image(image)
    assert encoded.has_mark == bool((np.asarray(image) != np.asarray(image)[0, 0]).any())
    assert is_marked(np.asarray(read(encoded.content))) == encoded.has_mark


def test_a_mark_that_is_not_found_again_is_made_stronger_and_then_refused(photo, monkeypatch):
    tried = []

    def embed_nothing(pixels, payload=None, *, decibels):
        tried.append(decibels)
        return pixels

    monkeypatch.setattr(save, "embed_mark", embed_nothing)
    with pytest.raises(OutputError, match="not found"):
        encode_image(photo)
    assert tried == [42.0, 38.0]


def test_an_installation_knows_its_images(photo, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "installation.key"))
    create_installation_key()
    save_generated_image(photo, tmp_path / "a.png", record=RECORD)
    found = verify_image(tmp_path / "a.png", read_installation_key())
    assert (found.is_ours, found.words_fit) == (True, True)


def test_a_file_is_replaced_only_where_that_is_asked_for(photo, tmp_path):
    save_generated_image(photo, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save_generated_image(photo, tmp_path / "a.png", record=RECORD)
    assert (tmp_path / "a.png").read_bytes() == before
    save_generated_image(photo, tmp_path / "a.png", record=RECORD, overwrite=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_on_a_page_only_what_was_generated_is_marked(photo, kind):
    shown = photo.resize((192, 192))
    plain, marked = (read(encode_shown(shown, kind, is_marked=one)) for one in (False, True))
    assert not is_marked(np.asarray(plain))
    assert read_source_type(plain) is None
    assert is_marked(np.asarray(marked))
    assert read_source_type(marked) == SOURCE_TYPE


def test_what_bears_the_mark_is_not_marked_twice(photo):
    pixels = mark_pixels(np.asarray(photo))
    assert np.array_equal(np.asarray(read(encode_shown(Image.fromarray(pixels), "PNG", is_marked=True))), pixels)


# ------------------------------------------------------------------ every way out


@pytest.fixture(scope="module")
def embedded():
    return sefi.open_backbone("tiny-portraits")


def test_python(embedded, tmp_path):
    image = sefi.generate("a photo of a person", [], backbone=embedded, steps=2, seed=5)[0]
    image.save(tmp_path / "a.png")
    found = verify_image(tmp_path / "a.png")
    assert found.is_declared
    assert found.mark is not None
    assert "Seed: 5" in found.parameters
    assert "Model: tiny-portraits" in found.parameters
    assert find_mark(np.asarray(read(image._repr_png_()))) is not None
    image.save(tmp_path / "b.png", mark=False)
    assert verify_image(tmp_path / "b.png").mark is None


def run_sefi(*words):
    from typer.testing import CliRunner

    from sefi.cli.app import app

    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


def test_generate_marks_images_and_grid_and_records_it(tmp_path):
    words = ("generate", "a photo of a person", "a person in the forest", "--steps", 2, "--out", tmp_path)
    run_sefi(*words)
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 3
    assert all(verify_image(file).mark is not None and verify_image(file).is_declared for file in files)
    run_sefi(*words, "--no-mark", "--seed", 9)
    runs = json.loads((tmp_path / "records.json").read_text())["runs"]
    assert [[one["has_mark"] for one in run["images"]] for run in runs] == [[True, True], [False, False]]
    others = set(tmp_path.glob("*.png")) - set(files)
    assert len(others) == 3
    assert all(verify_image(file).mark is None and verify_image(file).is_declared for file in others)


def test_generate_signs_where_that_is_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("c2pa")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "settings" / "installation.key"))
    run_sefi("generate", "a photo of a person", "--steps", 2, "--sign", "--out", tmp_path / "out")
    for file in (tmp_path / "out").glob("*.png"):
        found = verify_image(file)
        assert found.credentials.valid
        assert found.credentials.is_generated
        assert found.mark is not None


def list_page_images(page):
    for kind, content in re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", page):
        yield kind, read(base64.b64decode(content))


@pytest.mark.slow
def test_the_demo_marks_all_but_the_photo(tmp_path):
    run_sefi("demo", "--out", tmp_path / "demo")
    marked = {path.name: verify_image(path).mark is not None for path in (tmp_path / "demo").glob("*.png")}
    assert marked.pop("portrait.png") is False
    assert marked
    assert all(marked.values())
    shown = [
        is_marked(np.asarray(one.convert("RGB")))
        for _, one in list_page_images((tmp_path / "demo" / "index.html").read_text(encoding="utf-8"))
    ]
    assert shown.count(False) == 1  # the photo that was learned from
    assert len(shown) > 10
