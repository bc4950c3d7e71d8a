"""Latents of a version's drawings, encoded once in fixed blocks; a killed run goes on where it stopped."""

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.lib.format import open_memmap
from torch import Tensor

from sefi.core.protocols import Progress
from sefi.world.data import draw_numbers
from sefi.world.vae_training import to_tensor
from sefi.world.versions import WorldVersion

# Convolutions round by the size of the batch, so every latent is encoded in a block of this size.
BLOCK = 16
BLOCKS_A_SAVE = 50
GPU_BLOCK = 200


def encode_numbers(vae: AutoencoderKL, numbers: range, seed: int, version: WorldVersion) -> np.ndarray:
    """Return scaled latents float16 `[count, channels, side, side]` of the numbered drawings of a seed."""
    return encode_images(vae, to_tensor(draw_numbers(numbers, seed, version)))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> np.ndarray:
    """Return scaled latents float16 `[count, channels, side, side]` of images in [-1, 1]."""
    placed = images.to(vae.device, memory_format=torch.channels_last)
    # In single precision on every device: half precision would leave its rounding in everything that learns from them.
    mean = vae.encode(placed).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    scale: float = vae.config["scaling_factor"]
    return (mean.float() * scale).half().cpu().numpy()


def encode_drawings(vae: AutoencoderKL, drawings: np.ndarray) -> np.ndarray:
    """Return scaled latents float16 of drawings uint8 `[count, side, side, 3]`, which reach the device as they are."""
    placed = torch.from_numpy(np.array(drawings)).to(vae.device)
    return encode_images(vae, placed.permute(0, 3, 1, 2).float() / 127.5 - 1)


def encode_series(
    path: Path, vae: AutoencoderKL, count: int, seed: int, version: WorldVersion, progress: Progress
) -> np.ndarray:
    """Return the latents of a seed's first drawings, memory-mapped, read-only; encoded unless the file is there.

    Args:
        path: `.npy`; while it is not finished, a `.partial.npy` and the number of finished blocks lie beside it.
    """
    if not path.is_file():
        vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        partial, done_file = path.with_suffix(".partial.npy"), path.with_suffix(".blocks")
        done = int(done_file.read_text(encoding="ascii")) if done_file.is_file() and partial.is_file() else 0
        shape = (count, version.channels, version.latent_side, version.latent_side)
        latents = open_memmap(partial, "r+" if done else "w+", np.float16, shape)
        starts = range(0, count, BLOCK)
        progress.start(len(starts) - done, "latents")
        for block in range(done, len(starts)):
            start = starts[block]
            # The last block reaches beyond the end: it is as long as the others.
            encoded = encode_numbers(vae, range(start, start + BLOCK), seed, version)
            latents[start : start + BLOCK] = encoded[: count - start]
            progress.advance()
            if (block + 1) % BLOCKS_A_SAVE == 0:
                latents.flush()
                write_whole_text(done_file, str(block + 1))
        progress.finish()
        latents.flush()
        partial.replace(path)
        done_file.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def encode_drawn(path: Path, vae: AutoencoderKL, images: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the latents of drawings uint8 `[count, side, side, 3]`, memory-mapped; encoded unless the file is there.

    For a GPU, which takes seconds: a killed run encodes again.
    """
    if not path.is_file():
        starts = range(0, len(images), GPU_BLOCK)
        progress.start(len(starts), "latents")
        found = list[np.ndarray]()
        for start in starts:
            found.append(encode_drawings(vae, images[start : start + GPU_BLOCK]))
            progress.advance()
        progress.finish()
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(found))
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def write_whole_text(path: Path, text: str) -> None:
    """Write a short text file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="ascii")
    partial.replace(path)
