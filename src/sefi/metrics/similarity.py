"""Likeness of two faces."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def similarity(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Cosine of two embeddings, in [-1, 1]; higher is more alike.

    >>> round(similarity(np.array([3.0, 4.0]), np.array([4.0, 3.0])), 2)
    0.96
    """
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12))


def mean_similarity(reference: NDArray[np.floating], faces: Sequence[NDArray[np.floating] | None]) -> float:
    """Mean similarity to a reference over pictures; a picture without a face counts 0 (paper section 4.1)."""
    return float(np.mean([0.0 if f is None else similarity(reference, f) for f in faces]))


def mean_over_detected(values: NDArray[np.floating], found: NDArray[np.bool_]) -> float:
    """Mean similarity over the pictures in which a face was found, in [-1, 1]; higher is better; nan if there is none.

    As Celeb Basis counts (Yuan et al. 2023, arXiv:2306.00926). A method can raise it by drawing no face where it would
    be a bad one: show it beside `mean_similarity`, where such pictures count 0, and the share of pictures with a face.

    >>> round(mean_over_detected(np.array([0.5, 0.0, 0.7]), np.array([True, False, True])), 2)
    0.6

    Args:
        values: similarity `[picture]`; what stands for a picture without a face is left out.
        found: whether the picture has a face, `[picture]`.

    Raises:
        ValueError: the pictures do not pair up.
    """
    if values.shape != found.shape:
        raise ValueError(f"every picture has a face or not: {values.shape} against {found.shape}")
    detected = values[found.astype(bool)]
    return float(detected.mean()) if detected.size else float("nan")
