"""Places in a photo that is read smaller than it is stored: always pixels of the stored one, turned upright."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import sefi.api
import sefi.photo.read
from sefi.api import crop_photo, record_learning
from sefi.cli.learn import make_crop_record
from sefi.core.config import DEFAULT
from sefi.core.errors import FaceError, PhotoError
from sefi.photo.augment import SubjectCrop
from sefi.photo.detect import Face, Square
from sefi.photo.read import Photo, read_photo

RED, BLUE = (150, 100, 80, 80), (300, 200, 160, 160)  # the subject, and another at twice its place and size
ORIENTATION, TURNED_LEFT = 0x0112, 8  # EXIF: the stored image's left side is the upright one's bottom


@pytest.fixture(params=["png", "jpg", "png, turned"])
def photo(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Photo:
    """Read a photo of 801 x 600 pixels that is halved, as if it had 48 megapixels."""
    monkeypatch.setattr(sefi.photo.read, "WHOLE_PIXELS", 200_000)
    image = Image.new("RGB", (801, 600), "white")
    for colour, (left, top, width, height) in (((255, 0, 0), RED), ((0, 0, 255), BLUE)):
        image.paste(colour, (left, top, left + width, top + height))
    exif = Image.Exif()
    if request.param.endswith("turned"):
        image = image.transpose(Image.Transpose.ROTATE_270)
        exif[ORIENTATION] = TURNED_LEFT
    path = tmp_path / f"photo.{request.param[:3]}"
    image.save(path, exif=exif)
    return read_photo(path)


def crop_of(photo, backbone, **options) -> SubjectCrop:
    return crop_photo(photo, backbone, DEFAULT, **options)


def record_square(crop, backbone) -> list[int]:
    (record,) = record_learning(backbone, [crop], None, b"salt").crops
    assert record.model_dump(include={"left", "top", "side"}).items() <= make_crop_record(crop).items()
    return [record.left, record.top, record.side]


def test_a_photo_says_how_large_its_original_is(photo):
    assert (tuple(photo.pixels.shape), photo.size, photo.reduction) == ((3, 300, 401), (600, 801), 2)
    small = Photo(torch.zeros(3, 40, 50), "x")
    assert (small.size, small.reduction) == ((40, 50), 1)


def test_a_box_is_of_the_original(photo, backbone):
    crop = crop_of(photo, backbone, box=RED)
    assert crop.pixels.mean((1, 2)).tolist() == pytest.approx([1, -1, -1], abs=0.05)
    assert crop.square == Square(75, 50, 40)
    assert record_square(crop, backbone) == [150, 100, 80]
    edge = crop_of(photo, backbone, box=(721, 520, 80, 80))
    assert record_square(edge, backbone)[1:] == [520, 80]


def test_a_box_outside_of_the_original_is_refused_with_its_size(photo, backbone):
    with pytest.raises(PhotoError, match=r"80 x 80 pixels at 730, 400 is not inside the photo \(801 x 600\)"):
        crop_of(photo, backbone, box=(730, 400, 80, 80))


def test_faces_are_listed_and_remarked_on_in_its_pixels(photo, backbone, monkeypatch):
    found = [Face(left / 2, top / 2, width / 2, height / 2, (), 0.9) for left, top, width, height in (RED, BLUE)]
    monkeypatch.setattr(sefi.api, "open_detector", lambda backbone, detector: lambda rgb: found)
    with pytest.raises(FaceError, match=r"1 at x = 190 \(80 pixels wide\), 2 at x = 380 \(160 pixels wide\)"):
        crop_of(photo, backbone)
    crop = crop_of(photo, backbone, face=1)
    assert "only 80 x 80 pixels; a closer photo, with 128 or more" in crop.remarks[0]
    assert record_square(crop, backbone) == [110, 60, 160]
