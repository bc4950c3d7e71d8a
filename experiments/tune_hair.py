"""Train the embedded denoiser's cross-attention on captions that name the colour of somebody's hair, on a CPU.

    python experiments/tune_hair.py --model DIR --words DIR --out DIR

`--model` is a finished model, `--words` what `sefi world train tokenizer` and `text` wrote; `--out` gets the tuned
`unet`. After the text encoder had learned to bind colours to their nouns, the denoiser followed in half of the images;
all captions together teach it too slowly, because few of them name hair.
"""

import sefi  # noqa: F401  # before torch, so that OpenMP threads sleep while they wait

# isort: split

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from sefi.core.files import write_text
from sefi.core.progress import SilentProgress
from sefi.core.text import dump_json
from tiny_portraits.drawing.content import SHIPPED, ImageContent
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import MODEL_SEED, get_content
from tiny_portraits.text.captions import Caption, say
from tiny_portraits.text.text_encoder import WIDTH, TextParts, draw_name_changes, encode_named, tokenise_captions
from tiny_portraits.text.tokenizing import LENGTH
from tiny_portraits.training import train
from tiny_portraits.training.denoiser import DenoiserRecipe, draw_timesteps
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.latents import EMPTY, build_schedule, compute_face_weights, encode_images
from tiny_portraits.training.networks import Averages
from tiny_portraits.training.runs import Run
from tiny_portraits.training.text import find_bound_word

SEED = 5
# Drawings that the denoiser has not seen in training, of styles that show colours.
FIRST, DRAWINGS, STYLES = 400_000, 2400, ("photo", "painting", "comic", "watercolour")
BATCH, AVERAGE, WARM = 16, 0.98, 20
# Shares of the captions that name hair if they can, and of the steps at a falling rate.
NAMED, FALLING = 0.65, 0.4
TRIALS = 14


@dataclass(frozen=True)
class HairData:
    """What is tuned on: contents, latents `[drawing, channels, side, side]` in their order, and words."""

    contents: list[ImageContent]
    latents: Tensor
    worded: TextParts


def list_contents() -> list[ImageContent]:
    """List drawings of one person near enough to see the hair."""

    def find() -> Iterator[ImageContent]:
        number = FIRST
        while True:
            content = get_content(MODEL_SEED, number)
            number += 1
            alone = len(content.subjects) == 1 and not content.pets
            if alone and content.style in STYLES and content.camera != "wide shot":
                yield content

    found = find()
    return [next(found) for _ in range(DRAWINGS)]


def encode_contents(vae: AutoencoderKL, contents: list[ImageContent]) -> Tensor:
    """Return the latents of drawings, in blocks of one size."""
    parts = [
        encode_images(
            vae, convert_to_tensor(np.stack([draw(c, SHIPPED.side) for c in contents[start : start + BATCH]]))
        )
        for start in range(0, len(contents), BATCH)
    ]
    return torch.from_numpy(np.concatenate(parts))


def caption_hair(content: ImageContent, random: np.random.Generator) -> Caption:
    """Return a caption that mostly names the colour of the hair."""
    wanted, caption = random.random() < NAMED, EMPTY
    for _ in range(TRIALS):
        caption = say(content, random, SHIPPED)[0]
        if not wanted or find_bound_word("hair colour", caption.text):
            break
    return caption


@torch.no_grad()
def encode_captions(data: HairData, captions: list[Caption], random: np.random.Generator, stream: torch.Generator,
                    recipe: DenoiserRecipe) -> Tensor:  # fmt: skip
    """Return text states `[batch, LENGTH, WIDTH]`, names changed as in the denoiser's training."""
    text = tokenise_captions(data.worded.tokenizer, captions, random)
    noise = torch.randn((len(captions), LENGTH, WIDTH), generator=stream)
    changes = draw_name_changes(len(captions), recipe.changed_names, stream, recipe.scene_share)
    return encode_named(data.worded, text, noise, changes)


def compute_loss(unet: UNet2DConditionModel, data: HairData, step: int, recipe: DenoiserRecipe) -> Tensor:
    """Return the weighted error of the velocity on a step's drawings."""
    random, stream = np.random.default_rng([SEED, step]), torch.Generator().manual_seed(step)
    chosen = random.integers(len(data.contents), size=BATCH)
    contents, clean = [data.contents[n] for n in chosen], data.latents[chosen].float()
    captions = [caption_hair(content, random) for content in contents]
    captions = [EMPTY if random.random() < recipe.drop_caption else caption for caption in captions]
    states = encode_captions(data, captions, random, stream, recipe)
    schedule = build_schedule()
    t = draw_timesteps(BATCH, recipe, schedule.config["num_train_timesteps"], stream)
    noise = torch.randn(clean.shape, generator=stream)
    signal = schedule.alphas_cumprod.sqrt()[t].reshape(-1, 1, 1, 1)
    rest = (1 - signal**2).sqrt()
    predicted = unet(signal * clean + rest * noise, t, states).sample
    weights = compute_face_weights(contents, clean.shape[-1], recipe)
    return (weights * (predicted - (signal * noise - rest * clean)) ** 2).mean()


def train_attention(unet: UNet2DConditionModel, data: HairData, steps: int, rate: float) -> None:
    """Train the cross-attention, in place; its averaged weights are the result."""
    unet.requires_grad_(requires_grad=False)
    learning = [weight.requires_grad_() for name, weight in unet.named_parameters() if "attn2" in name]
    optimiser, averages = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0), Averages(unet, (AVERAGE,))
    recipe, begun = replace(DenoiserRecipe(), batch=BATCH, drop_caption=0.08), time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM, (steps - step) / (steps * FALLING))
        loss = compute_loss(unet, data, step, recipe)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        averages.update(unet, step)
        if (step + 1) % 50 == 0:
            print(f"{step + 1} steps, {time.monotonic() - begun:.0f} s, loss {float(loss.detach()):.4f}", flush=True)
    averages.copy_to(unet, 0)


def main() -> None:
    """Write a model's denoiser whose cross-attention was trained on hair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=4e-4)
    asked, begun = parser.parse_args(), time.monotonic()
    worded = train.load_words(Run(asked.words, resume=False, seed=0, progress=SilentProgress()))
    vae = AutoencoderKL.from_pretrained(asked.model / "vae", local_files_only=True, use_safetensors=True).float().eval()
    unet = UNet2DConditionModel.from_pretrained(asked.model / "unet", local_files_only=True, use_safetensors=True)
    contents = list_contents()
    train_attention(unet.float(), HairData(contents, encode_contents(vae, contents), worded), asked.steps, asked.rate)
    unet.half().save_pretrained(asked.out / "unet")
    known = {"steps": asked.steps, "batch": BATCH, "rate": asked.rate, "seconds": round(time.monotonic() - begun, 1)}
    write_text(asked.out / "report.json", dump_json(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
