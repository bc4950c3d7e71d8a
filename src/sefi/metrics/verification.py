"""Whether two faces pass as one person, at a threshold that lets a known share of strangers pass."""

import numpy as np
from numpy.typing import NDArray


def threshold_at_far(impostor_similarities: NDArray[np.floating], far: float) -> float:
    """The smallest threshold that at most a share `far` of the impostors reaches: a cosine, in [-1, 1].

    The false accept rate of ISO/IEC 19795-1, with "accepted" meaning at or above the threshold. It lies just above
    the first impostor who must be refused. A threshold belongs to one recogniser, one crop and one kind of people:
    never use one with another recogniser.

    >>> round(threshold_at_far(np.array([0.1, 0.5, 0.2, 0.4, 0.3]), 0.2), 6)
    0.4

    Args:
        impostor_similarities: cosines `[pair]` of pictures of different people, in any order.
        far: accepted share of the impostors, in (0, 1), such as 1e-3.

    Raises:
        ValueError: there are fewer than 1 / far impostors, one is nan, or `far` is no such share.
    """
    if not 0 < far < 1:
        raise ValueError(f"a false accept rate lies between 0 and 1: {far}")
    ordered = np.sort(impostor_similarities.astype(np.float64).ravel())
    # Shares are compared, not far times the count, whose rounding can lose an impostor (0.29 of 100 would be 28).
    accepted = int(np.searchsorted(np.arange(1, ordered.size + 1) / max(ordered.size, 1), far, side="right"))
    if not accepted:
        raise ValueError(f"{ordered.size} impostors cannot tell a false accept rate of {far}")
    if np.isnan(ordered[-1]):
        raise ValueError("a similarity is nan: leave out pairs that were not judged")
    return float(np.nextafter(ordered[-1 - accepted], np.inf))


def verification_rate(similarities: NDArray[np.floating], threshold: float) -> float:
    """Share of pictures that pass as the person: similarity at or above the threshold.

    In [0, 1], higher is better; nan for no pictures. With `threshold_at_far` it is the true accept rate at that FAR
    (ISO/IEC 19795-1). A picture without a face, whose similarity is 0 by our convention, is refused.

    >>> verification_rate(np.array([0.2, 0.4, 0.6, 0.0]), 0.4)
    0.5

    Args:
        similarities: cosines `[picture]` to the photo that was learned.
        threshold: of the same recogniser.

    Raises:
        ValueError: a similarity or the threshold is nan, which would count as refused.
    """
    if np.isnan(similarities).any() or np.isnan(threshold):
        raise ValueError("a similarity or the threshold is nan: leave out pictures that were not judged")
    # In double precision: numpy would round the threshold to single precision, down onto the impostor it is to refuse.
    passed = similarities.astype(np.float64) >= threshold
    return float(passed.mean()) if passed.size else float("nan")
