"""Figures of one image or of many, on arrays: likeness, agreement with the prompt, leakage, diversity, attention."""

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray


def measure_similarity(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return the cosine of two embeddings, in [-1, 1]; higher is more alike.

    >>> round(measure_similarity(np.array([3.0, 4.0]), np.array([4.0, 3.0])), 2)
    0.96
    """
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12))


def measure_mean_similarity(reference: NDArray[np.floating], faces: Sequence[NDArray[np.floating] | None]) -> float:
    """Return the mean similarity to a reference; an image without a face counts 0 (paper section 4.1)."""
    return float(np.mean([0.0 if f is None else measure_similarity(reference, f) for f in faces]))


def measure_mean_over_detected(values: NDArray[np.floating], has_face: NDArray[np.bool_]) -> float:
    """Return the mean similarity over images with a face, in [-1, 1]; higher is better; nan for none.

    As Celeb Basis counts (Yuan et al. 2023, arXiv:2306.00926). A method can raise it by drawing no face where it would
    be a bad one: show it beside `measure_mean_similarity`, where such images count 0, and the share of images with
    a face.

    >>> round(measure_mean_over_detected(np.array([0.5, 0.0, 0.7]), np.array([True, False, True])), 2)
    0.6

    Args:
        values: similarity `[image]`; what stands for an image without a face is left out.
        has_face: whether the image has a face, `[image]`.

    Raises:
        ValueError: the images do not pair up.
    """
    if values.shape != has_face.shape:
        raise ValueError(f"every image has a face or not: {values.shape} against {has_face.shape}")
    detected = values[has_face.astype(bool)]
    return float(detected.mean()) if detected.size else float("nan")


def measure_prompt_scores(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the CLIP score of every image: cosine of its embedding and its prompt's, `[image]`.

    In [-1, 1], higher agrees better; Radford et al. 2021 (arXiv:2103.00020), the paper's Prompt. No face is looked
    for, so an image without one counts like any other. Values of different CLIP models cannot be compared.

    >>> [round(float(v), 2) for v in measure_prompt_scores(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))]
    [0.96]

    Args:
        images: embeddings `[image, width]` of any length.
        texts: embeddings `[image, width]` of the prompts, in the same order.
    """
    if images.shape != texts.shape:
        raise ValueError(f"every image needs one prompt: {images.shape} against {texts.shape}")
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return (images * texts).sum(1) / np.maximum(lengths, 1e-12)


def measure_mean_prompt_score(images: NDArray[np.floating], texts: NDArray[np.floating]) -> float:
    """Return the mean of `measure_prompt_scores`, in [-1, 1]; higher agrees better."""
    return float(measure_prompt_scores(images, texts).mean())


def measure_id_prompt(ids: NDArray[np.floating], prompts: NDArray[np.floating], tau: float) -> float:
    """Return ID(Prompt): mean over images of the likeness, 0 for an image whose prompt score is below `tau`.

    In [-1, 1], higher is better; paper section 4.1. nan for no images. The paper's `tau` of 0.23 is the mean CLIP
    score of images that its volunteers liked. It belongs to the paper's CLIP, which is not named: other CLIPs score
    the same image elsewhere, so take `find_separating_tau` of your own, or `measure_id_prompt_area`, which needs none.
    Differs: the paper does not say how images without a face count; they stay in the mean with the likeness that
    they are given, 0 by our convention.

    >>> round(measure_id_prompt(np.array([0.6, 0.9, 0.3]), np.array([0.25, 0.22, 0.23]), 0.23), 2)
    0.3

    Args:
        ids: likeness `[image]`, cosines.
        prompts: prompt score `[image]` of the same images, raw CLIP cosines.
        tau: the lowest score that counts as followed.

    Raises:
        ValueError: the images do not pair up, or a score is nan.
    """
    return float(measure_id_prompt_curve(ids, prompts, np.array([tau]))[0])


def measure_id_prompt_curve(
    ids: NDArray[np.floating], prompts: NDArray[np.floating], taus: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return `measure_id_prompt` at every threshold, `[threshold]`, in [-1, 1]; higher is better.

    It falls from the mean likeness to 0 as the threshold rises, if no likeness is negative.

    Args:
        ids: likeness `[image]`.
        prompts: prompt score `[image]` of the same images.
        taus: thresholds `[threshold]`, in any order.

    Raises:
        ValueError: the images do not pair up, or a score or a threshold is nan.
    """
    refuse_unpaired(ids, prompts)
    if np.isnan(taus).any():
        raise ValueError("a threshold is nan")
    if not ids.size:
        return np.full(len(taus), np.nan)
    # In double precision throughout: numpy would round a threshold to the scores' single precision.
    followed = prompts.astype(np.float64) >= taus.astype(np.float64)[:, None]
    return (ids.astype(np.float64) * followed).mean(1)


def measure_id_prompt_area(ids: NDArray[np.floating], prompts: NDArray[np.floating], low: float, high: float) -> float:
    """Return the mean of `measure_id_prompt` over all thresholds between `low` and `high`, exactly.

    In [-1, 1], higher is better, free of a threshold; nan for no images. The curve is a step function: an image
    counts up to its own score, so its likeness is weighted by the share of [low, high] that lies below that score.

    >>> round(measure_id_prompt_area(np.array([0.6, 0.4]), np.array([0.25, 0.4]), 0.2, 0.3), 2)
    0.35

    Args:
        ids: likeness `[image]`.
        prompts: prompt score `[image]` of the same images.
        low: where to begin, such as the mean score of wrong images.
        high: where to end, above `low`.

    Raises:
        ValueError: the images do not pair up, a score is nan, or `high` is not above `low`.
    """
    refuse_unpaired(ids, prompts)
    if not low < high:
        raise ValueError(f"the area needs thresholds from low to high: {low} to {high}")
    below = np.clip((prompts.astype(np.float64) - low) / (high - low), 0, 1)
    return float((ids * below).mean()) if ids.size else float("nan")


def find_separating_tau(right_scores: NDArray[np.floating], wrong_scores: NDArray[np.floating]) -> float:
    """Return the threshold on prompt scores that best tells right images from wrong ones, a raw CLIP cosine.

    Best is the largest Youden's J (Youden 1950, Cancer 3:32-35): share of right images at or
    above it minus share of wrong ones, so balanced accuracy is (1 + J) / 2. It lies midway between two neighbouring
    scores; of several that are equally good the lowest is taken.

    >>> round(find_separating_tau(np.array([0.3, 0.4]), np.array([0.1, 0.2])), 2)
    0.25

    Args:
        right_scores: `[image]` of images that show what their prompt says.
        wrong_scores: `[image]` of images that do not, such as images of other prompts.

    Raises:
        ValueError: there are none of a kind, a score is nan, or no threshold does better than chance.
    """
    right, wrong = np.sort(right_scores.astype(np.float64)), np.sort(wrong_scores.astype(np.float64))
    if not right.size or not wrong.size or np.isnan([right[-1], wrong[-1]]).any():
        raise ValueError("a separating threshold needs scores of right and of wrong images, none of them nan")
    scores = np.unique(np.concatenate([right, wrong]))
    # Between two numbers that have none between them the midpoint may fall on the lower one, which must stay below.
    taus = np.maximum((scores[1:] + scores[:-1]) / 2, np.nextafter(scores[:-1], np.inf))
    # J times both counts: whole numbers, so that ties are ties.
    gains = np.searchsorted(wrong, taus) * right.size - np.searchsorted(right, taus) * wrong.size
    if not (gains > 0).any():
        raise ValueError("right images score no higher than wrong ones: no threshold separates them")
    return float(taus[np.argmax(gains)])


def refuse_unpaired(ids: NDArray[np.floating], prompts: NDArray[np.floating]) -> None:
    """Refuse an image without both numbers: a nan would fail the threshold and count as 0.

    Raises:
        ValueError: the shapes differ, or something is nan.
    """
    if ids.shape != prompts.shape:
        raise ValueError(f"every image needs a likeness and a prompt score: {ids.shape} against {prompts.shape}")
    if np.isnan(ids).any() or np.isnan(prompts).any():
        raise ValueError("a likeness or a prompt score is nan: leave out images that were not evaluated")


def find_threshold_at_far(impostor_similarities: NDArray[np.floating], far: float) -> float:
    """Return the smallest threshold that at most a share `far` of the impostors reaches: a cosine in [-1, 1].

    The false accept rate of ISO/IEC 19795-1, with "accepted" meaning at or above the threshold. It lies just above
    the first impostor who must be refused. A threshold belongs to one recogniser, one crop and one kind of people:
    never use one with another recogniser.

    >>> round(find_threshold_at_far(np.array([0.1, 0.5, 0.2, 0.4, 0.3]), 0.2), 6)
    0.4

    Args:
        impostor_similarities: cosines `[pair]` of images of different people, in any order.
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
        raise ValueError("a similarity is nan: leave out pairs that were not evaluated")
    return float(np.nextafter(ordered[-1 - accepted], np.inf))


def measure_verification_rate(
    similarities: NDArray[np.floating], threshold: float, has_face: NDArray[np.bool_] | None = None
) -> float:
    """Return the share of images that pass as the person: similarity at or above the threshold.

    In [0, 1], higher is better; nan for no images. With `find_threshold_at_far` it is the true accept rate at that FAR
    (ISO/IEC 19795-1). An image without a face is refused, whatever the threshold: its similarity, 0 by our convention,
    says nothing.

    >>> measure_verification_rate(np.array([0.2, 0.4, 0.6, 0.0]), 0.4)
    0.5

    Args:
        similarities: cosines `[image]` to the photo that was learned.
        threshold: of the same recogniser.
        has_face: whether the image has a face, `[image]`; None where all have.

    Raises:
        ValueError: the images do not pair up, or a similarity or the threshold is nan, which would count as refused.
    """
    if has_face is not None and similarities.shape != has_face.shape:
        raise ValueError(f"every image has a face or not: {similarities.shape} against {has_face.shape}")
    if np.isnan(similarities).any() or np.isnan(threshold):
        raise ValueError("a similarity or the threshold is nan: leave out images that were not evaluated")
    # In double precision: numpy would round the threshold to single precision, down onto the impostor it is to refuse.
    passed = similarities.astype(np.float64) >= threshold
    if has_face is not None:
        passed &= has_face.astype(bool)
    return float(passed.mean()) if passed.size else float("nan")


def measure_margins(
    images: NDArray[np.floating], wanted: NDArray[np.floating], contrast: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the CLIP cosine to the wanted text minus the cosine to the contrasting text, `[image]`.

    In [-2, 2], higher is better; above 0 the image is nearer to what was wanted. CLIP's zero-shot choice between
    two texts (Radford et al. 2021, arXiv:2103.00020, section 3.1). Two texts that differ in the attribute alone ("a
    smiling person", "a person with a neutral face") cancel what else the image shows, which one cosine does not.
    Sizes of margins of different CLIP models or different texts cannot be compared.

    >>> round(float(measure_margins(np.array([[3.0, 4.0]]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))[0]), 2)
    0.2

    Args:
        images: embeddings `[image, width]` of any length.
        wanted: embeddings `[image, width]` of the wanted texts, in the same order, or `[width]` of one for all.
        contrast: the same of the contrasting texts.

    Raises:
        ValueError: the shapes do not fit.
    """
    near, far = (measure_prompt_scores(images, np.broadcast_to(text, images.shape)) for text in (wanted, contrast))
    return near - far


def measure_margin_success(margins: NDArray[np.floating]) -> float:
    """Return the share of images whose margin is above 0: in [0, 1], higher is better, nan for no images.

    An image in the middle has not succeeded. Images drawn without the attribute do not give 0.5 but whatever the
    two texts give: put them beside it, as a reference row.

    >>> measure_margin_success(np.array([0.1, -0.2, 0.0, 0.3]))
    0.5

    Args:
        margins: `[image]`, from `measure_margins`.

    Raises:
        ValueError: a margin is nan, which would count as failed.
    """
    if np.isnan(margins).any():
        raise ValueError("a margin is nan: leave out images that were not evaluated")
    return float((margins > 0).mean()) if margins.size else float("nan")


def measure_diversity(embeddings: NDArray[np.floating]) -> float:
    """Return the mean of 1 - cosine over all pairs of images of one prompt that differ in the seed.

    In [0, 2]; higher is more varied, 0 is one image again and again; nan for fewer than two images. Images that
    miss the prompt differ too, so read it beside the prompt's score, and against the class word's images. The DIV of
    DreamBooth (Ruiz et al. 2023, arXiv:2208.12242). Differs: cosine distance of embeddings in place of LPIPS, so
    values belong to the encoder.

    >>> round(measure_diversity(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])), 4)
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
    # Rounding takes the cosine of equal images above 1.
    return float(np.clip(1 - pairs, 0, 2).mean())


def measure_copying(to_photo: NDArray[np.floating], to_other: NDArray[np.floating]) -> float:
    """Return the mean likeness to the learned photo minus that to another image of the same subject.

    In [-2, 2], nearer 0 is better: 0 if the person was learned, positive if the photo was, with its light, its pose
    and its expression; nan for no images. The photo itself pasted as the image gives the most, 1 minus the
    likeness of the two images. One of the two may simply be the better image of the subject, so read the mean
    over many subjects. The difference is ours.

    >>> round(measure_copying(np.array([0.7, 0.5]), np.array([0.4, 0.6])), 2)
    0.1

    Args:
        to_photo: cosines `[image]` of generated images to the learned photo. Give images with a face only: the
            others count 0 on both sides and pull the score towards 0.
        to_other: cosines `[image]` of the same generated images to the other image.

    Raises:
        ValueError: the images do not pair up.
    """
    if to_photo.shape != to_other.shape:
        raise ValueError(f"every image needs both likenesses: {to_photo.shape} against {to_other.shape}")
    return float((to_photo - to_other).mean()) if to_photo.size else float("nan")


# A detector's box ends at brow, chin and cheeks; half as much again takes hair and ears with it.
ENLARGED = 1.5


def measure_background_leakage(backgrounds: NDArray[np.floating], photo_background: NDArray[np.floating]) -> float:
    """Return the mean cosine of the backgrounds of generated images to that of the photo that was learned.

    In [-1, 1], lower is better; nan for no images. Two unrelated images do not give 0, nor do two close-ups, of
    which little background is left: compare with the same images against another subject's photo. The formula is
    ours: DreamBooth's CLIP-I (Ruiz et al. 2023, arXiv:2208.12242) of what is not the face.

    >>> round(measure_background_leakage(np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([0.0, 2.0])), 2)
    0.9

    Args:
        backgrounds: image embeddings `[image, width]` of images with `blank_face`.
        photo_background: image embedding `[width]` of the photo with `blank_face`, of the same encoder.

    Raises:
        ValueError: the widths differ.
    """
    if not len(backgrounds):
        return float("nan")
    return float(np.mean([measure_similarity(one, photo_background) for one in backgrounds]))


def blank_face(
    rgb: NDArray[np.uint8], box: tuple[float, float, float, float], factor: float = ENLARGED
) -> NDArray[np.uint8] | None:
    """Return a copy of the image `[height, width, 3]` whose face has the mean colour of all the rest.

    None if the face leaves nothing of the image: there is no background to compare.

    Args:
        rgb: the image, uint8, rows from the top.
        box: left, top, right, bottom of the face as shares of the image; it may reach outside.
        factor: the box is enlarged this many times in each direction about its middle. Pixels that it touches are
            filled.
    """
    height, width = rgb.shape[:2]
    columns = enlarge_span(box[0], box[2], width, factor)
    rows = enlarge_span(box[1], box[3], height, factor)
    rest = np.ones((height, width), bool)
    rest[rows, columns] = False
    if not rest.any():
        return None
    blank = rgb.copy()
    blank[rows, columns] = np.rint(rgb[rest].mean(0))
    return blank


def enlarge_span(low: float, high: float, size: int, factor: float) -> slice:
    """Return the pixels that a span touches once it is `factor` times as long.

    Args:
        low: where it begins, as a share of the image's side.
        high: where it ends.
        size: pixels of that side.
    """
    middle, half = (low + high) / 2, factor * (high - low) / 2
    return slice(max(0, floor((middle - half) * size)), max(0, min(size, ceil((middle + half) * size))))


def measure_share_inside(maps: NDArray[np.floating], box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return the share of each map's mass that lies inside a box, `[word]`.

    In [0, 1]. Higher is better for a placeholder and the box of its face; an even map gives the box's share of the
    image. Cells that the box cuts count by the part inside. A map of zeros gives 0.

    >>> round(float(measure_share_inside(np.ones((1, 3, 3)), (0.0, 0.0, 0.5, 1.0))[0]), 2)
    0.5

    Args:
        maps: non-negative attention `[word, height, width]`, rows from the top; `[height, width]` gives one share.
        box: left, top, right, bottom as shares of the image, in [0, 1].
    """
    columns, rows = (
        _measure_cells_inside(side, low, high)
        for side, low, high in ((maps.shape[-1], box[0], box[2]), (maps.shape[-2], box[1], box[3]))
    )
    inside = (maps.astype(np.float64) * rows[:, None] * columns).sum((-1, -2))
    return inside / np.maximum(maps.sum((-1, -2), dtype=np.float64), 1e-12)


def _measure_cells_inside(side: int, low: float, high: float) -> NDArray[np.float64]:
    """Return how much of each of so many cells lies between two shares of a side, 0 to 1, `[cell]`."""
    edges = np.linspace(0, 1, side + 1)
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * side


def measure_mass_on_objects(
    placeholder_map: NDArray[np.floating], object_maps: NDArray[np.floating], level: float = 0.5
) -> float:
    """Return the share of the placeholder's attention that lies on what other words name.

    In [0, 1], lower is better: a placeholder that looks at the cup too overrides the word "cup" (the paper's attention
    overfit, section 1). An object is where its own word's map is at least `level` of its maximum, the cut of DAAM
    (Tang et al. 2022, arXiv:2210.04885); several are joined, so a cell counts once. An even map gives the objects'
    share of the image: compare with the class word's map. No objects, or a map of zeros, gives 0.

    >>> measure_mass_on_objects(np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[[0.2, 0.9], [0.4, 0.5]]]))
    0.25

    Args:
        placeholder_map: non-negative attention `[side, side]`.
        object_maps: of the object words, `[word, side, side]`, at the same side.
        level: in (0, 1].

    Raises:
        ValueError: the maps differ in size, or the level is out of range.
    """
    if placeholder_map.shape != object_maps.shape[1:]:
        raise ValueError(f"maps of one size are needed: {placeholder_map.shape} against {object_maps.shape[1:]}")
    if not 0 < level <= 1:
        raise ValueError(f"the level is a share of a map's maximum, above 0 and at most 1: {level}")
    # A word that nothing looks at marks no object, though all its cells reach half of nothing.
    marked = (object_maps >= level * object_maps.max((-1, -2), keepdims=True)) & (object_maps > 0)
    on_objects = placeholder_map.astype(np.float64)[marked.any(0)].sum()
    return float(on_objects / max(float(placeholder_map.sum(dtype=np.float64)), 1e-12))
