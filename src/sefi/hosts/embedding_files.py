"""Read textual-inversion embeddings that other programs wrote: safetensors files of one embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sefi.core.errors import IdentityError
from sefi.core.files import IDENTITY_KEY, is_regular_file
from sefi.core.reading import (
    FLOATS,
    InvalidFileError,
    Limits,
    load_tensors,
    read_layout,
    translate_file_errors,
)
from sefi.hosts.export import KEY, SDXL_KEYS
from sefi.identity.file import LONGEST_TOKEN

LIMITS = Limits(size=64 * 2**20, tensors=64, dtypes=FLOATS)
MOST_VECTORS = 32  # as many as `learn.vectors`
MATRIX = 2  # dimensions of `[vector, width]`
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how files begin that run code when they are opened: .pt and .bin
REMEDY = "Give a safetensors file of one embedding, for models of the family that you open."


def read_embedding(path: Path, widths: Sequence[int]) -> Tensor:
    """Read the vectors of a textual-inversion file, `[vector, width]`, float32.

    Files have one tensor, of any name (`emb_params`, diffusers' `<word>`, `*`), or for SDXL `clip_l` and `clip_g`,
    whose vectors are then side by side.

    Args:
        widths: of the token embeddings of the model's text encoders.

    Raises:
        IdentityError: it is missing, damaged, an identity, a file that may run code, several embeddings, or one of
            another width.
    """
    refuse_unsafe_file(path)
    with translate_file_errors(path, IdentityError, "is no textual-inversion file", REMEDY):
        layout = read_layout(path, LIMITS)
        if IDENTITY_KEY in layout.metadata:
            raise IdentityError(f"{path} is an identity already.", "Use it as it is: `sefi generate -i FILE`.")
        names = choose_tensors(layout.shapes, len(widths))
        tensors = load_tensors(path)
        parts = [convert_vectors(tensors[name], width) for name, width in zip(names, widths, strict=True)]
        if len({len(part) for part in parts}) > 1:
            raise InvalidFileError("its text encoders have different numbers of vectors")
        return torch.cat(parts, dim=-1)


def refuse_unsafe_file(path: Path) -> None:
    """Refuse what is no file, and files that may run code when they are opened, by their content.

    Raises:
        IdentityError: it is one of these.
    """
    if not is_regular_file(path):
        raise IdentityError(f"There is no file {path}.", "Check the path.")
    with translate_file_errors(path, IdentityError, "cannot be imported", REMEDY), path.open("rb") as file:
        start = file.read(9)
    # A safetensors file has its header's length in eight bytes, of whatever value, and then the header.
    if start.startswith((ZIP, PICKLE)) and start[8:] != b"{":
        raise IdentityError(
            f"{path} may run code when it is opened, as .pt and .bin files do.",
            "Get it as a .safetensors file: most pages that offer embeddings have one, and kohya's trainers write it.",
        )


def choose_tensors(shapes: Mapping[str, Sequence[int]], encoders: int) -> list[str]:
    """Choose the tensors of a file that are its embedding, one for each text encoder of the model.

    Raises:
        InvalidFileError: it has several embeddings, or none for such a model.
    """
    of_sdxl = set(SDXL_KEYS) <= shapes.keys()
    if encoders == len(SDXL_KEYS):
        if not of_sdxl:
            raise InvalidFileError("it is for models with one text encoder, and this model has two")
        return list(SDXL_KEYS)
    if of_sdxl:
        raise InvalidFileError("it is for SDXL, and this model has one text encoder")
    if KEY in shapes:
        return [KEY]
    if len(shapes) != 1:
        raise InvalidFileError(f"it has {len(shapes)} tensors, and one embedding has one")
    return list(shapes)


def convert_vectors(tensor: Tensor, width: int) -> Tensor:
    """Convert vectors to `[vector, width]`, float32; a single one may lack its first axis.

    Raises:
        InvalidFileError: they have another width, are too many or none, or are not finite.
    """
    vectors = (tensor if tensor.ndim == MATRIX else tensor[None]).float()
    if vectors.ndim != MATRIX or vectors.shape[-1] != width:
        raise InvalidFileError(f"its embedding is {tuple(tensor.shape)}, and this model's words have {width} numbers")
    if not 1 <= len(vectors) <= MOST_VECTORS:
        raise InvalidFileError(f"it has {len(vectors)} vectors, and a name stands for 1 to {MOST_VECTORS}")
    if not torch.isfinite(vectors).all() or vectors.norm(dim=-1).max() > LONGEST_TOKEN:
        raise InvalidFileError("its numbers are not finite, or no text encoder takes them")
    return vectors.contiguous()
