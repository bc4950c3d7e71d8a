"""Agreement of a picture with its prompt."""

import numpy as np
from numpy.typing import NDArray


def prompt_agreement(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.floating]:
    """CLIP score of every picture: cosine of its image embedding and its prompt's text embedding, `[picture]`.

    In [-1, 1], higher agrees better; Radford et al. 2021 (arXiv:2103.00020), the paper's Prompt. No face is looked
    for, so a picture without one counts like any other. Values of different CLIP models cannot be compared.

    >>> [round(float(v), 2) for v in prompt_agreement(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))]
    [0.96]

    Args:
        images: embeddings `[picture, width]` of any length.
        texts: embeddings `[picture, width]` of the prompts, in the same order.
    """
    if images.shape != texts.shape:
        raise ValueError(f"every picture needs one prompt: {images.shape} against {texts.shape}")
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return (images * texts).sum(1) / np.maximum(lengths, 1e-12)


def mean_prompt_agreement(images: NDArray[np.floating], texts: NDArray[np.floating]) -> float:
    """Mean of `prompt_agreement` over pictures, in [-1, 1]; higher agrees better."""
    return float(prompt_agreement(images, texts).mean())
