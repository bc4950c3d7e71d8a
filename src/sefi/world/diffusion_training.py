"""Training of the denoiser on latents that are encoded once, with texts from a frozen encoder."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sefi.core.protocols import Progress
from sefi.world.captions import Caption, caption
from sefi.world.data import MODEL_SEED, kept, picture_at
from sefi.world.drawing import UNITS, heads
from sefi.world.lesson import (
    foreign_refused,
    laid_out_like,
    load_checkpoint,
    moments,
    part,
    restore_moments,
    save_checkpoint,
)
from sefi.world.picture import Picture
from sefi.world.text_training import (
    LENGTH,
    WIDTH,
    NameTokens,
    Worded,
    encode_named,
    named_text,
    new_text_encoder,
)
from sefi.world.vae_training import to_tensor

EMPTY = Caption("", ())
BLOCK = 16


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


def new_unet() -> UNet2DConditionModel:
    """Latents 24 x 24; text is read at 12 x 12 and 6 x 6, where a cell is a cheek or an eye."""
    return UNet2DConditionModel(
        sample_size=24,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_schedule() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with the velocity as target."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


class Trained(nn.Module):
    """The denoiser, which learns here; the text encoder and the network that names people, which stay as they are.

    A text encoder that learned with the denoiser forgot, within a thousand steps, what the denoiser did not use yet.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.unet = new_unet().to(memory_format=torch.channels_last)
        # Fused attention has a slow backward pass on the CPU; with these few words plain products are faster.
        self.unet.set_attn_processor(AttnProcessor())
        self.text = new_text_encoder(tokenizer)
        self.text.set_attn_implementation("eager")
        self.names = NameTokens()

    def words(self) -> Worded:
        """The text encoder, the naming network and their tokenizer."""
        return Worded(self.text, self.names, self.tokenizer)

    def worded(self) -> dict[str, Tensor]:
        """The state of the text encoder and of the naming network."""
        return {k: v.contiguous() for k, v in self.state_dict().items() if k.startswith(("text.", "names."))}


def encoded(path: Path, vae: AutoencoderKL, images: np.ndarray, progress: Progress) -> np.ndarray:
    """Scaled latents float16 `[count, 4, side, side]` of drawings, read-only; encoded unless the file is there.

    In blocks of a fixed size: convolutions round by the size of a batch, so a latent must not depend on company.
    """

    @torch.no_grad()
    def fill(latents: np.ndarray) -> None:
        network = vae.to(memory_format=torch.channels_last)
        progress.start(-(-len(images) // BLOCK), "latents")
        for start in range(0, len(images), BLOCK):
            with torch.autocast("cpu", torch.bfloat16):
                mean = network.encode(to_tensor(images[start : start + BLOCK])).latent_dist.mean
            latents[start : start + BLOCK] = (mean.float() * network.config.scaling_factor).half().numpy()
            progress.advance()
        progress.finish()

    side = images.shape[1] // 4
    return kept(path, (len(images), 4, side, side), np.float16, fill)


@torch.no_grad()
def set_scaling(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Make latents have unit standard deviation, as Stable Diffusion does."""
    mean = vae.encode(to_tensor(images)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / float(mean.std()), 5))


def face_weights(shown: Sequence[Picture], side: int, recipe: DiffusionRecipe) -> Tensor:
    """How much each latent cell counts, `[batch, 1, side, side]`: heads more, eyes and mouths most; mean 1.

    A mouth is 2 % of a picture: without this, no smile was learned from 200,000 pictures. Weights change what is
    learned first, not what is right: the best answer of a cell does not depend on its own weight.
    """
    cells = side / UNITS
    rows, columns = np.mgrid[:side, :side].astype(np.float32) + 0.5
    maps = np.ones((len(shown), 1, side, side), np.float32)
    for weights, picture in zip(maps, shown, strict=True):
        for x, y, scale, landmarks in heads(picture):
            points, size = landmarks * cells, scale * cells
            head = ((columns - x * cells) ** 2 + (rows - y * cells) ** 2) / (1.3 * size) ** 2
            weights[0] += recipe.head_weight * np.exp(-(head**2))
            features = np.stack([points[0], points[1], points[3:].mean(0)])[:, :, None, None]
            near = ((columns - features[:, 0]) ** 2 + (rows - features[:, 1]) ** 2) / (0.26 * size) ** 2
            weights[0] += recipe.feature_weight * np.exp(-near / 2).sum(0)
    found = torch.from_numpy(maps)
    return found / found.mean()


@dataclass(frozen=True)
class Batch:
    """Latents `[batch, 4, side, side]`, what each shows in words, and how much each cell counts (`face_weights`)."""

    latents: Tensor
    captions: list[Caption]
    weights: Tensor


def diffusion_loss(
    model: Trained,
    tokenizer: CLIPTokenizer,
    batch: Batch,
    recipe: DiffusionRecipe,
    schedule: DDIMScheduler,
    seed: tuple[int, int],
) -> Tensor:
    """Velocity error, weighted by place, all timesteps alike; one timestep from each equal share of the schedule.

    Differs: no min-SNR weights (Hang et al. 2023); they leave almost nothing of the noisiest timesteps, and those
    decide who is drawn.
    """
    random, stream = np.random.default_rng(seed), torch.Generator().manual_seed(hash(seed) % 2**62)
    device, count, drops = model.unet.device, len(batch.captions), random.random(len(batch.captions))
    captions = [EMPTY if drop < recipe.drop_caption else c for c, drop in zip(batch.captions, drops, strict=True)]
    noise = torch.randn(batch.latents.shape, generator=stream).to(device)
    shares = (torch.randperm(count, generator=stream) + torch.rand(count, generator=stream)) / count
    last = schedule.config.num_train_timesteps - 1  # a share may round to 1
    t = (shares * schedule.config.num_train_timesteps).long().clamp(max=last).to(device)
    jitter = torch.randn((count, LENGTH, WIDTH), generator=stream).to(device)
    latents, weights = batch.latents.to(device), batch.weights.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        with torch.no_grad():
            text = named_text(tokenizer, captions, random).to(device)
            states = encode_named(model.words(), text, jitter)
        noisy = schedule.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
        found = model.unet(noisy, t, states).sample.float()
    return (weights * (found - schedule.get_velocity(latents, noise, t)).pow(2)).mean()


def rate(step: int, recipe: DiffusionRecipe) -> float:
    """Warm-up, constant, linear fall to 2 %."""
    fall = recipe.steps * recipe.fall_share
    left = min(1.0, max(0.02, (recipe.steps - step) / fall))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm) * left


class DiffusionTraining:
    """A resumable run: weights, their average, the optimiser's state and the step number."""

    def __init__(
        self, tokenizer: CLIPTokenizer, latents: np.ndarray, recipe: DiffusionRecipe, seed: int, device: str = "cpu"
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer, self.latents, self.recipe, self.seed = tokenizer, latents, recipe, seed
        self.model, self.schedule, self.step = Trained(tokenizer).to(device), new_schedule(), 0
        self.averaged = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

    def start_from(self, worded: dict[str, Tensor]) -> None:
        """Take the text encoder and the naming network that learned to tell what a sentence says."""
        self.model.load_state_dict(worded, strict=False)
        self.averaged |= {k: v.to(self.model.unet.device, copy=True) for k, v in worded.items()}

    def go_on_from(self, folder: Path) -> None:
        """Take the denoiser of a finished model."""
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
        self.model.unet.load_state_dict(unet.float().state_dict())
        self.averaged |= {f"unet.{k}": v.detach().clone() for k, v in self.model.unet.state_dict().items()}

    def batch(self) -> Batch:
        """This step's drawings with fresh captions; an epoch visits every drawing once."""
        count, size = len(self.latents), self.recipe.batch
        epoch, place = divmod(self.step * size, count - count % size)
        order = np.random.default_rng([self.seed, 7, epoch]).permutation(count)[place : place + size]
        random = np.random.default_rng([self.seed, 8, self.step])
        shown = [picture_at(MODEL_SEED, int(i)) for i in order]
        latents = torch.from_numpy(self.latents[order]).float()
        said = [caption(picture, random) for picture in shown]
        return Batch(latents, said, face_weights(shown, latents.shape[-1], self.recipe))

    def advance(self) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, self.recipe)
        seed = (self.seed, self.step)
        loss = diffusion_loss(self.model, self.tokenizer, self.batch(), self.recipe, self.schedule, seed)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.unet.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(self.recipe.average, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.unet.state_dict().items():
                self.averaged[f"unet.{name}"].lerp_(value, 1 - keep)
        return float(loss.detach())

    def fingerprint(self) -> str:
        """What a checkpoint must have been made with; the number of steps may differ, as a run can be prolonged."""
        return f"denoiser, {replace(self.recipe, steps=0)!r}"

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one file, written atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.items()}
        save_checkpoint(tensors | moments(self.optimiser), path, self.fingerprint(), self.step)

    def load(self, path: Path) -> None:
        """Go on where a saved run stopped.

        Raises:
            ConfigError: the file is damaged, or made with another recipe.
        """
        step, tensors = load_checkpoint(path, self.fingerprint())
        with foreign_refused(path):
            self.model.load_state_dict(part(tensors, "model."))
            averaged = part(tensors, "averaged.")
            self.averaged = {k: laid_out_like(v, averaged[k]) for k, v in self.averaged.items()}
            restore_moments(self.optimiser, tensors)
        self.step = step


def train_diffusion(run: DiffusionTraining, checkpoint: Path, progress: Progress, every: float = 240.0) -> None:
    """Steps until the recipe's end; a checkpoint every so many seconds."""
    progress.start(run.recipe.steps - run.step, "denoiser")
    saved = time.monotonic()
    while run.step < run.recipe.steps:
        progress.advance(loss=run.advance())
        if time.monotonic() - saved > every:
            run.save(checkpoint)
            saved = time.monotonic()
    run.save(checkpoint)
    progress.finish()
