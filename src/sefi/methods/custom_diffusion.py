"""Custom Diffusion: a new word and the keys and values that cross-attention makes of text; two subjects merge."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sefi.backbone.bundle import Backbone
from sefi.backbone.weights import (
    ATTENTION_LAYERS,
    copy_for_training,
    copy_with_weights,
    cross_attention_names,
    part_of,
)
from sefi.conditioning.conditioner import IdentityConditioner, check_identities
from sefi.conditioning.encode import encode_token_ids, get_token_row
from sefi.conditioning.prompt import parse_prompt, tokenize_plain
from sefi.conditioning.words import tokenize_sentence
from sefi.core.config import Config
from sefi.core.errors import ConfigError, IdentityError
from sefi.core.nouns import Identity
from sefi.core.streams import stream
from sefi.generate.sampler import ConditionedModel
from sefi.learn.sampling import ENCODE_AT_ONCE
from sefi.learn.texts import TrainingTexts, encode_training_texts
from sefi.learn.tokens import collect_run_settings
from sefi.learn.weights import (
    NoisedBatch,
    Part,
    TrainingParts,
    WeightTraining,
    draw_noise_and_timesteps,
    encode_class_images,
    make_prior_part,
    tokenize_sentences,
    wrap_weights,
)
from sefi.methods.base import MethodInfo, RunOptions, WeightCounts, get_class_row, learn_identity
from sefi.methods.checks import check_tuned_weights
from sefi.photo.resizing import Resized, resized_view
from sefi.photo.views import PhotoViews

LAYERS = {"key_value": ("to_k", "to_v"), "cross_attention": ATTENTION_LAYERS}
FAR = ("a far away photo of {}", "a very small photo of {}")
NEAR = ("a zoomed in photo of {}", "a close up photo of {}")
# What merged weights must not change: sentences of common things in common places.
THINGS = ("a person", "a man", "a woman", "a dog", "a cat", "a bear", "a cup", "a guitar", "a book", "a balloon")
PLACES = (
    "", "at the beach", "in the snow", "in the forest", "in the city", "in space", "in the desert", "in a room",
    "smiling", "with a hat", "reading a book", "with an umbrella", "in front of the tower", "playing the guitar",
    "at night", "looking sad", "with a beard", "waving", "cooking", "holding a cup",
)  # fmt: skip
RIDGE = 1e-4


class CustomDiffusion:
    """Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488).

    The name in a prompt becomes the learned word followed by the class word.
    Differs: the new word is a parameter of its own, so no other word decays or moves; every one of the words is trained
    (the published code leaves the last one out); the prior's pictures are drawn by the model, not retrieved;
    of the sentences for small and for enlarged views only those in words that the model knows whole; views are encoded
    by the posterior's mean.
    """

    info = MethodInfo("Custom Diffusion", "arXiv 2212.04488", "Adobe Research Licence; written anew")

    def weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """What is changed of cross-attention and, as the paper counts, the whole token table with the new word."""
        there = dict(backbone.unet.named_parameters())
        changed = sum(there[name].numel() for name in cross_attention_names(backbone.unet, list_layers(config)))
        table = backbone.text_encoder.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return WeightCounts(changed + table.numel() + backbone.width, 0)

    def check(self, backbone: Backbone, config: Config, judges: Path | None) -> None:
        """No stages, no attention loss; weights in single precision."""
        del judges
        check_tuned_weights(self.info.title, config, backbone)
        list_layers(config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: RunOptions
    ) -> Identity:
        """Weights named `unet....`, and tokens `[1, 2, 2, width]`: the new word, then the class word."""
        latents = encode_class_images(backbone, config, options.progress)
        word = nn.Parameter(get_first_word(backbone, config.tune.identifier))
        row = get_class_row(backbone, config)
        plain = encode_token_ids(backbone, tokenize_sentences(backbone, config, config.learn.class_word))

        def tokens() -> Tensor:
            return torch.stack([word, row])

        names = cross_attention_names(backbone.unet, list_layers(config))
        model, weights = copy_for_training(backbone, [f"unet.{key}" for key in names])
        parts = TrainingParts(
            wrap_weights({**weights, "word": word}),
            make_resized_part(backbone, views, config, seed, tokens),
            make_prior_part(backbone, config, seed, latents, lambda which: plain[which]),
            lambda: {"tokens": tokens().expand(1, 2, -1, -1), **weights},
            detach_start=True,
        )
        task = WeightTraining(model, config, parts, collect_run_settings(backbone, views, config, seed))
        return learn_identity(task, name, backbone, config, seed, options)

    def apply(self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0) -> ConditionedModel:
        """A copy of the model with one subject's weights, or several merged in closed form; names become words."""
        check_identities(backbone, identities)
        there = dict(backbone.unet.named_parameters())
        # At strength 0 every name is the class word and the model stays its own: nothing to merge.
        sets = [select_unet_weights(identity, there, strength) for identity in identities if strength]
        conditioner = IdentityConditioner(backbone, identities, strength)
        weights = sets[0] if len(sets) == 1 else merge_weights(backbone, identities, sets, conditioner)
        named = {f"unet.{name}": weight for name, weight in weights.items()}
        return ConditionedModel(copy_with_weights(backbone, named), conditioner)


def list_layers(config: Config) -> tuple[str, ...]:
    """Layers of every cross-attention that are trained.

    Raises:
        ConfigError: parts that Custom Diffusion does not have.
    """
    if config.tune.parts not in LAYERS:
        raise ConfigError(
            f"Custom Diffusion trains no {config.tune.parts!r}.", f"Set tune.parts to {' or '.join(LAYERS)}."
        )
    return LAYERS[config.tune.parts]


def get_first_word(backbone: Backbone, identifier: str) -> Tensor:
    """Where the new word starts, `[width]`: a rare word's row; of one that the model writes in pieces, their mean."""
    ids = tokenize_plain(backbone.tokenizer, identifier)
    if not ids:
        raise ConfigError(f"The identifier {identifier!r} has no token.", "Set tune.identifier to a rare word.")
    return torch.stack([get_token_row(backbone, token) for token in ids]).mean(0)


def select_unet_weights(identity: Identity, there: dict[str, nn.Parameter], strength: float) -> dict[str, Tensor]:
    """An identity's weights, by their names in the UNet, on the way from the model's own."""
    found = part_of(identity.tensors, "unet")
    if strength == 1.0:
        return found
    return {name: there[name].data.float().cpu().lerp(value.float(), strength) for name, value in found.items()}


def make_resized_part(
    backbone: Backbone, views: PhotoViews, config: Config, seed: int, tokens: Callable[[], Tensor]
) -> Part:
    """The subject's part of every step: views of very different size, the caption saying so, padding not counted."""
    learn = config.learn
    said = {
        "plain": learn.templates,
        "far": select_whole_words(backbone, FAR),
        "near": select_whole_words(backbone, NEAR),
    }
    all_templates = tuple(template for group in said.values() for template in group)
    texts = encode_training_texts(backbone, learn.model_copy(update={"templates": all_templates, "vectors": 2}))
    numbers = iter(range(len(all_templates)))
    groups = {seen: [next(numbers) for _ in group] for seen, group in said.items()}
    pool = draw_views(views, config.views.latent_pool, stream(seed, "pool")) if config.views.latent_pool else None
    encoded = None if pool is None else encode_views(backbone, pool)

    def drawn(step: int) -> NoisedBatch:
        random = stream(seed, "sample", step)
        if pool is None or encoded is None:
            chosen = draw_views(views, learn.batch, random)
            latents = encode_views(backbone, chosen)
        else:
            picks = torch.randint(len(pool), (learn.batch,), generator=random)
            chosen, latents = [pool[int(n)] for n in picks], encoded[picks]
        noise, t = draw_noise_and_timesteps(backbone, latents, random)
        which = [groups[view.seen][int(torch.randint(len(groups[view.seen]), (), generator=random))] for view in chosen]
        counted = torch.stack([mark_cells_inside(view, backbone.latent_size) for view in chosen])
        return NoisedBatch(
            latents, noise, t, encode_with_tokens(backbone, texts, torch.tensor(which), tokens()), counted.to(latents)
        )

    return drawn


def select_whole_words(backbone: Backbone, templates: Sequence[str]) -> tuple[str, ...]:
    """Those sentences whose every word the model knows as one; all, where there is none."""
    found = [
        t
        for t in templates
        if all(len(tokenize_plain(backbone.tokenizer, word)) == 1 for word in t.split() if word != "{}")
    ]
    return tuple(found or templates)


def draw_views(views: PhotoViews, count: int, random: torch.Generator) -> list[Resized]:
    """So many views of one photo."""
    return [resized_view(views.clean, views.config.flip, random) for _ in range(count)]


def encode_views(backbone: Backbone, chosen: Sequence[Resized]) -> Tensor:
    """Their latents, the posterior's mean."""
    pixels = torch.stack([view.pixels for view in chosen])
    return torch.cat([backbone.encode_image(some) for some in pixels.split(ENCODE_AT_ONCE)])


def mark_cells_inside(view: Resized, cells: int) -> Tensor:
    """Which latent cells `[1, cells, cells]` count: all, or those a cell or more inside the pasted picture."""
    if view.box is None:
        return torch.ones(1, cells, cells, dtype=torch.float32)
    left, top, right, bottom = (round(edge * cells) for edge in view.box)
    inside = torch.zeros(1, cells, cells, dtype=torch.float32)
    inside[:, top + 1 : max(top + 2, bottom - 1), left + 1 : max(left + 2, right - 1)] = 1.0
    return inside


def encode_with_tokens(backbone: Backbone, texts: TrainingTexts, which: Tensor, tokens: Tensor) -> Tensor:
    """Text states `[batch, word, width]` of sentences with the tokens in their place."""
    vector = texts.vector[which]
    return encode_token_ids(backbone, texts.ids[which], tokens[vector.clamp(min=0)], vector >= 0)


@torch.no_grad()
def merge_weights(
    backbone: Backbone,
    identities: Sequence[Identity],
    sets: Sequence[dict[str, Tensor]],
    conditioner: IdentityConditioner,
) -> dict[str, Tensor]:
    """Weights that treat each subject's words as its own weights do and change other sentences least.

    Minimises `||(W' - W) C||` over common sentences' states C, with `W' x = W_i x` for the states x of subject i's
    words (the paper's section 3.3): `W' = W + R (X^T G^-1 X)^-1 X^T G^-1`, `G = C C^T`, `R = W_i X - W X`.

    Raises:
        IdentityError: the sets are not of the same weights.
        ConfigError: of others than keys and values.
    """
    if not sets:
        return {}
    if any(one.keys() != sets[0].keys() for one in sets):
        raise IdentityError(
            "These identities changed different parts of the model.", "Learn both with the same tune.parts."
        )
    own = [encode_subject(backbone, identity, conditioner) for identity in identities]
    common = encode_common_sentences(backbone)
    gram = common.T @ common
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    states = torch.cat(own).T
    solved = torch.linalg.solve(gram, states)
    projection = torch.linalg.solve(states.T @ solved, solved.T)
    there = dict(backbone.unet.named_parameters())
    weights: dict[str, Tensor] = {}
    for name in sets[0]:
        if not name.endswith(("to_k.weight", "to_v.weight")):
            raise ConfigError("Only keys and values can be merged.", "Learn both with tune.parts=key_value.")
        before = there[name].data.double().cpu()
        wanted = torch.cat([one[name].double() @ x.T for one, x in zip(sets, own, strict=True)], dim=1)
        weights[name] = (before + (wanted - before @ states) @ projection).float()
    return weights


def encode_subject(backbone: Backbone, identity: Identity, conditioner: IdentityConditioner) -> Tensor:
    """Text states `[word, width]` of a subject's words in "a photo of <name>", double precision."""
    prompt = f"a photo of <{identity.name}>"
    parsed = parse_prompt(backbone.tokenizer, prompt, conditioner.class_words, backbone.text_length, conditioner.spans)
    states = conditioner.one(prompt, 0)[:, : backbone.width]
    return states[list(parsed.places[identity.name])].double().cpu()


def encode_common_sentences(backbone: Backbone) -> Tensor:
    """Text states `[word, width]` of every word of those common sentences that the model can read, double precision."""
    every = [f"a photo of {thing} {place}".strip() for thing in THINGS for place in PLACES]
    longest = backbone.text_length - 2
    found = [sentence for sentence in every if len(tokenize_plain(backbone.tokenizer, sentence)) <= longest]
    ids = torch.stack([tokenize_sentence(backbone, sentence) for sentence in found])
    return torch.cat([encode_token_ids(backbone, some).flatten(0, 1) for some in ids.split(32)]).double().cpu()
