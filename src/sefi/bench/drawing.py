"""The pictures of one way: drawn by the model, or an anchor's."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sefi.backbone.bundle import Backbone
from sefi.bench.subject import Subject
from sefi.bench.suite import Control
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.core.protocols import SilentProgress
from sefi.generate.attend import AttendResult, attend
from sefi.generate.sampler import generate
from sefi.methods import get_method


@dataclass(frozen=True)
class Place:
    """Where a picture stands in a run: number of its prompt, and seed."""

    prompt: int
    seed: int


@dataclass(frozen=True)
class Drawn:
    """A picture, uint8 RGB, the seconds it took if it was drawn now, and where its words looked if that was asked."""

    place: Place
    rgb: NDArray[np.uint8]
    seconds: float | None = None
    attended: AttendResult | None = None


def drawn(
    backbone: Backbone, identities: Sequence[Identity], texts: Sequence[str], places: Sequence[Place], config: Config
) -> Iterator[Drawn]:
    """A picture of every text, in batches; each batch comes as soon as it is done.

    Args:
        texts: with `<name>` for every identity.
        places: as many; each gives the seed of its picture.
    """
    method = get_method(identities[0].method if identities else config.method)
    size = config.generate.batch_size
    model = method.apply(identities, backbone, config.generate.identity_strength)
    for start in range(0, len(texts), size):
        chosen = slice(start, start + size)
        began, seeds = time.monotonic(), [place.seed for place in places[chosen]]
        batch = generate(model.backbone, model.conditioner, texts[chosen], seeds, config.generate, SilentProgress())
        made = list(batch)
        each = (time.monotonic() - began) / len(made)
        for place, picture in zip(places[chosen], made, strict=True):
            yield Drawn(place, np.asarray(picture.pixels.convert("RGB"), np.uint8), each)


def drawn_attending(
    backbone: Backbone, identities: Sequence[Identity], texts: Sequence[str], places: Sequence[Place], config: Config
) -> Iterator[Drawn]:
    """As `drawn`, one picture at a time, with the maps of its words; token methods only (`Suite.check`)."""
    conditioner = IdentityConditioner(backbone, identities, config.generate.identity_strength)
    for text, place in zip(texts, places, strict=True):
        began = time.monotonic()
        found = attend(backbone, conditioner, text, place.seed, config.generate, SilentProgress())
        rgb = np.asarray(found.image.convert("RGB"), np.uint8)
        yield Drawn(place, rgb, time.monotonic() - began, found)


def anchor(
    control: Control, group: Sequence[Subject], others: Sequence[Subject], side: int
) -> NDArray[np.uint8] | None:
    """What an anchor shows instead of a drawn picture, uint8 RGB `[side, side, 3]`; None where there is no picture.

    Args:
        group: the subjects of the picture; two are shown side by side.
        others: as many other subjects, for the floor.
    """
    sources = others if control == "other" else group
    shown = [s.other if control == "same" else s.photo for s in sources]
    squares = [square(picture, side) for picture in shown if picture is not None]
    if len(squares) < len(group):
        return None
    return squares[0] if len(squares) == 1 else side_by_side(squares, side)


def side_by_side(squares: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Two squares at half their size on a grey one."""
    row = cv2.resize(np.concatenate(squares, axis=1), (side, side // 2), interpolation=cv2.INTER_AREA)
    page = np.full((side, side, 3), 128, np.uint8)
    page[side // 4 : side // 4 + side // 2] = row
    return page


def square(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle square of a picture at another size."""
    height, width = rgb.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    cut = rgb[top : top + edge, left : left + edge]
    method = cv2.INTER_AREA if edge > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(cut, (side, side), interpolation=method), np.uint8)
