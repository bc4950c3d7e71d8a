"""How much the pictures of one prompt differ among themselves."""

import numpy as np
from numpy.typing import NDArray


def diversity(embeddings: NDArray[np.floating]) -> float:
    """Mean of 1 - cosine over all pairs of pictures of one prompt that differ in the seed.

    In [0, 2]; higher is more varied, 0 is one picture again and again; nan for fewer than two pictures. Pictures that
    miss the prompt differ too, so read it beside the prompt's score, and against the class word's pictures. The DIV of
    DreamBooth (Ruiz et al. 2023, arXiv:2208.12242). Differs: cosine distance of embeddings in place of LPIPS, so
    values belong to the encoder.

    >>> round(diversity(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])), 4)
    0.6667

    Args:
        embeddings: `[seed, width]` of any length, of one subject and one prompt.
    """
    count = len(embeddings)
    if count < 2:
        return float("nan")
    vectors = embeddings.astype(np.float64)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pairs = (units @ units.T)[np.triu_indices(count, 1)]
    # Rounding takes the cosine of equal pictures above 1.
    return float(np.clip(1 - pairs, 0, 2).mean())
