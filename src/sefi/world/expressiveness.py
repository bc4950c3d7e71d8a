"""Can tokens say who an unseen person is at all? Free tokens, many pictures, no attention loss: the upper bound."""

import numpy as np
import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.encode import get_token_row
from sefi.conditioning.prompt import get_class_token_id
from sefi.core.config import GenerateConfig
from sefi.core.nouns import Identity, IdentityHeader
from sefi.core.presets import DEFAULT
from sefi.core.protocols import Progress
from sefi.core.streams import stream
from sefi.generate.sampler import generate
from sefi.learn.objective import TrainingSample, compute_losses
from sefi.learn.sampling import draw_training_timesteps
from sefi.learn.texts import encode_training_texts
from sefi.metrics.similarity import similarity
from sefi.photo.enlarge import LOOKING_SIDE
from sefi.world.drawing import draw
from sefi.world.figure import Figure
from sefi.world.looking import Judges
from sefi.world.subjects import portrait, subject
from sefi.world.vae_training import to_tensor

PICTURES, PROMPT = 20, "a photo of <p>"
FREE = DEFAULT.learn.model_copy(update={"attention_weight": 0.0, "batch": 10})


def fitted(backbone: Backbone, latents: Tensor, steps: int, seed: int, progress: Progress) -> Tensor:
    """Tokens `[stage, 2, width]` that best explain latents `[picture, channel, h, w]` of one person."""
    texts = encode_training_texts(backbone, FREE)
    row = get_token_row(backbone, get_class_token_id(backbone.tokenizer, FREE.class_word))
    tokens = row.repeat(FREE.stages, 2, 1).requires_grad_()
    optimiser = torch.optim.Adam([tokens], lr=FREE.learning_rate)
    progress.start(steps, "free tokens")
    for step in range(steps):
        random = stream(seed, "free", step)
        chosen = latents[torch.randint(len(latents), (FREE.batch,), generator=random)]
        noise = torch.randn(chosen.shape, generator=random)
        template = torch.randint(len(FREE.templates), (FREE.batch,), generator=random)
        sample = TrainingSample(
            chosen, noise, draw_training_timesteps(FREE, backbone.num_train_timesteps, random), template
        )
        loss = compute_losses(backbone, texts, tokens, sample, FREE).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        progress.advance(loss=float(loss.detach()))
    progress.finish()
    return tokens.detach()


def likeness(
    backbone: Backbone, judges: Judges, number: int, steps: int, config: GenerateConfig, progress: Progress
) -> tuple[float, float]:
    """Mean similarity of generated pictures, and of other drawings of the person, to one unused drawing."""
    person = subject(number)
    drawings = np.stack([draw(portrait(person, number, 1 + view)) for view in range(PICTURES)])
    with torch.no_grad():
        latents = torch.cat([backbone.encode_image(d[None], stream(number, "free")) for d in to_tensor(drawings)])
    tokens = fitted(backbone, latents, steps, number, progress)
    header = IdentityHeader(
        name="p", method="sefi", stages=FREE.stages, base_model=backbone.fingerprint, width=backbone.width,
        class_word=FREE.class_word, settings={}, seed=number, library_versions={}, metrics={},
    )  # fmt: skip
    conditioner = IdentityConditioner(backbone, [Identity({"tokens": tokens}, header)])
    made = list(generate(backbone, conditioner, [PROMPT] * 8, list(range(8)), config, progress))
    unused = judges(draw(portrait(person, number), LOOKING_SIDE)).embedding

    def near(pictures: list[np.ndarray]) -> float:
        found = [judges(p).embedding for p in pictures]
        return float(np.mean([0.0 if f is None or unused is None else similarity(unused, f) for f in found]))

    return near([np.asarray(i.pixels) for i in made]), near(list(drawings))


def score_expressiveness(
    backbone: Backbone,
    judges: Judges,
    people: int,
    steps: int,
    config: GenerateConfig,
    progress: Progress,
    target: float = 0.75,
) -> list[Figure]:
    """Similarity by free tokens, the ceiling of drawing against drawing, and their ratio."""
    found = [likeness(backbone, judges, 200 + n, steps, config, progress) for n in range(people)]
    ours, ceiling = (float(np.mean(column)) for column in zip(*found, strict=True))
    return [
        Figure("expressiveness: similarity by free tokens", ours, None, people),
        Figure("expressiveness: drawing against drawing", ceiling, None, people),
        Figure("expressiveness: share of the ceiling", ours / ceiling, target, people),
    ]
