"""Training of the evaluator CLIP: drawings and sentences that belong together, as `transformers.CLIPModel`.

It scores whether a generated image agrees with its prompt, through the class that opens OpenAI's CLIP. It knows no
names: they stand as `person` in what it reads.
"""
# transformers annotates its constructors and outputs too narrowly.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sefi.backbone.files import quiet_libraries
from sefi.core.progress import Progress
from tiny_portraits.drawing.content import (
    ACTIONS,
    ATTRIBUTES,
    GARMENTS,
    INTERACTIONS,
    LIGHTS,
    SCENES,
    SHIPPED,
    STYLES,
    ImageContent,
    WorldVersion,
)
from tiny_portraits.drawing.image import SIDE, draw
from tiny_portraits.drawing.traits import ANIMALS
from tiny_portraits.text.captions import remove_names, write_caption
from tiny_portraits.text.tokenizing import LENGTH, build_tokenizer, list_caption_words
from tiny_portraits.training.acceleration import choose_autocast
from tiny_portraits.training.drawings import EVALUATOR_SEED, list_contents, roughen_images
from tiny_portraits.training.loop import NOWHERE, Checkpointing, TrainingSetup, compute_one_cycle_rate, run_training
from tiny_portraits.training.networks import clean_configs

CLIP = "clip"
# Other evaluators learn from the earlier images of the series.
FIRST_DRAWING = 30_000
PATCH, WIDTH, PROJECTION = 12, 128, 96
# Similarities are multiplied by at most this before they are compared, as in OpenAI's training.
STEEPEST = 100.0
TWO = "two people"


# What drawings can show, as far as CLIP is asked for it.
SHOWN = (
    *ATTRIBUTES,
    *ACTIONS,
    *INTERACTIONS,
    *SCENES,
    *STYLES,
    *LIGHTS[1:],
    *ANIMALS,
    TWO,
    *GARMENTS,
)


@dataclass(frozen=True)
class ClipRecipe:
    """Drawings at the model's own size; every step says them in new words."""

    drawings: int = 24_000
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 1e-3
    label_weight: float = 0.1
    version: WorldVersion = SHIPPED


@dataclass(frozen=True)
class ClipData:
    """What CLIP learns from.

    Attributes:
        contents: descriptions, from which sentences are made.
        images: uint8 RGB `[image, 96, 96, 3]`.
        shows: which of `SHOWN` each image shows, 0 or 1, `[image, shown]`.
    """

    contents: list[ImageContent]
    images: np.ndarray
    shows: Tensor


class ClipLearner(nn.Module):
    """CLIP, and a head that both towers share and that is thrown away: it tells what is shown, or said."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.tell = nn.Linear(PROJECTION, len(SHOWN))

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of both towers `[batch, PROJECTION]`, of pixels as CLIP wants them and of token ids."""
        with choose_autocast("cpu"):
            seen = self.clip.get_image_features(pixels).pooler_output
            read = self.clip.get_text_features(ids).pooler_output
        return seen.float(), read.float()


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a CLIP of 4 layers for 8 x 8 patches of a 96-pixel image and 3 layers for 32 words."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **sizes,
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=LENGTH,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        **sizes, num_hidden_layers=4, image_size=SIDE, patch_size=PATCH, projection_dim=PROJECTION
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION))


def flag_shown(content: ImageContent) -> list[float]:
    """Return 1 for each of `SHOWN` that can be seen, else 0."""
    everybody = (*content.subjects, *content.pets)
    seen = {content.interaction, content.scene, content.style, content.light}
    seen |= {a for one in everybody for a in one.attributes} | {s.action for s in content.subjects}
    seen |= {pet.animal.kind for pet in content.pets} | ({TWO} if len(content.subjects) == 2 else set())
    seen |= {s.garment for s in content.subjects}
    return [float(one in seen) for one in SHOWN]


def draw_clip_data(seed: int, start: int, count: int, version: WorldVersion = SHIPPED) -> ClipData:
    """Draw numbered images of a seed."""
    shown = list_contents(seed, start, count, version)
    return ClipData(shown, np.stack([draw(p) for p in shown]), torch.tensor([flag_shown(p) for p in shown]))


def normalise_pixels(images: np.ndarray) -> Tensor:
    """Return images `[batch, side, side, 3]` in [0, 255] as CLIP's preprocessing does, `[batch, 3, side, side]`."""
    mean, spread = np.float32(OPENAI_CLIP_MEAN), np.float32(OPENAI_CLIP_STD)
    return torch.from_numpy((images / np.float32(255) - mean) / spread).permute(0, 3, 1, 2)


def make_clip_batch(
    data: ClipData, tokenizer: CLIPTokenizer, chosen: np.ndarray, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return pixels and token ids of the chosen images; half of them mirrored, all roughened."""
    images = data.images[chosen]
    mirrored = random.random(len(images)) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    said = [remove_names(write_caption(data.contents[i], random).text) for i in chosen]
    ids = tokenizer(said, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    return normalise_pixels(roughen_images(images, random)), ids


def compute_clip_loss(seen: Tensor, read: Tensor, scale: Tensor | float) -> Tensor:
    """Return the symmetric cross entropy of finding every image's sentence in the batch, and every sentence's image.

    Args:
        seen, read: features `[batch, width]` of images and of their sentences, of any length.
        scale: what cosines are multiplied by.
    """
    logits = scale * F.normalize(seen) @ F.normalize(read).T
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def compute_learner_loss(
    learner: ClipLearner, pixels: Tensor, ids: Tensor, shown: Tensor, label_weight: float
) -> Tensor:
    """Return CLIP's loss plus the weighted loss of the shared head on both towers."""
    seen, read = learner(pixels, ids)
    label_loss = sum(F.binary_cross_entropy_with_logits(learner.tell(features), shown) for features in (seen, read))
    scale = learner.clip.logit_scale.exp().clamp(max=STEEPEST)
    return compute_clip_loss(seen, read, scale) + label_weight * shown.shape[1] * label_loss


def train_clip(
    tokenizer: CLIPTokenizer, recipe: ClipRecipe, seed: int, progress: Progress, checkpointing: Checkpointing = NOWHERE
) -> CLIPModel:
    """Return a CLIP trained on the evaluators' drawings and new sentences."""
    torch.manual_seed(seed)
    data = draw_clip_data(EVALUATOR_SEED, FIRST_DRAWING, recipe.drawings, recipe.version)
    learner = ClipLearner(build_clip(tokenizer)).train()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    rate = partial(compute_one_cycle_rate, steps=recipe.steps, top=recipe.learning_rate)

    def compute_loss(step: int) -> Tensor:
        random = np.random.default_rng([seed, 31, step])
        chosen = random.choice(len(data.images), recipe.batch, replace=False)
        pixels, ids = make_clip_batch(data, tokenizer, chosen, random)
        return compute_learner_loss(learner, pixels, ids, data.shows[chosen], recipe.label_weight)

    setup = TrainingSetup(CLIP, (recipe, SHOWN), seed, recipe.steps, {CLIP: learner}, optimiser, rate, clip=1.0)
    run_training(setup, compute_loss, checkpointing, progress)
    return learner.clip.eval()


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Turn the model to half precision, in place, and write it and its image preprocessing beside the tokenizer."""
    with quiet_libraries():
        clip.half().save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    clean_configs(folder)


def make_clip(
    folder: Path, seed: int, progress: Progress, checkpointing: Checkpointing = NOWHERE, version: WorldVersion = SHIPPED
) -> None:
    """Write the folder `clip`: model, tokenizer and preprocessing."""
    tokenizer = build_tokenizer(folder / CLIP, list_caption_words())
    save_clip(train_clip(tokenizer, ClipRecipe(version=version), seed, progress, checkpointing), folder / CLIP)
