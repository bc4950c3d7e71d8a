"""The embedded model's second face recogniser, which methods may learn with: gradients flow through it.

Methods are compared by the evaluator's recogniser, so one that learns with it is favoured: Celeb Basis reads the photo
with it, and `learn.probe_every` chooses by it. A loss or an encoder takes this one, of another architecture and trained
from another seed on other people; likeness by it then favours them, and is independent evidence of the other two.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.files import LOADING
from sefi.core.errors import BackboneError
from sefi.core.reading import InvalidFileError, Limits, check_shapes, read_tensors, translate_file_errors
from sefi.evaluation.encoders import CROP_SIDE, EMBEDDED_EVALUATORS, FACE_LANDMARKS, align_face, compute_alignment
from sefi.photo.detect import Face

EMBEDDING = 128
CHANNELS_A_GROUP = 8
SECOND_RECOGNISER = "second_recogniser.safetensors"  # its file in a folder of evaluators
SHIPPED_RECOGNISER = EMBEDDED_EVALUATORS / SECOND_RECOGNISER
LIMITS = Limits(size=16 * 2**20, tensors=128, dtypes=frozenset({"F16", "F32"}))
REMEDY = "Install the package again: the file belongs to the embedded model."


class ResidualStage(nn.Module):
    """Halve the side (stride 2), then add one residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        groups = outputs // CHANNELS_A_GROUP
        self.enter = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(groups, outputs), nn.SiLU()
        )
        self.inner = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(groups, outputs),
        )
        self.last = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs, height / stride, width / stride]`."""
        x = self.enter(x)
        return self.last(x + self.inner(x))


class ResidualTrunk(nn.Module):
    """Stages of growing width; every one but those of stride 1 halves the side.

    Args:
        widths: channels of each stage, multiples of 8.
        strides: 1 or 2 for each stage; None halves in every stage.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        super().__init__()
        steps = strides or (2,) * len(widths)
        pairs = zip((inputs, *widths[:-1]), widths, steps, strict=True)
        self.stages = nn.ModuleList(ResidualStage(before, after, stride) for before, after, stride in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, first to last."""
        outputs = list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class SecondRecogniser(nn.Module):
    """RGB faces `[batch, 3, 112, 112]` in [0, 255] to embeddings `[batch, 128]`, as the evaluator's input and output.

    Residual stages with group normalisation and a pooled head, where the evaluator has plain convolutions with batch
    normalisation and a head for every place.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 128, 160)) -> None:
        super().__init__()
        self.trunk = ResidualTrunk(3, widths)
        self.embed = nn.Linear(widths[-1] * 16, EMBEDDING)

    def forward(self, data: Tensor) -> Tensor:
        """Return the embedding, not normalised."""
        # 112 pixels, halved five times and rounded up, are 4 cells a side.
        return self.embed(self.trunk(data / 127.5 - 1)[-1].flatten(1))


def load_second_recogniser(path: Path = SHIPPED_RECOGNISER) -> SecondRecogniser:
    """Load the network in single precision, for reading: its weights take no gradient.

    Raises:
        BackboneError: the file is missing, damaged, foreign, or holds a value that is not finite.
    """
    with translate_file_errors(path, BackboneError, "is no second face recogniser", REMEDY):
        stored = read_tensors(path, LIMITS)[1]
        with LOADING, torch.device("meta"):  # first weights would be drawn from the user's random stream
            network = SecondRecogniser()
        weights = {name: tensor.float() for name, tensor in stored.items()}
        check_shapes(weights, network.state_dict())
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise InvalidFileError("a value is not finite")
        network.to_empty(device="cpu").load_state_dict(weights)
    return network.eval().requires_grad_(requires_grad=False)


class SecondEncoder:
    """Face recogniser: the second one, as a `FaceEncoder`, on the CPU.

    Args:
        path: weights as the package has them.

    Raises:
        BackboneError: as `load_second_recogniser`.
    """

    def __init__(self, path: Path = SHIPPED_RECOGNISER) -> None:
        self._network = load_second_recogniser(path)

    @torch.no_grad()
    def __call__(self, rgb: NDArray[np.uint8], face: Face) -> NDArray[np.float32]:
        """Return the unit vector `[128]` of a face in a uint8 RGB image `[height, width, 3]`.

        Raises:
            FaceError: the landmarks lie in one point.
        """
        pixels = align_image_face(rgb, np.array(face.landmarks))
        return F.normalize(self._network(pixels[None]))[0].numpy()


def align_image_face(rgb: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> Tensor:
    """Return a face of a uint8 RGB image as the recognisers read it, `[3, 112, 112]` in [0, 255].

    Args:
        landmarks: five points of the face, `[5, 2]`, x and y in pixels.

    Raises:
        FaceError: they lie in one point.
    """
    crop = align_face(rgb, landmarks, FACE_LANDMARKS)
    return torch.from_numpy(crop.astype(np.float32)).permute(2, 0, 1)


def embed_faces(network: nn.Module, images: Tensor, landmarks: Tensor) -> Tensor:
    """Return the unit vectors `[image, 128]` of one face in each image; gradients flow to the images.

    The crops are those of `align_face`, but not rounded to whole values.

    Args:
        network: a `SecondRecogniser` on the images' device.
        images: RGB `[image, 3, height, width]` in [-1, 1].
        landmarks: five points of each face, `[image, 5, 2]`, x and y in pixels; no gradient flows to them.

    Raises:
        FaceError: the landmarks of a face lie in one point.
    """
    return F.normalize(network((align_faces(images, landmarks) + 1) * 127.5))


def align_faces(images: Tensor, landmarks: Tensor) -> Tensor:
    """Return the crops `[image, 3, 112, 112]` in which the landmarks lie where the recognisers want them.

    Args:
        images: RGB `[image, 3, height, width]`.
        landmarks: as `embed_faces`.

    Raises:
        FaceError: as `embed_faces`.
    """
    height, width = images.shape[-2:]
    places = [locate_crop_pixels(points) for points in landmarks.detach().float().cpu().numpy()]
    pixels = torch.from_numpy(np.stack(places)).to(images.device)
    # `grid_sample` counts from -1 at the centre of the first pixel to 1 at that of the last.
    extent = torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=images.device)
    grid = pixels / extent * 2 - 1
    precision = torch.promote_types(images.dtype, torch.float32)  # half precision cannot tell places apart
    return F.grid_sample(images.to(precision), grid.to(precision), "bilinear", "border", align_corners=True)


def locate_crop_pixels(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return for each pixel of an aligned crop where in the image it comes from, `[112, 112, 2]`, x and y in pixels."""
    matrix = compute_alignment(points, FACE_LANDMARKS)
    rows, columns = np.mgrid[:CROP_SIDE, :CROP_SIDE]
    places = np.stack([columns, rows], axis=-1) - matrix[:, 2]
    return (places @ np.linalg.inv(matrix[:, :2]).T).astype(np.float32)
