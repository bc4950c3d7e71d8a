"""From photo files to squares, with real photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from sefi.core.config import ViewSettings
from sefi.core.errors import FaceError
from sefi.photo.augment import PhotoViews, convert_to_bytes, crop_face, crop_middle
from sefi.photo.detect import Face
from sefi.photo.read import read_photo

# The astronaut's face in scikit-image's photograph, 512 x 512.
ASTRONAUT = Face(
    left=176, top=66, width=96, height=118,
    landmarks=((203.0, 112.0), (247.0, 112.0), (224.0, 137.0), (207.0, 154.0), (243.0, 154.0)),
    score=0.9,
)  # fmt: skip


class Marked:
    """A detector that reports faces it was told about."""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)
        self.seen: NDArray[np.uint8] | None = None

    def __call__(self, rgb: NDArray[np.uint8]) -> list[Face]:
        self.seen = rgb
        return self.faces


@pytest.fixture(params=["astronaut", "chelsea"])
def photograph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A person and a cat."""
    path = tmp_path / f"{request.param}.jpg"
    Image.fromarray(getattr(data, request.param)()).save(path, quality=95)
    return path


@pytest.mark.parametrize("resolution", [67, 512])
def test_whole_photographs_need_no_face(photograph: Path, resolution: int) -> None:
    square = crop_middle(read_photo(photograph), resolution)
    assert square.shape == (3, resolution, resolution)
    assert square.std() > 0.3


def test_the_face_fills_half_of_its_square(tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    square = crop_face(photo, Marked(ASTRONAUT), 118)
    # 2 x 118 source pixels at half size: the square's middle is the face's middle.
    source = photo.pixels[:, 125 - 118 : 125 + 118, 224 - 118 : 224 + 118]
    halved = torch.nn.functional.avg_pool2d(source[None], 2)[0]
    assert (square - halved).abs().mean() < 0.03


def test_the_detector_sees_upright_bytes(tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    detector = Marked(ASTRONAUT)
    crop_face(read_photo(tmp_path / "a.png"), detector, 31)
    assert detector.seen is not None
    assert np.array_equal(detector.seen, data.astronaut())


def test_no_face_says_how_to_go_on(photograph: Path) -> None:
    with pytest.raises(FaceError, match="--no-crop"):
        crop_face(read_photo(photograph), Marked(), 31)


def test_bytes_and_pixels_are_inverse() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1
    assert np.array_equal(convert_to_bytes(pixels), values)


def test_views_of_a_photograph(photograph: Path) -> None:
    views = PhotoViews(crop_middle(read_photo(photograph), 61), ViewSettings(min_scale=0.5))
    stream = torch.Generator().manual_seed(1)
    seen = torch.stack([views.draw_view(stream) for _ in range(7)])
    assert seen.shape == (7, 3, 61, 61)
    assert len({view.sum().item() for view in seen}) == 7
