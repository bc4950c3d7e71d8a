"""The attention maps of a picture, kept in the run's folder for its report."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file

from sefi.core.errors import ConfigError
from sefi.core.files import write_file
from sefi.core.json_text import dump_json
from sefi.core.reading import LimitError, Limits, file_errors, load_tensors, parse_object, read_layout
from sefi.generate.attend import AttendResult

KEY = "sefi-attention"
LIMITS = Limits(size=256 * 2**20, tensors=2, dtypes=frozenset({"F32"}))


class MapsAbout(BaseModel):
    """The JSON text beside the maps: a label for every token, and the places of the identity's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...] = Field(min_length=1, max_length=512)
    placeholders: tuple[int, ...] = Field(max_length=512)


@dataclass(frozen=True)
class KeptMaps:
    """What `AttendResult` holds, without the picture.

    Attributes:
        words: one label per token.
        maps: `[word, side, side]` with the identity.
        reference: the same with the class word.
        placeholders: positions of the identity's words.
    """

    words: tuple[str, ...]
    maps: NDArray[np.float32]
    reference: NDArray[np.float32]
    placeholders: tuple[int, ...]


def keep_maps(found: AttendResult, path: Path) -> None:
    """Write the maps beside the pictures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "maps": found.maps.float().cpu().contiguous().numpy(),
        "reference": found.reference_maps.float().cpu().contiguous().numpy(),
    }
    about = {"words": list(found.words), "placeholders": list(found.placeholders)}
    write_file(path, lambda partial: save_file(tensors, partial, metadata={KEY: dump_json(about)}))


def read_maps(path: Path) -> KeptMaps:
    """Read what `keep_maps` wrote.

    Raises:
        ConfigError: the file is damaged or something else.
    """
    remedy = "Remove it, and run the benchmark again."
    with file_errors(path, ConfigError, "holds no attention maps", remedy):
        layout = read_layout(path, LIMITS)
        about = MapsAbout.model_validate(parse_object(layout.metadata[KEY]))
        words, shape = len(about.words), layout.shapes["maps"]
        if set(layout.shapes) != {"maps", "reference"} or layout.shapes["reference"] != shape:
            raise LimitError("the maps with and without the identity differ in shape")
        if len(shape) != 3 or shape[0] != words or shape[1] != shape[2]:
            raise LimitError(f"maps of shape {shape} do not fit {words} words")
        if not all(0 <= place < words for place in about.placeholders):
            raise LimitError("a placeholder is outside the sentence")
        found = load_tensors(path, "numpy")
        if not all(np.isfinite(maps).all() for maps in found.values()):
            raise LimitError("a value is not finite")
        return KeptMaps(about.words, found["maps"], found["reference"], about.placeholders)
