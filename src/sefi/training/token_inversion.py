"""Learn tokens from photos of a subject: random views, stages, two texts, the attention loss (equations 1 to 3)."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone, TextEncoding, add_noise, compute_target, move_to_device
from sefi.core.config import Config, LearnSettings, ViewSettings, dump_config
from sefi.core.errors import (
    LESS_MEMORY,
    REMARKS,
    ConfigError,
    MethodError,
    PromptError,
    is_out_of_memory,
    make_memory_error,
    release_memory,
    shorten_reason,
)
from sefi.core.prompts import CONTEXT_TEMPLATES
from sefi.core.rng import create_generator
from sefi.core.text import dump_json
from sefi.diffusion.attention import AttentionRecorder, LossOptions, UNet, copy_with_key_value_attention
from sefi.diffusion.text import encode_reference, join_texts, parse_template
from sefi.identity.file import add_vector_axis
from sefi.identity.tokens import get_stages
from sefi.photo.augment import CropFace, PhotoViews
from sefi.provenance.run_record import hash_named_files
from sefi.training.checkpoint import FILE_OF
from sefi.training.compiling import Gradients, compile_unet, has_right_gradients
from sefi.training.loop import LossPart, Numbers

LOGGER = logging.getLogger(REMARKS)


@dataclass(frozen=True)
class TrainingTexts:
    """The templates with the class word in the placeholder's place, as often as the placeholder has tokens.

    All are on the model's device.

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
    sentences = [one.replace("{}", "<subject>") for one in settings.list_sentences()]
    parsed = [parse_template(backbone, one, classes, counts) for one in sentences]
    ids = torch.stack([p.ids for p in parsed])
    vector = torch.full_like(ids[:, 0], -1)
    in_sentence = torch.zeros_like(vector, dtype=torch.bool)
    for i, one in enumerate(parsed):
        places = list(one.places["subject"])
        vector[i, places] = torch.arange(len(places)) % settings.vectors
        in_sentence[i, 1 : one.length] = True
    option = 1 if settings.attention_loss == "hinge" else settings.attention_option
    compared = {1: vector >= 0, 2: in_sentence, 3: torch.ones_like(in_sentence)}[option]
    ids, vector, compared = (one.to(backbone.device) for one in (ids, vector, compared))
    return TrainingTexts(ids, vector, compared, encode_reference(backbone, parsed, classes))


def encode_context_texts(backbone: Backbone, settings: LearnSettings) -> TrainingTexts:
    """Tokenise and encode the sentences with a context, as many of them as fit into the model's text.

    Raises:
        ConfigError: none fits.
    """
    fitting: list[str] = []
    for template in CONTEXT_TEMPLATES:
        try:
            sentence = template.replace("{}", "<subject>")
            parse_template(backbone, sentence, {"subject": settings.class_word}, {"subject": settings.vectors})
        except PromptError:
            continue
        fitting.append(template)
    if not fitting:
        raise ConfigError("No sentence with a context fits into this model's text.", "Set learn.context_weight=0.")
    return encode_training_texts(backbone, settings.model_copy(update={"templates": tuple(fitting), "photo_words": ""}))


def encode_key_value_texts(backbone: Backbone, texts: TrainingTexts, template: Tensor, tokens: Tensor) -> TextEncoding:
    """Encode key, value and reference text side by side, `[batch, word, 3 * width]`; differentiable in the tokens.

    Args:
        template: which sentence each sample uses, `[batch]`.
        tokens: each sample's key and value tokens, `[batch, 2, width]` or `[batch, 2, vector, width]`.
    """
    key, value = backbone.encode_text(*place_tokens(texts, template, tokens)).chunk(2)
    return join_texts(key, value, texts.reference.select(template))


def place_tokens(texts: TrainingTexts, template: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, rows and mask of the key texts and then of the value texts, as `Backbone.encode_text` takes them."""
    ids, vector = texts.ids[template], texts.vector_index[template]
    tokens = add_vector_axis(tokens).to(ids.device)
    sample = torch.arange(len(ids), device=ids.device)[:, None]
    rows = torch.cat([tokens[sample, slot, vector.clamp(min=0)] for slot in (0, 1)])
    return ids.repeat(2, 1, 1), rows, (vector >= 0).repeat(2, 1)


@dataclass(frozen=True)
class TrainingBatch:
    """Everything random of one step: clean latents, the noise to add to them, and the sentences.

    Attributes:
        latents: scaled latents of views, `[batch, channel, h, w]`.
        noise: standard normal, shaped as `latents`.
        timesteps: `[batch]`.
        template_index: which sentence each uses, `[batch]`, on the device of the latents.
        outside: how much of each latent cell is outside the head, `[batch, 1, h, w]` in [0, 1]; None where no face is
            known.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    template_index: Tensor
    outside: Tensor | None = None

    def select(self, samples: range) -> "TrainingBatch":
        """Return the samples of these numbers."""
        chosen = slice(samples.start, samples.stop)
        return TrainingBatch(
            self.latents[chosen],
            self.noise[chosen],
            self.timesteps[chosen],
            self.template_index[chosen],
            None if self.outside is None else self.outside[chosen],
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
    *,
    detach_start: bool = False,
    unet: UNet | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what the UNet predicts for a batch with its noise, and what it should predict, in single precision.

    Args:
        context: its states are key text and value text side by side, and a reference text where the UNet records the
            attention loss.
        detach_start: as `copy_with_key_value_attention` takes it.
        unet: what that function has returned already; then `detach_start` is ignored.
    """
    alphas = backbone.scheduler.alphas_cumprod
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps, alphas)
    if unet is None:
        unet = copy_with_key_value_attention(backbone.unet, detach_start=detach_start)
    prediction = backbone.predict(noisy, batch.timesteps, context, unet)
    target = compute_target(batch.latents, batch.noise, batch.timesteps, alphas, backbone.prediction_type)
    return prediction.float(), target.float()


CHECKED_CHANGE = 0.1  # of the deviation of a text's numbers


class TrainingModel:
    """A model as one training calls it: copies of its text encoders and of its denoiser, which share the weights.

    Made once a training: to copy the modules and to install the processors costs a sixth of a step of one sample.

    Attributes:
        compiled: the denoiser as torch compiles it; None where that is not wanted.
        left_uncompiled: steps were computed without it, as it has other gradients or could not be made.

    Args:
        steered: whether the denoiser records the attention loss. Where it does not, the cheaper fused attention runs.
    """

    def __init__(self, backbone: Backbone, *, steered: bool) -> None:
        self.backbone, self.owner = backbone.copy_text_encoders(), backbone.unet
        self.recorder = AttentionRecorder() if steered else None
        self.unet = copy_with_key_value_attention(backbone.unet, self.recorder)
        self.compiled: UNet | None = None
        self.left_uncompiled = False

    def predict(
        self, batch: NoisyBatch, context: TextEncoding, loss_options: LossOptions, *, differentiated_once: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return prediction and target as `predict_with_target`, and the attention loss `[batch]` where it counts.

        Args:
            differentiated_once: whether one backward pass follows; for several, what is compiled has freed too much.
        """
        may_compile = differentiated_once and torch.is_grad_enabled()
        unet = self.choose_unet(batch, context, loss_options) if may_compile else self.unet
        return self.predict_with(unet, batch, context, loss_options)

    def predict_with(
        self, unet: UNet, batch: NoisyBatch, context: TextEncoding, loss_options: LossOptions
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `predict` does, of the denoiser or of its compiled form."""
        if self.recorder is None:
            return *predict_with_target(self.backbone, batch, context, unet=unet), None
        self.recorder.loss_options = loss_options
        try:
            prediction, target = predict_with_target(self.backbone, batch, context, unet=unet)
            return prediction, target, self.recorder.pop_mean_loss()
        finally:  # a pass that failed for want of memory leaves nothing behind either
            self.recorder.clear()
            self.recorder.loss_options = None

    def choose_unet(self, batch: NoisyBatch, context: TextEncoding, loss_options: LossOptions) -> UNet:
        """Return the compiled denoiser where there is one with the right gradients for such a batch, else the denoiser.

        Each loss is differentiated apart: the attention loss, a sum, would hide an error of the other. Texts are
        changed a little, as at the class word the attention loss has no gradient.
        """
        if self.compiled is None:
            return self.unet

        def compute(unet: UNet) -> Gradients:
            noise = torch.randn(context.states.shape, generator=create_generator(0, "compiled")).to(context.states)
            texts, found = context.states.detach() + CHECKED_CHANGE * context.states.detach().std() * noise, {}
            for name in ("denoising loss", "attention loss") if self.recorder is not None else ("denoising loss",):
                states = texts.clone().requires_grad_()
                given = replace(context, states=states)
                prediction, target, attention = self.predict_with(unet, batch, given, loss_options)
                loss = F.mse_loss(prediction, target)
                if name == "attention loss" and attention is not None:
                    loss = attention.mean()
                # A copy, as the memory of a CUDA graph's results is used again.
                found[name] = torch.autograd.grad(loss, states)[0].clone()
            return found

        differing = loss_options.detach_query, loss_options.hinge, loss_options.outside is None, loss_options.reduction
        recomputing = self.unet.is_gradient_checkpointing
        inputs = (batch.latents.shape, context.states.shape, self.recorder is not None, recomputing, *differing)
        right = has_right_gradients(compute, self.unet, self.compiled, self.owner, inputs)
        self.left_uncompiled |= not right
        return self.compiled if right else self.unet


@dataclass(frozen=True)
class Losses:
    """The two terms and their weighted sum, each a scalar.

    Attributes:
        key_gradient_share: gradient of the weighted attention loss on the keys over that of the denoising loss; None
            where it was not measured.
    """

    total: Tensor
    denoise: Tensor
    attention: Tensor
    key_gradient_share: float | None = None


def compute_losses(
    backbone: Backbone,
    texts: TrainingTexts,
    tokens: Tensor,
    batch: TrainingBatch,
    settings: LearnSettings,
    *,
    measure: bool = False,
    model: TrainingModel | None = None,
) -> Losses:
    """Compute the mean squared denoising error plus lambda times the attention loss.

    Args:
        tokens: `[stage, 2, width]` or `[stage, 2, vector, width]`, the tokens that are trained.
        measure: also compute the share of the gradient on the keys; costs two more backward passes.
        model: the training's own copies; None makes them for this call.
    """
    if model is None:
        model = TrainingModel(backbone, steered=is_attention_steered(settings))
    stage = get_stages(batch.timesteps, len(tokens), backbone.num_train_timesteps)
    context = encode_key_value_texts(model.backbone, texts, batch.template_index, tokens.to(stage.device)[stage])
    height, width = int(batch.latents.shape[-2]), int(batch.latents.shape[-1])
    hinge = settings.attention_loss == "hinge"
    loss_options = LossOptions(
        texts.compared_words[batch.template_index],
        (height, width),
        settings.attention_reduction,
        settings.detach_query,
        hinge,
        batch.outside if hinge else None,
    )
    once = not needs_both_gradients(settings, measured=measure)
    prediction, target, attention = model.predict(batch, context, loss_options, differentiated_once=once)
    denoise = compute_denoising_loss(prediction, target, batch.outside, settings.outside_weight)
    attention = denoise.new_zeros(()) if attention is None else attention.mean()
    return weight_losses(denoise, attention, tokens, settings, measure=measure)


def is_attention_steered(settings: LearnSettings) -> bool:
    """Return whether the attention loss counts."""
    return settings.attention_share is not None or settings.attention_weight > 0


def needs_both_gradients(settings: LearnSettings, *, measured: bool) -> bool:
    """Return whether a step computes the gradient of each loss apart.

    Args:
        measured: the step measures the share of the gradient on the keys.
    """
    return is_attention_steered(settings) and (measured or settings.attention_share is not None)


def compute_denoising_loss(prediction: Tensor, target: Tensor, outside: Tensor | None, weight: float) -> Tensor:
    """Compute the mean squared error; cells outside the head count `weight` times as much as those inside.

    mean of w (e - e')^2 with w = (1 - outside) + weight * outside, divided by its mean in each sample, so that the size
    of the loss stays comparable.

    Args:
        outside: shares of latent cells `[batch, 1, h, w]`; None where no face is known.
    """
    if outside is None or weight == 1:
        return F.mse_loss(prediction, target)
    cells = 1 - outside + weight * outside
    cells = cells / cells.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return ((prediction - target).pow(2) * cells).mean()


def weight_losses(
    denoise: Tensor, attention: Tensor, tokens: Tensor, settings: LearnSettings, *, measure: bool
) -> Losses:
    """Add both losses, by lambda or so that the attention loss has its share of the gradient on the keys.

    Adam divides every coordinate by the size of its own gradient: what counts is the share of the gradients, not that
    of the losses.
    """
    if not (needs_both_gradients(settings, measured=measure) and tokens.requires_grad):
        return Losses(denoise + settings.attention_weight * attention, denoise, attention)
    gradients = [torch.autograd.grad(loss, tokens, retain_graph=True)[0] for loss in (denoise, attention)]
    return weight_by_gradients(denoise, attention, tokens, (gradients[0], gradients[1]), settings, measured=True)


def weight_by_gradients(
    denoise: Tensor,
    attention: Tensor,
    tokens: Tensor,
    gradients: tuple[Tensor, Tensor],
    settings: LearnSettings,
    *,
    measured: bool,
) -> Losses:
    """Add both losses of one identity, by lambda or by their gradients on its tokens, which are known.

    Args:
        measured: report the share of the gradient on the keys.
    """
    fixed, wanted = settings.attention_weight, settings.attention_share
    pull, hold = (float(gradient[:, 0].norm()) for gradient in gradients)
    if wanted is None:
        share = fixed * hold / max(pull, 1e-12) if measured else None
        return Losses(denoise + fixed * attention, denoise, attention, share)
    weight = wanted * pull / hold if hold > 0 else 0.0
    # Both gradients are there: a third pass through the denoiser would give their sum once more.
    joint = (tokens * (gradients[0] + weight * gradients[1])).sum()
    total = (denoise + weight * attention).detach() + joint - joint.detach()
    return Losses(total, denoise, attention, wanted if hold > 0 else 0.0)


# More take longer on a processor (`python experiments/engine.py autoencoder`); several threads want more than one.
ENCODE_AT_ONCE = 4


class BatchEncoder:
    """Encode images a few at a time, half as many from when there is no memory for so many.

    Attributes:
        at_once: images in one pass.
    """

    def __init__(self, backbone: Backbone, at_once: int = ENCODE_AT_ONCE) -> None:
        self.backbone, self.at_once = backbone, at_once

    def encode(self, pixels: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Encode images `[image, 3, side, side]` to latents `[image, channel, h, w]`.

        Args:
            random: draws the posterior's noise; None takes its mean.

        Raises:
            ConfigError: there is no memory for a single image.
        """
        return self.encode_by(lambda some: (self.backbone.encode_image(some, random),), pixels, random)[0]

    def encode_posterior(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode images to mean and deviation of their latents, each as `encode` returns it; errors are the same."""
        return self.encode_by(self.backbone.encode_image_posterior, pixels)

    def encode_by(
        self, encode: Callable[[Tensor], tuple[Tensor, ...]], pixels: Tensor, random: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Encode images with `encode`, which gives one tensor or several; errors as of `encode`."""
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(pixels):
            some = pixels[start : start + self.at_once]
            # A try that fails may have drawn noise, which the same images get when they are fewer at once.
            state = None if random is None else random.get_state()
            try:
                parts.append(encode(some))
                start += len(some)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = shorten_reason(error)
            # Outside of the handler: what the failed try held is free by now.
            if random is not None and state is not None:
                random.set_state(state)
            self.take_fewer(len(some), reason)
        return tuple(torch.cat(one) for one in zip(*parts, strict=True))

    def take_fewer(self, count: int, reason: str) -> None:
        """Encode half as many images at once from now on.

        Args:
            count: for which there was no memory.
            reason: how a library said so.

        Raises:
            ConfigError: it was a single one.
        """
        release_memory(reason)
        if count == 1:
            problem = f"There is not enough memory to encode one image ({reason})."
            raise make_memory_error(ConfigError, problem, LESS_MEMORY)
        self.at_once = count // 2
        LOGGER.warning("there is not enough memory: now at most %d images are encoded at once", self.at_once)


class ViewLatents:
    """Latents of random views: fresh ones every step, or drawn from a pool that is encoded once.

    With `views.pool_noise` fresh the pool keeps mean and deviation of each latent, and every step draws its own noise
    of the autoencoder, as it would if it encoded the view again.

    Args:
        at_once: views that are encoded in one pass; fewer where there is no memory for them.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: PhotoViews,
        settings: ViewSettings,
        seed: int,
        at_once: int = ENCODE_AT_ONCE,
    ) -> None:
        self.backbone, self.views, self.seed = backbone, views, seed
        self.encoder = BatchEncoder(backbone, at_once)
        self.pool: Tensor | None = None
        self.pool_deviation: Tensor | None = None
        self.pool_outside: Tensor | None = None
        if settings.latent_pool and settings.pool_noise == "fresh":
            pixels, self.pool_outside = self.draw_views(settings.latent_pool, create_generator(seed, "pool", 0))
            self.pool, self.pool_deviation = self.encoder.encode_posterior(pixels)
        elif settings.latent_pool:
            self.pool, self.pool_outside = self.encode_random_views(settings.latent_pool, 0, "pool")

    def __call__(self, count: int, step: int) -> Tensor:
        """Return latents `[count, channel, h, w]` for this step."""
        return self.draw_with_outside(count, step)[0]

    def draw_with_outside(self, count: int, step: int) -> tuple[Tensor, Tensor | None]:
        """Return latents for this step, and how much of each cell is outside the head, `[count, 1, h, w]`.

        The second is None where the views have no face.
        """
        if self.pool is None:
            return self.encode_random_views(count, step, "view")
        random = create_generator(self.seed, "pick", step)
        chosen = move_to_device(torch.randint(len(self.pool), (count,), generator=random), self.pool.device)
        latents = self.pool[chosen]
        if self.pool_deviation is not None:
            latents = latents + self.pool_deviation[chosen] * draw_noise(latents, random)
        return latents, None if self.pool_outside is None else self.pool_outside[chosen]

    def encode_random_views(self, count: int, step: int, purpose: str) -> tuple[Tensor, Tensor | None]:
        """Encode so many random views with the posterior's noise; return what `draw_with_outside` does."""
        random = create_generator(self.seed, purpose, step)
        pixels, outside = self.draw_views(count, random)
        return self.encoder.encode(pixels, random), outside

    def draw_views(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw views `[count, 3, side, side]`, and how much of each latent cell is outside the head."""
        views, masks = zip(*[self.views.draw_view_and_mask(random) for _ in range(count)], strict=True)
        pixels = torch.stack(views)
        if masks[0] is None:
            return pixels, None
        height, width = (side // self.backbone.latent_factor for side in pixels.shape[-2:])
        inside = F.interpolate(torch.stack(masks), (height, width), mode="area")
        return pixels, (1 - inside).to(self.backbone.device)


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
    latents, outside = latent_source.draw_with_outside(settings.batch, step)
    noise = draw_noise(latents, random)
    template = torch.randint(len(settings.templates), (settings.batch,), generator=random)
    timesteps = draw_training_timesteps(settings, backbone.num_train_timesteps, random, step)
    template, timesteps = (move_to_device(one, latents.device) for one in (template, timesteps))
    return TrainingBatch(latents, noise, timesteps, template, outside)


def draw_noise(latents: Tensor, random: torch.Generator) -> Tensor:
    """Draw standard normal noise for latents, of their shape, type and device; the same numbers on every device."""
    noise = torch.randn(latents.shape, generator=random, dtype=torch.float32)
    return move_to_device(noise.to(latents.dtype), latents.device)


# Steps between two measurements of the gradients' share on the keys, which cost two backward passes each.
MEASURE_EVERY = 50
CONTEXT_AT_ONCE = 2


def compute_context_loss(backbone: Backbone, texts: TrainingTexts, tokens: Tensor, random: torch.Generator) -> Tensor:
    """Compute how far the tokens turn the states of the words behind them: their effect on the rest of a prompt.

    mean over the words i behind the placeholder of 1 - cos(E(v_i), E(v'_i)), v' the same sentence with the class word
    (CoRe, AAAI 2025, its embedding term). CLIP reads from left to right: words before the placeholder do not change.
    Keys and values of a random stage in `CONTEXT_AT_ONCE` random sentences; needs no image and no denoiser.

    Args:
        texts: the sentences with a context.
        tokens: `[stage, 2, width]` or `[stage, 2, vector, width]`, the tokens that are trained.
    """
    template, stage = (
        move_to_device(torch.randint(one, (CONTEXT_AT_ONCE,), generator=random), texts.ids.device)
        for one in (len(texts.ids), len(tokens))
    )
    states = encode_key_value_texts(backbone, texts, template, tokens.to(stage.device)[stage]).states
    *written, reference = states.float().chunk(3, dim=-1)
    placed = texts.vector_index[template] >= 0
    behind = (placed.cumsum(1) == placed.sum(1, keepdim=True)) & ~placed
    turned = torch.stack([1 - F.cosine_similarity(one, reference.detach(), dim=-1) for one in written])
    return (turned * behind).sum() / (2 * behind.sum())


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


def check_token_shape(tokens: Tensor, width: int) -> None:
    """Refuse what a module gives in place of the tokens of a model.

    Raises:
        MethodError: they are neither `[stage, 2, width]` nor `[stage, 2, vector, width]`.
    """
    if tokens.ndim not in (3, 4) or tokens.shape[1] != 2 or tokens.shape[-1] != width:
        raise MethodError(
            f"The method's module gives tokens of the shape {list(tokens.shape)}.",
            f"It must give [stage, 2, {width}] or [stage, 2, vector, {width}], a key and a value for each stage.",
        )


def check_gradient_dtype(backbone: Backbone) -> None:
    """Refuse to learn through a model whose small gradients become 0 unnoticed: nothing here scales the loss.

    In float16 the tokens' gradient differed by 8 % at Stable Diffusion 1.x's size, and by 35 % at SDXL's.

    Raises:
        ConfigError: the model is in float16.
    """
    if backbone.dtype == torch.float16:
        raise ConfigError(
            "float16 is too narrow to learn in: small gradients become 0.",
            "Use --dtype bfloat16 or float32; images of what was learned can be made in float16.",
        )


class TokenTask:
    """Denoising plus lambda times the attention loss, for any module of tokens.

    Args:
        tokens: a module that is also a `TokenModule`.
        encode_at_once: views that are encoded in one pass.

    Raises:
        ConfigError: the model is in float16.
        MethodError: the module gives tokens of another shape.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: PhotoViews,
        config: Config,
        seed: int,
        tokens: nn.Module,
        encode_at_once: int = ENCODE_AT_ONCE,
    ) -> None:
        check_gradient_dtype(backbone)
        self.backbone, self.config, self.seed = backbone, config, seed
        # One object under two names: to the loop a module of weights, here what gives tokens.
        self.weights = tokens.to(backbone.device)
        self.tokens: TokenModule = tokens  # pyright: ignore[reportAttributeAccessIssue]
        # As many words in a sentence as the module gives tokens, whatever the settings say.
        learned = self.get_identity_tensors()["tokens"]
        check_token_shape(learned, backbone.token_width)
        vectors = add_vector_axis(learned).shape[2]
        settings = config.learn.model_copy(update={"vectors": vectors})
        self.texts = encode_training_texts(backbone, settings)
        self.model = TrainingModel(backbone, steered=is_attention_steered(config.learn))
        self.context_texts: TrainingTexts | None = None
        if config.learn.context_weight > 0:
            self.context_texts = encode_context_texts(backbone, settings)
        self.latent_source = ViewLatents(backbone, views, config.views, seed, encode_at_once)
        self.training_key: dict[str, Any] = collect_training_key(backbone, views, config, seed)

    def compute_loss(self, step: int) -> tuple[Tensor, Numbers]:
        """Return the loss of a step and its terms."""
        tokens, batch = self.draw_step(step)
        learn, measure = self.config.learn, self.is_measured(step)
        losses = compute_losses(self.backbone, self.texts, tokens, batch, learn, measure=measure, model=self.model)
        return self.add_context_loss(losses.total, self.list_numbers(losses, tokens), tokens, step)

    def draw_step(self, step: int) -> tuple[Tensor, TrainingBatch]:
        """Return the tokens of a step, as they are trained, and everything random of it."""
        self.weights.train()
        tokens = self.tokens(create_generator(self.seed, "dropout", step))
        return tokens, draw_batch(self.backbone, self.latent_source, self.config.learn, self.seed, step)

    def is_measured(self, step: int) -> bool:
        """Return whether a step measures the share of the gradient on the keys."""
        return step == 0 or (step + 1) % MEASURE_EVERY == 0 or step + 1 == self.config.learn.steps

    def add_context_loss(self, loss: Tensor, numbers: Numbers, tokens: Tensor, step: int) -> tuple[Tensor, Numbers]:
        """Return a loss and its numbers with those of the other words' states, where they count."""
        if self.context_texts is None:
            return loss, numbers
        random = create_generator(self.seed, "context", step)
        change = compute_context_loss(self.model.backbone, self.context_texts, tokens, random)
        return loss + self.config.learn.context_weight * change, {**numbers, "loss_context": change.detach()}

    def count_samples(self) -> int:
        """Return how many samples a step has."""
        return self.config.learn.batch

    def compute_loss_parts(self, step: int, parts: int) -> Iterator[LossPart]:
        """Yield the loss of each part of a step's samples; the tokens, and what drops out of them, are the same."""
        self.weights.train()
        batch = draw_batch(self.backbone, self.latent_source, self.config.learn, self.seed, step)
        for samples in split_samples(len(batch.latents), parts):
            tokens = self.tokens(create_generator(self.seed, "dropout", step))
            part = batch.select(samples)
            losses = compute_losses(self.backbone, self.texts, tokens, part, self.config.learn, model=self.model)
            # The shares add up to 1, so the loss on other words is counted once.
            total, numbers = self.add_context_loss(losses.total, self.list_numbers(losses, tokens), tokens, step)
            yield len(samples) / len(batch.latents), total, numbers

    def compile_denoiser(self) -> None:
        """Compile the task's own copy of the denoiser; its gradients are checked when a step first needs it."""
        self.model.compiled = compile_unet(self.model.unet)

    def is_left_uncompiled(self) -> bool:
        """Return whether steps were computed without, as what was compiled has other gradients."""
        return self.model.left_uncompiled

    def set_recomputing(self, *, enabled: bool) -> bool:
        """Set the denoiser's gradient checkpointing; return False where the attention loss is recorded.

        The loss would be recorded once more when a block is computed again. The denoiser is the task's own copy.
        """
        if self.model.recorder is not None:
            return False
        if enabled:
            self.model.unet.enable_gradient_checkpointing()
        else:
            self.model.unet.disable_gradient_checkpointing()
        return True

    def list_numbers(self, losses: Losses, tokens: Tensor) -> Numbers:
        """Return both losses, the share of the gradients on the keys where it was measured, and the tokens' mean norm.

        The norm is in norms of the class word. (Earlier versions logged `ratio`, a share of losses.)
        """
        norm = tokens.detach().norm(dim=-1).mean() / self.tokens.class_token.norm()
        share = losses.key_gradient_share
        measured: Numbers = {} if share is None else {"key_gradient_share": share}
        # Not yet as floats, which would wait for a device before the backward pass is queued.
        both: Numbers = {"loss_denoise": losses.denoise.detach(), "loss_attention": losses.attention.detach()}
        return {**both, **measured, "token_norm": norm}

    def after_step(self) -> None:
        """Apply the limits and averages of the tokens."""
        self.tokens.after_step()

    @torch.no_grad()
    def get_identity_tensors(self) -> dict[str, Tensor]:
        """Return the tokens as generation uses them, without dropout, and the further tensors; in the CPU's memory."""
        self.weights.eval()
        tensors = {"tokens": self.tokens().clone().contiguous(), **self.tokens.get_extra_tensors()}
        return {name: value.cpu() for name, value in tensors.items()}


def collect_training_key(backbone: Backbone, views: PhotoViews, config: Config, seed: int) -> dict[str, Any]:
    """Return what identifies a training: another photo, model, seed or setting goes on from no checkpoint of it."""
    photos = hashlib.sha256()
    for crop in views.crops:
        photos.update(crop.cpu().numpy().tobytes())
    key = {
        "config": dump_config(config),
        "seed": seed,
        "model": backbone.fingerprint,
        "signature": backbone.signature.compute_digest() if backbone.signature else "",
        "photo": photos.hexdigest(),
    }
    files = hash_named_files(config)
    files.pop("learn.encoder", None)  # `describe_training_start` has the one that is read, named or the package's own
    key |= {f"{FILE_OF}{setting}": digest for setting, digest in files.items()}
    return key | ({"faces": hash_faces(views.faces)} if views.faces else {})


def hash_faces(faces: Sequence[CropFace]) -> str:
    """Return what stands for faces in a training's key: the SHA-256 of their places, to a hundredth of the side.

    The detector's last digits differ with the number of threads.
    """
    places = [[round(share, 2) for share in (*face.box, *chain(*face.landmarks))] for face in faces]
    return hashlib.sha256(dump_json(places).encode()).hexdigest()
