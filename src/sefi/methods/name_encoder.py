"""The name encoder: a photo to the tokens that a model would know the person by, fitted on what the model knows."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sefi.backbone.bundle import Backbone
from sefi.backbone.files import LOADING
from sefi.core.config import Config
from sefi.core.errors import ConfigError, FaceError
from sefi.core.progress import Progress
from sefi.core.prompts import is_person
from sefi.core.reading import (
    InvalidFileError,
    Limits,
    check_shapes,
    parse_object,
    read_bytes,
    read_tensors,
    translate_file_errors,
)
from sefi.core.rng import create_generator
from sefi.core.text import dump_json
from sefi.diffusion.composer import is_trained_for
from sefi.diffusion.sampling import sample_plain_images
from sefi.diffusion.text import tokenize_text
from sefi.evaluation.second_recogniser import (
    ResidualTrunk,
    SecondRecogniser,
    align_image_face,
    load_second_recogniser,
)
from sefi.identity.file import Identity
from sefi.identity.tokens import drop_out
from sefi.methods.base import create_header
from sefi.photo.augment import CropFace, PhotoViews, convert_to_bytes, cut_head, find_face_in
from sefi.photo.detect import FaceDetector, enlarge_image
from sefi.photo.read import convert_to_pixels
from sefi.training.loop import compute_cosine_rate, set_rate
from sefi.training.token_inversion import BatchEncoder

SHIPPED_ENCODER = Path(__file__).parents[1] / "models" / "name_encoder.safetensors"
ENCODER_KEY, ENCODER_SIGNATURE = "sefi-name-encoder", "sefi-model-signature"
ENCODER_LIMITS = Limits(size=32 * 2**20)
TRAINING_REMEDY = "Train one for this model: sefi encoder train --model MODEL --names FILE."
CELLS = 12  # a side of the latents that are read: finer ones say where, not who
WIDTHS, STRIDES = (32, 64, 128), (1, 2, 2)  # of the stages that read them
FACE_INNER, INNER = 128, 256
MOST_WORDS, MOST_FACE_FEATURES = 8, 16_384
NOISE, DROPPED = 0.2, 0.2  # in training: of every feature, and of the layers' inputs
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class HeadFeatures:
    """What the encoder reads of heads.

    Attributes:
        latents: means of the posterior of the model's own autoencoder, `[head, channel, cell, cell]`.
        faces: what the second recogniser's trunk sees of the aligned faces, `[head, number]`; no numbers where the
            model has no such recogniser.
    """

    latents: Tensor
    faces: Tensor

    def select(self, chosen: Tensor) -> "HeadFeatures":
        """Return those of some heads."""
        return HeadFeatures(self.latents[chosen], self.faces[chosen])

    def average(self) -> "HeadFeatures":
        """Return the mean of several photos of one person, as one."""
        return HeadFeatures(self.latents.mean(0, keepdim=True), self.faces.mean(0, keepdim=True))


class NameEncoder(nn.Module):
    """Features of a head to the tokens that the model would know the person by.

    Residual stages over the latents and a layer over the face's features; a layer of both; then directions, which get
    the norm of names. The model is frozen and knows many people by name: what it knows of heads and tokens is fitted
    once, and read for everyone.

    Args:
        channels, cells: of the latents.
        faces: how many numbers of the face; 0 reads latents only.
        words: how many tokens.
        width: of a token.
    """

    latent_mean: Tensor
    latent_scale: Tensor
    face_mean: Tensor
    face_scale: Tensor
    norm: Tensor

    def __init__(self, channels: int, cells: int, faces: int, words: int, width: int) -> None:
        super().__init__()
        self.words, self.width = words, width
        for name, size in {"latent": channels, **({"face": faces} if faces else {})}.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size, dtype=torch.float32))
            self.register_buffer(f"{name}_scale", torch.ones(size, dtype=torch.float32))
        self.register_buffer("norm", torch.ones((), dtype=torch.float32))
        self.trunk = ResidualTrunk(channels, WIDTHS, STRIDES)
        self.face = nn.Linear(faces, FACE_INNER) if faces else None
        side = math.ceil(cells / math.prod(STRIDES))  # every stride rounds up
        self.join = nn.Linear(WIDTHS[-1] * side**2 + (FACE_INNER if faces else 0), INNER)
        self.last = nn.Linear(INNER, words * width)

    def forward(self, heads: HeadFeatures, random: torch.Generator | None = None) -> Tensor:
        """Map features of `n` heads to tokens `[n, words, width]`; `random` draws what training adds."""
        latents = (heads.latents - self.latent_mean[:, None, None]) / self.latent_scale[:, None, None]
        inner = [self.trunk(add_noise_to(latents, random))[-1].flatten(1)]
        if self.face is not None:
            faces = add_noise_to((heads.faces - self.face_mean) / self.face_scale, random)
            inner.append(F.silu(self.face(drop_out(faces, DROPPED, random))))
        x = F.silu(self.join(drop_out(torch.cat(inner, dim=1), DROPPED, random)))
        x = self.last(drop_out(x, DROPPED, random))
        return self.norm * F.normalize(x.unflatten(-1, (self.words, self.width)), dim=-1)


def add_noise_to(features: Tensor, random: torch.Generator | None) -> Tensor:
    """Return features with noise, as training adds it; without a generator as they are."""
    if random is None:
        return features
    return features + NOISE * torch.randn(features.shape, generator=random, dtype=torch.float32)


@torch.no_grad()
def compute_head_features(
    backbone: Backbone, crops: Sequence[Tensor], faces: Sequence[CropFace], recogniser: SecondRecogniser | None
) -> HeadFeatures:
    """Compute what the encoder reads of squares `[3, R, R]` in [-1, 1] with a face in each.

    The recogniser that evaluates is not asked, so it cannot be flattered.

    Args:
        recogniser: the second one; None reads latents only.

    Raises:
        FaceError: the landmarks of a face lie in one point.
    """
    heads = torch.stack([cut_head(crop, face.box) for crop, face in zip(crops, faces, strict=True)])
    latents = BatchEncoder(backbone).encode(heads).float().cpu()
    latents = F.adaptive_avg_pool2d(latents, min(CELLS, latents.shape[-1]))
    if recogniser is None:
        return HeadFeatures(latents, latents.new_zeros((len(latents), 0)))
    aligned = [align_crop_face(crop, face) for crop, face in zip(crops, faces, strict=True)]
    return HeadFeatures(latents, recogniser.trunk(torch.stack(aligned) / 127.5 - 1)[-1].flatten(1))


def align_crop_face(crop: Tensor, face: CropFace) -> Tensor:
    """Return the face of a square as recognisers read it, `[3, 112, 112]` in [0, 255]."""
    large = enlarge_image(convert_to_bytes(crop))
    return align_image_face(large, np.array(face.landmarks) * len(large))


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
    heads = compute_head_features(backbone, views.crops, views.faces, load_face_reader(encoder))
    with torch.no_grad():
        tokens = encoder(heads.average())[0]
    return Identity({"tokens": tokens.expand(1, 2, -1, -1).contiguous()}, create_header(name, backbone, config, seed))


def load_face_reader(encoder: NameEncoder) -> SecondRecogniser | None:
    """Load the recogniser whose features an encoder reads; None where it reads latents only."""
    return None if encoder.face is None else load_second_recogniser()


def has_encoder(backbone: Backbone, config: Config) -> bool:
    """Return whether the settings name an encoder, or the package has one for this model."""
    return config.learn.encoder is not None or (backbone.is_embedded and SHIPPED_ENCODER.is_file())


def can_read_tokens(backbone: Backbone, config: Config) -> bool:
    """Return whether an encoder can give tokens of this kind: of people, as many for a placeholder as settings say."""
    learn = config.learn
    if not (has_encoder(backbone, config) and is_person(learn.class_word) and learn.expansion == "direct"):
        return False
    return learn.vectors == 1 or learn.encoder is not None


def load_chosen_encoder(backbone: Backbone, config: Config) -> NameEncoder:
    """Load the encoder that the settings name, or the embedded model's where the package has one.

    Raises:
        ConfigError: none is named for a model that brings none, or it gives another number of tokens.
    """
    if not has_encoder(backbone, config):
        raise ConfigError(
            "This model brings no name encoder to start from.", f"{TRAINING_REMEDY} Then set learn.encoder=FILE."
        )
    encoder = load_encoder(locate_encoder(config), backbone)
    if encoder.words != config.learn.vectors:
        raise ConfigError(
            f"This name encoder gives {encoder.words} tokens; learn.vectors is {config.learn.vectors}.",
            f"Set learn.vectors={encoder.words}.",
        )
    return encoder


def locate_encoder(config: Config) -> Path:
    """Return the file of the encoder that the settings name, or the package's own."""
    return SHIPPED_ENCODER if config.learn.encoder is None else Path(config.learn.encoder)


def hash_encoder(config: Config) -> str:
    """Return the SHA-256 of the chosen encoder's file.

    With the photo it says where learning starts. The tokens that are read do not: they are rounded otherwise with
    another number of threads.

    Raises:
        ConfigError: the file is missing, or too large for an encoder.
    """
    path = locate_encoder(config)
    with translate_file_errors(path, ConfigError, "is no name encoder", TRAINING_REMEDY):
        return hashlib.sha256(read_bytes(path, ENCODER_LIMITS.size)).hexdigest()


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
    faces = tensors["face_mean"].numel() if "face_mean" in tensors else 0
    if left or not 1 <= words <= MOST_WORDS:
        raise InvalidFileError("its tokens are not of this model's width")
    if faces > MOST_FACE_FEATURES:
        raise InvalidFileError(f"it reads more than {MOST_FACE_FEATURES:,} numbers of a face")
    cells = min(CELLS, backbone.latent_size)
    with LOADING, torch.device("meta"):
        encoder = NameEncoder(backbone.latent_channels, cells, faces, words, backbone.token_width)
    weights = {name: one.float() for name, one in tensors.items()}
    check_shapes(weights, encoder.state_dict())
    if not all(one.isfinite().all() for one in weights.values()):
        raise InvalidFileError("a weight is not finite")
    encoder.to_empty(device="cpu").float().load_state_dict(weights)
    return encoder.eval().requires_grad_(requires_grad=False)


def save_encoder(encoder: NameEncoder, backbone: Backbone, path: Path) -> None:
    """Write an encoder in half precision, with the model that it is for."""
    signature = {} if backbone.signature is None else backbone.signature.dump()
    about = {ENCODER_KEY: backbone.fingerprint, ENCODER_SIGNATURE: dump_json(signature)}
    halves = {name: one.detach().half().contiguous() for name, one in encoder.state_dict().items()}
    save_file(halves, path, metadata=about)


# ------------------------------------------------------------------ how it is fitted


@dataclass(frozen=True)
class NamePairs:
    """What the encoder is fitted on.

    Attributes:
        heads: what is read.
        tokens: the names' rows of the token table, `[pair, words, width]`.
        person: whose each is, `[pair]`; people are held out whole.
    """

    heads: HeadFeatures
    tokens: Tensor
    person: Tensor


@dataclass(frozen=True)
class EncoderRecipe:
    """How the encoder is fitted: AdamW with a rate that rises for a twentieth of the steps and falls by a cosine."""

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 1.5e-3
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
    heads, tokens = pairs.heads.select(~held_out), pairs.tokens[~held_out]
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    progress.start(recipe.steps, "fitting the encoder")
    for step in range(recipe.steps):
        random = create_generator(seed, "encoder", step)
        chosen = torch.randint(len(tokens), (recipe.batch,), generator=random)
        error = (encoder(heads.select(chosen), random) - tokens[chosen]).pow(2).sum(-1).mean() / encoder.norm**2
        rising = min(1.0, (step + 1) / max(1, recipe.steps // 20))
        set_rate(optimiser, rising * compute_cosine_rate(step, recipe.steps, recipe.learning_rate))
        optimiser.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), GRADIENT_CLIP)
        optimiser.step()
        progress.advance()
    progress.finish()
    encoder.requires_grad_(requires_grad=False)
    found = torch.cat([encoder(pairs.heads.select(some)) for some in held_out.nonzero()[:, 0].split(recipe.batch)])
    return encoder, compute_explained_variance(found, pairs.tokens[held_out], tokens.mean(0))


def create_encoder(pairs: NamePairs, used: Tensor, seed: int) -> NameEncoder:
    """Create an encoder with the statistics of the pairs that are used; its first weights depend on the seed alone."""
    _, words, width = pairs.tokens.shape
    heads = pairs.heads.select(used)
    channels, cells, faces = heads.latents.shape[1], heads.latents.shape[2], heads.faces.shape[1]
    with LOADING, torch.device("meta"):
        encoder = NameEncoder(channels, cells, faces, words, width)
    encoder.to_empty(device="cpu").float()
    draw_first_weights(encoder, create_generator(seed, "encoder weights"))
    encoder.latent_mean.copy_(heads.latents.mean((0, 2, 3)))
    encoder.latent_scale.copy_(heads.latents.std((0, 2, 3)).clamp(min=1e-4))
    if faces:
        encoder.face_mean.copy_(heads.faces.mean(0))
        encoder.face_scale.copy_(heads.faces.std(0).clamp(min=1e-3))
    encoder.norm.copy_(pairs.tokens[used].norm(dim=-1).mean())
    return encoder


def draw_first_weights(network: nn.Module, random: torch.Generator) -> None:
    """Draw the weights of convolutions and linear layers as torch does, from a stream of their own."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=random)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


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
    backbone: Backbone,
    images: Iterable[tuple[int, Tensor, Tensor]],
    detector: FaceDetector,
    recogniser: SecondRecogniser | None = None,
) -> NamePairs:
    """Pair the heads of images with the names that they show; images without a face are left out.

    Args:
        images: for each the number of the person, pixels `[3, side, side]` in [-1, 1] and the name's rows
            `[words, width]`.
        recogniser: the second one, where the encoder is to read its features too.

    Raises:
        ConfigError: no image shows a face.
    """
    heads: list[HeadFeatures] = []
    tokens: list[Tensor] = []
    people: list[int] = []
    for person, pixels, rows in images:
        try:
            face = find_face_in(pixels, detector, "an image")
            heads.append(compute_head_features(backbone, [pixels], [face], recogniser))
        except FaceError:
            continue
        tokens.append(rows)
        people.append(person)
    if not people:
        raise ConfigError("None of the images shows a face.", "Give names of people that the model knows.")
    latents, faces = (torch.cat(some) for some in zip(*[(one.latents, one.faces) for one in heads], strict=True))
    return NamePairs(HeadFeatures(latents, faces), torch.stack(tokens), torch.tensor(people))


# Users take small seeds. Probes take these too, but of other prompts, and no encoder is fitted on their images.
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
    images = sample_plain_images(backbone, prompts, seeds, config.generate, progress)
    shown_people = ((one.index // count, convert_to_pixels(one.pixels), rows[shown[one.index]]) for one in images)
    return pair_heads_with_names(backbone, shown_people, detector)
