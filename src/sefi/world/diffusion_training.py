"""Training of the denoiser on latents that are encoded once, with texts from a frozen encoder."""
# diffusers annotates its constructors and outputs too narrowly; torch its modules too widely.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sefi.core.protocols import Progress
from sefi.world.captions import Caption, caption
from sefi.world.data import picture_at
from sefi.world.drawing import UNITS, face_truth
from sefi.world.picture import Picture
from sefi.world.text_training import (
    LENGTH,
    WIDTH,
    NameTokens,
    encode_named,
    named_text,
    new_text_encoder,
)
from sefi.world.vae_training import to_tensor

EMPTY = Caption("", ())


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
        self.unet = new_unet().to(memory_format=torch.channels_last)
        # Fused attention has a slow backward pass on the CPU; with these few words plain products are faster.
        self.unet.set_attn_processor(AttnProcessor())
        self.text = new_text_encoder(tokenizer)
        self.text.set_attn_implementation("eager")
        self.names = NameTokens()

    def worded(self) -> dict[str, Tensor]:
        """The state of the text encoder and of the naming network."""
        return {k: v.contiguous() for k, v in self.state_dict().items() if k.startswith(("text.", "names."))}


class Latents:
    """Scaled latents of numbered drawings, encoded when first asked for and kept in half precision."""

    def __init__(self, vae: AutoencoderKL, images: np.ndarray) -> None:
        self.vae, self.images = vae.to(memory_format=torch.channels_last), images
        side = images.shape[1] // 4
        self.kept = torch.zeros((len(images), 4, side, side), dtype=torch.float16)
        self.known = torch.zeros(len(images), dtype=torch.bool)

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        """Latents `[batch, 4, side, side]`, float32."""
        new = indices[~self.known[indices]].unique()
        if len(new):
            with torch.autocast("cpu", torch.bfloat16):
                mean = self.vae.encode(to_tensor(self.images[new.numpy()])).latent_dist.mean
            self.kept[new] = (mean.float() * self.vae.config.scaling_factor).half()
            self.known[new] = True
        return self.kept[indices].float()


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
        for subject in picture.subjects:
            points, size = np.array(face_truth(subject)["landmarks"]) * cells, subject.scale * cells
            head = np.hypot(columns - subject.x * cells, rows - subject.y * cells) / (1.3 * size)
            weights[0] += recipe.head_weight * np.exp(-(head**4))
            for px, py in (points[0], points[1], points[3:].mean(0)):
                near = ((columns - px) ** 2 + (rows - py) ** 2) / (0.26 * size) ** 2
                weights[0] += recipe.feature_weight * np.exp(-near / 2)
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
    """Velocity error, weighted by place, all timesteps alike.

    Differs: no min-SNR weights (Hang et al. 2023); they leave almost nothing of the noisiest timesteps, and those
    decide who is drawn.
    """
    random, stream = np.random.default_rng(seed), torch.Generator().manual_seed(hash(seed) % 2**62)
    latents, drops = batch.latents, random.random(len(batch.captions))
    captions = [EMPTY if drop < recipe.drop_caption else c for c, drop in zip(batch.captions, drops, strict=True)]
    noise = torch.randn(latents.shape, generator=stream)
    t = torch.randint(0, 1000, (len(latents),), generator=stream)
    jitter = torch.randn((len(latents), LENGTH, WIDTH), generator=stream)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            states = encode_named(model.text, model.names, tokenizer, named_text(tokenizer, captions, random), jitter)
        noisy = schedule.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
        found = model.unet(noisy, t, states).sample.float()
    return (batch.weights * (found - schedule.get_velocity(latents, noise, t)).pow(2)).mean()


def rate(step: int, recipe: DiffusionRecipe) -> float:
    """Warm-up, constant, linear fall to 2 %."""
    fall = recipe.steps * recipe.fall_share
    left = min(1.0, max(0.02, (recipe.steps - step) / fall))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm) * left


def save_whole(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write beside the path first, so that a killed training leaves the old file or the whole new one."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=about)
    partial.replace(path)


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory layout: torch's fused optimiser takes both element after element in memory.

    With a moment in another layout every weight is moved by another weight's moment, and nothing says so.
    """
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


class DiffusionTraining:
    """A resumable run: weights, their average, the optimiser's state and the step number."""

    def __init__(self, tokenizer: CLIPTokenizer, latents: Latents, recipe: DiffusionRecipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer, self.latents, self.recipe, self.seed = tokenizer, latents, recipe, seed
        self.model, self.schedule, self.step = Trained(tokenizer), new_schedule(), 0
        self.averaged = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.model.unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

    def start_from(self, worded: dict[str, Tensor]) -> None:
        """Take the text encoder and the naming network that learned to tell what a sentence says."""
        self.model.load_state_dict(worded, strict=False)
        self.averaged |= {k: v.clone() for k, v in worded.items()}

    def batch(self) -> Batch:
        """This step's drawings with fresh captions; an epoch visits every drawing once."""
        count, size = len(self.latents.images), self.recipe.batch
        epoch, place = divmod(self.step * size, count - count % size)
        order = np.random.default_rng([self.seed, 7, epoch]).permutation(count)[place : place + size]
        random = np.random.default_rng([self.seed, 8, self.step])
        shown = [picture_at(1, int(i)) for i in order]
        latents = self.latents(torch.from_numpy(order))
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

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one file, written atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
        save_whole(tensors, path, {"step": str(self.step)})

    def load(self, path: Path) -> None:
        """Go on where a saved run stopped."""
        tensors = load_file(path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.averaged = part("averaged.")
        whole, parameters = self.optimiser.state_dict(), list(self.model.unet.parameters())
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam.").items():
            index, key = name.split(".", 1)
            states.setdefault(int(index), {})[key] = laid_out_like(parameters[int(index)], value)
        self.optimiser.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
        self.step = int(next(iter(states.values()))["step"]) if states else 0


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
