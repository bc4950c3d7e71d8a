"""Where the placeholder looked while a picture was drawn, and where the class word would have looked."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sefi.bench.judging import Seen, box_of, finite_or_none
from sefi.generate.attend import AttendResult
from sefi.metrics.focus import mass_on_objects, share_inside
from sefi.photo.enlarge import enlarged

OBJECTS = ("action", "scene")  # what stands beside a person; a smile or a hat lies on the face itself

Box = tuple[float, float, float, float]


class FocusScores(TypedDict):
    """The scores of attention, by the fields of a `Sample`."""

    focus: float | None
    on_objects: float | None
    focus_plain: float | None
    on_objects_plain: float | None


NOTHING = FocusScores(focus=None, on_objects=None, focus_plain=None, on_objects_plain=None)


def focus_of(
    found: AttendResult | None, wanted: Sequence[tuple[str, str]], seen: Seen, rgb: NDArray[np.uint8]
) -> FocusScores:
    """Share of the placeholder's attention inside the face, and of it on what other words draw.

    `_plain` is the same of the class word in the same picture: without it the numbers have no zero. With two
    placeholders the shares are means. None where it is not known: no maps, no face, or nothing that is wanted beside.
    """
    if found is None or not seen.faces:
        return NOTHING.copy()
    boxes = [box_of(face, enlarged(rgb)) for face in seen.faces]
    labels = {label for kind, label in wanted if kind in OBJECTS}
    words = [i for i, word in enumerate(found.words) if word.lower() in labels]
    own, objects = measure_attention(found.maps, found.placeholders, words, boxes)
    plain, plain_objects = measure_attention(found.reference_maps, found.placeholders, words, boxes)
    return FocusScores(focus=own, on_objects=objects, focus_plain=plain, on_objects_plain=plain_objects)


def measure_attention(
    maps: Tensor, placeholders: Sequence[int], words: Sequence[int], boxes: Sequence[Box]
) -> tuple[float | None, float | None]:
    """Return the share of the placeholders' attention inside the faces, and of it on what some words draw."""
    heat = maps.float().cpu().numpy()
    own = [heat[place] for place in placeholders]
    objects = float(np.mean([mass_on_objects(one, heat[list(words)]) for one in own])) if words else None
    return finite_or_none(float(np.mean([inside(one, boxes) for one in own]))), finite_or_none(objects)


def inside(heat: NDArray[np.float32], boxes: Sequence[Box]) -> float:
    """Share of one map inside the face that it looks at most."""
    return max(float(share_inside(heat, box)) for box in boxes)
