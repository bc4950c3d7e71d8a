"""Whether a picture is nearer to what was asked for than to its opposite, where no reader knows the attribute."""

import numpy as np
from numpy.typing import NDArray

from sefi.metrics.prompt import prompt_agreement


def margin(
    images: NDArray[np.floating], wanted: NDArray[np.floating], contrast: NDArray[np.floating]
) -> NDArray[np.floating]:
    """CLIP cosine to the wanted text minus cosine to the contrasting text, `[picture]`.

    In [-2, 2], higher is better; above 0 the picture is nearer to what was wanted. CLIP's zero-shot choice between
    two texts (Radford et al. 2021, arXiv:2103.00020, section 3.1). Two texts that differ in the attribute alone ("a
    smiling person", "a person with a neutral face") cancel what else the picture shows, which one cosine does not.
    Sizes of margins of different CLIP models or different texts cannot be compared.

    >>> round(float(margin(np.array([[3.0, 4.0]]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))[0]), 2)
    0.2

    Args:
        images: embeddings `[picture, width]` of any length.
        wanted: embeddings `[picture, width]` of the wanted texts, in the same order, or `[width]` of one for all.
        contrast: the same of the contrasting texts.

    Raises:
        ValueError: the shapes do not fit.
    """
    near, far = (prompt_agreement(images, np.broadcast_to(text, images.shape)) for text in (wanted, contrast))
    return near - far


def margin_success(margins: NDArray[np.floating]) -> float:
    """Share of pictures whose `margin` is above 0: in [0, 1], higher is better, nan for no pictures.

    A picture in the middle has not succeeded. Pictures drawn without the attribute do not give 0.5 but whatever the
    two texts give: put them beside it, as an anchor.

    >>> margin_success(np.array([0.1, -0.2, 0.0, 0.3]))
    0.5

    Args:
        margins: `[picture]`, from `margin`.

    Raises:
        ValueError: a margin is nan, which would count as failed.
    """
    if np.isnan(margins).any():
        raise ValueError("a margin is nan: leave out pictures that were not judged")
    return float((margins > 0).mean()) if margins.size else float("nan")
