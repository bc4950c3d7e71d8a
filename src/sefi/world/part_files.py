"""What each part of a training writes, so that none is replaced unasked."""

from collections.abc import Iterator
from pathlib import Path

from sefi.core.errors import OutputError
from sefi.world.fifth import ALL, FIFTH_PARTS

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
    "assembly": ("tiny-portraits",),
    "composer": ("composer.safetensors",),
}
CHECKPOINTS = ("{}.lesson.safetensors", "{}.training.safetensors")


def check_untrained(folder: Path, part: str) -> None:
    """Refuse to begin a part again that was trained, or begun, in this folder.

    Args:
        part: of either version, or "all".

    Raises:
        OutputError: a checkpoint or a result of the part is there.
    """
    for name in FIFTH_PARTS if part == ALL else (part,):
        found = next(files_of(folder, name), None)
        if found is not None:
            raise OutputError(
                f"'{found}' exists: the part {name!r} was trained or begun there.",
                "Go on with --resume, replace it with --overwrite, or choose another --out.",
            )


def files_of(folder: Path, part: str) -> Iterator[Path]:
    """Yield the files and folders that are there of a part."""
    for pattern in (*(checkpoint.format(part) for checkpoint in CHECKPOINTS), *RESULTS.get(part, ())):
        yield from sorted(folder.glob(pattern))
