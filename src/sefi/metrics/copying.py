"""Whether the photo was learned rather than the person on it."""

import numpy as np
from numpy.typing import NDArray


def copy_score(to_photo: NDArray[np.floating], to_other: NDArray[np.floating]) -> float:
    """Mean likeness to the photo that was learned minus mean likeness to another picture of the same subject.

    In [-2, 2], nearer 0 is better: 0 if the person was learned, positive if the photo was, with its light, its pose
    and its expression; nan for no pictures. The photo itself pasted as the picture gives the most, 1 minus the
    likeness of the two pictures. One of the two may simply be the better picture of the subject, so read the mean
    over many subjects. The difference is ours.

    >>> round(copy_score(np.array([0.7, 0.5]), np.array([0.4, 0.6])), 2)
    0.1

    Args:
        to_photo: cosines `[picture]` of generated pictures to the learned photo. Give pictures with a face only: the
            others count 0 on both sides and pull the score towards 0.
        to_other: cosines `[picture]` of the same generated pictures to the other picture.

    Raises:
        ValueError: the pictures do not pair up.
    """
    if to_photo.shape != to_other.shape:
        raise ValueError(f"every picture needs both likenesses: {to_photo.shape} against {to_other.shape}")
    return float((to_photo - to_other).mean()) if to_photo.size else float("nan")
