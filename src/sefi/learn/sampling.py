"""What each step draws: a view's latent, noise, timesteps, a sentence; all from named streams."""

import torch
from torch import Tensor

from sefi.backbone.bundle import Backbone
from sefi.core.config import LearnConfig, ViewConfig
from sefi.core.streams import stream
from sefi.learn.objective import TrainingSample
from sefi.photo.views import PhotoViews

ENCODE_AT_ONCE = 8


class ViewLatents:
    """Latents of random views: fresh ones every step, or drawn from a pool that is encoded once."""

    def __init__(self, backbone: Backbone, views: PhotoViews, config: ViewConfig, seed: int) -> None:
        self.backbone, self.views, self.seed = backbone, views, seed
        self.pool = self.encoded(config.latent_pool, 0, "pool") if config.latent_pool else None

    def __call__(self, count: int, step: int) -> Tensor:
        """Latents `[count, channel, h, w]` of this step."""
        if self.pool is None:
            return self.encoded(count, step, "view")
        return self.pool[torch.randint(len(self.pool), (count,), generator=stream(self.seed, "pick", step))]

    def encoded(self, count: int, step: int, purpose: str) -> Tensor:
        """So many random views, encoded with the posterior's noise."""
        random = stream(self.seed, purpose, step)
        views = torch.stack([self.views.view(random) for _ in range(count)])
        return torch.cat([self.backbone.encode_image(v, random) for v in views.split(ENCODE_AT_ONCE)])


def draw_training_timesteps(config: LearnConfig, total: int, random: torch.Generator, step: int = 0) -> Tensor:
    """Uniform timesteps `[batch]`; stratified: samples go through the stages in turn, on from step to step."""
    if config.stage_sampling == "uniform":
        return torch.randint(0, total, (config.batch,), generator=random)
    stage = (torch.arange(config.batch) + step * config.batch) % config.stages
    place = torch.rand(config.batch, generator=random, dtype=torch.float32)
    # Where the stages do not divide T, truncating alone could fall into the stage below: keep inside this one.
    first, following = (-(-(stage + k) * total // config.stages) for k in (0, 1))
    return ((stage + place) * total / config.stages).long().clamp(first, following - 1)


def draw_sample(backbone: Backbone, latents: ViewLatents, config: LearnConfig, seed: int, step: int) -> TrainingSample:
    """Everything random of one step."""
    random = stream(seed, "sample", step)
    z = latents(config.batch, step)
    noise = torch.randn(z.shape, generator=random, dtype=torch.float32).to(z)
    template = torch.randint(len(config.templates), (config.batch,), generator=random)
    return TrainingSample(
        z, noise, draw_training_timesteps(config, backbone.num_train_timesteps, random, step).to(z.device), template
    )
