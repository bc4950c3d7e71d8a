"""Latents of drawings, their scale and noise schedule, and how much each of their cells counts."""
# diffusers annotates its constructors and outputs too narrowly.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.lib.format import open_memmap
from torch import Tensor

from sefi.core.progress import Progress
from tiny_portraits.drawing.content import ImageContent, WorldVersion
from tiny_portraits.drawing.image import UNITS, locate_heads
from tiny_portraits.drawing.sampling import draw_numbers
from tiny_portraits.text.captions import Caption
from tiny_portraits.training.drawings import convert_to_tensor

EMPTY = Caption("", ())
# Convolutions round by the size of the batch, so every latent is encoded in a block of this size.
BLOCK = 16
BLOCKS_A_SAVE = 50
GPU_BLOCK = 200


@dataclass(frozen=True)
class DiffusionRecipe:
    """A constant rate that falls in the last share of the steps, so a run can be prolonged; weights are averaged."""

    steps: int = 8500
    batch: int = 48
    learning_rate: float = 1e-3
    warm: int = 200
    fall_share: float = 0.5
    drop_caption: float = 0.1
    average: float = 0.998
    head_weight: float = 2.0
    feature_weight: float = 6.0


def build_schedule() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule, with the velocity as target."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@torch.no_grad()
def set_scaling(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Make latents have unit standard deviation, as Stable Diffusion does."""
    mean = vae.encode(convert_to_tensor(images)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / float(mean.std()), 5))


def compute_face_weights(shown: Sequence[ImageContent], side: int, recipe: DiffusionRecipe) -> Tensor:
    """Return how much each latent cell counts, `[batch, 1, side, side]`: heads more, eyes and mouths most; mean 1.

    A mouth is 2 % of an image: without this, no smile was learned from 200,000 images. Weights change what is
    learned first, not what is right: the best answer of a cell does not depend on its own weight.
    """
    cells = side / UNITS
    rows, columns = np.mgrid[:side, :side].astype(np.float32) + 0.5
    maps = np.ones((len(shown), 1, side, side), np.float32)
    for weights, content in zip(maps, shown, strict=True):
        for x, y, scale, landmarks in locate_heads(content):
            points, size = landmarks * cells, scale * cells
            head = ((columns - x * cells) ** 2 + (rows - y * cells) ** 2) / (1.3 * size) ** 2
            weights[0] += recipe.head_weight * np.exp(-(head**2))
            features = np.stack([points[0], points[1], points[3:].mean(0)])[:, :, None, None]
            near = ((columns - features[:, 0]) ** 2 + (rows - features[:, 1]) ** 2) / (0.26 * size) ** 2
            weights[0] += recipe.feature_weight * np.exp(-near / 2).sum(0)
    cell_weights = torch.from_numpy(maps)
    return cell_weights / cell_weights.mean()


def compute_rate(step: int, recipe: DiffusionRecipe) -> float:
    """Return the learning rate of a step: a warm-up, then constant, then a linear fall to 2 %."""
    fall = recipe.steps * recipe.fall_share
    left = min(1.0, max(0.02, (recipe.steps - step) / fall))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm) * left


def encode_numbers(vae: AutoencoderKL, numbers: range, seed: int, version: WorldVersion) -> np.ndarray:
    """Return scaled latents float16 `[count, channels, side, side]` of the numbered drawings of a seed."""
    return encode_images(vae, convert_to_tensor(draw_numbers(numbers, seed, version)))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> np.ndarray:
    """Return scaled latents float16 `[count, channels, side, side]` of images in [-1, 1]."""
    placed = images.to(vae.device, memory_format=torch.channels_last)
    # In single precision on every device: half precision would leave its rounding in everything that learns from them.
    mean = vae.encode(placed).latent_dist.mean
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


def encode_stored(path: Path, vae: AutoencoderKL, images: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the latents of drawings uint8 `[count, side, side, 3]`, memory-mapped; encoded unless the file is there.

    For a GPU, which takes seconds: a killed run encodes again.
    """
    if not path.is_file():
        starts = range(0, len(images), GPU_BLOCK)
        progress.start(len(starts), "latents")
        blocks = list[np.ndarray]()
        for start in starts:
            blocks.append(encode_drawings(vae, images[start : start + GPU_BLOCK]))
            progress.advance()
        progress.finish()
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(blocks))
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def write_whole_text(path: Path, text: str) -> None:
    """Write a short text file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="ascii")
    partial.replace(path)
