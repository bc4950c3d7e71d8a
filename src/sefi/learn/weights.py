"""Lesson: weights of the model itself, by denoising the subject's views and, beside them, pictures of its class."""

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
from sefi.conditioning.words import sentence_ids
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
class Noised:
    """One kind of picture in a step.

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


Part = Callable[[int], Noised]  # the number of a step to what it denoises


@dataclass(frozen=True)
class Studied:
    """What a lesson trains, and on what.

    Attributes:
        weights: their parameters are those of the copies that are trained, or stand beside them.
        subject: the subject's part of a step.
        prior: the class's part; None does without.
        keep: what an identity keeps.
        detach_start: no gradient through the start word's key and value.
    """

    weights: nn.Module
    subject: Part
    prior: Part | None
    keep: Callable[[], Mapping[str, Tensor]]
    detach_start: bool = False


class WeightLesson:
    """Denoising of the subject plus weight times denoising of its class.

    Args:
        backbone: a copy of the model with what is trained in it.
        settings: what tells this run from every other.
    """

    def __init__(self, backbone: Backbone, config: Config, studied: Studied, settings: dict[str, Any]) -> None:
        self.backbone, self.config, self.studied = backbone, config, studied
        self.weights, self.settings = studied.weights, settings

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Both terms of a step."""
        own = self.denoising(self.studied.subject(step))
        numbers = {"loss_denoise": float(own.detach())}
        if self.studied.prior is None:
            return own, numbers
        of_class = self.denoising(self.studied.prior(step))
        numbers["loss_prior"] = float(of_class.detach())
        return own + self.config.tune.prior_weight * of_class, numbers

    def denoising(self, drawn: Noised) -> Tensor:
        """Mean squared error over the cells that count, each sample's mean first."""
        backbone, alphas = self.backbone, self.backbone.scheduler.alphas_cumprod
        noisy = add_noise(drawn.latents, drawn.noise, drawn.timesteps, alphas)
        unet = copy_with_key_value_attention(backbone.unet, backbone.width, detach_start=self.studied.detach_start)
        both = torch.cat([drawn.context, drawn.context], dim=-1)
        found = backbone.predict(noisy, drawn.timesteps, both, unet)
        wanted = target(drawn.latents, drawn.noise, drawn.timesteps, alphas, backbone.prediction_type)
        error = (found.float() - wanted.float()).pow(2)
        if drawn.counted is None:
            return error.mean()
        counted = drawn.counted.expand_as(error)
        return ((error * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)).mean()

    def settle(self) -> None:
        """Nothing to do after an update."""

    def kept(self) -> dict[str, Tensor]:
        """Copies of what an identity keeps, out of the device's memory."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.studied.keep().items()}


def class_latents(backbone: Backbone, config: Config, progress: Progress) -> Tensor | None:
    """Latents `[picture, channel, h, w]` of the model's own pictures of the class, by the first sentence; or None."""
    count = config.tune.prior_images
    if not count or not config.tune.prior_weight:
        return None
    prompts = [config.learn.templates[0].format(config.learn.class_word)] * count
    seeds = range(FIRST_PRIOR_SEED, FIRST_PRIOR_SEED + count)
    drawn = generate(backbone, IdentityConditioner(backbone, []), prompts, list(seeds), config.generate, progress)
    pixels = torch.stack([pixels_of(one.pixels) for one in drawn])
    return torch.cat([backbone.encode_image(some) for some in pixels.split(ENCODE_AT_ONCE)])


def prior_of(backbone: Backbone, config: Config, seed: int, latents: Tensor | None, context: Context) -> Part | None:
    """The class's part of every step: some of its pictures with fresh noise; None where there are none."""
    if latents is None:
        return None

    def drawn(step: int) -> Noised:
        random = stream(seed, "prior", step)
        chosen = latents[torch.randint(len(latents), (config.learn.batch,), generator=random)]
        noise, t = noise_and_time(backbone, chosen, random)
        return Noised(chosen, noise, t, context(torch.zeros(len(chosen), dtype=torch.long)))

    return drawn


def subject_of(backbone: Backbone, views: PhotoViews, config: Config, seed: int, context: Context) -> Part:
    """The subject's part of every step: views with fresh noise, each with one of the learning sentences."""
    latents = ViewLatents(backbone, views, config.views, seed)

    def drawn(step: int) -> Noised:
        random = stream(seed, "sample", step)
        chosen = latents(config.learn.batch, step)
        noise, t = noise_and_time(backbone, chosen, random)
        which = torch.randint(len(config.learn.templates), (len(chosen),), generator=random)
        return Noised(chosen, noise, t, context(which))

    return drawn


def noise_and_time(backbone: Backbone, latents: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal noise shaped as the latents, and uniform timesteps `[batch]`."""
    noise = torch.randn(latents.shape, generator=random, dtype=torch.float32).to(latents)
    t = torch.randint(0, backbone.num_train_timesteps, (len(latents),), generator=random)
    return noise, t.to(latents.device)


def sentences(backbone: Backbone, config: Config, subject: str) -> Tensor:
    """Token ids `[sentence, word]` of the learning sentences with plain words for the subject."""
    return torch.stack([sentence_ids(backbone, template.format(subject)) for template in config.learn.templates])


def rare_and_plain(backbone: Backbone, config: Config) -> tuple[Tensor, Tensor]:
    """Token ids `[sentence, word]` of the learning sentences with the rare word before the class word, and without."""
    words = rare_words(config.tune.identifier, config.learn.class_word)
    return sentences(backbone, config, words), sentences(backbone, config, config.learn.class_word)


def rare_words(identifier: str, class_word: str) -> str:
    """What is written for a subject that a rare word stands for."""
    return f"{identifier} {class_word}"


def rare_or_class(header: IdentityHeader, strength: float) -> str:
    """What is written for an identity's name: the rare word and the class word; at strength 0 the class word alone."""
    identifier = from_saved(header.settings).tune.identifier
    return rare_words(identifier, header.class_word) if strength else header.class_word


def as_module(weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """Weights as a module, under names that one allows."""
    with LOADING:
        return nn.ParameterDict({name.replace(".", "/"): weight for name, weight in weights.items()})
