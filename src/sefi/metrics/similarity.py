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
