"""One photo, stored in each of the eight orientations of EXIF, is the same photo: to the bit, until the identity."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from sefi import PRESETS, learn
from sefi.api import crop_photo
from sefi.backbone.bundle import Backbone
from sefi.core.config import Config, override
from sefi.core.rng import create_generator
from sefi.photo.augment import PhotoViews
from sefi.photo.read import read_photo

ORIENTATION = 0x0112
CONFIG = override(PRESETS["paper"], ["learn.steps=2", "learn.batch=1"])
# How a camera stores an upright picture in each orientation.
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
UPRIGHT = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}  # the others undo themselves


def write(image: Image.Image, path: Path, orientation: int, kind: str) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, format=kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return path


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A person's photograph that is not square."""
    return Image.fromarray(data.astronaut()[:331, 61:368])


@pytest.fixture(scope="module", params=["PNG", "WEBP"])
def files(request: pytest.FixtureRequest, picture: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The photo in every orientation; formats that keep each pixel, as a turned JPEG is another picture."""
    folder = tmp_path_factory.mktemp("photos")
    turned = {n: picture if how is None else picture.transpose(how) for n, how in STORED.items()}
    return [write(image, folder / f"{n}", n, request.param) for n, image in turned.items()]


def crop(file: Path, backbone: Backbone, config: Config = CONFIG) -> torch.Tensor:
    """The face, as the package's detector of photographs finds it."""
    return crop_photo(read_photo(file), backbone, config).pixels


@pytest.mark.slow_after(1)
def test_crops_and_views_are_the_same_to_the_bit(files: list[Path], backbone: Backbone) -> None:
    first, *others = [crop(file, backbone) for file in files]
    assert len(others) == 7
    assert all(torch.equal(first, other) for other in others)
    views = [PhotoViews(crop(file, backbone), CONFIG.views) for file in files]
    drawn = [[one.draw_view(create_generator(seed, "views")) for seed in range(5)] for one in views]
    assert not torch.equal(drawn[0][0], drawn[0][1])
    for other in drawn[1:]:
        assert all(torch.equal(one, two) for one, two in zip(drawn[0], other, strict=True))


@pytest.mark.slow
def test_the_learned_file_is_the_same_to_the_bit(files: list[Path], backbone: Backbone, tmp_path: Path) -> None:
    contents = set()
    for file in files:
        identity = learn(file, name="ada", backbone=backbone, config=CONFIG, progress=False)
        identity.save(tmp_path / "ada.safetensors", overwrite=True)
        contents.add((tmp_path / "ada.safetensors").read_bytes())
    assert len(contents) == 1


def test_a_wrong_orientation_gives_another_crop(picture: Image.Image, backbone: Backbone, tmp_path: Path) -> None:
    """What the tests above rest on."""
    paths = [write(picture, tmp_path / f"{n}.png", n, "PNG") for n in (1, 2)]
    one, other = (crop(path, backbone) for path in paths)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_after_it_is_decoded(picture: Image.Image, tmp_path: Path, orientation: int) -> None:
    """A phone turns its JPEGs by EXIF alone: the decoded pixels, turned, and no other ones."""
    plain = read_photo(write(picture, tmp_path / "plain.jpg", 1, "JPEG"))
    turned = read_photo(write(picture, tmp_path / "turned.jpg", orientation, "JPEG"))
    how = UPRIGHT.get(orientation, STORED[orientation])
    planes = [Image.fromarray(plane.numpy()) for plane in plain.pixels]
    wanted = planes if how is None else [plane.transpose(how) for plane in planes]
    for plane, other in zip(turned.pixels, wanted, strict=True):
        assert torch.equal(plane, torch.tensor(list(other.getdata())).view(other.height, other.width))
