"""What every method can do; generation, benchmark and command line ask no more."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sefi.backbone.bundle import Backbone
from sefi.core.config import Config
from sefi.core.nouns import Identity
from sefi.core.protocols import Conditioner, Progress
from sefi.photo.views import PhotoViews


class Method(Protocol):
    """A way to learn a subject and to apply what was learned."""

    def learn(
        self,
        name: str,
        views: PhotoViews,
        backbone: Backbone,
        config: Config,
        seed: int,
        progress: Progress,
        checkpoint: Path | None = None,
    ) -> Identity:
        """Learn the subject of these views."""
        ...

    def applied(
        self, identities: Sequence[Identity], backbone: Backbone, strength: float = 1.0
    ) -> AbstractContextManager[Conditioner]:
        """Install whatever generation needs, yield the conditioner, and undo it all on leaving."""
        ...
