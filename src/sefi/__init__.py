"""Learn a person or a pet from one photo into a text-to-image model, so that the prompt still works.

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sefi.core.threads import limit_spinning

if TYPE_CHECKING:
    from sefi.api import generate as generate, learn as learn
    from sefi.backbone.open import open_backbone as open_backbone
    from sefi.core.config import Config as Config
    from sefi.core.errors import SefiError as SefiError
    from sefi.core.nouns import Identity as Identity
    from sefi.core.presets import PRESETS as PRESETS

# Where each public name is defined; `__getattr__` imports it from there when it is asked for.
DEFINED_IN = {
    "learn": "sefi.api",
    "generate": "sefi.api",
    "open_backbone": "sefi.backbone.open",
    "Identity": "sefi.core.nouns",
    "Config": "sefi.core.config",
    "PRESETS": "sefi.core.presets",
    "SefiError": "sefi.core.errors",
}
__all__ = ["PRESETS", "Config", "Identity", "SefiError", "generate", "learn", "open_backbone"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in DEFINED_IN:
        return getattr(import_module(DEFINED_IN[name]), name)
    raise AttributeError(f"module 'sefi' has no attribute {name!r}")


def keep_for_functions(*names: str) -> None:
    """Keep these names of the package for its functions, though subpackages have the same names.

    The first import of a subpackage binds its name here, so that `__getattr__` would not be asked for it any more.
    Each is therefore imported now, which reads one empty file, and its name is removed; later imports do not bind it.
    """
    for name in names:
        import_module(f"sefi.{name}")
        globals().pop(name, None)


limit_spinning()
keep_for_functions("learn", "generate")
