"""What is fuzzed: images of every format, and every kind of file that a stranger may send, each with its readers."""

import random
import sys
import warnings
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tests.fuzz import changed_files, changes
from tests.fuzz.changed_files import Kind
from tests.fuzz.forked import Task
from tests.fuzz.images import change_image, encode_all

from sefi.core.errors import IdentityError
from sefi.core.files import read_content
from sefi.hosts.embedding_files import read_embedding
from sefi.photo.read import FORMATS, read_photo
from sefi.provenance.mark import find_mark
from sefi.provenance.metadata import read_source_type

ROOT = Path(__file__).parents[2]
MARKED_SHARE = 25  # every so many images that can be read are searched for the mark, which takes longer than reading
# How many of 20,000 files are of each kind. Identities are drawn from where they can be read, which takes longer.
SHARES = {
    "identity": 0.15, "shard": 0.05, "checkpoint": 0.15, "suite": 0.15, "run": 0.05, "cells": 0.1, "records": 0.1,
    "answers": 0.1, "names": 0.05, "labels": 0.02, "composer": 0.03, "maps": 0.02, "embedding": 0.02, "nodes": 0.01,
}  # fmt: skip


def image_tasks(folder: Path) -> dict[str, Task]:
    """Return a task for each format: the photo's reader, and of what it reads the metadata and the mark."""
    return {kind: make_image_task(folder / kind, kind, files) for kind, files in encode_all().items()}


def make_image_task(path: Path, kind: str, files: list[bytes]) -> Task:
    """Return the task of one format; the file has no suffix, as nothing may depend on it."""

    def change(seed: int) -> int:
        path.write_bytes(files[seed] if seed < len(files) else change_image(kind, files, random.Random(seed)))
        return seed

    def read(seed: object) -> None:
        read_words(path)
        photo = read_photo(path)
        pixels = photo.pixels
        if pixels.shape[0] != 3 or min(pixels.shape[1:]) < 1 or pixels.abs().max() > 1:
            raise AssertionError(f"the photo has shape {tuple(pixels.shape)} or values out of [-1, 1]")
        if seed % MARKED_SHARE == 0 and pixels[0].numel() < 10**6:
            found = find_mark(((pixels.numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8))
            if found is not None:
                raise AssertionError(f"a mark of strength {found.strength} where there is none")

    return Task(change, read)


def read_words(path: Path) -> None:
    """Look for the source type in whatever Pillow opens; only Pillow's own opening may fail, and not with ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damage
        try:
            image = Image.open(path, formats=FORMATS)
        except Exception:
            return
        with image:
            read_source_type(image)


def file_tasks(folder: Path) -> dict[str, Task]:
    """Return a task for each kind of file; half of the changes keep to the structure."""
    backbone = changed_files.tiny_backbone(folder)
    kinds = changed_files.identity_kinds(folder, backbone) | changed_files.weight_kinds(folder, backbone)
    kinds |= changed_files.text_kinds(folder, backbone)
    vectors = np.full((3, backbone.token_width), 0.1, np.float32)
    save_file({"emb_params": vectors}, folder / "embedding")
    pack = load_nodes()
    kinds["embedding"] = Kind(
        (folder / "embedding").read_bytes(),
        lambda path: read_embedding(path, backbone.token_widths),
        changes.change_tensors,
    )
    kinds["nodes"] = Kind(kinds["identity"].whole, make_nodes_reader(pack), changes.change_tensors)
    return {name: make_file_task(folder / f"changed-{name}.toml", kinds[name]) for name in SHARES}


def make_file_task(path: Path, kind: Kind) -> Task:
    """Return the task of one kind; what would be replaced is looked at too, as before every write."""

    def change(seed: int) -> int:
        chance = random.Random(seed)
        path.write_bytes(
            kind.whole if seed == 0 else (kind.change if seed % 2 else changes.change_parts)(kind.whole, chance)
        )
        return seed

    def read(seed: object) -> None:
        read_content(path)
        kind.read(path)

    return Task(change, read)


def load_nodes() -> ModuleType:
    """Load the reader of the ComfyUI nodes, which imports nothing of this package."""
    file = ROOT / "integrations" / "comfyui-sefi" / "identity_file.py"
    spec = spec_from_file_location("nodes_identity_file", file)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_nodes_reader(pack: ModuleType) -> Callable[[Path], object]:
    """Return the nodes' reader, with its own typed error as ours."""

    def read(path: Path) -> object:
        try:
            return pack.read_identity(path)
        except pack.IdentityFileError as error:
            raise IdentityError(str(error), "Use another file.") from error

    return read


def share_out(total: int, names: list[str], shares: dict[str, float] | None = None) -> dict[str, int]:
    """Return how many of a total each kind gets; together they are the total."""
    counts = {name: int(total * (shares[name] if shares else 1 / len(names))) for name in names}
    counts[names[0]] += total - sum(counts.values())
    return counts
