"""FastComposer's training on drawings: read another picture of a person where their word stands.

Masks, captions and the other picture are true by construction, where the published training has a segmenter, a
captioner and a piece of the same picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.attention.install import copy_with_key_value_attention
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.bundle import Backbone
from sefi.backbone.schedule import add_noise, target
from sefi.backbone.weights import ATTENTION_LAYERS, copy_for_training, cross_attention_names
from sefi.conditioning.composer import Composer, clip_pixels, describe_model, fuse_images, load_clip_vision
from sefi.conditioning.encode import encode_token_ids
from sefi.conditioning.prompt import ParsedPrompt, parse_prompt
from sefi.core.protocols import Progress
from sefi.learn.weights import wrap_weights
from sefi.world.captions import placed, say
from sefi.world.drawing import draw
from sefi.world.grids import Fits, fits_in
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson, save_whole
from sefi.world.picture import Picture
from sefi.world.precision import autocast
from sefi.world.sampling import PEOPLE_ONLY, random_picture
from sefi.world.subjects import portrait
from sefi.world.vae_training import to_tensor
from sefi.world.versions import FOURTH, WorldVersion

SERIES = 5  # seed of the training pictures; 1 to 4 are others'
BLOCK = 16
CLASS_WORD = "person"
UNSEEN = 12  # difference of a colour, 0 to 255, below which a drawing has not changed


@dataclass(frozen=True)
class ComposerRecipe:
    """FastComposer's recipe, `run_training.sh`, at a rate and size for this model.

    Attributes:
        masked: share of the steps that denoise the people only.
        without_picture: share of the sentences that stay plain words.
        without_words: share of the sentences that are empty.
        attention_weight: of the localisation loss.
    """

    pictures: int = 8000
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 5e-4
    masked: float = 0.5
    without_picture: float = 0.1
    without_words: float = 0.1
    attention_weight: float = 1e-3
    version: WorldVersion = FOURTH


@dataclass(frozen=True)
class Shown:
    """Training pictures.

    Attributes:
        pictures: their descriptions.
        latents: `[picture, channels, side, side]`.
        others: another picture of every person in them, as the image encoder reads it, `[picture, 2, 3, side, side]`.
        masks: where each person is, 0 to 1, `[picture, 2, side, side]`; nothing where there is no second one.
    """

    pictures: list[Picture]
    latents: Tensor
    others: Tensor
    masks: Tensor


def shown(backbone: Backbone, composer: Composer, recipe: ComposerRecipe, seed: int, progress: Progress) -> Shown:
    """Draw and encode them."""
    pictures = [
        random_picture(np.random.default_rng([SERIES, seed, n]), None, PEOPLE_ONLY, version=recipe.version)
        for n in range(recipe.pictures)
    ]
    latents, others, masks = list[Tensor](), list[Tensor](), list[Tensor]()
    side = recipe.version.side
    progress.start(-(-len(pictures) // BLOCK), "drawing")
    for start in range(0, len(pictures), BLOCK):
        some = pictures[start : start + BLOCK]
        latents.append(backbone.encode_image(to_tensor(np.stack([draw(p, side) for p in some]))))
        seen = [[other_picture(p, k, start + n, side) for k in (0, 1)] for n, p in enumerate(some)]
        others.append(torch.stack([clip_pixels(pair, composer.vision.config) for pair in seen]))
        masks.append(torch.stack([people_masks(p, backbone.latent_size) for p in some]))
        progress.advance()
    progress.finish()
    return Shown(pictures, torch.cat(latents), torch.cat(others), torch.cat(masks))


def other_picture(picture: Picture, number: int, index: int, side: int) -> np.ndarray:
    """A plain portrait of a picture's first or second person, uint8 RGB; black where there is none."""
    if number >= len(picture.subjects):
        return np.zeros((side, side, 3), np.uint8)
    return draw(portrait(picture.subjects[number].person, index, view=100 + number), side)


def people_masks(picture: Picture, side: int) -> Tensor:
    """Where each person is, with empty hands, `[2, side, side]`: what of the drawing changes when they leave it."""
    plain = replace(picture, style="photo", light="", interaction="")
    masks = torch.zeros(2, side, side)
    for number, subject in enumerate(plain.subjects):
        alone = (replace(subject, action=""),)
        there, gone = (draw(replace(plain, subjects=who)).astype(np.int16) for who in (alone, ()))
        changed = torch.from_numpy((np.abs(there - gone).max(-1) > UNSEEN).astype(np.float32))
        masks[number] = F.interpolate(changed[None, None], (side, side), mode="area")[0, 0]
    return masks


@dataclass(frozen=True)
class Sentences:
    """A step's sentences: parsed, and which of their names have a picture."""

    parsed: list[ParsedPrompt]
    pictured: list[dict[str, Tensor]]


def sentences(
    backbone: Backbone, pictures: list[Picture], features: Tensor, recipe: ComposerRecipe, random: np.random.Generator
) -> Sentences:
    """A caption of each picture with every person's word in a known place.

    Args:
        features: of the people's other pictures, `[picture, 2, features]`.
    """
    parsed, pictured, fits = list[ParsedPrompt](), list[dict[str, Tensor]](), fits_in(backbone)
    for row, picture in enumerate(pictures):
        text, people = said(picture, random, fits, recipe.version)
        chance = random.random()
        if chance < recipe.without_words:
            text, people = "", 0
        words = {str(n): CLASS_WORD for n in range(people)}
        parsed.append(parse_prompt(backbone.tokenizer, text, words, backbone.text_length))
        plain = chance < recipe.without_words + recipe.without_picture
        pictured.append({} if plain else {str(n): features[row, n] for n in range(people)})
    return Sentences(parsed, pictured)


def said(picture: Picture, random: np.random.Generator, fits: Fits, version: WorldVersion = FOURTH) -> tuple[str, int]:
    """A caption that gives every person a word, as `<0>` and `<1>`, and how many they are."""
    while True:
        text, count = placed(say(picture, random, version)[0].text)
        if count == len(picture.subjects) and fits(re.sub(r"<\d>", CLASS_WORD, text)):
            return text, count


def localisation(tape: AttentionRecorder, spoken: Sentences, masks: Tensor) -> Tensor:
    """Mean attention of a person's word outside the person less that inside, over layers, heads and people.

    Source: FastComposer, `get_object_localization_loss_for_one_layer`.
    """
    found: list[Tensor] = []
    for maps in tape.maps.values():
        height, width = maps.shape[-2:]
        there = F.interpolate(masks, (height, width), mode="bilinear", antialias=True)
        for row, one in enumerate(spoken.parsed):
            for name in spoken.pictured[row]:
                inside = there[row, int(name)]
                if inside.sum() < 1:
                    continue
                word = maps[row, :, one.places[name][0]]
                found.append((mean_within(word, 1 - inside) - mean_within(word, inside)).mean())
    return torch.stack(found).mean() if found else torch.zeros(())


def mean_within(maps: Tensor, region: Tensor) -> Tensor:
    """Mean of maps `[head, h, w]` over a region `[h, w]` of weights, `[head]`."""
    return (maps * region).sum((1, 2)) / region.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class Parts:
    """What a step needs."""

    backbone: Backbone
    composer: Composer
    data: Shown
    recipe: ComposerRecipe
    seed: int


def step_loss(parts: Parts, step: int) -> Tensor:
    """Denoising, of the people only in some steps, plus the localisation loss."""
    backbone, recipe = parts.backbone, parts.recipe
    random = np.random.default_rng([parts.seed, step])
    rows = torch.from_numpy(random.integers(len(parts.data.pictures), size=recipe.batch))
    latents, masks = parts.data.latents[rows], parts.data.masks[rows]
    noise = torch.randn(latents.shape)
    t = torch.randint(0, backbone.num_train_timesteps, (recipe.batch,))
    others = parts.data.others[rows].flatten(0, 1)
    features = parts.composer.encode_images(others).unflatten(0, (recipe.batch, 2))
    spoken = sentences(backbone, [parts.data.pictures[int(n)] for n in rows], features, recipe, random)
    with torch.no_grad():
        plain = encode_token_ids(backbone, torch.stack([one.ids for one in spoken.parsed]))
    states = fuse_images(plain, spoken.parsed, spoken.pictured, parts.composer.fuse)
    tape = AttentionRecorder(keep_maps=True, keep_gradient=True)
    alphas = backbone.scheduler.alphas_cumprod
    context = torch.cat([states, states], dim=-1)
    unet = copy_with_key_value_attention(backbone.unet, backbone.width, tape)
    with autocast("cpu"):
        found = backbone.predict(add_noise(latents, noise, t, alphas), t, context, unet).float()
    error = (found - target(latents, noise, t, alphas, backbone.prediction_type)).pow(2)
    if random.random() < recipe.masked:
        # Differs: the mean is over the people's cells, so that small people count as much as large ones.
        people = masks.sum(1, keepdim=True).clamp(max=1).expand_as(error)
        denoise = (error * people).sum() / people.sum().clamp(min=1)
    else:
        denoise = error.mean()
    return denoise + recipe.attention_weight * localisation(tape, spoken, masks)


def train_composer(
    backbone: Backbone,
    recipe: ComposerRecipe,
    seed: int,
    progress: Progress,
    file: Path,
    keeping: Keeping = NOWHERE,
) -> None:
    """Train the fusion, the image encoder's last layers and the UNet's cross-attention; write them to a file."""
    assert backbone.judges is not None
    torch.manual_seed(seed)
    composer = Composer(load_clip_vision(backbone.judges / "clip"), backbone.width).requires_grad_(requires_grad=False)
    own = composer.list_trained()
    data = shown(backbone, composer, recipe, seed, progress)
    for weight in own.values():
        weight.requires_grad = True
    names = cross_attention_names(backbone.unet, ATTENTION_LAYERS)
    model, tuned = copy_for_training(backbone, [f"unet.{name}" for name in names])
    weights = {**{f"composer.{k}": w for k, w in own.items()}, **tuned}
    module = wrap_weights(weights)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    lesson = Lesson(
        "composer", recipe, seed, recipe.steps, {"weights": module}, optimiser,
        lambda step: one_cycle(step, recipe.steps, recipe.learning_rate), clip=1.0,
    )  # fmt: skip
    parts = Parts(model, composer, data, recipe, seed)
    run_lesson(lesson, lambda step: step_loss(parts, step), keeping, progress)
    save_composer(weights, backbone, file)


def save_composer(weights: Mapping[str, nn.Parameter], backbone: Backbone, file: Path) -> None:
    """Half precision is enough: the file is opened in single."""
    halves = {name: weight.detach().half().contiguous() for name, weight in weights.items()}
    save_whole(halves, file, describe_model(backbone))
