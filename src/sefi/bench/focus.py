"""Where the placeholder looked while a picture was drawn, and where the class word would have looked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sefi.bench.judging import Seen, box_of
from sefi.generate.attend import AttendResult
from sefi.metrics.focus import mass_on_objects, share_inside
from sefi.photo.enlarge import enlarged

OBJECTS = ("action", "scene")  # what stands beside a person; a smile or a hat lies on the face itself
NOTHING = {"focus": None, "on_objects": None, "focus_plain": None, "on_objects_plain": None}

Box = tuple[float, float, float, float]


def focus_of(
    found: AttendResult | None, wanted: Sequence[tuple[str, str]], seen: Seen, rgb: NDArray[np.uint8]
) -> dict[str, float | None]:
    """Share of the placeholder's attention inside the face, and of it on what other words draw.

    `_plain` is the same of the class word in the same picture: without it the numbers have no zero. With two
    placeholders the shares are means. None where it is not known: no maps, no face, or nothing that is wanted beside.
    """
    if found is None or not seen.faces:
        return dict(NOTHING)
    boxes = [box_of(face, enlarged(rgb)) for face in seen.faces]
    labels = {label for kind, label in wanted if kind in OBJECTS}
    words = [i for i, word in enumerate(found.words) if word.lower() in labels]
    told: dict[str, float | None] = {}
    for suffix, maps in (("", found.maps), ("_plain", found.reference_maps)):
        heat = maps.float().cpu().numpy()
        own = [heat[place] for place in found.placeholders]
        told[f"focus{suffix}"] = float(np.mean([inside(one, boxes) for one in own]))
        told[f"on_objects{suffix}"] = (
            float(np.mean([mass_on_objects(one, heat[words]) for one in own])) if words else None
        )
    return told


def inside(heat: NDArray[np.float32], boxes: Sequence[Box]) -> float:
    """Share of one map inside the face that it looks at most."""
    return max(float(share_inside(heat, box)) for box in boxes)
