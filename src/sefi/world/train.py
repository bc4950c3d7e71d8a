"""COMPOSER: one part of the embedded model from nothing, resumable."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from sefi.core.errors import ConfigError
from sefi.core.protocols import Progress
from sefi.world.assemble import assemble
from sefi.world.data import drawings
from sefi.world.diffusion_training import (
    DiffusionRecipe,
    DiffusionTraining,
    Latents,
    Trained,
    save_whole,
    set_scaling,
    train_diffusion,
)
from sefi.world.judges import JUDGES
from sefi.world.telling import TellingRecipe, train_telling
from sefi.world.tokenizing import build_tokenizer, words
from sefi.world.vae_training import VaeRecipe, train_vae

TRAINING_SEED = 1
DRAWINGS = 36_000


@dataclass(frozen=True)
class Run:
    """Where a training keeps its files, and how it was asked for."""

    folder: Path
    resume: bool
    seed: int
    progress: Progress

    def images(self) -> np.ndarray:
        """The training drawings, made once."""
        return drawings(self.folder / "drawings.npy", TRAINING_SEED, DRAWINGS, self.progress)

    def need(self, name: str, part: str) -> Path:
        """A file or folder that another part makes."""
        path = self.folder / name
        if not path.exists():
            raise ConfigError(f"{path} is missing.", f"Run `sefi world train {part}` first.")
        return path


def train_tokenizer(run: Run) -> None:
    """The world's words, each one token."""
    build_tokenizer(run.folder / "tokenizer", words())


def train_autoencoder(run: Run) -> None:
    """Crops first, then whole drawings."""
    images = run.images()
    vae = train_vae(images, VaeRecipe(), run.seed, run.progress)
    set_scaling(vae, images[:64])
    vae.save_pretrained(run.folder / "vae")


def train_text(run: Run) -> None:
    """Text encoder and naming network alone: what a sentence says."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    model = Trained(tokenizer)
    train_telling(model.text, model.names, tokenizer, TellingRecipe(), run.seed, run.progress)
    save_whole(model.worded(), run.folder / "text.safetensors")


def train_denoiser(run: Run) -> None:
    """The UNet, with the text encoder as its lesson left it."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    vae = AutoencoderKL.from_pretrained(run.need("vae", "vae")).eval().requires_grad_(requires_grad=False)
    training = DiffusionTraining(tokenizer, Latents(vae, run.images()), DiffusionRecipe(), run.seed)
    checkpoint = run.folder / "diffusion.safetensors"
    if run.resume and checkpoint.is_file():
        training.load(checkpoint)
    else:
        training.start_from(load_file(run.need("text.safetensors", "text")))
    train_diffusion(training, checkpoint, run.progress)


def train_assembly(run: Run) -> None:
    """All parts into one Stable Diffusion folder."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    vae = AutoencoderKL.from_pretrained(run.need("vae", "vae"))
    weights = load_file(run.need("diffusion.safetensors", "denoiser"))
    averaged = {k.removeprefix("averaged."): v for k, v in weights.items() if k.startswith("averaged.")}
    assemble(run.folder / "tiny-portraits", tokenizer, vae, averaged)


def judge(name: str) -> Callable[[Run], None]:
    """Training of one judge; short, so it starts anew each time."""

    def train_judge(run: Run) -> None:
        folder = run.folder / "judges"
        folder.mkdir(parents=True, exist_ok=True)
        JUDGES[name](folder, run.seed, run.progress)

    return train_judge


PARTS: dict[str, Callable[[Run], None]] = {
    "tokenizer": train_tokenizer,
    "vae": train_autoencoder,
    "text": train_text,
    "denoiser": train_denoiser,
    "assembly": train_assembly,
    **{name: judge(name) for name in JUDGES},
}


def train(part: str, out: Path, *, resume: bool, seed: int, progress: Progress) -> None:
    """Train one part into a folder.

    Raises:
        ConfigError: no such part, or an earlier part is missing.
    """
    if part not in PARTS:
        raise ConfigError(f"There is no part {part!r}.", f"Choose one of {', '.join(PARTS)}, in this order.")
    PARTS[part](Run(out, resume, seed, progress))
