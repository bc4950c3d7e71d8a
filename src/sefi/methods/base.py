"""What every method can do; generation, benchmark and command line ask no more."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.core.protocols import Conditioner, Progress, SilentProgress
from sefi.photo.views import PhotoViews


@dataclass(frozen=True)
class Watched:
    """Who looks on while a subject is learned.

    Attributes:
        progress: is told of every step.
        checkpoint: where to keep and find an unfinished run; None keeps nothing.
        probe: how good an identity is, the higher the better, asked every `learn.probe_every` steps.
    """

    progress: Progress = field(default_factory=SilentProgress)
    checkpoint: Path | None = None
    probe: Callable[[Identity], float] | None = None


class Method(Protocol):
    """A way to learn a subject and to apply what was learned."""

    def learn(
        self,
        name: str,
        views: PhotoViews,
        backbone: Backbone,
        config: Config,
        seed: int,
        watched: Watched,
    ) -> Identity:
        """Learn the subject of these views."""
        ...

    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> AbstractContextManager[Conditioner]:
        """Install whatever generation needs, yield the conditioner, and undo it all on leaving."""
        ...
