"""Training of the autoencoder: drawings to small latents and back."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from sefi.core.protocols import Progress
from sefi.world.data import MODEL_SEED, picture_at
from sefi.world.drawing import UNITS, heads
from sefi.world.lesson import NOWHERE, Keeping, Lesson, run_lesson

# Pixels a side of one latent cell.
CELL = 4


@dataclass(frozen=True)
class VaeRecipe:
    """How long and how; crops make a step four times cheaper, the last share of the steps sees whole drawings.

    Attributes:
        face_share: share of the crops that lie on a face; the others lie anywhere.
        decoder_only: the encoder stays bit for bit as it is, so latents made with it stay right.
    """

    steps: int = 2500
    batch: int = 24
    crop: int = 48
    whole_share: float = 0.15
    learning_rate: float = 2e-3
    kl_weight: float = 1e-6
    edge_weight: float = 0.5
    face_share: float = 0.5
    decoder_only: bool = False


def new_vae() -> AutoencoderKL:
    """F = 4, four latent channels, 8 or more channels a normalisation group; the posterior starts narrow."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=96,
        norm_num_groups=4,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -6.0
        vae.quant_conv.weight[4:] *= 0.1
    return vae


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 `[batch, height, width, 3]` to float32 `[batch, 3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> Tensor:
    """Horizontal and vertical differences, for a loss that keeps eyes and mouths sharp."""
    return torch.cat([(x[..., 1:, :-1] - x[..., :-1, :-1]), (x[..., :-1, 1:] - x[..., :-1, :-1])], dim=1)


def vae_loss(vae: AutoencoderKL, x: Tensor, recipe: VaeRecipe, noise: Tensor) -> Tensor:
    """Absolute error of colours and of edges, plus a weak Kullback-Leibler term."""
    with torch.set_grad_enabled(not recipe.decoder_only):
        posterior = vae.encode(x).latent_dist
    mean, deviation = posterior.mean.float(), posterior.std.float()
    y = vae.decode((mean + deviation * noise).to(x.dtype)).sample.float()
    kl = 0.5 * (mean**2 + deviation**2 - 1 - posterior.logvar.float()).sum((1, 2, 3)).mean()
    return (y - x).abs().mean() + recipe.edge_weight * (edges(y) - edges(x)).abs().mean() + recipe.kl_weight * kl


def learning_rate(step: int, steps: int, top: float, warm: int = 100) -> float:
    """Linear warm-up, then a cosine to 2 % of the top."""
    if step < warm:
        return top * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return top * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def batch_of(images: np.ndarray, recipe: VaeRecipe, step: int, seed: int) -> Tensor:
    """The drawings of one step: crops first, whole drawings (a quarter as many) at the end."""
    random = np.random.default_rng([seed, step])
    if step >= recipe.steps * (1 - recipe.whole_share):
        return to_tensor(images[np.sort(random.integers(len(images), size=max(4, recipe.batch // 4)))])
    chosen = random.integers(len(images), size=recipe.batch)
    corners = [corner(int(i), images.shape[1], recipe, random) for i in chosen]
    return to_tensor(
        np.stack(
            [images[i, y : y + recipe.crop, x : x + recipe.crop] for i, (y, x) in zip(chosen, corners, strict=True)]
        )
    )


def corner(number: int, side: int, recipe: VaeRecipe, random: np.random.Generator) -> tuple[int, int]:
    """Top and left of a crop: around the first face of this drawing, or anywhere; on the border of a latent cell.

    The blocks of pixel art lie on the cells, in whole drawings and so in crops.
    """
    room = (side - recipe.crop) // CELL
    if random.random() < recipe.face_share:
        x, y, _, _ = heads(picture_at(MODEL_SEED, number))[0]
        near = np.array([y, x]) * side / UNITS - recipe.crop / 2 + random.uniform(-8, 8, 2)
        top, left = np.clip((near / CELL).round(), 0, room).astype(int) * CELL
        return int(top), int(left)
    top, left = random.integers(0, room + 1, size=2) * CELL
    return int(top), int(left)


def train_vae(
    images: np.ndarray,
    recipe: VaeRecipe,
    seed: int,
    progress: Progress,
    start: AutoencoderKL | None = None,
    keeping: Keeping = NOWHERE,
    device: str = "cpu",
) -> AutoencoderKL:
    """A trained autoencoder, from nothing or from an earlier one.

    Eager on purpose: torch.compile gave wrong gradients on the CPU build.
    """
    torch.manual_seed(seed)
    vae = (start or new_vae()).train().to(device, memory_format=torch.channels_last)
    learning = [vae.decoder, vae.post_quant_conv] if recipe.decoder_only else [vae]
    parameters = [p for module in learning for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    rate = partial(learning_rate, steps=recipe.steps, top=recipe.learning_rate)

    def loss_of(step: int) -> Tensor:
        x = batch_of(images, recipe, step, seed).to(device, memory_format=torch.channels_last)
        noise = torch.randn((x.shape[0], 4, x.shape[2] // 4, x.shape[3] // 4)).to(device)
        with torch.autocast(device, torch.bfloat16):
            return vae_loss(vae, x, recipe, noise)

    lesson = Lesson("autoencoder", recipe, seed, recipe.steps, {"vae": vae}, optimiser, rate, clip=1.0)
    run_lesson(lesson, loss_of, keeping, progress)
    return vae.eval().to("cpu")
