"""Finetuning: weights of the model itself, by denoising the subject's views and images of its class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sefi.attention.install import copy_with_key_value_attention
from sefi.backbone.bundle import Backbone
from sefi.backbone.quiet import LOADING
from sefi.backbone.schedule import add_noise, target
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.words import tokenize_sentence
from sefi.core.config import Config, from_saved
from sefi.core.nouns import IdentityHeader
from sefi.core.protocols import Progress
from sefi.core.streams import stream
from sefi.generate.sampler import generate
from sefi.learn.sampling import ViewLatents
from sefi.photo.read import pixels_of
from sefi.photo.views import PhotoViews

ENCODE_AT_ONCE = 8
# Seeds of users' pictures are small; these are nobody's.
FIRST_PRIOR_SEED = 8_000_001

# Numbers of sentences `[batch]` to their text states `[batch, word, width]`.
Context = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NoisedBatch:
    """Noised latents of one step and what they are denoised with.

    Attributes:
        latents: `[batch, channel, h, w]`.
        noise: shaped as `latents`.
        timesteps: `[batch]`.
        context: text states `[batch, word, width]`, with the gradient of whatever is trained.
        counted: which latent cells count, `[batch, 1, h, w]`; None counts all.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    context: Tensor
    counted: Tensor | None = None


Part = Callable[[int], NoisedBatch]  # the number of a step to what it denoises


@dataclass(frozen=True)
class TrainingParts:
    """What is trained, and on what.

    Attributes:
        weights: their parameters are those of the copies that are trained, or stand beside them.
        subject: returns the subject's part of a step.
        prior: returns the class's part; None trains without.
        keep: what an identity keeps.
        detach_start: no gradient through the start word's key and value.
    """

    weights: nn.Module
    subject: Part
    prior: Part | None
    get_tensors: Callable[[], Mapping[str, Tensor]]
    detach_start: bool = False


class WeightTraining:
    """Denoising of the subject plus weight times denoising of its class.

    Args:
        backbone: a copy of the model with what is trained in it.
        settings: identify this training.
    """

    def __init__(self, backbone: Backbone, config: Config, parts: TrainingParts, settings: dict[str, Any]) -> None:
        self.backbone, self.config, self.parts = backbone, config, parts
        self.weights, self.settings = parts.weights, settings

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step and both of its terms."""
        own = self.compute_denoising_loss(self.parts.subject(step))
        numbers = {"loss_denoise": float(own.detach())}
        if self.parts.prior is None:
            return own, numbers
        of_class = self.compute_denoising_loss(self.parts.prior(step))
        numbers["loss_prior"] = float(of_class.detach())
        return own + self.config.tune.prior_weight * of_class, numbers

    def compute_denoising_loss(self, drawn: NoisedBatch) -> Tensor:
        """Return the mean squared error over the cells that count, each sample's mean first."""
        backbone, alphas = self.backbone, self.backbone.scheduler.alphas_cumprod
        noisy = add_noise(drawn.latents, drawn.noise, drawn.timesteps, alphas)
        unet = copy_with_key_value_attention(backbone.unet, backbone.width, detach_start=self.parts.detach_start)
        both = torch.cat([drawn.context, drawn.context], dim=-1)
        found = backbone.predict(noisy, drawn.timesteps, both, unet)
        wanted = target(drawn.latents, drawn.noise, drawn.timesteps, alphas, backbone.prediction_type)
        error = (found.float() - wanted.float()).pow(2)
        if drawn.counted is None:
            return error.mean()
        counted = drawn.counted.expand_as(error)
        return ((error * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)).mean()

    def after_step(self) -> None:
        """Do nothing: no limits, no averages."""

    def get_identity_tensors(self) -> dict[str, Tensor]:
        """Return copies of the tensors of the identity, out of the device's memory."""
        return {
            name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.parts.get_tensors().items()
        }


def encode_class_images(backbone: Backbone, config: Config, progress: Progress) -> Tensor | None:
    """Return latents `[image, channel, h, w]` of the model's own images of the class; None for none."""
    count = config.tune.prior_images
    if not count or not config.tune.prior_weight:
        return None
    prompts = [config.learn.templates[0].format(config.learn.class_word)] * count
    seeds = range(FIRST_PRIOR_SEED, FIRST_PRIOR_SEED + count)
    drawn = generate(backbone, IdentityConditioner(backbone, []), prompts, list(seeds), config.generate, progress)
    pixels = torch.stack([pixels_of(one.pixels) for one in drawn])
    return torch.cat([backbone.encode_image(some) for some in pixels.split(ENCODE_AT_ONCE)])


def make_prior_part(
    backbone: Backbone, config: Config, seed: int, latents: Tensor | None, context: Context
) -> Part | None:
    """Return the class's part of every step: some of its images with fresh noise; None where there are none."""
    if latents is None:
        return None

    def drawn(step: int) -> NoisedBatch:
        random = stream(seed, "prior", step)
        chosen = latents[torch.randint(len(latents), (config.learn.batch,), generator=random)]
        noise, t = draw_noise_and_timesteps(backbone, chosen, random)
        return NoisedBatch(chosen, noise, t, context(torch.zeros(len(chosen), dtype=torch.long)))

    return drawn


def make_subject_part(backbone: Backbone, views: PhotoViews, config: Config, seed: int, context: Context) -> Part:
    """Return the subject's part of every step: views with fresh noise, each with one of the training sentences."""
    latents = ViewLatents(backbone, views, config.views, seed)

    def drawn(step: int) -> NoisedBatch:
        random = stream(seed, "sample", step)
        chosen = latents(config.learn.batch, step)
        noise, t = draw_noise_and_timesteps(backbone, chosen, random)
        which = torch.randint(len(config.learn.templates), (len(chosen),), generator=random)
        return NoisedBatch(chosen, noise, t, context(which))

    return drawn


def draw_noise_and_timesteps(backbone: Backbone, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return standard normal noise shaped as the latents, and uniform timesteps `[batch]`."""
    noise = torch.randn(latents.shape, generator=random, dtype=torch.float32).to(latents)
    t = torch.randint(0, backbone.num_train_timesteps, (len(latents),), generator=random)
    return noise, t.to(latents.device)


def tokenize_sentences(backbone: Backbone, config: Config, subject: str) -> Tensor:
    """Return token ids `[sentence, word]` of the training sentences with plain words for the subject."""
    return torch.stack([tokenize_sentence(backbone, template.format(subject)) for template in config.learn.templates])


def tokenize_rare_and_plain(backbone: Backbone, config: Config) -> tuple[Tensor, Tensor]:
    """Return token ids `[sentence, word]` of the training sentences with the rare word and without."""
    words = format_rare_words(config.tune.identifier, config.learn.class_word)
    return tokenize_sentences(backbone, config, words), tokenize_sentences(backbone, config, config.learn.class_word)


def format_rare_words(identifier: str, class_word: str) -> str:
    """Return what stands in a prompt for a subject with a rare word."""
    return f"{identifier} {class_word}"


def format_subject_words(header: IdentityHeader, strength: float) -> str:
    """Return what stands for an identity's name: rare word and class word; at strength 0 the class word alone."""
    identifier = from_saved(header.settings).tune.identifier
    return format_rare_words(identifier, header.class_word) if strength else header.class_word


def wrap_weights(weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return weights as a module, under names that a module allows."""
    with LOADING:
        return nn.ParameterDict({name.replace(".", "/"): weight for name, weight in weights.items()})
