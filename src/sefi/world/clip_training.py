"""Training of the judge CLIP: drawings and sentences that belong together, as `transformers.CLIPModel`.

It scores whether a generated picture agrees with its prompt, through the class that opens OpenAI's CLIP. It knows no
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

from sefi.backbone.quiet import quiet_libraries
from sefi.core.protocols import Progress
from sefi.world.animal import ANIMALS
from sefi.world.assemble import tidy
from sefi.world.captions import caption, nameless
from sefi.world.drawing import SIDE, draw
from sefi.world.judging_data import JUDGE_SEED, pictures, roughened
from sefi.world.lesson import NOWHERE, Keeping, Lesson, one_cycle, run_lesson
from sefi.world.picture import INTERACTIONS, Picture
from sefi.world.precision import autocast
from sefi.world.tokenizing import LENGTH, build_tokenizer, words
from sefi.world.versions import FOURTH, WorldVersion

CLIP = "clip"
# Other judges learn from the earlier pictures of the series.
FIRST_PICTURE = 30_000
PATCH, WIDTH, PROJECTION = 12, 128, 96
# Similarities are multiplied by at most this before they are compared, as in OpenAI's training.
STEEPEST = 100.0
TWO = "two people"


def list_shown(version: WorldVersion) -> tuple[str, ...]:
    """Return what a version's pictures can show, as far as CLIP is asked for it."""
    people = (*version.attributes, *version.actions, *INTERACTIONS)
    around = (*version.scenes, *version.styles, *version.lights[1:], *ANIMALS, TWO)
    return (*people, *around, *version.garments)


SHOWN = list_shown(FOURTH)


@dataclass(frozen=True)
class ClipRecipe:
    """Drawings at the model's own size; every step says them in new words."""

    drawings: int = 24_000
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 1e-3
    telling_weight: float = 0.1
    version: WorldVersion = FOURTH


@dataclass(frozen=True)
class ClipLessons:
    """What CLIP learns from.

    Attributes:
        pictures: descriptions, from which sentences are made.
        images: uint8 RGB `[picture, 96, 96, 3]`.
        shows: which of `SHOWN` each picture shows, 0 or 1, `[picture, shown]`.
    """

    pictures: list[Picture]
    images: np.ndarray
    shows: Tensor


class ClipLearner(nn.Module):
    """CLIP, and a head that both towers share and that is thrown away: it tells what is shown, or said."""

    def __init__(self, clip: CLIPModel, shown: tuple[str, ...] = SHOWN) -> None:
        super().__init__()
        self.clip = clip
        self.tell = nn.Linear(PROJECTION, len(shown))

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both towers `[batch, PROJECTION]`, of pixels as CLIP wants them and of token ids."""
        with autocast("cpu"):
            seen = self.clip.get_image_features(pixels).pooler_output
            read = self.clip.get_text_features(ids).pooler_output
        return seen.float(), read.float()


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 4 layers for 8 x 8 patches of a 96-pixel picture and 3 layers for 32 words."""
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


def shows(picture: Picture, shown: tuple[str, ...] = SHOWN) -> list[float]:
    """Which of `shown` can be seen, 0 or 1 each."""
    everybody = (*picture.subjects, *picture.pets)
    seen = {picture.interaction, picture.scene, picture.style, picture.light}
    seen |= {a for one in everybody for a in one.attributes} | {s.action for s in picture.subjects}
    seen |= {pet.animal.kind for pet in picture.pets} | ({TWO} if len(picture.subjects) == 2 else set())
    seen |= {s.garment for s in picture.subjects}
    return [float(one in seen) for one in shown]


def clip_lessons(seed: int, start: int, count: int, version: WorldVersion = FOURTH) -> ClipLessons:
    """Numbered pictures of a seed, drawn."""
    shown, names = pictures(seed, start, count, version), list_shown(version)
    return ClipLessons(shown, np.stack([draw(p) for p in shown]), torch.tensor([shows(p, names) for p in shown]))


def clip_pixels(images: np.ndarray) -> Tensor:
    """Images `[batch, side, side, 3]` in [0, 255] as CLIP's preprocessing leaves them, `[batch, 3, side, side]`."""
    mean, spread = np.float32(OPENAI_CLIP_MEAN), np.float32(OPENAI_CLIP_STD)
    return torch.from_numpy((images / np.float32(255) - mean) / spread).permute(0, 3, 1, 2)


def clip_batch(
    lessons: ClipLessons, tokenizer: CLIPTokenizer, chosen: np.ndarray, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Pixels and token ids of the chosen pictures; half of them mirrored, all roughened."""
    images = lessons.images[chosen]
    mirrored = random.random(len(images)) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    said = [nameless(caption(lessons.pictures[i], random).text) for i in chosen]
    ids = tokenizer(said, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    return clip_pixels(roughened(images, random)), ids


def clip_loss(seen: Tensor, read: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross entropy: every picture must find its sentence in the batch, every sentence its picture.

    Args:
        seen, read: features `[batch, width]` of pictures and of their sentences, of any length.
        scale: what cosines are multiplied by.
    """
    logits = scale * F.normalize(seen) @ F.normalize(read).T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def learner_loss(learner: ClipLearner, pixels: Tensor, ids: Tensor, shown: Tensor, telling_weight: float) -> Tensor:
    """CLIP's loss, and by weight what the shared head gets wrong from either tower."""
    seen, read = learner(pixels, ids)
    told = sum(F.binary_cross_entropy_with_logits(learner.tell(found), shown) for found in (seen, read))
    scale = learner.clip.logit_scale.exp().clamp(max=STEEPEST)
    return clip_loss(seen, read, scale) + telling_weight * shown.shape[1] * told


def train_clip(
    tokenizer: CLIPTokenizer, recipe: ClipRecipe, seed: int, progress: Progress, keeping: Keeping = NOWHERE
) -> CLIPModel:
    """A CLIP trained on the judges' drawings and fresh sentences."""
    torch.manual_seed(seed)
    lessons = clip_lessons(JUDGE_SEED, FIRST_PICTURE, recipe.drawings, recipe.version)
    learner = ClipLearner(new_clip(tokenizer), list_shown(recipe.version)).train()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    rate = partial(one_cycle, steps=recipe.steps, top=recipe.learning_rate)

    def loss_of(step: int) -> Tensor:
        random = np.random.default_rng([seed, 31, step])
        chosen = random.choice(len(lessons.images), recipe.batch, replace=False)
        pixels, ids = clip_batch(lessons, tokenizer, chosen, random)
        return learner_loss(learner, pixels, ids, lessons.shows[chosen], recipe.telling_weight)

    lesson = Lesson(
        CLIP, (recipe, list_shown(recipe.version)), seed, recipe.steps, {CLIP: learner}, optimiser, rate, clip=1.0
    )
    run_lesson(lesson, loss_of, keeping, progress)
    return learner.clip.eval()


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Turn the model to half precision, in place, and write it and its image preprocessing beside the tokenizer."""
    with quiet_libraries():
        clip.half().save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    tidy(folder)


def make_clip(
    folder: Path, seed: int, progress: Progress, keeping: Keeping = NOWHERE, version: WorldVersion = FOURTH
) -> None:
    """Write the folder `clip`: model, tokenizer and preprocessing."""
    tokenizer = build_tokenizer(folder / CLIP, words(version))
    save_clip(train_clip(tokenizer, ClipRecipe(version=version), seed, progress, keeping), folder / CLIP)
