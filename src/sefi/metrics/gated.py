"""Likeness that counts only where the prompt was obeyed: the paper's ID(Prompt), its curve and its area."""

import numpy as np
from numpy.typing import NDArray


def identity_at_prompt(ids: NDArray[np.floating], prompts: NDArray[np.floating], tau: float) -> float:
    """ID(Prompt): mean over pictures of the likeness, 0 for a picture whose prompt score is below `tau`.

    In [-1, 1], higher is better; paper section 4.1. nan for no pictures. The paper's `tau` of 0.23 is the mean CLIP
    score of pictures that its volunteers liked. It belongs to the paper's CLIP, which is not named: other CLIPs score
    the same picture elsewhere, so take `separating_tau` of your own, or `gated_area`, which needs none.
    Differs: the paper does not say how pictures without a face count; they stay in the mean with the likeness that
    they are given, 0 by our convention.

    >>> round(identity_at_prompt(np.array([0.6, 0.9, 0.3]), np.array([0.25, 0.22, 0.23]), 0.23), 2)
    0.3

    Args:
        ids: likeness `[picture]`, cosines.
        prompts: prompt score `[picture]` of the same pictures, raw CLIP cosines.
        tau: the lowest score that counts as obeyed.

    Raises:
        ValueError: the pictures do not pair up, or a score is nan.
    """
    return float(gated_curve(ids, prompts, np.array([tau]))[0])


def gated_curve(
    ids: NDArray[np.floating], prompts: NDArray[np.floating], taus: NDArray[np.floating]
) -> NDArray[np.float64]:
    """`identity_at_prompt` at every threshold, `[threshold]`, in [-1, 1]; higher is better.

    It falls from the mean likeness to 0 as the threshold rises, if no likeness is negative.

    Args:
        ids: likeness `[picture]`.
        prompts: prompt score `[picture]` of the same pictures.
        taus: thresholds `[threshold]`, in any order.

    Raises:
        ValueError: the pictures do not pair up, or a score or a threshold is nan.
    """
    refuse_unpaired(ids, prompts)
    if np.isnan(taus).any():
        raise ValueError("a threshold is nan")
    if not ids.size:
        return np.full(len(taus), np.nan)
    # In double precision throughout: numpy would round a threshold to the scores' single precision.
    obeyed = prompts.astype(np.float64) >= taus.astype(np.float64)[:, None]
    return (ids.astype(np.float64) * obeyed).mean(1)


def gated_area(ids: NDArray[np.floating], prompts: NDArray[np.floating], low: float, high: float) -> float:
    """Mean of `identity_at_prompt` over all thresholds between `low` and `high`, exactly.

    In [-1, 1], higher is better, free of a threshold; nan for no pictures. The curve is a step function: a picture
    counts up to its own score, so its likeness is weighted by the share of [low, high] that lies below that score.

    >>> round(gated_area(np.array([0.6, 0.4]), np.array([0.25, 0.4]), 0.2, 0.3), 2)
    0.35

    Args:
        ids: likeness `[picture]`.
        prompts: prompt score `[picture]` of the same pictures.
        low: where to begin, such as the mean score of wrong pictures.
        high: where to end, above `low`.

    Raises:
        ValueError: the pictures do not pair up, a score is nan, or `high` is not above `low`.
    """
    refuse_unpaired(ids, prompts)
    if not low < high:
        raise ValueError(f"the area needs thresholds from low to high: {low} to {high}")
    below = np.clip((prompts.astype(np.float64) - low) / (high - low), 0, 1)
    return float((ids * below).mean()) if ids.size else float("nan")


def separating_tau(right_scores: NDArray[np.floating], wrong_scores: NDArray[np.floating]) -> float:
    """The threshold on prompt scores that best tells right pictures from wrong ones, a raw CLIP cosine.

    Best is the largest Youden's J (Youden 1950, Cancer 3:32-35): share of right pictures at or
    above it minus share of wrong ones, so balanced accuracy is (1 + J) / 2. It lies midway between two neighbouring
    scores; of several that are equally good the lowest is taken.

    >>> round(separating_tau(np.array([0.3, 0.4]), np.array([0.1, 0.2])), 2)
    0.25

    Args:
        right_scores: `[picture]` of pictures that show what their prompt says.
        wrong_scores: `[picture]` of pictures that do not, such as pictures of other prompts.

    Raises:
        ValueError: there are none of a kind, a score is nan, or no threshold does better than chance.
    """
    right, wrong = np.sort(right_scores.astype(np.float64)), np.sort(wrong_scores.astype(np.float64))
    if not right.size or not wrong.size or np.isnan([right[-1], wrong[-1]]).any():
        raise ValueError("a separating threshold needs scores of right and of wrong pictures, none of them nan")
    scores = np.unique(np.concatenate([right, wrong]))
    # Between two numbers that have none between them the midpoint may fall on the lower one, which must stay below.
    taus = np.maximum((scores[1:] + scores[:-1]) / 2, np.nextafter(scores[:-1], np.inf))
    # J times both counts: whole numbers, so that ties are ties.
    gains = np.searchsorted(wrong, taus) * right.size - np.searchsorted(right, taus) * wrong.size
    if not (gains > 0).any():
        raise ValueError("right pictures score no higher than wrong ones: no threshold separates them")
    return float(taus[np.argmax(gains)])


def refuse_unpaired(ids: NDArray[np.floating], prompts: NDArray[np.floating]) -> None:
    """Every picture needs both numbers: a nan would fail the threshold and count as 0.

    Raises:
        ValueError: the shapes differ, or something is nan.
    """
    if ids.shape != prompts.shape:
        raise ValueError(f"every picture needs a likeness and a prompt score: {ids.shape} against {prompts.shape}")
    if np.isnan(ids).any() or np.isnan(prompts).any():
        raise ValueError("a likeness or a prompt score is nan: leave out pictures that were not judged")
