"""Scores of the autoencoder's gate, named characters, random tokens and backgrounds."""

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
from sefi.core.config import SCRATCH, GenerateSettings
from sefi.core.progress import Progress
from sefi.core.rng import create_generator
from sefi.diffusion.conditioning import IdentityConditioner
from sefi.diffusion.sampling import sample_images
from sefi.diffusion.text import get_class_token_ids
from sefi.evaluation.encoders import ClipEncoder
from sefi.evaluation.metrics import blank_face, measure_background_leakage, measure_similarity
from sefi.identity.file import Identity, IdentityHeader
from sefi.photo.detect import LOOKING_SIDE
from sefi.training.token_inversion import TrainingBatch, compute_losses, draw_training_timesteps, encode_training_texts
from tiny_portraits.drawing.content import SHIPPED, ImageContent
from tiny_portraits.drawing.image import describe_face, draw
from tiny_portraits.drawing.sampling import get_content, make_portrait, make_scene_photo, make_test_person
from tiny_portraits.evaluation.figures import Figure, ImageEvaluators, Observation, embed_face, generate_arrays
from tiny_portraits.text.words import list_characters
from tiny_portraits.training.clip import CLIP
from tiny_portraits.training.drawings import HELD_OUT_SEED, convert_to_tensor

SIMILARITY, WITHIN, EDGES = 0.97, -0.01, (0.90, 1.05)
NAMED, NORMS, TOKENS = 12, (0.7, 1.7), 200
LEAK_PEOPLE, LEAK_STEPS, LEAK_IMAGES = 4, 1000, 8
VIEWS, PROMPT = 20, "a photo of <p>"
FREE = SCRATCH.learn.model_copy(update={"attention_weight": 0.0})
# Plain textual inversion: no attention loss; one latent needs no large batch.
INVERSION = FREE.model_copy(update={"batch": 4})


def open_autoencoder(model: Path) -> AutoencoderKL:
    """Return the autoencoder of a model or training folder."""
    vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True, use_safetensors=True)
    return vae.float().eval()


@torch.no_grad()
def reconstruct_drawing(vae: AutoencoderKL, rgb: np.ndarray) -> np.ndarray:
    """Return a drawing `[side, side, 3]`, uint8, encoded (the mean) and decoded."""
    encoded = vae.encode(convert_to_tensor(rgb[None])).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    decoded: Tensor = vae.decode(encoded).sample  # pyright: ignore[reportAttributeAccessIssue]
    return ((decoded[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def measure_edges(rgb: np.ndarray) -> float:
    """Return the mean squared difference of neighbouring pixels."""
    image = rgb.astype(np.float64)
    return float((np.diff(image, axis=0) ** 2).mean() + (np.diff(image, axis=1) ** 2).mean())


def list_truths(content: ImageContent) -> list[tuple[str, str]]:
    """Return what a reader should see of one person's or one animal's image, as (kind, label)."""
    truths = [("scene", content.scene), ("style", content.style)]
    truths += [("action", s.action) for s in content.subjects[:1]] + [("pet", p.animal.kind) for p in content.pets[:1]]
    if len(content.subjects) == 1 and not content.pets:
        truths += [("attribute", a) for a in content.subjects[0].attributes]
    return truths


def knows(observation: Observation, kind: str, label: str) -> bool:
    """Return whether the readers have this label at all; those of an earlier version know fewer."""
    reading = observation.reading
    return label in (reading.attributes if kind == "attribute" else reading.choices.get(kind, {}))


@dataclass(frozen=True)
class Comparison:
    """One drawing and its reconstruction: similarity (None without a face), readings right, (kind, before, after)."""

    similarity: float | None
    readings: list[tuple[str, bool, bool]]
    edges: tuple[float, float]


def compare(vae: AutoencoderKL, evaluators: ImageEvaluators, content: ImageContent, side: int) -> Comparison:
    """Return how a drawing's reconstruction differs from it for the evaluators."""
    drawing = draw(content, side)
    reconstruction = reconstruct_drawing(vae, drawing)
    before, after = evaluators(drawing), evaluators(reconstruction)
    near = None
    if len(content.subjects) == 1 and before.embedding is not None:
        near = 0.0 if after.embedding is None else measure_similarity(before.embedding, after.embedding)
    right = [
        (kind, before.reading.shows(kind, label), after.reading.shows(kind, label))
        for kind, label in list_truths(content)
        if knows(before, kind, label)
    ]
    return Comparison(near, right, (measure_edges(drawing), measure_edges(reconstruction)))


def score_autoencoder(model: Path, evaluators: ImageEvaluators, count: int, progress: Progress) -> list[Figure]:
    """Return the gate's figures over unseen drawings: similarity, readers, edge energy."""
    vae, side = open_autoencoder(model), SHIPPED.side
    comparisons = list[Comparison]()
    progress.start(count, "autoencoder")
    for index in range(count):
        comparisons.append(compare(vae, evaluators, get_content(HELD_OUT_SEED, 9000 + index), side))
        progress.advance()
    progress.finish()
    return make_autoencoder_figures(comparisons)


def make_autoencoder_figures(comparisons: Sequence[Comparison]) -> list[Figure]:
    """Return the figures of comparisons; edge energy has two, as it may be too low or too high."""
    near = [c.similarity for c in comparisons if c.similarity is not None]
    figures = [
        Figure("autoencoder: recogniser similarity of reconstructions", float(np.mean(near)), SIMILARITY, len(near))
    ]
    readings = [r for c in comparisons for r in c.readings]
    for kind in dict.fromkeys(kind for kind, _, _ in readings):
        pairs = np.array([(before, after) for k, before, after in readings if k == kind], float)
        change = float(pairs[:, 1].mean() - pairs[:, 0].mean())
        figures.append(Figure(f"autoencoder: {kind} read, against drawings", change, WITHIN, len(pairs)))
    energy = np.array([c.edges for c in comparisons]).sum(0)
    ratio = float(energy[1] / energy[0])
    low, high = EDGES
    return [
        *figures,
        Figure("autoencoder: edge energy, share of the drawings'", ratio, low, len(comparisons)),
        Figure(f"autoencoder: edge energy below {high}", high - ratio, 0.0, len(comparisons)),
    ]


def list_prompts() -> list[str]:
    """Return the benchmark's prompts, `{}` for the subject."""
    text = (files("sefi.benchmark") / "prompts" / "paper.toml").read_text(encoding="utf-8")
    return [prompt["text"] for prompt in tomllib.loads(text)["prompts"]]


def score_identity(
    backbone: Backbone, evaluators: ImageEvaluators, named: int, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how well named characters are drawn over the benchmark's prompts, and how often with one face."""
    chosen = range(0, len(list_characters()), max(1, len(list_characters()) // named))[:named]
    people = [list_characters()[n] for n in chosen]
    truths = [
        embed_face(evaluators, draw(make_portrait(c.person, n), LOOKING_SIDE))
        for n, c in zip(chosen, people, strict=True)
    ]
    asked = list(product(range(len(people)), list_prompts()))
    images = generate_arrays(backbone, [text.format(people[who].first) for who, text in asked], settings, progress)
    observations = [evaluators(image) for image in images]
    near = [
        0.0 if observation.embedding is None else measure_similarity(truths[who], observation.embedding)
        for (who, _), observation in zip(asked, observations, strict=True)
    ]
    one = [len(observation.faces) == 1 for observation in observations]
    return [
        Figure("named characters over the benchmark's prompts: ID", float(np.mean(near)), 0.72, len(near)),
        Figure("named characters over the benchmark's prompts: one face", float(np.mean(one)), 0.995, len(one)),
    ]


def sample_tokens(backbone: Backbone, seed: int) -> Tensor:
    """Return tokens `[stage, 2, width]` of one random direction, 0.7 to 1.7 times as long as the class word's."""
    row = backbone.get_token_row(get_class_token_ids(backbone, FREE.class_word))
    random = create_generator(seed, "random tokens")
    direction = torch.randn(row.shape, generator=random)
    low, high = NORMS
    length = (low + (high - low) * torch.rand((), generator=random)) * row.norm()
    return (direction / direction.norm() * length).repeat(FREE.stages, 2, 1)


def make_identity(backbone: Backbone, tokens: Tensor, seed: int) -> Identity:
    """Return tokens `[stage, 2, width]` as the identity of `<p>`."""
    header = IdentityHeader(
        name="p", method="sefi", stages=FREE.stages, base_model=backbone.fingerprint, width=backbone.token_width,
        class_word=FREE.class_word, settings={}, seed=seed, library_versions={}, metrics={},
    )  # fmt: skip
    return Identity({"tokens": tokens}, header)


def score_tokens(
    backbone: Backbone, evaluators: ImageEvaluators, count: int, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how often an image of a random token shows one face."""
    single_faces = list[bool]()
    for number in range(count):
        conditioner = IdentityConditioner(backbone, [make_identity(backbone, sample_tokens(backbone, number), number)])
        for sample in sample_images(backbone, conditioner, [PROMPT], [number], settings, progress):
            single_faces.append(len(evaluators(np.asarray(sample.pixels)).faces) == 1)
    low, high = NORMS
    share = float(np.mean(single_faces))
    return [Figure(f"one face under random tokens of {low} to {high} norms", share, 0.99, count)]


def invert_latent(backbone: Backbone, latent: Tensor, steps: int, seed: int, progress: Progress) -> Tensor:
    """Return one token for all stages, key and value alike, after plain textual inversion on one latent.

    Args:
        latent: of the photo, `[1, channels, height, width]`; no crops and no attention loss.
    """
    texts = encode_training_texts(backbone, INVERSION)
    row = backbone.get_token_row(get_class_token_ids(backbone, INVERSION.class_word)).clone().requires_grad_()
    optimiser = torch.optim.Adam([row], lr=INVERSION.learning_rate)
    progress.start(steps, "textual inversion")
    for step in range(steps):
        random = create_generator(seed, "inversion", step)
        clean = latent.expand(INVERSION.batch, -1, -1, -1)
        template = torch.randint(len(INVERSION.templates), (INVERSION.batch,), generator=random)
        noise = torch.randn(clean.shape, generator=random)
        sample = TrainingBatch(
            clean, noise, draw_training_timesteps(INVERSION, backbone.num_train_timesteps, random), template
        )
        loss = compute_losses(backbone, texts, row.repeat(INVERSION.stages, 2, 1), sample, INVERSION).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return row.detach().repeat(INVERSION.stages, 2, 1)


def embed_background(encoder: ClipEncoder, rgb: np.ndarray, box: Sequence[float]) -> np.ndarray | None:
    """Return the image embedding of an image whose face is blank; box is left, top, right, bottom as shares."""
    left, top, right, bottom = box
    blank = blank_face(rgb, (left, top, right, bottom))
    return None if blank is None else encoder.encode_images([blank])[0]


def measure_leak(
    backbone: Backbone,
    encoder: ClipEncoder,
    evaluators: ImageEvaluators,
    identity: Identity,
    photo: np.ndarray,
    settings: GenerateSettings,
    progress: Progress,
) -> float:
    """Return how near the backgrounds of `a photo of <p>` come to the photo's background."""
    conditioner = IdentityConditioner(backbone, [identity])
    seeds = list(range(LEAK_IMAGES))
    samples = sample_images(backbone, conditioner, [PROMPT] * len(seeds), seeds, settings, progress)
    embeddings = list[np.ndarray]()
    for sample in samples:
        pixels = np.asarray(sample.pixels)
        faces = evaluators(pixels).faces
        side = LOOKING_SIDE if len(pixels) < LOOKING_SIDE else len(pixels)
        box = [0.0, 0.0, 0.0, 0.0]
        if faces:
            face = faces[0]
            box = [face.left, face.top, face.left + face.width, face.top + face.height]
        embedded = embed_background(encoder, pixels, [edge / side for edge in box])
        embeddings += [] if embedded is None else [embedded]
    return measure_background_leakage(np.array(embeddings), photo)


def score_backgrounds(
    backbone: Backbone, folder: Path, people: int, steps: int, settings: GenerateSettings, progress: Progress
) -> list[Figure]:
    """Return how much of a photo's scene an overfitted token brings back, against the plain word.

    An honest instrument shows the problem that methods are meant to solve: the difference is clearly above 0.
    """
    encoder, evaluators = ClipEncoder(folder / CLIP), ImageEvaluators(folder)
    word = backbone.get_token_row(get_class_token_ids(backbone, FREE.class_word)).repeat(FREE.stages, 2, 1)
    differences = list[float]()
    for number in range(300, 300 + people):
        shown = replace(make_scene_photo(make_test_person(number), number, 1, SHIPPED), light="")
        drawing = draw(shown, SHIPPED.side)
        left, top, width, height = (float(edge) / 128 for edge in describe_face(shown.subjects[0])["box"])
        photo = embed_background(encoder, drawing, (left, top, left + width, top + height))
        if photo is None:
            continue
        latent = backbone.encode_image(convert_to_tensor(drawing[None]), create_generator(number, "inversion"))
        tokens = invert_latent(backbone, latent, steps, number, progress)
        compared = [make_identity(backbone, some, number) for some in (tokens, word)]
        leaks = [measure_leak(backbone, encoder, evaluators, one, photo, settings, progress) for one in compared]
        differences.append(leaks[0] - leaks[1])
    name = f"background leakage of {steps} steps of textual inversion, above the plain word's"
    return [Figure(name, float(np.mean(differences)), 0.05, len(differences))]


def fit_tokens(backbone: Backbone, latents: Tensor, steps: int, seed: int, progress: Progress) -> Tensor:
    """Return tokens `[stage, 2, width]` that best explain latents `[image, channel, h, w]` of one person."""
    texts = encode_training_texts(backbone, FREE)
    row = backbone.get_token_row(get_class_token_ids(backbone, FREE.class_word))
    tokens = row.repeat(FREE.stages, 2, 1).requires_grad_()
    optimiser = torch.optim.Adam([tokens], lr=FREE.learning_rate)
    progress.start(steps, "free tokens")
    for step in range(steps):
        random = create_generator(seed, "free", step)
        chosen = latents[torch.randint(len(latents), (FREE.batch,), generator=random)]
        noise = torch.randn(chosen.shape, generator=random)
        template = torch.randint(len(FREE.templates), (FREE.batch,), generator=random)
        sample = TrainingBatch(
            chosen, noise, draw_training_timesteps(FREE, backbone.num_train_timesteps, random), template
        )
        loss = compute_losses(backbone, texts, tokens, sample, FREE).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return tokens.detach()


def draw_person_views(number: int, side: int) -> np.ndarray:
    """Return drawings of a test person, uint8 RGB `[view, side, side, 3]`."""
    return np.stack([draw(make_portrait(make_test_person(number), number, 1 + view), side) for view in range(VIEWS)])


@torch.no_grad()
def encode_person_views(backbone: Backbone, drawings: np.ndarray, seed: int) -> Tensor:
    """Return latents `[view, channel, height, width]` of drawings of the model's side."""
    return torch.cat(
        [backbone.encode_image(one[None], create_generator(seed, "free")) for one in convert_to_tensor(drawings)]
    )


def measure_likeness(
    backbone: Backbone,
    evaluators: ImageEvaluators,
    number: int,
    steps: int,
    settings: GenerateSettings,
    progress: Progress,
) -> tuple[float, float]:
    """Return the mean similarity of generated images, and of other drawings of the person, to one unused drawing."""
    drawings = draw_person_views(number, backbone.resolution)
    tokens = fit_tokens(backbone, encode_person_views(backbone, drawings, number), steps, number, progress)
    header = IdentityHeader(
        name="p", method="sefi", stages=FREE.stages, base_model=backbone.fingerprint, width=backbone.token_width,
        class_word=FREE.class_word, settings={}, seed=number, library_versions={}, metrics={},
    )  # fmt: skip
    conditioner = IdentityConditioner(backbone, [Identity({"tokens": tokens}, header)])
    samples = list(sample_images(backbone, conditioner, [PROMPT] * 8, list(range(8)), settings, progress))
    unused = evaluators(draw(make_portrait(make_test_person(number), number), LOOKING_SIDE)).embedding

    def measure_mean(images: list[np.ndarray]) -> float:
        faces = [evaluators(image).embedding for image in images]
        return float(np.mean([0.0 if f is None or unused is None else measure_similarity(unused, f) for f in faces]))

    return measure_mean([np.asarray(i.pixels) for i in samples]), measure_mean(list(drawings))


def score_expressiveness(
    backbone: Backbone,
    evaluators: ImageEvaluators,
    people: int,
    steps: int,
    settings: GenerateSettings,
    progress: Progress,
) -> list[Figure]:
    """Return the similarity by free tokens, the ceiling of drawing against drawing, and their ratio."""
    similarities = [measure_likeness(backbone, evaluators, 200 + n, steps, settings, progress) for n in range(people)]
    ours, ceiling = (float(np.mean(column)) for column in zip(*similarities, strict=True))
    return [
        Figure("expressiveness: similarity by free tokens", ours, None, people),
        Figure("expressiveness: drawing against drawing", ceiling, None, people),
        Figure("expressiveness: share of the ceiling", ours / ceiling, 0.85, people),
    ]
