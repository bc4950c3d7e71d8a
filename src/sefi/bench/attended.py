"""The attention maps of a picture, kept in the run's folder for its report."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sefi.core.errors import ConfigError
from sefi.core.files import write_file
from sefi.core.json_text import dump_json
from sefi.generate.attend import AttendResult

KEY = "sefi-attention"


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
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[KEY])
            maps, reference = file.get_tensor("maps"), file.get_tensor("reference")
        return KeptMaps(tuple(about["words"]), maps, reference, tuple(about["placeholders"]))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} holds no attention maps.", "Remove it, and run the benchmark again.") from error
