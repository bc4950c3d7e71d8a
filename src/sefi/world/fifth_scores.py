"""Figures of the fifth version: the autoencoder's gate, named characters, random tokens, backgrounds."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.encode import get_token_row
from sefi.conditioning.prompt import get_class_token_id
from sefi.core.config import GenerateConfig
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.protocols import Progress
from sefi.core.streams import stream
from sefi.generate.sampler import generate
from sefi.learn.objective import TrainingSample, compute_losses
from sefi.learn.sampling import draw_training_timesteps
from sefi.learn.texts import encode_training_texts
from sefi.metrics.encoders import ClipEncoder
from sefi.metrics.leakage import background_leakage, without_face
from sefi.metrics.similarity import similarity
from sefi.photo.enlarge import LOOKING_SIDE
from sefi.world.clip_training import CLIP
from sefi.world.data import picture_at
from sefi.world.drawing import draw, face_truth
from sefi.world.expressiveness import FREE, PROMPT
from sefi.world.figure import Figure
from sefi.world.judging_data import HELD_OUT_SEED
from sefi.world.looking import Judges, Sight
from sefi.world.model_scores import known_face, painted
from sefi.world.names import characters
from sefi.world.picture import Picture
from sefi.world.subjects import photo_in_scene, portrait, subject
from sefi.world.vae_training import to_tensor
from sefi.world.versions import WorldVersion, version_of_side

SIMILARITY, WITHIN, EDGES = 0.97, -0.01, (0.90, 1.05)
NAMED, NORMS, TOKENS = 20, (0.7, 1.7), 200
LEAK_PEOPLE, LEAK_STEPS, LEAK_PICTURES = 4, 1000, 8


def open_autoencoder(model: Path) -> tuple[AutoencoderKL, WorldVersion]:
    """Return the autoencoder of a model or training folder, and the version that its size belongs to."""
    vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True, use_safetensors=True)
    side: int = vae.config["sample_size"]
    return vae.float().eval(), version_of_side(side)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, rgb: np.ndarray) -> np.ndarray:
    """Return a drawing `[side, side, 3]`, uint8, encoded (the mean) and decoded."""
    encoded = vae.encode(to_tensor(rgb[None])).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    decoded: Tensor = vae.decode(encoded).sample  # pyright: ignore[reportAttributeAccessIssue]
    return ((decoded[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def measure_edges(rgb: np.ndarray) -> float:
    """Return the mean squared difference of neighbouring pixels."""
    image = rgb.astype(np.float64)
    return float((np.diff(image, axis=0) ** 2).mean() + (np.diff(image, axis=1) ** 2).mean())


def list_truths(picture: Picture) -> list[tuple[str, str]]:
    """Return what a reader should see of one person's or one animal's picture, as (kind, label)."""
    found = [("scene", picture.scene), ("style", picture.style)]
    found += [("action", s.action) for s in picture.subjects[:1]] + [("pet", p.animal.kind) for p in picture.pets[:1]]
    if len(picture.subjects) == 1 and not picture.pets:
        found += [("attribute", a) for a in picture.subjects[0].attributes]
    return found


def knows(sight: Sight, kind: str, label: str) -> bool:
    """Return whether the readers have this label at all; those of an earlier version know fewer."""
    reading = sight.reading
    return label in (reading.attributes if kind == "attribute" else reading.choices.get(kind, {}))


@dataclass(frozen=True)
class Comparison:
    """One drawing and its reconstruction: similarity (None without a face), readings right, (kind, before, after)."""

    similarity: float | None
    readings: list[tuple[str, bool, bool]]
    edges: tuple[float, float]


def compare(vae: AutoencoderKL, judges: Judges, picture: Picture, side: int) -> Comparison:
    """Return how a drawing's reconstruction differs from it for the evaluators."""
    drawn = draw(picture, side)
    made = reconstruct(vae, drawn)
    before, after = judges(drawn), judges(made)
    near = None
    if len(picture.subjects) == 1 and before.embedding is not None:
        near = 0.0 if after.embedding is None else similarity(before.embedding, after.embedding)
    right = [
        (kind, before.reading.shows(kind, label), after.reading.shows(kind, label))
        for kind, label in list_truths(picture)
        if knows(before, kind, label)
    ]
    return Comparison(near, right, (measure_edges(drawn), measure_edges(made)))


def score_autoencoder(model: Path, judges: Judges, count: int, progress: Progress) -> list[Figure]:
    """Return the gate's figures over unseen drawings: similarity, readers, edge energy."""
    vae, version = open_autoencoder(model)
    found = list[Comparison]()
    progress.start(count, "autoencoder")
    for index in range(count):
        found.append(compare(vae, judges, picture_at(HELD_OUT_SEED, 9000 + index, version), version.side))
        progress.advance()
    progress.finish()
    return autoencoder_figures(found)


def autoencoder_figures(found: Sequence[Comparison]) -> list[Figure]:
    """Return the figures of comparisons; edge energy has two, as it may be too low or too high."""
    near = [c.similarity for c in found if c.similarity is not None]
    figures = [
        Figure("autoencoder: recogniser similarity of reconstructions", float(np.mean(near)), SIMILARITY, len(near))
    ]
    readings = [r for c in found for r in c.readings]
    for kind in dict.fromkeys(kind for kind, _, _ in readings):
        pairs = np.array([(before, after) for k, before, after in readings if k == kind], float)
        change = float(pairs[:, 1].mean() - pairs[:, 0].mean())
        figures.append(Figure(f"autoencoder: {kind} read, against drawings", change, WITHIN, len(pairs)))
    energy = np.array([c.edges for c in found]).sum(0)
    ratio = float(energy[1] / energy[0])
    low, high = EDGES
    return [
        *figures,
        Figure("autoencoder: edge energy, share of the drawings'", ratio, low, len(found)),
        Figure(f"autoencoder: edge energy below {high}", high - ratio, 0.0, len(found)),
    ]


def list_prompts() -> list[str]:
    """Return the benchmark's prompts, `{}` for the subject."""
    text = (files("sefi.bench") / "prompts" / "paper.toml").read_text(encoding="utf-8")
    return [prompt["text"] for prompt in tomllib.loads(text)["prompts"]]


def score_identity(
    backbone: Backbone, judges: Judges, named: int, config: GenerateConfig, progress: Progress
) -> list[Figure]:
    """Return how well named characters are drawn over the benchmark's prompts, and how often with one face."""
    chosen = range(0, len(characters()), max(1, len(characters()) // named))[:named]
    people = [characters()[n] for n in chosen]
    truths = [
        known_face(judges, draw(portrait(c.person, n), LOOKING_SIDE)) for n, c in zip(chosen, people, strict=True)
    ]
    asked = list(product(range(len(people)), list_prompts()))
    images = painted(backbone, [text.format(people[who].first) for who, text in asked], config, progress)
    sights = [judges(image) for image in images]
    near = [
        0.0 if sight.embedding is None else similarity(truths[who], sight.embedding)
        for (who, _), sight in zip(asked, sights, strict=True)
    ]
    one = [len(sight.faces) == 1 for sight in sights]
    return [
        Figure("named characters over the benchmark's prompts: ID", float(np.mean(near)), 0.72, len(near)),
        Figure("named characters over the benchmark's prompts: one face", float(np.mean(one)), 0.995, len(one)),
    ]


def random_tokens(backbone: Backbone, seed: int) -> Tensor:
    """Return tokens `[stage, 2, width]` of one random direction, 0.7 to 1.7 times as long as the class word's."""
    row = get_token_row(backbone, get_class_token_id(backbone.tokenizer, FREE.class_word))
    random = stream(seed, "random tokens")
    direction = torch.randn(row.shape, generator=random)
    low, high = NORMS
    length = (low + (high - low) * torch.rand((), generator=random)) * row.norm()
    return (direction / direction.norm() * length).repeat(FREE.stages, 2, 1)


def as_identity(backbone: Backbone, tokens: Tensor, seed: int) -> Identity:
    """Return tokens `[stage, 2, width]` as the identity of `<p>`."""
    header = IdentityHeader(
        name="p", method="sefi", stages=FREE.stages, base_model=backbone.fingerprint, width=backbone.width,
        class_word=FREE.class_word, settings={}, seed=seed, library_versions={}, metrics={},
    )  # fmt: skip
    return Identity({"tokens": tokens}, header)


def score_tokens(
    backbone: Backbone, judges: Judges, count: int, config: GenerateConfig, progress: Progress
) -> list[Figure]:
    """Return how often a picture of a random token shows one face."""
    found = list[bool]()
    for number in range(count):
        conditioner = IdentityConditioner(backbone, [as_identity(backbone, random_tokens(backbone, number), number)])
        for made in generate(backbone, conditioner, [PROMPT], [number], config, progress):
            found.append(len(judges(np.asarray(made.pixels)).faces) == 1)
    low, high = NORMS
    return [Figure(f"one face under random tokens of {low} to {high} norms", float(np.mean(found)), 0.99, len(found))]


def invert(backbone: Backbone, latent: Tensor, steps: int, seed: int, progress: Progress) -> Tensor:
    """Return one token for all stages, key and value alike, after plain textual inversion on one latent.

    Args:
        latent: of the photo, `[1, channels, height, width]`; no crops and no attention loss.
    """
    texts = encode_training_texts(backbone, FREE)
    row = get_token_row(backbone, get_class_token_id(backbone.tokenizer, FREE.class_word)).clone().requires_grad_()
    optimiser = torch.optim.Adam([row], lr=FREE.learning_rate)
    progress.start(steps, "textual inversion")
    for step in range(steps):
        random = stream(seed, "inversion", step)
        clean = latent.expand(FREE.batch, -1, -1, -1)
        template = torch.randint(len(FREE.templates), (FREE.batch,), generator=random)
        noise = torch.randn(clean.shape, generator=random)
        sample = TrainingSample(
            clean, noise, draw_training_timesteps(FREE, backbone.num_train_timesteps, random), template
        )
        loss = compute_losses(backbone, texts, row.repeat(FREE.stages, 2, 1), sample, FREE).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return row.detach().repeat(FREE.stages, 2, 1)


def embed_background(encoder: ClipEncoder, rgb: np.ndarray, box: Sequence[float]) -> np.ndarray | None:
    """Return the image embedding of a picture whose face is blank; box is left, top, right, bottom as shares."""
    left, top, right, bottom = box
    blank = without_face(rgb, (left, top, right, bottom))
    return None if blank is None else encoder.images([blank])[0]


def measure_leak(
    backbone: Backbone,
    encoder: ClipEncoder,
    judges: Judges,
    identity: Identity,
    photo: np.ndarray,
    config: GenerateConfig,
    progress: Progress,
) -> float:
    """Return how near the backgrounds of `a photo of <p>` come to the photo's background."""
    conditioner = IdentityConditioner(backbone, [identity])
    seeds = list(range(LEAK_PICTURES))
    made = generate(backbone, conditioner, [PROMPT] * len(seeds), seeds, config, progress)
    found = list[np.ndarray]()
    for image in made:
        pixels = np.asarray(image.pixels)
        faces = judges(pixels).faces
        side = LOOKING_SIDE if len(pixels) < LOOKING_SIDE else len(pixels)
        box = [0.0, 0.0, 0.0, 0.0]
        if faces:
            face = faces[0]
            box = [face.left, face.top, face.left + face.width, face.top + face.height]
        embedded = embed_background(encoder, pixels, [edge / side for edge in box])
        found += [] if embedded is None else [embedded]
    return background_leakage(np.array(found), photo)


def score_backgrounds(
    backbone: Backbone, folder: Path, people: int, steps: int, config: GenerateConfig, progress: Progress
) -> list[Figure]:
    """Return how much of a photo's scene an overfitted token brings back, against the plain word.

    An honest instrument shows the problem that methods are meant to solve: the difference is clearly above 0.
    """
    encoder, judges = ClipEncoder(folder / CLIP), Judges(folder)
    version = version_of_side(backbone.resolution)
    word = get_token_row(backbone, get_class_token_id(backbone.tokenizer, FREE.class_word)).repeat(FREE.stages, 2, 1)
    differences = list[float]()
    for number in range(300, 300 + people):
        shown = replace(photo_in_scene(subject(number), number, 1, version), light="")
        drawn = draw(shown, version.side)
        left, top, width, height = (float(edge) / 128 for edge in face_truth(shown.subjects[0])["box"])
        photo = embed_background(encoder, drawn, (left, top, left + width, top + height))
        if photo is None:
            continue
        latent = backbone.encode_image(to_tensor(drawn[None]), stream(number, "inversion"))
        tokens = invert(backbone, latent, steps, number, progress)
        compared = [as_identity(backbone, some, number) for some in (tokens, word)]
        leaks = [measure_leak(backbone, encoder, judges, one, photo, config, progress) for one in compared]
        differences.append(leaks[0] - leaks[1])
    name = f"background leakage of {steps} steps of textual inversion, above the plain word's"
    return [Figure(name, float(np.mean(differences)), 0.05, len(differences))]
