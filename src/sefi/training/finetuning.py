"""Finetune weights of the model itself, by denoising the subject's views and images of its class."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone, TextEncoding, move_to_device
from sefi.backbone.files import LOADING
from sefi.core.config import Config, Section
from sefi.core.progress import Progress
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import tokenize_sentence
from sefi.diffusion.sampling import sample_plain_images
from sefi.diffusion.text import join_texts
from sefi.identity.file import IdentityHeader, read_saved_config
from sefi.photo.augment import PhotoViews
from sefi.photo.read import convert_to_pixels
from sefi.training.loop import LossPart, Numbers
from sefi.training.token_inversion import (
    BatchEncoder,
    ViewLatents,
    draw_noise,
    predict_with_target,
    split_samples,
)

# Users take small seeds; nobody takes these.
FIRST_PRIOR_SEED = 8_000_001
MOST_CLASSES = 8  # whose latents are held for the next subject: 13 MB of 200 images at Stable Diffusion 1.4's size

# Numbers of sentences `[batch]` to their encoding, states `[batch, word, width]`.
EncodeSentences = Callable[[Tensor], TextEncoding]


class FinetuningSettings(Section, frozen=True):
    """How the model's weights learn a rare word; a method adds what only it has."""

    identifier: str = Field(
        "sks", pattern=r"^[^<>{}]*[^<>{}\s][^<>{}]*$", description="rare word that is tied to the subject"
    )
    prior_images: int = Field(200, ge=0, le=100_000, description="images of the class word that preserve the class")
    prior_weight: float = Field(1.0, ge=0, description="weight of the class images in the loss")


class FinetuningConfig(Config, frozen=True):
    """Settings of a method that trains weights of the model."""

    tune: FinetuningSettings = FinetuningSettings()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class FinetuningBatch:
    """Clean latents of one step, the noise to add to them, and the texts that they are denoised with.

    Attributes:
        latents: `[batch, channel, h, w]`.
        noise: shaped as `latents`.
        timesteps: `[batch]`.
        context: text with states `[batch, word, width]`, and the gradient of whatever is trained.
        cell_mask: 1 for the latent cells that the loss takes, 0 for the others, `[batch, 1, h, w]`; None takes all.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    context: TextEncoding
    cell_mask: Tensor | None = None

    def select(self, samples: range) -> "FinetuningBatch":
        """Return the samples of these numbers."""
        chosen = slice(samples.start, samples.stop)
        return FinetuningBatch(
            self.latents[chosen],
            self.noise[chosen],
            self.timesteps[chosen],
            self.context.select(torch.arange(samples.start, samples.stop)),
            None if self.cell_mask is None else self.cell_mask[chosen],
        )


DrawBatch = Callable[[int], FinetuningBatch]  # the number of a step to its batch


@dataclass(frozen=True)
class WeightTaskInputs:
    """What is trained, and on what.

    Attributes:
        weights: every parameter that is trained, in one module.
        draw_subject: draws the batch of the subject.
        make_prior_drawer: makes images of the class, and returns what draws its batch; None of it trains without.
        get_tensors: returns the tensors of the identity.
        detach_start: no gradient through the start word's key and value.
    """

    weights: nn.Module
    draw_subject: DrawBatch
    make_prior_drawer: Callable[[Progress], DrawBatch | None]
    get_tensors: Callable[[], Mapping[str, Tensor]]
    detach_start: bool = False


class WeightTask:
    """Denoising of the subject plus weight times denoising of its class.

    Args:
        backbone: a copy of the model with what is trained in it.
        training_key: identifies this training.
    """

    def __init__(
        self, backbone: Backbone, config: FinetuningConfig, inputs: WeightTaskInputs, training_key: dict[str, Any]
    ) -> None:
        self.backbone, self.config, self.inputs = backbone, config, inputs
        self.weights, self.training_key = inputs.weights, training_key
        self.draw_prior: DrawBatch | None = None

    def prepare(self, progress: Progress) -> None:
        """Make the images of the class, which takes minutes on a large model: after memory and space were looked at."""
        self.draw_prior = self.inputs.make_prior_drawer(progress)

    def compute_loss(self, step: int) -> tuple[Tensor, Numbers]:
        """Return the loss of a step and both of its terms."""
        subject_loss = self.compute_denoising_loss(self.inputs.draw_subject(step))
        numbers = {"loss_denoise": subject_loss.detach()}
        if self.draw_prior is None:
            return subject_loss, numbers
        class_loss = self.compute_denoising_loss(self.draw_prior(step))
        numbers["loss_prior"] = class_loss.detach()
        return subject_loss + self.config.tune.prior_weight * class_loss, numbers

    def count_samples(self) -> int:
        """Return how many samples a step has, of the subject and of its class each."""
        return self.config.learn.batch

    def compute_loss_parts(self, step: int, parts: int) -> Iterator[LossPart]:
        """Yield the loss of each part of a step's samples, of the subject and then of its class.

        Each part draws the whole batch again: what is trained may be in the texts, and a part's graph ends with it.
        """
        draws = [(self.inputs.draw_subject, "loss_denoise", 1.0)]
        if self.draw_prior is not None:
            draws.append((self.draw_prior, "loss_prior", self.config.tune.prior_weight))
        for draw, name, weight in draws:
            batch = draw(step)
            count = len(batch.latents)
            for number, samples in enumerate(split_samples(count, parts)):
                batch = draw(step) if number else batch
                loss = self.compute_denoising_loss(batch.select(samples))
                yield len(samples) / count, weight * loss, {name: loss.detach()}

    def compute_denoising_loss(self, batch: FinetuningBatch) -> Tensor:
        """Return the mean squared error over the samples, as `average_error` takes a mask."""
        context, detach_start = join_texts(batch.context, batch.context), self.inputs.detach_start
        prediction, target = predict_with_target(self.backbone, batch, context, detach_start=detach_start)
        return average_error((prediction - target).pow(2), batch.cell_mask)

    def after_step(self) -> None:
        """Do nothing: no limits, no averages."""

    def get_identity_tensors(self) -> dict[str, Tensor]:
        """Return copies of the tensors of the identity, out of the device's memory."""
        return {
            name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.inputs.get_tensors().items()
        }


def average_error(error: Tensor, cell_mask: Tensor | None) -> Tensor:
    """Return the mean of an error `[batch, channel, h, w]`; with a mask the mean over samples of their sum by cell.

    A mask has one channel, so with it a subject weighs as many times more than its class as there are channels.
    Source: `src/diffusers_training.py` of adobe-research/custom-diffusion.

    Args:
        cell_mask: 1 for the cells that count, 0 for the others, `[batch, 1, h, w]`; None takes all.
    """
    if cell_mask is None:
        return error.mean()
    return ((error * cell_mask).sum((1, 2, 3)) / cell_mask.sum((1, 2, 3)).clamp(min=1)).mean()


def format_class_prompt(config: FinetuningConfig) -> str:
    """Return the prompt of the images of the class."""
    return config.learn.templates[0].format(config.learn.class_word)


def generate_class_latents(backbone: Backbone, config: FinetuningConfig, progress: Progress) -> Tensor | None:
    """Return latents `[image, channel, h, w]` of the model's own images of the class; None for none."""
    count = config.tune.prior_images
    if not count or not config.tune.prior_weight:
        return None
    prompts = [format_class_prompt(config)] * count
    seeds = range(FIRST_PRIOR_SEED, FIRST_PRIOR_SEED + count)
    images = sample_plain_images(backbone, prompts, seeds, config.generate, progress)
    latents, encoder = list[Tensor](), BatchEncoder(backbone)
    while some := list(islice(images, encoder.at_once)):  # pixels of all of them may take gigabytes
        latents.append(encoder.encode(torch.stack([convert_to_pixels(one.pixels) for one in some])))
    return torch.cat(latents)


class ClassImages:
    """Latents of images of a class, drawn once for every subject that is learned with the same model and settings.

    Whoever learns several subjects makes one object and gives it to each training (`TrainingOptions.class_images`).

    Attributes:
        seconds_needed: how long the images of all trainings took, as if each had made its own.
        seconds_spared: of these, how long making again what was there would have taken.
    """

    def __init__(self) -> None:
        self.seconds_needed = self.seconds_spared = 0.0
        self.entries: dict[tuple[object, ...], tuple[Backbone, Tensor | None, float]] = {}

    def collect(self, backbone: Backbone, config: FinetuningConfig, progress: Progress) -> Tensor | None:
        """Return what `generate_class_latents` returns, the same bits: of an earlier call where there was one."""
        # A model is never changed, and is held here: no other one gets its id. The number of threads decides on bits.
        count = config.tune.prior_images if config.tune.prior_weight else 0
        key = (id(backbone), torch.get_num_threads(), format_class_prompt(config), count, config.generate)
        if key in self.entries:
            self.entries[key] = self.entries.pop(key)  # the one that was used last comes last
            self.seconds_needed += self.entries[key][2]
            self.seconds_spared += self.entries[key][2]
            return self.entries[key][1]
        started = time.monotonic()
        latents = generate_class_latents(backbone, config, progress)
        taken = 0.0 if latents is None else time.monotonic() - started
        self.seconds_needed += taken
        self.entries[key] = backbone, latents, taken
        if len(self.entries) > MOST_CLASSES:
            del self.entries[next(iter(self.entries))]
        return latents


def make_prior_drawer(
    backbone: Backbone,
    config: FinetuningConfig,
    seed: int,
    images: ClassImages | None,
    context: EncodeSentences,
    progress: Progress,
) -> DrawBatch | None:
    """Return what draws the batch of the class: some of its images with fresh noise; None where there are none."""
    latents = (images or ClassImages()).collect(backbone, config, progress)
    if latents is None:
        return None

    def draw_batch(step: int) -> FinetuningBatch:
        random = create_generator(seed, "prior", step)
        chosen = latents[torch.randint(len(latents), (config.learn.batch,), generator=random)]
        noise, t = draw_noise_and_timesteps(backbone, chosen, random)
        return FinetuningBatch(chosen, noise, t, context(torch.zeros(len(chosen), dtype=torch.long)))

    return draw_batch


def make_subject_drawer(
    backbone: Backbone, views: PhotoViews, config: Config, seed: int, context: EncodeSentences
) -> DrawBatch:
    """Return what draws the subject's batch of a step: views with fresh noise, each with a training sentence."""
    latent_source = ViewLatents(backbone, views, config.views, seed)

    def draw_batch(step: int) -> FinetuningBatch:
        random = create_generator(seed, "sample", step)
        chosen = latent_source(config.learn.batch, step)
        noise, t = draw_noise_and_timesteps(backbone, chosen, random)
        which = torch.randint(len(config.learn.templates), (len(chosen),), generator=random)
        return FinetuningBatch(chosen, noise, t, context(which))

    return draw_batch


def draw_noise_and_timesteps(backbone: Backbone, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return standard normal noise shaped as the latents, and uniform timesteps `[batch]`."""
    noise = draw_noise(latents, random)
    t = torch.randint(0, backbone.num_train_timesteps, (len(latents),), generator=random)
    return noise, move_to_device(t, latents.device)


def tokenize_sentences(backbone: Backbone, config: Config, subject: str) -> Tensor:
    """Return token ids `[sentence, encoder, word]` of the training sentences with plain words for the subject."""
    return torch.stack([tokenize_sentence(backbone, template.format(subject)) for template in config.learn.templates])


def tokenize_rare_and_plain(backbone: Backbone, config: FinetuningConfig) -> tuple[Tensor, Tensor]:
    """Return token ids `[sentence, encoder, word]` of the training sentences with the rare word and without."""
    words = format_rare_words(config.tune.identifier, config.learn.class_word)
    return tokenize_sentences(backbone, config, words), tokenize_sentences(backbone, config, config.learn.class_word)


def format_rare_words(identifier: str, class_word: str) -> str:
    """Return the words of a prompt for a subject with a rare word."""
    return f"{identifier} {class_word}"


def format_subject_words(header: IdentityHeader, strength: float) -> str:
    """Return the words for an identity's name: rare word and class word; at strength 0 the class word alone."""
    identifier = read_saved_config(header, FinetuningConfig).tune.identifier
    return format_rare_words(identifier, header.class_word) if strength else header.class_word


def wrap_weights(weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return weights as a module, under names that a module allows."""
    with LOADING:
        return nn.ParameterDict({name.replace(".", "/"): weight for name, weight in weights.items()})
