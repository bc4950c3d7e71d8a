"""Learn a person or a pet from one photo into a text-to-image model, so that the prompt still works.

Nothing heavy is imported until it is used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sefi.core.threads import limit_spinning

if TYPE_CHECKING:
    from sefi.api import generate as generate, learn as learn
    from sefi.backbone.open import open_backbone as open_backbone
    from sefi.core.config import Config as Config
    from sefi.core.errors import SefiError as SefiError
    from sefi.core.nouns import Identity as Identity
    from sefi.core.presets import PRESETS as PRESETS

HOMES = {
    "open_backbone": "sefi.backbone.open",
    "Identity": "sefi.core.nouns",
    "Config": "sefi.core.config",
    "PRESETS": "sefi.core.presets",
    "SefiError": "sefi.core.errors",
}
__all__ = ["PRESETS", "Config", "Identity", "SefiError", "generate", "learn", "open_backbone"]
__version__ = "0.1.0"


class Package(ModuleType):
    """The package itself; `learn` and `generate` are its verbs, though rooms of the same names exist.

    Importing a room makes the import system bind it here; the setters ignore that.
    """

    @property
    def learn(self) -> Any:  # noqa: ANN401
        """`sefi.api.learn`."""
        return import_module("sefi.api").learn

    @learn.setter
    def learn(self, _room: ModuleType) -> None: ...

    @property
    def generate(self) -> Any:  # noqa: ANN401
        """`sefi.api.generate`."""
        return import_module("sefi.api").generate

    @generate.setter
    def generate(self, _room: ModuleType) -> None: ...


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'sefi' has no attribute {name!r}")


sys.modules[__name__].__class__ = Package
limit_spinning()
