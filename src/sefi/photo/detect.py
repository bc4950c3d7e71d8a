"""Find the faces of an image, choose the one to learn, cut out a square; try an OpenCV network before it is used."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Literal, Protocol, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sefi.core.errors import FaceError, PhotoError, check_type, is_out_of_memory, make_memory_error
from sefi.core.files import is_regular_file
from sefi.core.prompts import Box
from sefi.core.reading import InvalidFileError, read_bytes, translate_file_errors
from sefi.photo.read import Photo

# OpenCV's detector of photographed faces, which comes with the package (models/yunet/LICENSE.txt).
PHOTOGRAPH_DETECTOR = Path(__file__).parents[1] / "models" / "yunet" / "face_detection_yunet_2023mar.onnx"
PHOTOGRAPH_SCORE = 0.7  # at 0.6 it takes a motorcycle's lamp for a face
DEFAULT_SCORE = 0.6
SMALL_FACE = 64.0  # pixels: an image of the model's size has to be made of fewer than these
MAX_DETECTOR_BYTES = 64 * 2**20  # YuNet has 0.2 MB
# YuNet's network halves its input five times.
MULTIPLE = 32
# YuNet was trained on faces of 10 to 300 pixels: close faces are found in a small copy, far
# ones only in a larger, slower one, which is searched when the smaller ones show none.
LONG_SIDES = (320, 640, 1280, 2560)
# A photo that is longer is then searched at its own size in tiles, which bounds the memory. They overlap by the largest
# face that the copies before them do not show.
TILE, OVERLAP = 2560, 256
SAME_FACE = 0.3  # intersection over union from which two boxes are one face
# Images smaller than this (the embedded model's) are enlarged to it: their faces are too few cells.
SHORTEST_LONG_SIDE = 192
# Detectors and aligned crops are made for faces of some 50 pixels and more.
LOOKING_SIDE = 192
ERRORS_ONLY = 2  # OpenCV's log level
LOG_LEVEL_LOCK = threading.RLock()  # the level belongs to the process: who changes it puts it back before another does
PACKAGED = Path(__file__).parents[1] / "models"
PROGRAM = Path(__file__).with_name("trial_run.py")
LONGEST_TRIAL = 60.0  # seconds; YuNet takes 0.3

_passed: set[tuple[str, str]] = set()


class FaceDetector(Protocol):
    """Finds faces."""

    def __call__(self, rgb: "np.ndarray") -> "list[Face]":
        """Return the faces in a uint8 RGB image `[height, width, 3]`, best first."""
        ...


class FaceEncoder(Protocol):
    """Turns a face into an embedding."""

    def __call__(self, rgb: "np.ndarray", face: "Face") -> "np.ndarray":
        """Return a unit vector `[embedding]` for a face in a uint8 RGB image `[height, width, 3]`."""
        ...


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face, in pixels of the image it was found in.

    Attributes:
        landmarks: viewer's left eye, right eye, nose tip, left and right mouth corner, each (x, y).
        score: detector's confidence in [0, 1].
    """

    left: float
    top: float
    width: float
    height: float
    landmarks: tuple[tuple[float, float], ...]
    score: float


FaceBox = tuple[float, float, float, float]
"""Where a face is in a square: left, top, width and height as shares of the side."""


def enlarge_image(rgb: NDArray[np.uint8], side: int = LOOKING_SIDE) -> NDArray[np.uint8]:
    """Return `[height, width, 3]` with a shorter side of at least `side` pixels; larger images are left as they are."""
    height, width = rgb.shape[:2]
    factor = side / min(height, width)
    if factor <= 1:
        return rgb
    size = (round(width * factor), round(height * factor))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), np.uint8)


class YuNetDetector:
    """Face detector: a YuNet-type ONNX network run by OpenCV's `FaceDetectorYN`.

    Threads may share one: OpenCV's object holds the input size, so they take turns.

    Args:
        onnx_path: network with YuNet's outputs (`cls_8` to `kps_32`); OpenCV Zoo has a
            permissively licensed one, the embedded model brings its own.
        min_score: faces the network is less sure of are dropped (0 to 1); None takes 0.7 for the package's detector of
            photographed faces and 0.6 for others.

    Raises:
        FaceError: the file is missing or is not such a network.
    """

    def __init__(self, onnx_path: str | Path, *, min_score: float | None = None) -> None:
        check_type(onnx_path, (str, Path), "The face detector", FaceError, "Give the path of a YuNet ONNX file.")
        path = Path(onnx_path)
        if min_score is None:
            min_score = PHOTOGRAPH_SCORE if path == PHOTOGRAPH_DETECTOR else DEFAULT_SCORE
        if not is_regular_file(path):
            raise FaceError(
                f"There is no face detector at {path}.",
                "Name a YuNet ONNX file, or learn without a crop (--no-crop).",
            )
        remedy = "Name a YuNet ONNX file, or use --no-crop."
        with (
            translate_file_errors(path, FaceError, "is not a YuNet-type face detector", remedy, (cv2.error,)),
            quiet_opencv(),
        ):
            data = read_bytes(path, MAX_DETECTOR_BYTES)
            try_network(path, data, "detector")
            content = np.frombuffer(data, np.uint8)
            nothing = np.zeros(0, np.uint8)
            self._network = cv2.FaceDetectorYN.create("onnx", content, nothing, (MULTIPLE, MULTIPLE), min_score)
        self._path, self._turn = path, threading.Lock()

    def __call__(self, rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces in `[height, width, 3]`, the surest first, in pixels of `rgb`.

        Raises:
            FaceError: the file turns out not to be a YuNet-type network.
        """
        longest = max(rgb.shape[:2])
        if longest < SHORTEST_LONG_SIDE:
            return self._detect(rgb, SHORTEST_LONG_SIDE / longest)
        for side in LONG_SIDES:
            faces = self._detect(rgb, min(1.0, side / longest))
            if faces or side >= longest:
                return faces
        return self._detect_in_tiles(rgb)

    def _detect_in_tiles(self, rgb: NDArray[np.uint8]) -> list[Face]:
        """Return the faces of a large photo at its own size; one that two tiles show is listed once."""
        faces: list[Face] = []
        for top in _list_tile_starts(rgb.shape[0]):
            for left in _list_tile_starts(rgb.shape[1]):
                tile = rgb[top : top + TILE, left : left + TILE]
                faces += [_move_face(face, left, top) for face in self._detect(tile, 1.0)]
        boxes = [(face.left, face.top, face.width, face.height) for face in faces]
        best = cv2.dnn.NMSBoxes(boxes, [face.score for face in faces], 0.0, SAME_FACE) if faces else []
        return sorted((faces[int(index)] for index in best), key=lambda face: -face.score)

    def _detect(self, rgb: NDArray[np.uint8], scale: float) -> list[Face]:
        height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
        below, right = -height % MULTIPLE, -width % MULTIPLE
        try:
            small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            padded = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT)
            with self._turn:
                self._network.setInputSize((width + right, height + below))
                detections = self._network.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            if is_out_of_memory(error):
                problem = f"There is not enough memory to look for faces in {width} x {height} pixels."
                raise make_memory_error(FaceError, problem, "Close other programs, or use a smaller image.") from error
            raise _make_network_error(self._path) from error
        rows = cast(NDArray[np.float32] | None, detections[1])
        if rows is None:
            return []
        # Both sides are rounded on their own, so each axis has its own scale.
        across, down = width / rgb.shape[1], height / rgb.shape[0]
        faces = [_parse_face(row, across, down) for row in rows]
        return sorted(faces, key=lambda face: -face.score)


def _list_tile_starts(length: int) -> list[int]:
    """Return where tiles start along one side, so that they cover it."""
    count = max(1, -(-(length - OVERLAP) // (TILE - OVERLAP)))
    return [round(number * (length - TILE) / (count - 1)) for number in range(count)] if count > 1 else [0]


def _move_face(face: Face, left: int, top: int) -> Face:
    """Return a face of a tile in pixels of the whole image."""
    points = tuple((x + left, y + top) for x, y in face.landmarks)
    return replace(face, left=face.left + left, top=face.top + top, landmarks=points)


def choose_face(faces: Sequence[Face], number: int | None = None, reduction: int = 1) -> Face:
    """Return the face to learn.

    Args:
        faces: what the detector found.
        number: which one, counted from the left, 1 the first; None if there is but one.
        reduction: the photo's, as messages have places and sizes in its original.

    Raises:
        FaceError: none found, several and no number, or no such number.
    """
    ordered = sorted(faces, key=lambda face: face.left)
    if not ordered:
        raise FaceError(
            "No face was found in the photo.",
            "Use a photo with one clear face. `sefi learn` also takes its place (--box) or all of it (--no-crop).",
        )
    if number is None and len(ordered) > 1:
        raise FaceError(
            f"The photo shows {len(ordered)} faces: {_list_faces(ordered, reduction)}.",
            f"Choose one, 1 to {len(ordered)} from the left: --face of `sefi learn`, column face of a batch's table.",
        )
    if number is not None and not 1 <= number <= len(ordered):
        raise FaceError(
            f"There is no face {number}: the photo shows {len(ordered)} ({_list_faces(ordered, reduction)}).",
            "Count from the left, starting at 1.",
        )
    return ordered[(number or 1) - 1]


def choose_overlapping(boxes: Sequence[FaceBox], place: FaceBox, least: float) -> int | None:
    """Return the number of the box that overlaps a place the most; None if none does by more than `least`.

    Args:
        least: intersection over union.
    """
    overlaps = [compute_overlap(box, place) for box in boxes]
    best = max(range(len(boxes)), key=overlaps.__getitem__, default=None)
    return best if best is not None and overlaps[best] > least else None


def compute_overlap(one: FaceBox, other: FaceBox) -> float:
    """Compute the intersection over union of two boxes.

    >>> compute_overlap((0, 0, 2, 2), (1, 0, 2, 2)) == 2 / 6
    True
    """
    across, down = (max(0.0, min(one[k] + one[k + 2], other[k] + other[k + 2]) - max(one[k], other[k])) for k in (0, 1))
    union = one[2] * one[3] + other[2] * other[3] - across * down
    return across * down / union if union > 0 else 0.0


def describe_small_face(face: Face, reduction: int = 1) -> str | None:
    """Return a remark on a face of so few pixels that the identity will be as coarse; None if it is large enough.

    Args:
        reduction: the photo's: the remark is in pixels of its original.
    """
    if min(face.width, face.height) >= SMALL_FACE:
        return None
    width, height, least = (value * reduction for value in (face.width, face.height, SMALL_FACE))
    return (
        f"the face is only {width:.0f} x {height:.0f} pixels; a closer photo, with {least:.0f} or more, "
        "gives a better likeness"
    )


def _list_faces(faces: Sequence[Face], reduction: int) -> str:
    return ", ".join(
        f"{number} at x = {(face.left + face.width / 2) * reduction:.0f} ({face.width * reduction:.0f} pixels wide)"
        for number, face in enumerate(faces, start=1)
    )


def _parse_face(row: NDArray[np.float32], across: float, down: float) -> Face:
    """Return the face in a row of `FaceDetectorYN`: x, y, width, height, five points, score."""
    values = [float(value) for value in row]
    points = zip(values[4:14:2], values[5:14:2], strict=True)
    return Face(
        left=values[0] / across,
        top=values[1] / down,
        width=values[2] / across,
        height=values[3] / down,
        landmarks=tuple((x / across, y / down) for x, y in points),
        score=values[14],
    )


def _make_network_error(path: Path) -> FaceError:
    return FaceError(f"{path} is not a YuNet-type face detector.", "Name a YuNet ONNX file, or use --no-crop.")


@dataclass(frozen=True)
class Square:
    """A square region in whole photo pixels; it may reach outside the photo."""

    left: int
    top: int
    side: int

    def shows_part_of(self, other: "Square") -> bool:
        """Return whether two squares share a pixel."""
        return all(
            one < after + other.side and after < one + self.side
            for one, after in ((self.left, other.left), (self.top, other.top))
        )

    def enlarge(self, factor: int) -> "Square":
        """Return the same square in the pixels of a photo that is so many times as large."""
        return Square(self.left * factor, self.top * factor, self.side * factor)

    def shrink(self, factor: int) -> "Square":
        """Return the same square in the pixels of a photo that is so many times as small, of one at least."""
        side = max(1, round(self.side / factor))
        return Square(round(self.left / factor), round(self.top / factor), side)


def find_square_around(face: Face, height: int, width: int, margin: float) -> Square:
    """Return the square with the face in its middle, `margin` times the face's longer side.

    It stays inside the photo: first made smaller, down to the face itself, then moved. Only a
    face larger than the photo's short side reaches outside.

    Args:
        face: the face, in photo pixels.
        height: of the photo.
        width: of the photo.
        margin: side of the square in multiples of the face's longer side (2 shows the hair).
    """
    longer = max(face.width, face.height, 1.0)
    side = round(max(longer, min(margin * longer, height, width)))
    return Square(
        left=_find_start(face.left + face.width / 2, side, width),
        top=_find_start(face.top + face.height / 2, side, height),
        side=side,
    )


BOX_REMEDY = (
    "Give left, top, width and height in pixels of the upright photo as it is stored, as in --box 40,20,300,300."
)


def check_box(box: object) -> None:
    """Refuse what is not four whole numbers, with `PhotoError`."""
    check_type(box, Iterable, "The box", PhotoError, BOX_REMEDY)
    numbers = list(cast(Iterable[object], box))
    if len(numbers) != 4 or not all(isinstance(one, Integral) for one in numbers):
        raise PhotoError(f"{box!r} is no box: it is not four whole numbers.", BOX_REMEDY)


def find_square_around_box(box: Box, height: int, width: int) -> Square:
    """Return the square with a box in its middle, of the box's longer side, inside the photo where it fits.

    Raises:
        PhotoError: it is empty, or reaches outside the photo.
    """
    left, top, across, down = map(int, box)
    if min(across, down) < 1 or min(left, top) < 0 or left + across > width or top + down > height:
        raise PhotoError(
            f"The box of {across} x {down} pixels at {left}, {top} is not inside the photo ({width} x {height}).",
            BOX_REMEDY,
        )
    side = max(across, down)
    start = _find_start(left + across / 2, side, width), _find_start(top + down / 2, side, height)
    return Square(*start, side)


def find_square_in_middle(height: int, width: int) -> Square:
    """Return the largest square in the middle of the photo."""
    side = min(height, width)
    return Square(left=(width - side) // 2, top=(height - side) // 2, side=side)


def crop_square(photo: Photo, square: Square, resolution: int) -> Tensor:
    """Return the square's pixels at `[3, resolution, resolution]`, in [-1, 1].

    What lies outside the photo repeats the photo's edge.
    """
    height, width = photo.pixels.shape[-2:]
    bottom, right = square.top + square.side, square.left + square.side
    if min(square.top, square.left) >= 0 and bottom <= height and right <= width:
        region = photo.pixels[:, square.top : bottom, square.left : right]  # no copy of a large photo
    else:
        rows = torch.arange(square.top, bottom).clamp(0, height - 1)
        columns = torch.arange(square.left, right).clamp(0, width - 1)
        region = photo.pixels[:, rows][:, :, columns]
    return resize_pixels(region, resolution, resolution)


def resize_pixels(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return pixels `[3, h, w]` at another size: bicubic, smoothed when shrinking, clipped to [-1, 1]."""
    if pixels.shape[-2:] == (height, width):
        return pixels.clone()
    scaled = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return scaled[0].clamp(-1, 1)


def _find_start(centre: float, side: int, length: int) -> int:
    """Return the start of `side` pixels around the centre, moved inside `length` where that is possible."""
    start = round(centre - side / 2)
    if side > length:
        return start
    return min(max(start, 0), length - side)


@contextmanager
def quiet_opencv() -> Generator[None]:
    """Print only OpenCV's errors within the block: opening a network warns that its target cannot be chosen."""
    with LOG_LEVEL_LOCK:
        before = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(ERRORS_ONLY)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(before)


def try_network(path: Path, content: bytes, kind: Literal["detector", "recogniser", "classifier"]) -> None:
    """Load and run a network in a child process, once for the same content; what OpenCV refuses by itself passes.

    OpenCV can end the whole process on a damaged file: a changed dimension or attribute makes it divide by zero or read
    outside its memory (SIGFPE, SIGSEGV), which no `except` catches. The networks of the package are not tried.

    Raises:
        InvalidFileError: the child process crashed, or took more than 4 GB or a minute.
        OSError: no process could be started.
    """
    if path.resolve().is_relative_to(PACKAGED):
        return
    key = (kind, hashlib.sha256(content).hexdigest())
    if key in _passed:
        return
    command = [sys.executable, "-P", str(PROGRAM), kind]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            input=content,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_TRIAL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidFileError(f"OpenCV needs more than {LONGEST_TRIAL:.0f} seconds for one image") from None
    if done.returncode != 0:
        raise InvalidFileError("OpenCV crashes on it")
    _passed.add(key)
