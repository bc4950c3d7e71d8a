"""FastComposer's training on drawings: read another image of a person where their word stands.

Masks, captions and the other image are true by construction, where the published training has a segmenter, a
captioner and a piece of the same image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone, add_noise, compute_target
from sefi.backbone.weights import ATTENTION_LAYERS, copy_for_training, list_cross_attention_weights
from sefi.core.progress import Progress
from sefi.diffusion.attention import AttentionRecorder, copy_with_key_value_attention
from sefi.diffusion.composer import Composer, describe_model, fuse_images, load_clip_vision, prepare_clip_pixels
from sefi.diffusion.text import ParsedPrompt, join_texts, parse_prompt
from sefi.evaluation.encoders import EMBEDDED_EVALUATORS
from sefi.training.finetuning import wrap_weights
from tiny_portraits.drawing.content import SHIPPED, ImageContent, WorldVersion
from tiny_portraits.drawing.image import draw
from tiny_portraits.drawing.sampling import PEOPLE_ONLY, make_portrait, sample_content
from tiny_portraits.text.captions import number_names, say
from tiny_portraits.text.tokenizing import Fits, fits_in
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import convert_to_tensor
from tiny_portraits.training.loop import (
    NOWHERE,
    Checkpointing,
    TrainingSetup,
    compute_one_cycle_rate,
    run_training,
)
from tiny_portraits.training.networks import save_tensors

SERIES = 5  # seed of the training images; 1 to 4 are others'
BLOCK = 16
CLASS_WORD = "person"
UNSEEN = 12  # difference of a colour, 0 to 255, below which a drawing has not changed


@dataclass(frozen=True)
class ComposerRecipe:
    """FastComposer's recipe, `run_training.sh`, at a rate and size for this model.

    Attributes:
        masked: share of the steps that denoise the people only.
        without_image: share of the sentences that stay plain words.
        without_words: share of the sentences that are empty.
        attention_weight: of the localisation loss.
    """

    images: int = 8000
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 5e-4
    masked: float = 0.5
    without_image: float = 0.1
    without_words: float = 0.1
    attention_weight: float = 1e-3
    version: WorldVersion = SHIPPED


@dataclass(frozen=True)
class ComposerData:
    """Training images.

    Attributes:
        contents: their descriptions.
        latents: `[image, channels, side, side]`.
        others: another image of every person in them, as the image encoder reads it, `[image, 2, 3, side, side]`.
        masks: where each person is, 0 to 1, `[image, 2, side, side]`; nothing where there is no second one.
    """

    contents: list[ImageContent]
    latents: Tensor
    others: Tensor
    masks: Tensor


def draw_training_images(
    backbone: Backbone, composer: Composer, recipe: ComposerRecipe, seed: int, progress: Progress
) -> ComposerData:
    """Draw and encode them."""
    contents = [
        sample_content(np.random.default_rng([SERIES, seed, n]), None, PEOPLE_ONLY, version=recipe.version)
        for n in range(recipe.images)
    ]
    latents, others, masks = list[Tensor](), list[Tensor](), list[Tensor]()
    side = recipe.version.side
    progress.start(-(-len(contents) // BLOCK), "drawing")
    for start in range(0, len(contents), BLOCK):
        some = contents[start : start + BLOCK]
        latents.append(backbone.encode_image(convert_to_tensor(np.stack([draw(p, side) for p in some]))))
        seen = [[draw_other_image(p, k, start + n, side) for k in (0, 1)] for n, p in enumerate(some)]
        others.append(torch.stack([prepare_clip_pixels(pair, composer.vision.config) for pair in seen]))
        masks.append(torch.stack([make_people_masks(p, backbone.latent_size) for p in some]))
        progress.advance()
    progress.finish()
    return ComposerData(contents, torch.cat(latents), torch.cat(others), torch.cat(masks))


def draw_other_image(content: ImageContent, number: int, index: int, side: int) -> np.ndarray:
    """Return a plain portrait of an image's first or second person, uint8 RGB; black where there is none."""
    if number >= len(content.subjects):
        return np.zeros((side, side, 3), np.uint8)
    return draw(make_portrait(content.subjects[number].person, index, view=100 + number), side)


def make_people_masks(content: ImageContent, side: int) -> Tensor:
    """Return where each person is, hands empty, `[2, side, side]`: what of the drawing changes when they leave it."""
    plain = replace(content, style="photo", light="", interaction="")
    masks = torch.zeros(2, side, side)
    for number, subject in enumerate(plain.subjects):
        alone = (replace(subject, action=""),)
        with_person, without_people = (draw(replace(plain, subjects=who)).astype(np.int16) for who in (alone, ()))
        changed = torch.from_numpy((np.abs(with_person - without_people).max(-1) > UNSEEN).astype(np.float32))
        masks[number] = F.interpolate(changed[None, None], (side, side), mode="area")[0, 0]
    return masks


@dataclass(frozen=True)
class Sentences:
    """A step's sentences: parsed, and which of their names have an image."""

    parsed: list[ParsedPrompt]
    with_image: list[dict[str, Tensor]]


def caption_batch(
    backbone: Backbone,
    contents: list[ImageContent],
    features: Tensor,
    recipe: ComposerRecipe,
    random: np.random.Generator,
) -> Sentences:
    """Caption each image with every person's word in a known place.

    Args:
        features: of the people's other images, `[image, 2, features]`.
    """
    parsed, with_image, fits = list[ParsedPrompt](), list[dict[str, Tensor]](), fits_in(backbone)
    for row, content in enumerate(contents):
        text, people = caption_people(content, random, fits, recipe.version)
        chance = random.random()
        if chance < recipe.without_words:
            text, people = "", 0
        words = {str(n): CLASS_WORD for n in range(people)}
        parsed.append(parse_prompt(backbone, text, words))
        plain = chance < recipe.without_words + recipe.without_image
        with_image.append({} if plain else {str(n): features[row, n] for n in range(people)})
    return Sentences(parsed, with_image)


def caption_people(
    content: ImageContent, random: np.random.Generator, fits: Fits, version: WorldVersion = SHIPPED
) -> tuple[str, int]:
    """Return a caption that gives every person a word, as `<0>` and `<1>`, and how many they are."""
    while True:
        text, count = number_names(say(content, random, version)[0].text)
        if count == len(content.subjects) and fits(re.sub(r"<\d>", CLASS_WORD, text)):
            return text, count


def compute_localisation_loss(recorder: AttentionRecorder, spoken: Sentences, masks: Tensor) -> Tensor:
    """Return the mean attention of a person's word outside the person less that inside, over layers, heads and people.

    Source: FastComposer, `get_object_localization_loss_for_one_layer`.
    """
    losses: list[Tensor] = []
    for maps in recorder.maps.values():
        height, width = maps.shape[-2:]
        resized = F.interpolate(masks, (height, width), mode="bilinear", antialias=True)
        for row, one in enumerate(spoken.parsed):
            for name in spoken.with_image[row]:
                inside = resized[row, int(name)]
                if inside.sum() < 1:
                    continue
                word = maps[row, :, one.places[name][0]]
                losses.append((compute_mean_within(word, 1 - inside) - compute_mean_within(word, inside)).mean())
    return torch.stack(losses).mean() if losses else torch.zeros(())


def compute_mean_within(maps: Tensor, region: Tensor) -> Tensor:
    """Return the mean of maps `[head, h, w]` over a region `[h, w]` of weights, `[head]`."""
    return (maps * region).sum((1, 2)) / region.sum().clamp(min=1e-6)


@dataclass(frozen=True)
class StepParts:
    """What a step needs."""

    backbone: Backbone
    composer: Composer
    data: ComposerData
    recipe: ComposerRecipe
    seed: int


def compute_step_loss(parts: StepParts, step: int) -> Tensor:
    """Return the loss of denoising, in some steps of the people only, plus the localisation loss."""
    backbone, recipe = parts.backbone, parts.recipe
    random = np.random.default_rng([parts.seed, step])
    rows = torch.from_numpy(random.integers(len(parts.data.contents), size=recipe.batch))
    latents, masks = parts.data.latents[rows], parts.data.masks[rows]
    noise = torch.randn(latents.shape)
    t = torch.randint(0, backbone.num_train_timesteps, (recipe.batch,))
    others = parts.data.others[rows].flatten(0, 1)
    features = parts.composer.encode_images(others).unflatten(0, (recipe.batch, 2))
    spoken = caption_batch(backbone, [parts.data.contents[int(n)] for n in rows], features, recipe, random)
    with torch.no_grad():
        plain = backbone.encode_text(torch.stack([one.ids for one in spoken.parsed]))
    fused = replace(plain, states=fuse_images(plain.states, spoken.parsed, spoken.with_image, parts.composer.fuse))
    recorder = AttentionRecorder(keep_maps=True, keep_gradient=True)
    alphas = backbone.scheduler.alphas_cumprod
    context = join_texts(fused, fused)
    unet = copy_with_key_value_attention(backbone.unet, recorder)
    with choose_autocast("cpu"):
        predicted = backbone.predict(add_noise(latents, noise, t, alphas), t, context, unet).float()
    error = (predicted - compute_target(latents, noise, t, alphas, backbone.prediction_type)).pow(2)
    if random.random() < recipe.masked:
        # Differs: the mean is over the people's cells, so that small people count as much as large ones.
        people = masks.sum(1, keepdim=True).clamp(max=1).expand_as(error)
        denoise = (error * people).sum() / people.sum().clamp(min=1)
    else:
        denoise = error.mean()
    return denoise + recipe.attention_weight * compute_localisation_loss(recorder, spoken, masks)


def build_composer(
    width: int, seed: int, clip: Path = EMBEDDED_EVALUATORS / "clip", start: Path | None = None
) -> Composer:
    """Return what FastComposer learns beside the model's cross-attention.

    Args:
        width: of the model's text.
        seed: of the weights that no CLIP has.
        clip: folder of the CLIP whose image encoder it goes on from.
        start: finished weights that it goes on from; None begins with the CLIP's.
    """
    torch.manual_seed(seed)
    composer = Composer(load_clip_vision(clip), width).requires_grad_(requires_grad=False)
    if start is not None:
        finished = load_file(start)
        composer.load_state_dict({name: finished[f"composer.{name}"] for name in composer.list_trained()}, strict=False)
    return composer


def train_composer(
    backbone: Backbone,
    composer: Composer,
    recipe: ComposerRecipe,
    seed: int,
    progress: Progress,
    file: Path,
    checkpointing: Checkpointing = NOWHERE,
) -> None:
    """Train the fusion, the image encoder's last layers and the UNet's cross-attention; write them to a file."""
    trained = composer.list_trained()
    data = draw_training_images(backbone, composer, recipe, seed, progress)
    for weight in trained.values():
        weight.requires_grad = True
    names = list_cross_attention_weights(backbone.unet, ATTENTION_LAYERS)
    model, attention_weights = copy_for_training(backbone, [f"unet.{name}" for name in names])
    weights = {**{f"composer.{k}": w for k, w in trained.items()}, **attention_weights}
    module = wrap_weights(weights)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    setup = TrainingSetup(
        "composer", recipe, seed, recipe.steps, {"weights": module}, optimiser,
        lambda step: compute_one_cycle_rate(step, recipe.steps, recipe.learning_rate), clip=1.0,
    )  # fmt: skip
    parts = StepParts(model, composer, data, recipe, seed)
    run_training(setup, lambda step: compute_step_loss(parts, step), checkpointing, progress)
    save_composer(weights, backbone, file)


def save_composer(weights: Mapping[str, nn.Parameter], backbone: Backbone, file: Path) -> None:
    """Write the weights in half precision, which is enough: the file is opened in single."""
    halves = {name: weight.detach().half().contiguous() for name, weight in weights.items()}
    save_tensors(halves, file, describe_model(backbone))
