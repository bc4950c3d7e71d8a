"""A photo is in an identity's file as a salted hash: to be recognised by whoever has it, and by nobody else."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from sefi.api import learn
from sefi.cli.describe import is_of_photo
from sefi.core.config import Config, override
from sefi.identity.file import Identity

SETTINGS = ["learn.steps=2", "learn.batch=1", "learn.class_word=dog"]


@pytest.fixture
def photo(tmp_path):
    """A photo of noise as PNG."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (67, 71, 3)).astype(np.uint8)).save(path)
    return path


def learn_one(backbone, photo, seed=0):
    return learn(photo, name="ada", backbone=backbone, config=override(Config(), SETTINGS), seed=seed, any_style=True)


def get_hash(identity):
    return identity.header.record.crops[0].photo_hash


def test_whoever_has_the_photo_recognises_it_however_it_is_stored(backbone, photo, tmp_path):
    learn_one(backbone, photo).save(tmp_path / "ada.safetensors")
    identity = Identity.load(tmp_path / "ada.safetensors")
    with Image.open(photo) as image:
        image.save(tmp_path / "same.bmp")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    assert is_of_photo(identity, photo)
    assert is_of_photo(identity, tmp_path / "same.bmp")
    assert not is_of_photo(identity, tmp_path / "other.png")


def test_a_seed_gives_one_hash_and_two_identities_of_a_photo_have_two(backbone, photo):
    first, again, other = (learn_one(backbone, photo, seed) for seed in (0, 0, 1))
    assert get_hash(first) == get_hash(again)
    assert get_hash(first) != get_hash(other)
    crops = [one.header.record.crops[0].model_copy(update={"photo_hash": None}) for one in (first, other)]
    assert crops[0] == crops[1]  # only the hashes have nothing in common, as docs/privacy.md says


def test_no_plain_hash_of_the_photo_is_in_the_file(backbone, photo, tmp_path):
    learn_one(backbone, photo).save(tmp_path / "ada.safetensors")
    content = (tmp_path / "ada.safetensors").read_bytes()
    with Image.open(photo) as image:
        plain = [photo.read_bytes(), image.tobytes()]
    for name in ("md5", "sha1", "sha256", "sha512"):
        for one in plain:
            assert hashlib.new(name, one).hexdigest()[:16].encode() not in content


def test_a_file_without_the_hash_says_nothing(backbone, photo):
    identity = learn_one(backbone, photo)
    header = identity.header.model_copy(update={"record": None})
    assert is_of_photo(Identity(identity.tensors, header), photo) is None
