"""Learn tokens from photos of a subject: random views, stages, two texts, the attention loss (equations 1 to 3)."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone, TextEncoding, add_noise, compute_target
from sefi.core.config import Config, LearnSettings, ViewSettings, dump_config
from sefi.core.rng import create_generator
from sefi.diffusion.attention import AttentionRecorder, LossOptions, copy_with_key_value_attention
from sefi.diffusion.text import encode_reference, join_texts, parse_template
from sefi.identity.file import add_vector_axis
from sefi.identity.tokens import get_stages
from sefi.photo.augment import PhotoViews
from sefi.training.loop import LossPart


@dataclass(frozen=True)
class TrainingTexts:
    """The templates with the class word in the placeholder's place, as often as the placeholder has tokens.

    Attributes:
        ids: `[template, encoder, word]`.
        vector_index: `[template, word]`, which of the placeholder's tokens stands there; -1 where none does.
        compared_words: boolean `[template, word]`, the words that the attention loss compares.
        reference: the class-word sentences, states `[template, word, width]`.
    """

    ids: Tensor
    vector_index: Tensor
    compared_words: Tensor
    reference: TextEncoding


@torch.no_grad()
def encode_training_texts(backbone: Backbone, settings: LearnSettings) -> TrainingTexts:
    """Tokenise and encode the templates.

    With `learn.attention_option` 1 the attention loss compares the placeholder, with 2 the sentence without its start
    token, with 3 all words.
    """
    classes, counts = {"subject": settings.class_word}, {"subject": settings.vectors}
    parsed = [parse_template(backbone, t.replace("{}", "<subject>"), classes, counts) for t in settings.templates]
    ids = torch.stack([p.ids for p in parsed])
    vector = torch.full_like(ids[:, 0], -1)
    in_sentence = torch.zeros_like(vector, dtype=torch.bool)
    for i, one in enumerate(parsed):
        places = list(one.places["subject"])
        vector[i, places] = torch.arange(len(places)) % settings.vectors
        in_sentence[i, 1 : one.length] = True
    compared = {1: vector >= 0, 2: in_sentence, 3: torch.ones_like(in_sentence)}[settings.attention_option]
    return TrainingTexts(ids, vector, compared, encode_reference(backbone, parsed, classes))


def encode_key_value_texts(backbone: Backbone, texts: TrainingTexts, template: Tensor, tokens: Tensor) -> TextEncoding:
    """Encode key, value and reference text side by side, `[batch, word, 3 * width]`; differentiable in the tokens.

    Args:
        template: which sentence each sample uses, `[batch]`.
        tokens: each sample's key and value tokens, `[batch, 2, width]` or `[batch, 2, vector, width]`.
    """
    tokens = add_vector_axis(tokens)
    ids, vector = texts.ids[template], texts.vector_index[template]
    sample = torch.arange(len(ids))[:, None]
    rows = torch.cat([tokens[sample, slot, vector.clamp(min=0)] for slot in (0, 1)])
    key, value = backbone.encode_text(ids.repeat(2, 1, 1), rows, (vector >= 0).repeat(2, 1)).chunk(2)
    return join_texts(key, value, texts.reference.select(template))


@dataclass(frozen=True)
class TrainingBatch:
    """Everything random of one step: clean latents, the noise to add to them, and the sentences.

    Attributes:
        latents: scaled latents of views, `[batch, channel, h, w]`.
        noise: standard normal, shaped as `latents`.
        timesteps: `[batch]`.
        template_index: which sentence each uses, `[batch]`.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    template_index: Tensor

    def select(self, samples: range) -> "TrainingBatch":
        """Return the samples of these numbers."""
        chosen = slice(samples.start, samples.stop)
        return TrainingBatch(
            self.latents[chosen], self.noise[chosen], self.timesteps[chosen], self.template_index[chosen]
        )


def split_samples(count: int, parts: int) -> list[range]:
    """Split the numbers of samples into parts of about the same size.

    >>> split_samples(5, 2)
    [range(0, 2), range(2, 5)]
    """
    borders = [part * count // parts for part in range(parts + 1)]
    return [range(first, following) for first, following in pairwise(borders) if first < following]


class NoisyBatch(Protocol):
    """What every batch has that is denoised: latents, the noise to add to them, both of one shape, and timesteps."""

    @property
    def latents(self) -> Tensor:
        """Scaled latents, `[batch, channel, h, w]`."""
        ...

    @property
    def noise(self) -> Tensor:
        """Standard normal noise."""
        ...

    @property
    def timesteps(self) -> Tensor:
        """Timesteps `[batch]`."""
        ...


def predict_with_target(
    backbone: Backbone,
    batch: NoisyBatch,
    context: TextEncoding,
    recorder: AttentionRecorder | None = None,
    loss_options: LossOptions | None = None,
    *,
    detach_start: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return what the UNet predicts for a batch with its noise, and what it should predict, in single precision.

    Args:
        context: its states are key text and value text side by side, and a reference text where `recorder` is to have
            the attention loss.
        recorder, loss_options, detach_start: as `copy_with_key_value_attention` takes them.
    """
    alphas = backbone.scheduler.alphas_cumprod
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps, alphas)
    unet = copy_with_key_value_attention(backbone.unet, recorder, loss_options, detach_start=detach_start)
    prediction = backbone.predict(noisy, batch.timesteps, context, unet)
    target = compute_target(batch.latents, batch.noise, batch.timesteps, alphas, backbone.prediction_type)
    return prediction.float(), target.float()


@dataclass(frozen=True)
class Losses:
    """The two terms and their weighted sum, each a scalar."""

    total: Tensor
    denoise: Tensor
    attention: Tensor


def compute_losses(
    backbone: Backbone, texts: TrainingTexts, tokens: Tensor, batch: TrainingBatch, settings: LearnSettings
) -> Losses:
    """Compute the mean squared denoising error plus lambda times the attention loss.

    Args:
        tokens: `[stage, 2, width]` or `[stage, 2, vector, width]`, the tokens that are trained.
    """
    stage = get_stages(batch.timesteps, len(tokens), backbone.num_train_timesteps)
    # The tokens and the texts' masks may be in the memory of the CPU while the model is on an accelerator.
    context = encode_key_value_texts(backbone, texts, batch.template_index, tokens.to(stage.device)[stage])
    height, width = int(batch.latents.shape[-2]), int(batch.latents.shape[-1])
    loss_options = LossOptions(
        texts.compared_words[batch.template_index].to(batch.latents.device),
        (height, width),
        settings.attention_reduction,
        settings.detach_query,
    )
    # Without a weight nothing is recorded, and the cheaper fused attention runs.
    recorder = AttentionRecorder() if settings.attention_weight > 0 else None
    denoise = F.mse_loss(*predict_with_target(backbone, batch, context, recorder, loss_options))
    attention = recorder.pop_mean_loss().mean() if recorder is not None else torch.zeros((), dtype=torch.float32)
    return Losses(denoise + settings.attention_weight * attention, denoise, attention)


ENCODE_AT_ONCE = 8


def encode_in_batches(backbone: Backbone, pixels: Tensor, random: torch.Generator | None = None) -> Tensor:
    """Encode images `[image, 3, side, side]` to latents `[image, channel, h, w]`, a few at a time.

    Args:
        random: draws the posterior's noise; None takes its mean.
    """
    return torch.cat([backbone.encode_image(some, random) for some in pixels.split(ENCODE_AT_ONCE)])


class ViewLatents:
    """Latents of random views: fresh ones every step, or drawn from a pool that is encoded once."""

    def __init__(self, backbone: Backbone, views: PhotoViews, settings: ViewSettings, seed: int) -> None:
        self.backbone, self.views, self.seed = backbone, views, seed
        self.pool = self.encode_random_views(settings.latent_pool, 0, "pool") if settings.latent_pool else None

    def __call__(self, count: int, step: int) -> Tensor:
        """Return latents `[count, channel, h, w]` for this step."""
        if self.pool is None:
            return self.encode_random_views(count, step, "view")
        return self.pool[torch.randint(len(self.pool), (count,), generator=create_generator(self.seed, "pick", step))]

    def encode_random_views(self, count: int, step: int, purpose: str) -> Tensor:
        """Encode so many random views with the posterior's noise."""
        random = create_generator(self.seed, purpose, step)
        views = torch.stack([self.views.draw_view(random) for _ in range(count)])
        return encode_in_batches(self.backbone, views, random)


def draw_training_timesteps(settings: LearnSettings, total: int, random: torch.Generator, step: int = 0) -> Tensor:
    """Draw uniform timesteps `[batch]`; stratified: samples go through the stages in turn, on from step to step."""
    if settings.stage_sampling == "uniform":
        return torch.randint(0, total, (settings.batch,), generator=random)
    stage = (torch.arange(settings.batch) + step * settings.batch) % settings.stages
    place = torch.rand(settings.batch, generator=random, dtype=torch.float32)
    # Where the stages do not divide T, truncating alone could fall into the stage below: keep inside this one.
    first, following = (-(-(stage + k) * total // settings.stages) for k in (0, 1))
    return ((stage + place) * total / settings.stages).long().clamp(first, following - 1)


def draw_batch(
    backbone: Backbone, latent_source: ViewLatents, settings: LearnSettings, seed: int, step: int
) -> TrainingBatch:
    """Draw everything random of one step."""
    random = create_generator(seed, "sample", step)
    latents = latent_source(settings.batch, step)
    noise = torch.randn(latents.shape, generator=random, dtype=torch.float32).to(latents)
    template = torch.randint(len(settings.templates), (settings.batch,), generator=random)
    timesteps = draw_training_timesteps(settings, backbone.num_train_timesteps, random, step)
    return TrainingBatch(latents, noise, timesteps.to(latents.device), template)


class TokenModule(Protocol):
    """A module that returns tokens, and the further tensors of its identity.

    Attributes:
        class_token: the class word's row of the token table, `[width]`.
    """

    class_token: Tensor

    def __call__(self, random: torch.Generator | None = None) -> Tensor:
        """Return `[stage, 2, width]`, or `[stage, 2, vector, width]` where the placeholder stands for several tokens.

        Args:
            random: draws what drops out in training; None: nothing does.
        """
        ...

    def after_step(self) -> None:
        """Apply limits and averages after an update."""
        ...

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the identity other than its tokens, without gradient."""
        ...


class TokenTask:
    """Denoising plus lambda times the attention loss, for any module of tokens.

    Args:
        tokens: a module that is also a `TokenModule`.
    """

    def __init__(self, backbone: Backbone, views: PhotoViews, config: Config, seed: int, tokens: nn.Module) -> None:
        self.backbone, self.config, self.seed = backbone, config, seed
        # One object under two names: to the loop a module of weights, here what gives tokens.
        self.weights = tokens
        self.tokens: TokenModule = tokens  # pyright: ignore[reportAttributeAccessIssue]
        # As many words in a sentence as the module gives tokens, whatever the settings say.
        vectors = add_vector_axis(self.get_identity_tensors()["tokens"]).shape[2]
        self.texts = encode_training_texts(backbone, config.learn.model_copy(update={"vectors": vectors}))
        self.latent_source = ViewLatents(backbone, views, config.views, seed)
        self.training_key: dict[str, Any] = collect_training_key(backbone, views, config, seed)

    def compute_loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step and both of its terms."""
        self.weights.train()
        tokens = self.tokens(create_generator(self.seed, "dropout", step))
        batch = draw_batch(self.backbone, self.latent_source, self.config.learn, self.seed, step)
        losses = compute_losses(self.backbone, self.texts, tokens, batch, self.config.learn)
        return losses.total, self.list_numbers(losses, tokens)

    def count_samples(self) -> int:
        """Return how many samples a step has."""
        return self.config.learn.batch

    def compute_loss_parts(self, step: int, parts: int) -> Iterator[LossPart]:
        """Yield the loss of each part of a step's samples; the tokens, and what drops out of them, are the same."""
        self.weights.train()
        batch = draw_batch(self.backbone, self.latent_source, self.config.learn, self.seed, step)
        for samples in split_samples(len(batch.latents), parts):
            tokens = self.tokens(create_generator(self.seed, "dropout", step))
            losses = compute_losses(self.backbone, self.texts, tokens, batch.select(samples), self.config.learn)
            yield len(samples) / len(batch.latents), losses.total, self.list_numbers(losses, tokens)

    def list_numbers(self, losses: Losses, tokens: Tensor) -> dict[str, float]:
        """Return both losses, their weighted ratio (the scale check) and the mean token norm over the class word's."""
        denoise, attention = float(losses.denoise.detach()), float(losses.attention.detach())
        norm = float(tokens.detach().norm(dim=-1).mean() / self.tokens.class_token.norm())
        ratio = self.config.learn.attention_weight * attention / max(denoise, 1e-12)
        return {"loss_denoise": denoise, "loss_attention": attention, "ratio": ratio, "token_norm": norm}

    def after_step(self) -> None:
        """Apply the limits and averages of the tokens."""
        self.tokens.after_step()

    @torch.no_grad()
    def get_identity_tensors(self) -> dict[str, Tensor]:
        """Return the tokens as generation uses them, without dropout, and the further tensors."""
        self.weights.eval()
        return {"tokens": self.tokens().clone().contiguous(), **self.tokens.get_extra_tensors()}


def collect_training_key(backbone: Backbone, views: PhotoViews, config: Config, seed: int) -> dict[str, Any]:
    """Return what identifies a training: another photo, model, seed or setting goes on from no checkpoint of it."""
    photos = hashlib.sha256()
    for crop in views.crops:
        photos.update(crop.cpu().numpy().tobytes())
    return {
        "config": dump_config(config),
        "seed": seed,
        "model": backbone.fingerprint,
        "signature": backbone.signature.compute_digest() if backbone.signature else "",
        "photo": photos.hexdigest(),
    }
