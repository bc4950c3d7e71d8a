"""Where a word's attention lies: inside a box, or on what other words name."""

import numpy as np
from numpy.typing import NDArray


def share_inside(maps: NDArray[np.floating], box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Share of each map's mass that lies inside a box, `[word]`.

    In [0, 1]. Higher is better for a placeholder and the box of its face; an even map gives the box's share of the
    picture. Cells that the box cuts count by the part inside. A map of zeros gives 0.

    >>> round(float(share_inside(np.ones((1, 3, 3)), (0.0, 0.0, 0.5, 1.0))[0]), 2)
    0.5

    Args:
        maps: non-negative attention `[word, side, side]`, rows from the top; `[side, side]` gives one share.
        box: left, top, right, bottom as shares of the picture, in [0, 1].
    """
    side = maps.shape[-1]
    edges = np.linspace(0, 1, side + 1)
    columns, rows = (
        np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * side
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    inside = (maps.astype(np.float64) * rows[:, None] * columns).sum((-1, -2))
    return inside / np.maximum(maps.sum((-1, -2), dtype=np.float64), 1e-12)


def mass_on_objects(
    placeholder_map: NDArray[np.floating], object_maps: NDArray[np.floating], level: float = 0.5
) -> float:
    """Share of the placeholder's attention that lies on what other words name.

    In [0, 1], lower is better: a placeholder that looks at the cup too overrides the word "cup" (the paper's attention
    overfit, section 1). An object is where its own word's map is at least `level` of its maximum, the cut of DAAM
    (Tang et al. 2022, arXiv:2210.04885); several are joined, so a cell counts once. An even map gives the objects'
    share of the picture: compare with the class word's map. No objects, or a map of zeros, gives 0.

    >>> mass_on_objects(np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[[0.2, 0.9], [0.4, 0.5]]]))
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
