"""The paper's method: a key token and a value token for every stage; they may start at what a name encoder reads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.backbone.files import LOADING
from sefi.core.config import Config, SettingsTree
from sefi.core.errors import ConfigError, FaceError
from sefi.core.progress import Progress
from sefi.core.reading import InvalidFileError, Limits, parse_object, read_tensors, translate_file_errors
from sefi.core.rng import create_generator
from sefi.core.text import dump_json
from sefi.diffusion.composer import is_trained_for
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import sample_images
from sefi.diffusion.text import tokenize_text
from sefi.identity.file import Identity
from sefi.identity.tokens import IdentityTokens, count_module_weights, count_slots, drop_out
from sefi.methods.base import (
    MethodInfo,
    TokenMethod,
    TrainingOptions,
    WeightCounts,
    check_person,
    create_header,
    fit_first_tokens,
    get_class_row,
    learn_tokens,
    refuse_vectors_and_limit,
)
from sefi.photo.augment import PhotoViews, cut_head, find_face_in
from sefi.photo.detect import FaceDetector
from sefi.photo.read import convert_to_pixels
from sefi.training.loop import compute_cosine_rate
from sefi.training.token_inversion import encode_in_batches


class StagedKeyValue(TokenMethod):
    """SeFi-IDE (arXiv 2402.00631)."""

    info = MethodInfo(
        "SeFi-IDE",
        "arXiv 2402.00631",
        "no code was published; ours is Apache-2.0",
        keeps="a key and a value token for each of five stages",
        kilobytes=12,
        starts_from_tokens=True,
    )
    # Its presets are those that are named after no method: `STARTING_PRESETS` (default, fast, paper).
    presets: Mapping[str, SettingsTree] = MappingProxyType({})

    def count_weights(self, backbone: Backbone, config: Config) -> WeightCounts:
        """Count a token for each stage and slot; the module, where there is one, is thrown away afterwards."""
        trained = config.learn.stages * count_slots(config.learn) * config.learn.vectors * backbone.token_width
        return WeightCounts(trained, count_module_weights(backbone.token_width, config.learn))

    def check(self, backbone: Backbone, config: Config, evaluators: Path | None) -> None:
        """Require one token for the placeholder where the module makes it, and an encoder where tokens start at one."""
        del evaluators
        refuse_vectors_and_limit(self.info.title, config)
        if config.learn.start == "encoder":
            check_person(f"{self.info.title} with learn.start=encoder", config)
            load_chosen_encoder(backbone, config)

    def learn(
        self, name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int, options: TrainingOptions
    ) -> Identity:
        """Learn tokens `[stage, 2, width]`, or `[stage, 2, vector, width]`, that give the subject.

        Raises:
            ConfigError: they are to start both at an identity and at what the encoder reads, or the encoder is missing.
        """
        if config.learn.start == "encoder":
            if options.init is not None:
                raise ConfigError(
                    "Tokens start either at an identity or at what the name encoder reads.",
                    "Leave out --init, or set learn.start=class.",
                )
            options = replace(options, init=read_tokens(name, views, backbone, config, seed))
        first = fit_first_tokens(options.init, config.learn)
        if first is not None and config.learn.vectors == 1:
            first = first[:, :, 0]
        tokens = IdentityTokens(get_class_row(backbone, config), config.learn, seed, first)
        return learn_tokens(tokens, name, views, backbone, config, seed, options)


# ------------------------------------------------------------------ the name encoder

SHIPPED_ENCODER = Path(__file__).parents[1] / "models" / "name_encoder.safetensors"
ENCODER_KEY, ENCODER_SIGNATURE = "sefi-name-encoder", "sefi-model-signature"
ENCODER_LIMITS = Limits(size=32 * 2**20)
TRAINING_REMEDY = "Train one for this model: sefi encoder train --model MODEL --names FILE."
CELLS = 12  # a side of the latents that are read: finer ones say where, not who
INNER = 384
MOST_WORDS = 8
NOISE, DROPPED = 0.3, 0.2  # in training: of every feature, and of the layers' outputs


class NameEncoder(nn.Module):
    """Latents of a head to the tokens that the model would know the person by.

    x = (latents - mean) / scale; two layers of SiLU; then directions, which get the norm of names. The model is frozen
    and knows many people by name: what it knows of heads and tokens is fitted once, and read for everyone.

    Args:
        features: how many numbers of latents.
        words: how many tokens.
        width: of a token.
    """

    mean: Tensor
    scale: Tensor
    norm: Tensor

    def __init__(self, features: int, words: int, width: int) -> None:
        super().__init__()
        self.words, self.width = words, width
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(features, dtype=torch.float32))
        self.register_buffer("norm", torch.ones((), dtype=torch.float32))
        self.first = nn.Linear(features, INNER)
        self.second, self.last = nn.Linear(INNER, INNER), nn.Linear(INNER, words * width)

    def forward(self, latents: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Map features `[n, features]` to tokens `[n, words, width]`; `random` draws what training adds."""
        x = (latents - self.mean) / self.scale
        if random is not None:
            x = x + NOISE * torch.randn(x.shape, generator=random, dtype=torch.float32)
        x = drop_out(F.silu(self.first(x)), DROPPED, random)
        x = drop_out(F.silu(self.second(x)), DROPPED, random)
        return self.norm * F.normalize(self.last(x).unflatten(-1, (self.words, self.width)), dim=-1)


@torch.no_grad()
def compute_head_features(backbone: Backbone, heads: Tensor) -> Tensor:
    """Compute what the encoder reads of heads `[n, 3, R, R]`, which `cut_head` gave: `[n, features]`, float32.

    The mean of the posterior of the model's own autoencoder, averaged to 12 x 12 cells. No recogniser is asked, so none
    that evaluates can be flattered.
    """
    latents = encode_in_batches(backbone, heads).float().cpu()
    return F.adaptive_avg_pool2d(latents, min(CELLS, latents.shape[-1])).flatten(1)


def read_tokens(name: str, views: PhotoViews, backbone: Backbone, config: Config, seed: int) -> Identity:
    """Return an identity of what the encoder reads in the photos, the same for every stage, key and value.

    Of several photos the features are averaged.

    Raises:
        ConfigError: there is no encoder for this model, or it gives another number of tokens.
        FaceError: nobody said where the face is.
    """
    encoder = load_chosen_encoder(backbone, config)
    if not views.faces:
        raise FaceError(
            "The name encoder needs to know where the face is.", "Learn with sefi.learn or `sefi learn`, which find it."
        )
    heads = torch.stack([cut_head(crop, face) for crop, face in zip(views.crops, views.faces, strict=True)])
    with torch.no_grad():
        tokens = encoder(compute_head_features(backbone, heads).mean(0, keepdim=True))[0]
    return Identity({"tokens": tokens.expand(1, 2, -1, -1).contiguous()}, create_header(name, backbone, config, seed))


def load_chosen_encoder(backbone: Backbone, config: Config) -> NameEncoder:
    """Load the encoder that the settings name, or the embedded model's where the package has one.

    Raises:
        ConfigError: none is named for a model that brings none, or it gives another number of tokens.
    """
    chosen = config.learn.encoder
    if chosen is None and not (backbone.is_embedded and SHIPPED_ENCODER.is_file()):
        raise ConfigError(
            "This model brings no name encoder to start from.", f"{TRAINING_REMEDY} Then set learn.encoder=FILE."
        )
    encoder = load_encoder(SHIPPED_ENCODER if chosen is None else Path(chosen), backbone)
    if encoder.words != config.learn.vectors:
        raise ConfigError(
            f"This name encoder gives {encoder.words} tokens; learn.vectors is {config.learn.vectors}.",
            f"Set learn.vectors={encoder.words}.",
        )
    return encoder


def load_encoder(path: Path, backbone: Backbone) -> NameEncoder:
    """Load an encoder that was trained for this model, in any dtype.

    Raises:
        ConfigError: the file is missing, damaged, foreign, or of another model.
    """
    with translate_file_errors(path, ConfigError, "is no name encoder", TRAINING_REMEDY):
        metadata, tensors = read_tensors(path, ENCODER_LIMITS)
        if ENCODER_KEY not in metadata:
            raise InvalidFileError("it does not say which model it is for")
        fits = is_trained_for(
            backbone, metadata[ENCODER_KEY][:200], parse_object(metadata.get(ENCODER_SIGNATURE, "{}"))
        )
        if fits:
            return build_encoder(tensors, backbone)
    raise ConfigError(
        f"{path} reads photos for another model than this one ({backbone.fingerprint}).",
        TRAINING_REMEDY,
    )


def build_encoder(tensors: Mapping[str, Tensor], backbone: Backbone) -> NameEncoder:
    """Build an encoder of the tensors of its file.

    Raises:
        InvalidFileError: they are not those of an encoder for this model, or one is not finite.
    """
    words, left = divmod(len(tensors["last.bias"]) if "last.bias" in tensors else 0, backbone.token_width)
    cells = min(CELLS, backbone.latent_size)
    features = int(backbone.unet.config["in_channels"]) * cells**2
    if left or not 1 <= words <= MOST_WORDS:
        raise InvalidFileError("its tokens are not of this model's width")
    with LOADING, torch.device("meta"):
        encoder = NameEncoder(features, words, backbone.token_width)
    if {name: one.shape for name, one in encoder.state_dict().items()} != {k: one.shape for k, one in tensors.items()}:
        raise InvalidFileError("its weights have other names or shapes")
    if not all(one.isfinite().all() for one in tensors.values()):
        raise InvalidFileError("a weight is not finite")
    encoder.to_empty(device="cpu").float().load_state_dict({name: one.float() for name, one in tensors.items()})
    return encoder.eval().requires_grad_(requires_grad=False)


def save_encoder(encoder: NameEncoder, backbone: Backbone, path: Path) -> None:
    """Write an encoder in half precision, with the model that it is for."""
    signature = {} if backbone.signature is None else backbone.signature.dump()
    about = {ENCODER_KEY: backbone.fingerprint, ENCODER_SIGNATURE: dump_json(signature)}
    halves = {name: one.detach().half().contiguous() for name, one in encoder.state_dict().items()}
    save_file(halves, path, metadata=about)


@dataclass(frozen=True)
class NamePairs:
    """What the encoder is fitted on.

    Attributes:
        features: of heads, `[pair, features]`.
        tokens: the names' rows of the token table, `[pair, words, width]`.
        person: whose each is, `[pair]`; people are held out whole.
    """

    features: Tensor
    tokens: Tensor
    person: Tensor


@dataclass(frozen=True)
class EncoderRecipe:
    """How the encoder is fitted: AdamW with a rate that falls by a cosine."""

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    held_out: int = 10  # one person of so many


def fit_encoder(pairs: NamePairs, recipe: EncoderRecipe, seed: int, progress: Progress) -> tuple[NameEncoder, float]:
    """Fit an encoder to pairs; return it and the share of variance that it explains for people held out (R2).

    Raises:
        ConfigError: there are too few people.
    """
    held_out = pairs.person % recipe.held_out == 0
    if min(len(pairs.person[held_out].unique()), len(pairs.person[~held_out].unique())) < 2:
        raise ConfigError(
            "There are too few pairs of a head and a name to fit an encoder to.",
            f"Give at least {2 * recipe.held_out} names that the model knows.",
        )
    encoder = create_encoder(pairs, ~held_out, seed)
    features, tokens = pairs.features[~held_out], pairs.tokens[~held_out]
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    progress.start(recipe.steps, "fitting the encoder")
    for step in range(recipe.steps):
        random = create_generator(seed, "encoder", step)
        chosen = torch.randint(len(features), (recipe.batch,), generator=random)
        error = (encoder(features[chosen], random) - tokens[chosen]).pow(2).mean() / encoder.norm**2
        for group in optimiser.param_groups:
            group["lr"] = compute_cosine_rate(step, recipe.steps, recipe.learning_rate)
        optimiser.zero_grad(set_to_none=True)
        error.backward()
        optimiser.step()
        progress.advance()
    progress.finish()
    encoder.requires_grad_(requires_grad=False)
    explained = compute_explained_variance(encoder(pairs.features[held_out]), pairs.tokens[held_out], tokens.mean(0))
    return encoder, explained


def create_encoder(pairs: NamePairs, used: Tensor, seed: int) -> NameEncoder:
    """Create an encoder with the statistics of the pairs that are used; its first weights depend on the seed alone."""
    _, words, width = pairs.tokens.shape
    with LOADING, torch.device("meta"):
        encoder = NameEncoder(pairs.features.shape[1], words, width)
    encoder.to_empty(device="cpu").float()
    random = create_generator(seed, "encoder weights")
    for layer in (encoder.first, encoder.second, encoder.last):
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator=random)
        nn.init.zeros_(layer.bias)
    encoder.mean.copy_(pairs.features[used].mean(0))
    encoder.scale.copy_(pairs.features[used].std(0).clamp(min=1e-4))
    encoder.norm.copy_(pairs.tokens[used].norm(dim=-1).mean())
    return encoder


def compute_explained_variance(found: Tensor, true: Tensor, mean: Tensor) -> float:
    """Return 1 minus the squared error over that of always saying the mean."""
    return float(1 - (found - true).pow(2).sum() / (true - mean).pow(2).sum())


def find_name_tokens(backbone: Backbone, names: Sequence[str], words: int) -> dict[str, Tensor]:
    """Find the rows of the token table of the names' first words, `[words, width]` each; names with fewer are left out.

    Raises:
        ConfigError: no name has so many.
    """
    rows: dict[str, Tensor] = {}
    for name in names:
        tokens = tokenize_text(backbone, name)
        if len(tokens) >= words:
            rows[name] = torch.stack([backbone.get_token_row(token) for token in tokens[:words]]).float().cpu()
    if not rows:
        raise ConfigError(f"No name has {words} tokens.", "Give a list of names that the model knows, one a line.")
    return rows


def pair_heads_with_names(
    backbone: Backbone, images: Iterable[tuple[int, Tensor, Tensor]], detector: FaceDetector
) -> NamePairs:
    """Pair the heads of images with the names that they show; images without a face are left out.

    Args:
        images: for each the number of the person, pixels `[3, side, side]` in [-1, 1] and the name's rows
            `[words, width]`.

    Raises:
        ConfigError: no image shows a face.
    """
    features: list[Tensor] = []
    tokens: list[Tensor] = []
    people: list[int] = []
    for person, pixels, rows in images:
        try:
            face = find_face_in(pixels, detector, "an image")
        except FaceError:
            continue
        features.append(compute_head_features(backbone, cut_head(pixels, face)[None])[0])
        tokens.append(rows)
        people.append(person)
    if not people:
        raise ConfigError("None of the images shows a face.", "Give names of people that the model knows.")
    return NamePairs(torch.stack(features), torch.stack(tokens), torch.tensor(people))


# Their seeds are nobody's: users take small ones.
FIRST_PAIR_SEED = 9_000_001
PAIR_PROMPT = "a photo of the face of {}"


def draw_name_pairs(
    backbone: Backbone, names: Sequence[str], words: int, count: int, config: Config, detector: FaceDetector,
    progress: Progress,
) -> NamePairs:  # fmt: skip
    """Pair the model's own images of names that it knows with the names' tokens; no photograph is needed.

    Args:
        words: tokens of a name that count.
        count: images of each name.
    """
    rows = find_name_tokens(backbone, names, words)
    shown = [name for name in rows for _ in range(count)]
    prompts = [PAIR_PROMPT.format(name) for name in shown]
    seeds = range(FIRST_PAIR_SEED, FIRST_PAIR_SEED + len(prompts))
    settings = config.generate.model_copy(update={"width": None, "height": None})
    images = sample_images(backbone, IdentityConditioner(backbone, []), prompts, list(seeds), settings, progress)
    shown_people = ((one.index // count, convert_to_pixels(one.pixels), rows[shown[one.index]]) for one in images)
    return pair_heads_with_names(backbone, shown_people, detector)
