"""Where every word of a prompt looks while one picture is drawn."""

from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from sefi.attention.maps import average_word_maps
from sefi.attention.recorder import AttentionRecorder
from sefi.backbone.bundle import Backbone
from sefi.conditioning.conditioner import IdentityConditioner
from sefi.conditioning.encode import encode_token_ids
from sefi.core.config import GenerateConfig
from sefi.core.errors import ConfigError
from sefi.core.protocols import Progress
from sefi.generate.sampler import build_pipeline, draw_batch
from sefi.generate.schedulers import check_steps


@dataclass(frozen=True)
class AttendResult:
    """Attention of one picture, averaged over steps, layers and heads.

    Attributes:
        words: one readable word per token, start and end included, padding left out.
        maps: `[word, side, side]`, for the prompt with its identities.
        reference_maps: the same for the class word's prompt, with the same queries.
        placeholders: positions of the placeholders in `words`.
        image: the picture.
    """

    words: tuple[str, ...]
    maps: Tensor
    reference_maps: Tensor
    placeholders: tuple[int, ...]
    image: Image


class WithReference:
    """A conditioner that carries the class word's text as a third part of the context."""

    def __init__(self, inner: IdentityConditioner, prompt: str) -> None:
        self.inner = inner
        parsed = inner.parse(prompt)
        with torch.no_grad():
            self.reference = encode_token_ids(inner.backbone, parsed.ids[None])

    def stage(self, timestep: int) -> int:
        """As the inner conditioner's."""
        return self.inner.stage(timestep)

    def context(self, prompts: list[str], timestep: int) -> Tensor:
        """`[batch, word, 3 * width]`."""
        return self.joined(self.inner.context(prompts, timestep))

    def null_context(self, count: int, negative_prompt: str) -> Tensor:
        """`[count, word, 3 * width]`."""
        return self.joined(self.inner.null_context(count, negative_prompt))

    def joined(self, context: Tensor) -> Tensor:
        """The reference text beside a context."""
        return torch.cat([context, self.reference.expand(len(context), -1, -1)], dim=-1)


class MapSum:
    """Adds up the tape's maps after every step, conditional half only."""

    def __init__(self, tape: AttentionRecorder, side: int, progress: Progress) -> None:
        self.tape, self.side, self.progress = tape, side, progress
        self.found: list[Tensor] = []
        self.reference: list[Tensor] = []

    def start(self, total: int, label: str) -> None:
        """Passed on."""
        self.progress.start(total, label)

    def advance(self, **numbers: float) -> None:
        """Take the maps of the step that just ended."""
        self.found.append(average_word_maps(self.tape, self.side)[-1])
        self.reference.append(average_word_maps(self.tape, self.side, reference=True)[-1])
        self.tape.clear()
        self.progress.advance(**numbers)

    def finish(self) -> None:
        """Passed on."""
        self.progress.finish()


def attend(
    backbone: Backbone,
    conditioner: IdentityConditioner,
    prompt: str,
    seed: int,
    config: GenerateConfig,
    progress: Progress,
) -> AttendResult:
    """Draw one picture and keep where its words looked.

    Raises:
        ConfigError: without guidance there is no conditional half to tell apart; or more steps than the model has
            timesteps.
    """
    check_guided(config)
    check_steps(backbone, config.steps)
    parsed, tape = conditioner.parse(prompt), AttentionRecorder(keep_maps=True)
    sums = MapSum(tape, max(1, backbone.latent_size // 2), progress)
    progress.start(config.steps, "attending")
    made = build_pipeline(backbone, config, tape)
    image = draw_batch(backbone, made, WithReference(conditioner, prompt), [prompt], [seed], config, sums)[0]
    progress.finish()
    found, reference = (torch.stack(m).mean(0)[: parsed.length].cpu() for m in (sums.found, sums.reference))
    places = tuple(sorted(p for places in parsed.places.values() for p in places))
    return AttendResult(parsed.words, found, reference, places, image)


def check_guided(config: GenerateConfig) -> None:
    """Refuse drawing without guidance, with `ConfigError`: it has no conditional half to look at."""
    if config.guidance_scale <= 1:
        raise ConfigError("Attention is shown for guided pictures only.", "Use a guidance scale above 1.")


def share_inside(maps: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Share of each map's mass that lies inside a box.

    Args:
        maps: `[word, side, side]`.
        box: left, top, right, bottom as shares of the picture, in [0, 1].
    """
    side = maps.shape[-1]
    edges = torch.arange(side + 1) / side
    columns, rows = (
        (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * side
        for low, high in ((box[0], box[2]), (box[1], box[3]))
    )
    inside = (maps * rows[:, None] * columns).sum((-1, -2))
    return inside / maps.sum((-1, -2)).clamp(min=1e-12)
