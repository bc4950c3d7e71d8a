"""COMPOSER: one part of the embedded model from nothing, resumable."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTokenizer

from sefi.backbone.open import EMBEDDED, open_backbone
from sefi.core.errors import ConfigError
from sefi.core.files import write_folder
from sefi.core.hints import suggest
from sefi.core.protocols import Progress
from sefi.world.assemble import assemble
from sefi.world.composer_training import ComposerRecipe, train_composer
from sefi.world.data import MODEL_SEED, drawings
from sefi.world.diffusion_training import (
    DiffusionRecipe,
    DiffusionTraining,
    Trained,
    encoded,
    set_scaling,
    train_diffusion,
)
from sefi.world.judges import JUDGES
from sefi.world.lesson import Keeping, read_weights, save_whole
from sefi.world.telling import TellingRecipe, train_telling
from sefi.world.tokenizing import build_tokenizer, words
from sefi.world.vae_training import VaeRecipe, train_vae
from sefi.world.widening import earlier_words, widened

DRAWINGS, LATENTS, TEXT = 48_000, "latents.npy", "text.safetensors"
# These can go on from a finished model, and need these parts of it.
CONTINUED = {
    "decoder": ("vae",),
    "text": ("tokenizer", "text_encoder"),
    "denoiser": ("tokenizer", "text_encoder", "vae", "unet"),
}
# Going on from a finished model takes fewer steps and smaller ones than starting from nothing.
LONGER = DiffusionRecipe(steps=4200, learning_rate=6e-4, warm=100)
DECODER = VaeRecipe(steps=1200, batch=32, learning_rate=1.5e-3, whole_share=0.2, decoder_only=True)
MORE_WORDS = TellingRecipe(steps=800, learning_rate=7e-4)


@dataclass(frozen=True)
class Run:
    """Where a training keeps its files, and how it was asked for.

    Attributes:
        start: a finished model's folder to go on from; None begins with nothing.
        device: where autoencoder, text encoder and denoiser learn; the judges are small and stay on the CPU.
    """

    folder: Path
    resume: bool
    seed: int
    progress: Progress
    start: Path | None = None
    device: str = "cpu"

    def images(self) -> np.ndarray:
        """The training drawings, made once."""
        return drawings(self.folder / "drawings.npy", MODEL_SEED, DRAWINGS, self.progress)

    def keeping(self, part: str) -> Keeping:
        """Where a part's training keeps its state."""
        return Keeping(self.folder / f"{part}.lesson.safetensors", self.resume)

    def need(self, name: str, part: str) -> Path:
        """A file or folder that another part makes."""
        path = self.folder / name
        if not path.exists():
            raise ConfigError(f"{path} is missing.", f"Run `sefi world train {part}` first, of the same version.")
        return path


def train_tokenizer(run: Run) -> None:
    """The world's words, each one token."""
    build_tokenizer(run.folder / "tokenizer", words())


def train_autoencoder(run: Run) -> None:
    """Crops first, then whole drawings."""
    images = run.images()
    vae = train_vae(images, VaeRecipe(), run.seed, run.progress, None, run.keeping("vae"), run.device)
    set_scaling(vae, images[:64])
    vae.save_pretrained(run.folder / "vae")
    # Latents of an earlier autoencoder would be read as this one's.
    (run.folder / LATENTS).unlink(missing_ok=True)


def train_decoder(run: Run) -> None:
    """The second half of the autoencoder once more, faces above all; latents that exist stay right."""
    folder = run.start / "vae" if run.start else run.need("vae", "vae")
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    vae = train_vae(run.images(), DECODER, run.seed, run.progress, vae.float(), run.keeping("decoder"), run.device)
    vae.save_pretrained(run.folder / "vae")


def train_text(run: Run) -> None:
    """Text encoder and naming network alone: what a sentence says."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    model = Trained(tokenizer)
    keeping = run.keeping("text")
    earlier = widened(model.words(), earlier_words(run.start)) if run.start else None
    recipe = MORE_WORDS if run.start else TellingRecipe()
    train_telling(model.words(), recipe, run.seed, run.progress, keeping, earlier, run.device)
    save_whole(model.worded(), run.folder / TEXT)


def adopt(folder: Path, start: Path) -> None:
    """Whatever a training lacks beside the denoiser, as a finished model has it: tokenizer, autoencoder, words."""
    for part in ("tokenizer", "vae"):
        if not (folder / part).exists():
            write_folder(folder / part, partial(shutil.copytree, start / part, dirs_exist_ok=True))
    if not (folder / TEXT).exists():
        model = Trained(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
        widened(model.words(), earlier_words(start))
        save_whole(model.worded(), folder / TEXT)


def train_denoiser(run: Run) -> None:
    """The UNet, with the text encoder as its lesson left it, or as the finished model has it."""
    if run.start:
        adopt(run.folder, run.start)
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    vae = AutoencoderKL.from_pretrained(run.need("vae", "vae")).eval().requires_grad_(requires_grad=False)
    latents = encoded(run.folder / LATENTS, vae, run.images(), run.progress)
    training = DiffusionTraining(tokenizer, latents, LONGER if run.start else DiffusionRecipe(), run.seed, run.device)
    checkpoint = run.folder / "diffusion.safetensors"
    if run.resume and checkpoint.is_file():
        training.load(checkpoint)
    else:
        training.start_from(read_weights(run.need(TEXT, "text")))
        if run.start:
            training.go_on_from(run.start)
    train_diffusion(training, checkpoint, run.progress)


def train_assembly(run: Run) -> None:
    """All parts into one Stable Diffusion folder."""
    tokenizer = CLIPTokenizer.from_pretrained(run.need("tokenizer", "tokenizer"))
    vae = AutoencoderKL.from_pretrained(run.need("vae", "vae"))
    weights = read_weights(run.need("diffusion.safetensors", "denoiser"))
    averaged = {k.removeprefix("averaged."): v for k, v in weights.items() if k.startswith("averaged.")}
    assemble(run.folder / "tiny-portraits", tokenizer, vae, averaged)


def train_fastcomposer(run: Run) -> None:
    """What FastComposer needs beside the embedded model, whose CLIP it goes on from."""
    backbone = open_backbone(EMBEDDED)
    file = run.folder / "composer.safetensors"
    train_composer(backbone, ComposerRecipe(), run.seed, run.progress, file, run.keeping("composer"))


def judge(name: str) -> Callable[[Run], None]:
    """Training of one judge; its drawings are made anew each time."""

    def train_judge(run: Run) -> None:
        folder = run.folder / "judges"
        folder.mkdir(parents=True, exist_ok=True)
        JUDGES[name](folder, run.seed, run.progress, run.keeping(name))

    return train_judge


PARTS: dict[str, Callable[[Run], None]] = {
    "tokenizer": train_tokenizer,
    "vae": train_autoencoder,
    "decoder": train_decoder,
    "text": train_text,
    "denoiser": train_denoiser,
    "assembly": train_assembly,
    "composer": train_fastcomposer,
    **{name: judge(name) for name in JUDGES},
}


def train(part: str, run: Run) -> None:
    """Train one part into the run's folder.

    Raises:
        ConfigError: no such part, an earlier part or the model to start from is missing.
    """
    if part not in PARTS:
        raise ConfigError(
            f"There is no part {part!r}.", suggest(part, PARTS, verb="Choose").rstrip(".") + ", in this order."
        )
    if run.start is not None and part not in CONTINUED:
        raise ConfigError(f"The part {part!r} always begins with nothing.", "Leave --start out.")
    if run.start is not None and not all((run.start / needed).is_dir() for needed in CONTINUED[part]):
        raise ConfigError(f"There is no model to start from at {run.start}.", "Name the folder of a finished model.")
    PARTS[part](run)
