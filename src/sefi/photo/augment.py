"""Draw random views of the square that is learned; what makes a view is a value and can be replayed."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sefi.core.config import ViewSettings
from sefi.core.errors import FaceError
from sefi.photo.detect import (
    SAME_FACE,
    Face,
    FaceBox,
    FaceDetector,
    Square,
    choose_face,
    choose_overlapping,
    crop_square,
    find_square_around,
    find_square_in_middle,
)
from sefi.photo.read import Photo

Canvas = Literal["black", "mean", "edge"]


@dataclass(frozen=True)
class ViewParameters:
    """Everything random about one view.

    Attributes:
        brightness: factor on all values.
        contrast: factor on the distance to the mean grey.
        saturation: factor on the distance to grey.
        hue: turn of the colour circle, as a fraction of it.
        flip: whether left and right are swapped.
        scale: height of the pasted image as a share of the canvas.
        aspect: its width over its height.
        left: where it is pasted: 0 at the left edge, 1 at the right.
        top: 0 at the upper edge, 1 at the lower.
        canvas: what surrounds it: black, its mean colour, or its repeated edge.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    flip: bool = False
    scale: float = 1.0
    aspect: float = 1.0
    left: float = 0.0
    top: float = 0.0
    canvas: Canvas = "black"


def draw_parameters(settings: ViewSettings, generator: torch.Generator) -> ViewParameters:
    """Draw a view: nine uniform numbers, always in the same order (section 6.4 of the paper).

    Source: ranges of colour, aspect and canvas from Celeb Basis, `FaceIdDataset`. Differs: the
    four colour changes come in one fixed order, not a shuffled one.
    """
    u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    return ViewParameters(
        brightness=1 + settings.brightness * (2 * u[0] - 1),
        contrast=1 + settings.contrast * (2 * u[1] - 1),
        saturation=1 + settings.saturation * (2 * u[2] - 1),
        hue=settings.hue * (2 * u[3] - 1),
        flip=u[4] < settings.flip,
        scale=settings.min_scale + (settings.max_scale - settings.min_scale) * u[5],
        aspect=1 + settings.aspect * (2 * u[6] - 1),
        left=u[7],
        top=u[8],
        canvas=settings.canvas,
    )


def apply(crop: Tensor, parameters: ViewParameters) -> Tensor:
    """Return the view of `crop` that the parameters describe.

    Args:
        crop: `[3, R, R]` in [-1, 1].
        parameters: what was drawn.

    Returns:
        `[3, R, R]` in [-1, 1].
    """
    image = _recolour(crop, parameters)
    if parameters.flip:
        image = image.flip(-1)
    return _paste(image, parameters)


def _recolour(crop: Tensor, parameters: ViewParameters) -> Tensor:
    changes = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    if changes == (1, 1, 1, 0):
        return crop
    # As tensors of the image's own type: 1 - f rounds as the other sums do.
    brightness, contrast, saturation, turn = (
        torch.as_tensor(float(one), dtype=crop.dtype, device=crop.device)
        for one in (*changes[:3], parameters.hue * 2 * math.pi)
    )
    image = ((crop + 1) / 2 * brightness).clamp(0, 1)
    image = (image * contrast + compute_grey(image).mean((-2, -1), keepdim=True) * (1 - contrast)).clamp(0, 1)
    image = ((1 - saturation) * compute_grey(image) + saturation * image).clamp(0, 1)
    return (turn_hue(image, turn) * 2 - 1).clamp(-1, 1)


def compute_grey(image: Tensor) -> Tensor:
    """Compute the luma of an image `[3, h, w]`, `[1, h, w]` (ITU-R BT.601)."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype, device=image.device)
    red, green, blue = image
    return torch.addcmul(torch.addcmul(red * weights[0], green, weights[1]), blue, weights[2])[None]


def turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of an image `[3, h, w]` in [0, 1] by an angle in radians.

    To hue, saturation and value, and back (A. R. Smith 1978); order and rounding are kornia's, so that what was learned
    with its functions is learned again to the bit.
    """
    period = 2 * math.pi
    value, least = image.amax(0), image.amin(0)
    spread = value - least
    saturation = spread / torch.where(value == 0, torch.ones_like(value), value + 1e-8)
    spread = torch.where(spread == 0, torch.ones_like(spread), spread)
    red, green, blue = image
    below = value - image
    hue = torch.where(
        (red >= green) & (red >= blue),
        below[2] - below[1],
        torch.where(green >= blue, (below[0] - below[2]) + 2.0 * spread, (below[1] - below[0]) + 4.0 * spread),
    )
    hue = period * ((hue / spread / 6.0) % 1.0)
    hue = hue.masked_fill(hue >= period, 0.0)
    hue = torch.remainder(hue + turn, period)
    hue = hue.masked_fill(hue >= period, 0.0) / period
    sextant = torch.floor(hue * 6) % 6
    place = ((hue * 6) % 6) - sextant
    low = value * (1.0 - saturation)
    falling, rising = value * (1.0 - place * saturation), value * (1.0 - (1.0 - place) * saturation)
    # Which of the four each channel has in each sixth of the circle.
    of_red = (value, falling, low, low, rising, value)
    return torch.stack(
        [select_by_sextant(sextant, of_red[-shift:] + of_red[:-shift] if shift else of_red) for shift in (0, 2, 4)]
    )


def select_by_sextant(sextant: Tensor, choices: tuple[Tensor, ...]) -> Tensor:
    """Select one of six tensors `[h, w]` in each place, by the sixth of the colour circle that it is in."""
    selected = choices[5]
    for number in range(5):
        selected = torch.where(sextant == number, choices[number], selected)
    return selected


def _paste(image: Tensor, parameters: ViewParameters) -> Tensor:
    side = image.shape[-1]
    height = _round_side(side * parameters.scale, side)
    width = _round_side(side * parameters.scale * parameters.aspect, side)
    if (height, width) == (side, side):
        return image.clone()
    small = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = round(parameters.left * (side - width)), round(parameters.top * (side - height))
    return _place_on_canvas(small.clamp(-1, 1), left, top, side, parameters.canvas)


def _place_on_canvas(small: Tensor, left: int, top: int, side: int, canvas: Canvas) -> Tensor:
    """Return the small image on a canvas of `side`, its corner at (left, top)."""
    height, width = small.shape[-2:]
    right, below = side - width - left, side - height - top
    if canvas == "edge":
        return F.pad(small[None], (left, right, top, below), mode="replicate")[0]
    ground = small.new_full((3, side, side), -1.0)
    if canvas == "mean":
        ground = small.mean((1, 2), keepdim=True).expand(3, side, side).clone()
    ground[:, top : top + height, left : left + width] = small
    return ground


def _round_side(length: float, limit: int) -> int:
    return min(max(round(length), 1), limit)


FAR, NEAR = 0.6, 1.0  # below: small on a canvas; above: a part of it, enlarged
SMALLEST, LARGEST = 1 / 3, (1.2, 1.4)


@dataclass(frozen=True)
class ResizedView:
    """A view.

    Attributes:
        pixels: `[3, R, R]` in [-1, 1].
        distance: how near the subject is, for its caption.
        box: left, top, right, bottom of the image on its canvas as shares of the side; None if it fills it.
    """

    pixels: Tensor
    distance: Literal["plain", "far", "near"]
    box: tuple[float, float, float, float] | None = None


def draw_resized_view(crop: Tensor, flip: float, random: torch.Generator) -> ResizedView:
    """Draw a random view (Custom Diffusion, `diffusers_data_pipeline.py`).

    Two of three are a third to the whole of the side, the others 1.2 to 1.4 times it. What is smaller than 0.6 is
    pasted on grey, what is larger than 1 is cut; in between the image is left as it is.

    Args:
        crop: `[3, R, R]` in [-1, 1].
        flip: chance of a mirror image.
        random: five uniform numbers are drawn, always in the same order.
    """
    large, size, mirrored, across, down = torch.rand(5, generator=random, dtype=torch.float64).tolist()
    image = crop.flip(-1) if mirrored < flip else crop
    side = crop.shape[-1]
    low, high = (SMALLEST, 1.0) if large < 2 / 3 else LARGEST
    scale = low + (high - low) * size
    if FAR <= scale <= NEAR:
        return ResizedView(image.clone(), "plain")
    edge = max(1, round(scale * side))
    other = F.interpolate(image[None], (edge, edge), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    left, top = round(across * abs(side - edge)), round(down * abs(side - edge))
    if edge > side:
        return ResizedView(other[:, top : top + side, left : left + side].clone(), "near")
    canvas = crop.new_zeros(crop.shape)
    canvas[:, top : top + edge, left : left + edge] = other
    return ResizedView(canvas, "far", (left / side, top / side, (left + edge) / side, (top + edge) / side))


ROWS = 256  # converted at a time: the floats of a whole large photo would fill the memory


@dataclass(frozen=True)
class CropFace:
    """A face in a square.

    Attributes:
        box: where it is.
        landmarks: x and y of eyes, nose and corners of the mouth, as shares of the side.
    """

    box: FaceBox
    landmarks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class SubjectCrop:
    """The square of a photo that is learned.

    Attributes:
        pixels: `[3, resolution, resolution]` in [-1, 1].
        square: where it lies, in pixels of the photo as it was read, which may be smaller than its original.
        source: where the photo came from, for messages.
        remarks: what a user should know of it.
        photo_digest: SHA-256 of the whole photo's pixels, in hex; empty where it is not known. No file has it as it is.
        face: the face that was chosen in the photo; the square may show others too.
        box: what the user said to cut out; the square may reach beyond it.
        reduction: how many pixels of the original one pixel of the photo is, on each side.
    """

    pixels: Tensor
    square: Square
    source: str
    remarks: tuple[str, ...] = ()
    photo_digest: str = ""
    face: CropFace | None = None
    box: FaceBox | None = None
    reduction: int = 1

    @property
    def original_square(self) -> Square:
        """Where the square lies in the pixels of the original photo."""
        return self.square.enlarge(self.reduction)

    @property
    def place(self) -> FaceBox | None:
        """Where the subject's face is to be found in the square; None where nothing is known of it."""
        return self.box if self.face is None else self.face.box


# Hair, ears and chin belong to the subject too: half as large again as the box, and a little above its middle.
HEAD_SIZE, HEAD_MIDDLE = 1.5, 0.42


def find_subject_face(crop: SubjectCrop, detector: FaceDetector) -> CropFace:
    """Find the subject's face in its square: the one that was chosen in the photo, whoever else is in the square.

    Where a box was given, it is the face that fills it best, and without any choice the largest one.

    Raises:
        FaceError: the square shows none.
    """
    faces = find_faces_of_square(crop.pixels, detector, crop.source)
    if crop.place is None:
        return choose_largest(faces)
    found = choose_overlapping([face.box for face in faces], crop.place, SAME_FACE if crop.face else 0.0)
    if found is not None:
        return faces[found]
    # A detector may find the neighbour only; the chosen face is where it was found in the photo.
    return crop.face or choose_largest(faces)


def find_face_in(crop: Tensor, detector: FaceDetector, source: str) -> CropFace:
    """Find the largest face of a square `[3, R, R]`.

    Args:
        source: where the photo came from, for messages.

    Raises:
        FaceError: it shows none.
    """
    return choose_largest(find_faces_of_square(crop, detector, source))


def choose_largest(faces: Sequence[CropFace]) -> CropFace:
    """Return the largest of several faces."""
    return max(faces, key=lambda one: one.box[2] * one.box[3])


def find_faces_of_square(crop: Tensor, detector: FaceDetector, source: str) -> list[CropFace]:
    """Find the faces of a square `[3, R, R]`, the surest first; errors as of `find_face_in`."""
    faces = detector(convert_to_bytes(crop))
    if not faces:
        raise FaceError(
            f"No face was found in what is learned of {source}.",
            "Choose a photo in which the face is larger, or leave out the setting that asks where it is.",
        )
    whole = Square(0, 0, crop.shape[-1])
    return [locate_in_square(face, whole) for face in faces]


def locate_in_square(face: Face, square: Square) -> CropFace:
    """Return a face of an image as shares of a square of it."""
    left, top, side = square.left, square.top, square.side
    return CropFace(
        locate_box_in_square((face.left, face.top, face.width, face.height), square),
        tuple(((float(x) - left) / side, (float(y) - top) / side) for x, y in face.landmarks),
    )


def locate_box_in_square(box: FaceBox, square: Square) -> FaceBox:
    """Return a box of an image, left, top, width and height, as shares of a square of it."""
    left, top, width, height = box
    side = square.side
    return (left - square.left) / side, (top - square.top) / side, width / side, height / side


def swap_box_sides(box: FaceBox) -> FaceBox:
    """Return where a box is in the mirror image of its square."""
    left, top, width, height = box
    return 1 - left - width, top, width, height


def draw_head_mask(face: FaceBox, side: int) -> Tensor:
    """Draw the ellipse around a face and its hair, 1 inside and 0 outside, `[1, side, side]`."""
    left, top, width, height = face
    middle = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    across = (middle - (left + width / 2)) / (HEAD_SIZE * width / 2)
    down = (middle - (top + HEAD_MIDDLE * height)) / (HEAD_SIZE * height / 2)
    return ((across[None, :] ** 2 + down[:, None] ** 2) <= 1).float()[None]


def cut_head(crop: Tensor, face: FaceBox) -> Tensor:
    """Cut a face with its hair out of a square: always as large and in the same place, `[3, R, R]`; its edge repeats.

    The side of what is cut out is twice the longer side of the face's box.
    """
    left, top, width, height = face
    half = max(width, height)
    middle = torch.tensor([left + width / 2, top + HEAD_MIDDLE * height]) * 2 - 1
    # An affine map of [-1, 1], whose side is 2: the scale is the share of the square that is cut out.
    grid = torch.cat([torch.eye(2) * (2 * half), middle[:, None]], dim=1)[None]
    side = crop.shape[-1]
    places = F.affine_grid(grid.to(crop), [1, 3, side, side], align_corners=False)
    return F.grid_sample(crop[None], places, padding_mode="border", align_corners=False)[0]


@dataclass(frozen=True)
class PhotoViews:
    """The views of one photo, or of several of the same subject.

    Attributes:
        crop: the square of the photo that is learned, `[3, R, R]` in [-1, 1]; of several photos the first.
        settings: ranges of the random views.
        other_crops: those of the further photos; every view is of one of all, equally often.
        faces: where the face is in each of the crops; empty where nobody looked for one.
        places: where the subject's face is to be found in each of the crops, as far as it is known; empty where it is
            not known of any.
    """

    crop: Tensor
    settings: ViewSettings
    other_crops: tuple[Tensor, ...] = ()
    faces: tuple[CropFace, ...] = ()
    places: tuple[FaceBox | None, ...] = ()

    @property
    def crops(self) -> tuple[Tensor, ...]:
        """The crops of all photos."""
        return (self.crop, *self.other_crops)

    def draw_view(self, generator: torch.Generator) -> Tensor:
        """Draw a view, `[3, R, R]` in [-1, 1]; equal generators give equal views."""
        return self.draw_view_and_mask(generator)[0]

    def draw_view_and_mask(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw a view and the share of the head in each of its pixels, `[1, R, R]`; None without a face."""
        number = self.draw_number(generator)
        parameters = draw_parameters(self.settings, generator)
        view = apply(self.crops[number], parameters)
        return view, self.draw_mask(number, parameters) if self.faces else None

    def draw_mask(self, number: int, parameters: ViewParameters) -> Tensor:
        """Draw the head of a crop where a view has it, `[1, R, R]` in [0, 1]; around a small view is outside."""
        mask = draw_head_mask(self.faces[number].box, self.crop.shape[-1])
        # The canvas is black, which is -1.
        unchanged = replace(parameters, brightness=1, contrast=1, saturation=1, hue=0, canvas="black")
        return (apply((2 * mask - 1).expand(3, -1, -1), unchanged)[:1] + 1) / 2

    def draw_crop(self, generator: torch.Generator) -> Tensor:
        """Draw one of the crops, `[3, R, R]`; of a single one nothing is drawn."""
        return self.crops[self.draw_number(generator)]

    def draw_number(self, generator: torch.Generator) -> int:
        """Draw which crop it is; of a single one nothing is drawn."""
        return int(torch.randint(len(self.crops), (), generator=generator)) if self.other_crops else 0


def find_face_square(
    photo: Photo, detector: FaceDetector, *, number: int | None = None, margin: float = 2.0
) -> tuple[Square, Face]:
    """Return the square around a photo's face, and the face, both in its pixels.

    Args:
        photo: the photo, as read.
        detector: finds its faces.
        number: which face, counted from the left starting at 1; None if there is but one.
        margin: side of the square in multiples of the face's longer side.

    Raises:
        FaceError: no face, several without a number, or no such number.
    """
    face = choose_face(detector(convert_to_bytes(photo.pixels)), number, photo.reduction)
    height, width = photo.pixels.shape[-2:]
    return find_square_around(face, height, width, margin), face


def crop_face(
    photo: Photo, detector: FaceDetector, resolution: int, *, number: int | None = None, margin: float = 2.0
) -> Tensor:
    """Return the photo's face with its surroundings, `[3, resolution, resolution]` in [-1, 1]: `find_face_square`."""
    square, _ = find_face_square(photo, detector, number=number, margin=margin)
    return crop_square(photo, square, resolution)


def crop_middle(photo: Photo, resolution: int) -> Tensor:
    """Return the middle of the photo as `[3, resolution, resolution]`; needs no face."""
    return crop_square(photo, find_square_in_middle(*photo.pixels.shape[-2:]), resolution)


def compute_photo_digest(pixels: Tensor) -> str:
    """Compute the SHA-256 of a photo `[3, height, width]` in [-1, 1], as bytes with its height and width, in hex."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(np.ascontiguousarray(convert_to_bytes(pixels)).data)
    return digest.hexdigest()


def convert_to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pixels `[3, height, width]` in [-1, 1] as `[height, width, 3]` bytes, for detectors."""
    _, height, width = pixels.shape
    bytes_hwc = torch.empty(height, width, 3, dtype=torch.uint8)
    for start in range(0, height, ROWS):
        rows = pixels[:, start : start + ROWS].float()
        bytes_hwc[start : start + ROWS] = ((rows + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    return bytes_hwc.numpy()
