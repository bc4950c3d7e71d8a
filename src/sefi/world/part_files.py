"""What each part of a training writes, so that none is replaced unasked."""

from collections.abc import Iterator
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.world.fifth import ALL, FIFTH_PARTS, TEXT_STARTED
from sefi.world.versions import FIFTH, WorldVersion

# Patterns of what a part writes beside its checkpoint, which is named after the part in both versions.
RESULTS = {
    "tokenizer": ("tokenizer",),
    "features": ("features.safetensors",),
    "vae": ("vae",),
    "autoencoder": ("autoencoder-*.training.safetensors", "vae"),
    "latents": ("latents.npy", "held-out-latents.npy"),
    "latent-reader": ("latent-reader.safetensors",),
    "text": ("text.safetensors",),
    "denoiser": ("diffusion.safetensors", "unet"),
    "pilot": ("pilot-*.training.safetensors", "pilot.json"),
    "assembly": ("tiny-portraits",),
    "composer": ("composer.safetensors",),
}
CHECKPOINTS = ("{}.lesson.safetensors", "{}.training.safetensors")


def check_untrained(folder: Path, part: str, version: WorldVersion, *, started: bool) -> None:
    """Refuse to begin a part again that was trained, or begun, in this folder.

    Args:
        part: of the version, or "all".
        started: whether it goes on from a finished model.

    Raises:
        OutputError: a checkpoint or a result of the part is there.
    """
    for name in FIFTH_PARTS if part == ALL else (part,):
        found = next(files_of(folder, name, version, started=started), None)
        if found is not None:
            raise OutputError(
                f"'{found}' exists: the part {name!r} was trained or begun there.",
                "Go on with --resume, replace it with --overwrite, or choose another --out.",
            )


def files_of(folder: Path, part: str, version: WorldVersion, *, started: bool) -> Iterator[Path]:
    """Yield the files and folders that are there of a part."""
    name, results = part, RESULTS.get(part, ())
    if part == "text" and started and version == FIFTH:
        name, results = Path(TEXT_STARTED).stem, (TEXT_STARTED,)
    for pattern in (*(checkpoint.format(name) for checkpoint in CHECKPOINTS), *results):
        yield from sorted(folder.glob(pattern))
