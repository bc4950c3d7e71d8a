"""How much of the photo's background comes back in pictures that should have their own."""

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from sefi.metrics.similarity import similarity

# A detector's box ends at brow, chin and cheeks; half as much again takes hair and ears with it.
ENLARGED = 1.5


def background_leakage(backgrounds: NDArray[np.floating], photo_background: NDArray[np.floating]) -> float:
    """Mean cosine of the backgrounds of generated pictures to the background of the photo that was learned.

    In [-1, 1], lower is better; nan for no pictures. Two unrelated pictures do not give 0, nor do two close-ups, of
    which little background is left: compare with the same pictures against another subject's photo. The formula is
    ours: DreamBooth's CLIP-I (Ruiz et al. 2023, arXiv:2208.12242) of what is not the face.

    >>> round(background_leakage(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([0.0, 2.0])), 2)
    0.9

    Args:
        backgrounds: image embeddings `[picture, width]` of pictures `without_face`.
        photo_background: image embedding `[width]` of the photo `without_face`, of the same encoder.

    Raises:
        ValueError: the widths differ.
    """
    if not len(backgrounds):
        return float("nan")
    return float(np.mean([similarity(one, photo_background) for one in backgrounds]))


def without_face(
    rgb: NDArray[np.uint8], box: tuple[float, float, float, float], factor: float = ENLARGED
) -> NDArray[np.uint8] | None:
    """A copy of the picture `[height, width, 3]` whose face is filled with the mean colour of all the rest.

    None if the face leaves nothing of the picture: there is no background to compare.

    Args:
        rgb: the picture, uint8, rows from the top.
        box: left, top, right, bottom of the face as shares of the picture; it may reach outside.
        factor: the box is enlarged this many times in each direction about its middle. Pixels that it touches are
            filled.
    """
    height, width = rgb.shape[:2]
    columns = enlarged_span(box[0], box[2], width, factor)
    rows = enlarged_span(box[1], box[3], height, factor)
    rest = np.ones((height, width), bool)
    rest[rows, columns] = False
    if not rest.any():
        return None
    blank = rgb.copy()
    blank[rows, columns] = np.rint(rgb[rest].mean(0))
    return blank


def enlarged_span(low: float, high: float, size: int, factor: float) -> slice:
    """The pixels that a span touches once it is `factor` times as long.

    Args:
        low: where it begins, as a share of the picture's side.
        high: where it ends.
        size: pixels of that side.
    """
    middle, half = (low + high) / 2, factor * (high - low) / 2
    return slice(max(0, floor((middle - half) * size)), max(0, min(size, ceil((middle + half) * size))))
